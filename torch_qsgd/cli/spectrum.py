"""``torch-qsgd spectrum``: the Hessian's spectrum at a checkpoint, as table, picture and JSON."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader

from torch_qsgd.checks import require_integer, require_number, require_one_of
from torch_qsgd.cli import common
from torch_qsgd.cli.checkpoint import zeros_held
from torch_qsgd.cli.layers import layer_blocks, require_layers
from torch_qsgd.cli.spectrum_report import SpectrumReport
from torch_qsgd.cli.task import load_task
from torch_qsgd.cli.unfinished import Unfinished
from torch_qsgd.data import fixed_batches
from torch_qsgd.errors import DivergenceError, GraphError
from torch_qsgd.hessian import HessianOperator, Spectrum, eigenpairs_of, spectrum_of
from torch_qsgd.hessian.masses import counted
from torch_qsgd.hessian.operator import KINDS
from torch_qsgd.optim import QuantumSGD
from torch_qsgd.training import LossFunction, evaluate

_ZEROS = ("held", "free")


#: Options that the numbers do not depend on; a resumed run may change them.
_FREE = ("device", "workers", "top", "lr", "json", "resume", "output")


@dataclass(frozen=True)
class _Task:
    """What is measured: a model at its weights, on batches, in some coordinates."""

    title: str
    model: nn.Module
    loss_fn: LossFunction
    batches: DataLoader[Any]
    masks: dict[str, Tensor] | None
    facts: dict[str, Any]

    def describe(self) -> str:
        facts = self.facts
        return (
            f"{self.title}\n{facts['parameters']:,} parameters, {facts['active']:,} of them "
            f"active\n{counted(facts['samples'], 'training image')} in "
            f"{counted(len(self.batches), 'batch', 'batches')}: "
            f"loss {facts['mean_loss']:.4g}, accuracy {facts['accuracy']:.1%}"
        )


def spectrum_command(
    context: typer.Context,
    data: common.Data,
    model: common.Model = "resnet",
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Weights: a state_dict file, as train's model.pt; random unless given."),
    ] = None,
    width: common.Width = None,
    depth: common.Depth = None,
    activation: common.Activation = None,
    norm: common.Norm = None,
    train_mode: Annotated[
        bool,
        typer.Option(
            "--train-mode/--eval",
            help="Normalise by each batch, as training does, or by running statistics.",
        ),
    ] = False,
    loss: common.Loss = "cross-entropy",
    batches: Annotated[int, typer.Option(min=1, help="Batches of training images, at most.")] = 4,
    batch_size: common.BatchSize = 64,
    image_size: common.ImageSize = None,
    kind: Annotated[str, typer.Option(help="hessian, or ggn for Gauss–Newton.")] = "hessian",
    steps: Annotated[int, typer.Option(help="Lanczos steps a probe.")] = 80,
    probes: Annotated[int, typer.Option(help="Random probes.")] = 2,
    density: Annotated[
        float, typer.Option(help="First prune to this share of the prunable weights, as train.")
    ] = 1.0,
    pruning: Annotated[str, typer.Option(help="How --density chooses weights.")] = "magnitude",
    zeros: Annotated[
        str,
        typer.Option(
            help="Weights that the checkpoint holds as zero: held (pruned, so no coordinates) "
            "or free."
        ),
    ] = "held",
    layers: Annotated[
        list[str] | None,
        typer.Option(help="Only this layer or pattern, such as '3.*'; may be repeated."),
    ] = None,
    per_layer: Annotated[bool, typer.Option(help="A spectrum for each layer.")] = False,
    top: Annotated[
        int, typer.Option(min=0, help="Also so many eigenvalues at each end, with residuals.")
    ] = 0,
    lr: Annotated[
        float | None,
        typer.Option(help="Learning rate, to say what gradient descent makes of the spectrum."),
    ] = None,
    device: common.Device = "cpu",
    workers: common.Workers = 0,
    seed: Annotated[
        int, typer.Option(help="Of images, probes, and weights without a checkpoint.")
    ] = 0,
    json: common.Json = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run interrupted in --output.")
    ] = False,
    output: Annotated[Path, typer.Option(help="Folder for spectrum.json and .png.")] = Path(
        "runs/spectrum"
    ),
) -> None:
    """Measure the Hessian's spectrum by stochastic Lanczos quadrature.

    Give --seed, --model and its shape as train had them: weights do not tell
    activations. Ctrl-C leaves a state that --resume goes on from.

    Dissipativity: a step of gradient descent shrinks the modes with eigenvalues
    between 0 and 2/lr, and amplifies negative ones and those beyond 2/lr.

    Error proxy P(t): the mean of |1 - lr λ|^t over all eigenvalues λ, which
    falls as modes shrink and rises once amplified ones prevail.

    Best window t*: the number of steps t at which P(t) is least.

    Example: python -m torch_qsgd spectrum --data digits --width 16 --depth 8
    --activation silu --checkpoint runs/demo/model.pt --lr 0.02
    """
    console = Console(stderr=json)  # so that stdout holds nothing but the JSON
    settings = {k: v for k, v in context.params.items() if k not in _FREE}
    try:
        _check(context.params)
        settings["checkpoint"] = None if checkpoint is None else _digest(checkpoint)
        unfinished = Unfinished(output / "unfinished", settings, resume)
        task = _prepare(console, context.params)
    except (ValueError, TypeError, OSError, RuntimeError, FloatingPointError) as error:
        raise common.fail(error) from None
    report = SpectrumReport(
        console, output, json, lr, task.title, {**task.facts, "settings": settings}
    )
    common.say(console, task.describe())
    try:
        with (
            HessianOperator(
                task.model, task.loss_fn, task.batches, masks=task.masks, layers=layers, kind=kind
            ) as operator,
            common.interrupts() as heed,
        ):
            unfinished.open()
            probing = {"steps": steps, "probes": probes, "seed": seed}
            if per_layer:
                _measure_layers(
                    console, operator, task.masks, unfinished, report.spectra, probing, heed
                )
            else:
                report.spectra[""] = _measure(operator, unfinished, 0, probing, progress=True)
            if top:
                report.pairs = _extremes(operator, top, seed)
            heed()
        report.complete = True
        unfinished.close()
    except KeyboardInterrupt:
        console.print("interrupted: the same command with --resume goes on from here")
        raise typer.Exit(130) from None
    except (DivergenceError, GraphError, torch.OutOfMemoryError, ValueError, OSError) as error:
        raise common.fail(error) from None
    finally:
        report.write()


# ---- Before --------------------------------------------------------------------------------------


def _check(given: Mapping[str, Any]) -> None:
    """Refuse wrong options before anything is read."""
    require_integer("steps", given["steps"], 1)
    require_integer("probes", given["probes"], 1)
    require_one_of("kind", given["kind"], KINDS)
    require_one_of("zeros", given["zeros"], _ZEROS)
    if given["lr"] is not None:
        require_number("lr", given["lr"], 0)
    if given["density"] != 1.0:
        require_number("density", given["density"], 0, 1, otherwise=", or 1 for no pruning")
    if given["per_layer"] and given["top"]:
        raise ValueError("--top is of one spectrum: give it --layers in place of --per-layer")


def _digest(checkpoint: Path) -> str:
    """Name and contents of a file, in short; only the name where it cannot be read."""
    if not checkpoint.is_file():
        return checkpoint.name
    with checkpoint.open("rb") as file:
        return f"{checkpoint.name} (sha256 {hashlib.file_digest(file, 'sha256').hexdigest()[:12]})"


def _prepare(console: Console, given: Mapping[str, Any]) -> _Task:
    """The model at its weights, its loss and its data, after a first look that they go together."""
    torch.manual_seed(given["seed"])
    images, loss_fn, model = load_task(given)
    total = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if not total:
        raise ValueError(f"{given['model']} has no weights to differentiate by")
    require_layers(model, given["layers"] or [])
    model = model.to(common.usable_device(given["device"]))
    batches = fixed_batches(
        images, given["batch_size"], given["batches"], given["seed"], given["workers"]
    )
    device = next(model.parameters()).device
    masks, what = _masks(console, model, loss_fn, batches, device, given)
    try:
        loss, accuracy = evaluate(model, loss_fn, batches, device)
    except (OSError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever the model or the loss raises on images of this shape
        inputs, _ = next(iter(batches))
        raise ValueError(
            f"{given['model']} with loss {given['loss']} fails on images of shape "
            f"{tuple(inputs.shape[1:])}, whose side --image-size sets: "
            f"{type(error).__name__}: {error}"
        ) from error
    model.train(given["train_mode"])
    weights = "random weights" if given["checkpoint"] is None else str(given["checkpoint"])
    part = f", layers {', '.join(given['layers'])}" if given["layers"] else ""
    title = f"{given['model']} on {given['data']}, {weights}{what}{part}"
    facts = {
        "parameters": total,
        "active": total - sum(int((~mask).sum()) for mask in (masks or {}).values()),
        "samples": len(batches.dataset),  # type: ignore[arg-type]
        "mean_loss": loss,
        "accuracy": accuracy,
    }
    return _Task(title, model, loss_fn, batches, masks, facts)


def _masks(
    console: Console,
    model: nn.Module,
    loss_fn: LossFunction,
    batches: DataLoader[Any],
    device: torch.device,
    given: Mapping[str, Any],
) -> tuple[dict[str, Tensor] | None, str]:
    """Masks of the active coordinates by name, the weights outside them zero; and why, in words."""
    if given["density"] < 1:
        # What an upload of `train` does: the same weights are prunable, and pruned.
        pruner = QuantumSGD(
            model.parameters(),
            lr=0.0,
            density=given["density"],
            pruning=given["pruning"],
            window=0,
            model=model,
            loss_fn=loss_fn,
            generator=torch.Generator().manual_seed(given["seed"]),
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            pruner.upload(*(tensor.to(device) for tensor in next(iter(batches))))
        for warning in caught:
            common.say(console, f"note: {warning.message}")
        names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
        masks = {names[p]: mask for p, mask in pruner.masks.items()}
        return masks, f", pruned to density {given['density']:g} by {given['pruning']}"
    if given["checkpoint"] is not None and given["zeros"] == "held":
        masks = zeros_held(model)
        if masks:
            return masks, ", zero weights held"
    return None, ""


# ---- Measuring -----------------------------------------------------------------------------------


def _measure(
    operator: HessianOperator,
    unfinished: Unfinished,
    index: int,
    probing: Mapping[str, int],
    progress: bool | Callable[[int, int], object],
) -> Spectrum:
    """Spectrum ``index`` of the run: as it was found before, or from where it stopped."""
    found = unfinished.finished(index)
    if found is None:
        found = spectrum_of(
            operator,
            steps=probing["steps"],
            probes=probing["probes"],
            generator=torch.Generator().manual_seed(probing["seed"]),
            progress=progress,
            checkpoint=unfinished.lanczos(index),
        )
        unfinished.keep(index, found)
    return found


def _measure_layers(
    console: Console,
    operator: HessianOperator,
    masks: Mapping[str, Tensor] | None,
    unfinished: Unfinished,
    spectra: dict[str, Spectrum],
    probing: Mapping[str, int],
    heed: Callable[[], None],
) -> None:
    """Fill ``spectra`` layer by layer, so that an interrupted run leaves those it has."""
    blocks = layer_blocks(operator, masks)
    with common.progress_bar(console) as bar:
        task = bar.add_task("layers", total=len(blocks))
        for index, (name, block) in enumerate(blocks.items()):

            def report(done: int, most: int, index: int = index) -> None:
                bar.update(task, completed=index + done / most)
                heed()

            spectra[name] = _measure(block, unfinished, index, probing, report)
            bar.update(task, completed=index + 1)


def _extremes(operator: HessianOperator, ends: int, seed: int) -> list[dict[str, Any]]:
    """So many eigenvalues at each end, and the tensor that holds most of each vector."""
    pairs = eigenpairs_of(
        operator,
        min(2 * ends, operator.dimension),
        generator=torch.Generator().manual_seed(seed),
    )
    rows = []
    for i, vector in enumerate(pairs.vectors):
        shares = {
            name: float(tensor.double().square().sum())
            for name, tensor in operator.unflatten(vector).items()
        }
        heaviest = max(shares, key=lambda name: shares[name])
        rows.append(
            {
                "value": float(pairs.values[i]),
                "residual": float(pairs.residuals[i]),
                "converged": bool(pairs.converged[i]),
                "heaviest": heaviest,
                "heaviest_share": shares[heaviest] / sum(shares.values()),
            }
        )
    return rows
