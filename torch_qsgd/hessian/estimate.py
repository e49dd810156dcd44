"""Spectra of Hessians, and of any symmetric operator, by stochastic Lanczos quadrature."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from torch_qsgd.batches import Count
from torch_qsgd.checks import require_flag
from torch_qsgd.hessian.curvature import LossFunction
from torch_qsgd.hessian.operator import HessianOperator, Masks
from torch_qsgd.hessian.quadrature_runs import QuadratureRuns, remove
from torch_qsgd.hessian.spectrum import Spectrum
from torch_qsgd.hessian.thick_restart import SymmetricOperator

#: A callable is told how many products are done, and how many there will be at most.
ProgressReport = bool | Callable[[int, int], object]

_SAVED_EVERY = 60.0  # seconds
_SAVING_SHARE = 0.1  # of the time, at most


def hessian_spectrum(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Any,
    *,
    steps: int = 80,
    probes: int = 2,
    masks: Masks | None = None,
    layers: str | Sequence[str] | None = None,
    parameters: Iterable[Tensor] | None = None,
    kind: str = "hessian",
    reduction: str = "mean",
    keep_graph: str | bool = "auto",
    memory: float | None = None,
    check: bool = True,
    count: Count | None = None,
    process_group: dist.ProcessGroup | None = None,
    basis_size: int | None = None,
    basis_dtype: torch.dtype | None = None,
    basis_device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
    progress: ProgressReport = True,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Spectrum:
    r"""Eigenvalues of a model's Hessian: density, both ends, trace, each with its error.

    .. math::
        H = \nabla_\theta^2 \, \frac1N \sum_{i=1}^N
        \mathtt{loss\_fn}(\mathtt{model}(x_i), y_i)

    The matrix is never written out: ``steps`` × ``probes`` products with vectors are enough, each
    of about two gradients. Outliers come out as exact eigenvalues, the bulk as a density. The
    model is left as it was.

    Args:
        model: in the mode, train or eval, whose Hessian is meant.
        loss_fn: of outputs and targets; a scalar.
        data: one batch as a tuple ``(inputs, targets)``, or batches: a list, a ``DataLoader``.
        steps: of each Lanczos run. More resolve more eigenvalues, and the bulk more finely.
        probes: how many runs. The second one finds what the first cannot see, further copies of
            equal eigenvalues; it halves the variance of the bulk, and takes the outliers' out of
            the trace's error. One run takes eigenvalues of few copies for simple ones.
        masks: bool tensors by parameter or its name, True on active coordinates; the spectrum is
            then that of the active coordinates' sub-matrix.
        layers: names of modules or parameters, or patterns such as ``"layer*.conv1"``: the
            spectrum of that diagonal block.
        parameters, kind, reduction, keep_graph, memory, check, count, process_group: see
            :class:`HessianOperator`; ``kind="ggn"`` gives the Gauss–Newton matrix.
        basis_size, basis_dtype, basis_device: for where memory is short, see :func:`spectrum_of`.
        generator: source of the probes, on the CPU; by default one with seed 0.
        progress: whether to show a bar with the time left, in a terminal; or a function of the
            products done and their number.
        checkpoint: path of a file from which an interrupted call goes on, see
            :func:`spectrum_of`.

    Returns:
        The spectrum: ``lambda_min`` and ``lambda_max`` with bounds, ``trace`` with its standard
        error, ``nodes`` and ``weights``, ``density``, ``plot``, and what follows for a learning
        rate.

    Raises:
        ValueError: for an argument outside what is allowed, or an operator that fails its check.
        DivergenceError: where the loss, or a product, is NaN or infinite.
        GraphError: where the model holds an operation without a second derivative.
        SizeError: where the vectors, or a graph, do not fit into memory.

    Cost: ``steps`` × ``probes`` products, and as many vectors of the model's size.

    Source: see ``torch_qsgd/hessian/quadrature.py``.

    Example:
        >>> model = nn.Linear(3, 1, bias=False)
        >>> x, y = torch.eye(3) * torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3, 1)
        >>> spectrum = hessian_spectrum(model, nn.functional.mse_loss, (x, y))
        >>> spectrum.nodes.round(4)  # 2/3 of 1, 4 and 9
        array([0.6667, 2.6667, 6.    ])
        >>> print(f"{spectrum.lambda_max:.4f}, {spectrum.trace:.4f}, {spectrum.products}")
        6.0000, 9.3333, 3
    """
    with HessianOperator(
        model,
        loss_fn,
        data,
        parameters=parameters,
        masks=masks,
        layers=layers,
        kind=kind,
        reduction=reduction,
        keep_graph=keep_graph,
        memory=memory,
        check=check,
        count=count,
        process_group=process_group,
    ) as operator:
        return spectrum_of(
            operator,
            steps=steps,
            probes=probes,
            basis_size=basis_size,
            basis_dtype=basis_dtype,
            basis_device=basis_device,
            generator=generator,
            progress=progress,
            checkpoint=checkpoint,
        )


def layer_spectra(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Any,
    *,
    layers: Sequence[str] | None = None,
    steps: int = 80,
    probes: int = 2,
    generator: torch.Generator | None = None,
    progress: ProgressReport = True,
    basis_size: int | None = None,
    basis_dtype: torch.dtype | None = None,
    basis_device: torch.device | str | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    **options: Any,
) -> dict[str, Spectrum]:
    """Spectrum of each layer's diagonal block of the Hessian.

    Args:
        model, loss_fn, data, steps, probes, progress: as for :func:`hessian_spectrum`.
        layers: names of modules or parameters, or patterns; each entry is one block. By default
            every module that owns parameters, with these alone.
        generator: as for :func:`hessian_spectrum`; by default each layer has one with seed 0, and
            so the spectrum that it has alone.
        basis_size, basis_dtype, basis_device: see :func:`spectrum_of`.
        checkpoint: path of a folder, in which there is one file a layer, see :func:`spectrum_of`;
            files are removed when all layers are done.
        options: of :class:`HessianOperator`: ``masks``, ``kind``, ``reduction`` and so on.

    Returns:
        Spectra by the entry of ``layers``, or the module's name; a parameter that the model itself
        owns stands under its own name.

    Raises:
        ValueError, DivergenceError, GraphError, SizeError: as :func:`hessian_spectrum`.

    Cost: ``steps`` × ``probes`` products a layer, at most; the data's graph is made once.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))
        >>> data = torch.randn(8, 3), torch.randn(8, 1)
        >>> spectra = layer_spectra(model, nn.functional.mse_loss, data)
        >>> {name: spectrum.dimension for name, spectrum in spectra.items()}
        {'0': 8, '2': 3}
    """
    if isinstance(layers, str):
        layers = [layers]
    with HessianOperator(model, loss_fn, data, **options) as operator:
        blocks: dict[str, str | list[str]] = {name: name for name in layers or ()}
        if layers is None:
            owned: dict[str, list[str]] = {}
            for name in operator.parameter_names:
                owned.setdefault(name.rpartition(".")[0] or name, []).append(name)
            blocks.update(owned)
        folder = None if checkpoint is None else Path(checkpoint)
        if folder is not None and not folder.is_dir():
            raise ValueError(f"checkpoint must be a folder that is there, got {str(checkpoint)!r}")
        spectra, paths = {}, []
        for name, block in blocks.items():
            runs = QuadratureRuns(
                operator.block(block),
                steps,
                probes,
                basis_size,
                basis_dtype,
                basis_device,
                generator,
            )
            path = None if folder is None else folder / f"{quote(name, safe='')}.checkpoint"
            began = time.perf_counter()
            spectra[name] = _completed(runs, path, progress)
            if path is not None:
                runs.save(path, time.perf_counter() - began)
                paths.append(path)
        for path in paths:
            remove(path)
        return spectra


def spectrum_of(
    operator: SymmetricOperator,
    *,
    steps: int = 80,
    probes: int = 2,
    basis_size: int | None = None,
    basis_dtype: torch.dtype | None = None,
    basis_device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
    progress: ProgressReport = True,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Spectrum:
    r"""Eigenvalues of a symmetric operator, from its products with vectors alone.

    Runs of Lanczos' method from random vectors, each in the complement of what the earlier ones
    have found; see ``torch_qsgd/hessian/quadrature.py`` for how they make one spectrum.

    Args:
        operator: has ``dimension``, ``dtype``, ``device`` and ``@``, as :class:`HessianOperator`.
        steps: of each run, at least 1; n are enough.
        probes: how many runs, at least 1. Where runs come to their end before that, as on an
            operator of few different eigenvalues, more of them are made of the products left.
        basis_size: vectors held at once, at least 2; by default ``steps`` × ``probes``, or n. With
            fewer, runs are shorter and more, for the same number of products, and only the best
            vectors are kept from one to the next: less is resolved.
        basis_dtype: of the stored vectors; ``torch.bfloat16`` or ``torch.float16`` halve the
            memory of float32, and bounds are then no better than 0.008 or 0.001 of ‖H‖.
        basis_device: of the stored vectors; ``"cpu"`` where the accelerator's memory is short.
        generator: source of the probes, on the CPU; by default one with seed 0. Probes do not
            depend on the operator's device.
        progress: as for :func:`hessian_spectrum`.
        checkpoint: path of a file. It is written every minute, and where the call is interrupted
            or fails; the same call then goes on from it, to the result of an uninterrupted one,
            bit for bit. It is removed at the end, so that a later call, with other weights, say,
            begins anew. One product more is spent to see that the operator is the same, and where
            it has a ``fingerprint``, a string, that is compared. Of several ranks the first one
            writes the file, and all read it: the path must be one that all of them see.

    Returns:
        The spectrum. ``steps`` is the longest run's number of steps, ``probes`` that of runs.

    Raises:
        ValueError: for an argument outside what is allowed, a checkpoint of another call, or
            products so small that they lose digits.
        DivergenceError: where a product holds NaN or infinity.
        SizeError: where the vectors do not fit into memory.

    Cost: at most ``steps`` × ``probes`` products, fewer where runs come to their end; four passes
    over the basis a step. Memory for ``basis_size`` vectors, and a few.

    Source: see ``torch_qsgd/hessian/quadrature.py``.

    Example:
        >>> class Diagonal:
        ...     dimension, dtype, device = 100, torch.float64, torch.device("cpu")
        ...     def __matmul__(self, v):
        ...         return torch.cat([v[:2] * torch.tensor([7.0, -2.0]), torch.zeros(98)])
        >>> spectrum = spectrum_of(Diagonal())
        >>> spectrum.weights[spectrum.exact], spectrum.nodes[spectrum.exact].round(9)
        (array([0.01, 0.01]), array([-2.,  7.]))
        >>> print(f"{spectrum.trace:.3f} ± {spectrum.trace_error:.3f}")
        5.000 ± 0.000
    """
    path = None if checkpoint is None else _checked_path(checkpoint)
    runs = QuadratureRuns(operator, steps, probes, basis_size, basis_dtype, basis_device, generator)
    spectrum = _completed(runs, path, progress)
    if path is not None:
        remove(path)
    return spectrum


def _completed(runs: QuadratureRuns, path: Path | None, progress: ProgressReport) -> Spectrum:
    """Make the runs, or what is left of them, and what spectrum they show."""
    began = time.perf_counter()
    if path is not None and path.exists():
        runs.resume(path)
    with _shown(progress) as report, _saved(runs, path, began) as save:
        report(runs.products, runs.most)
        while runs.advance():
            report(runs.products, runs.most)
            save()
    return runs.spectrum(time.perf_counter() - began)


# ---- Progress and checkpoints ------------------------------------------------------------------


@contextlib.contextmanager
def _shown(progress: ProgressReport) -> Iterator[Callable[[int, int], object]]:
    """Tell how many products are done, in a bar or by the caller's function."""
    if callable(progress):
        yield progress
        return
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    hidden = not (require_flag("progress", progress) and console.is_terminal)
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task("Hessian-vector products", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextlib.contextmanager
def _saved(runs: QuadratureRuns, path: Path | None, began: float) -> Iterator[Callable[[], None]]:
    """Save every so often, and where something ends the work before its time."""
    if path is None:
        yield lambda: None
        return
    last, took = time.perf_counter(), 0.0

    def save() -> None:
        nonlocal last, took
        now = time.perf_counter()
        if now - last >= max(_SAVED_EVERY, took / _SAVING_SHARE):
            runs.save(path, now - began)
            last = time.perf_counter()
            took = last - now

    try:
        yield save
    except BaseException as error:
        if runs.whole:
            runs.save(path, time.perf_counter() - began)
        if path.exists():
            error.add_note(f"{path} holds the work so far: the same call goes on from there")
        raise


def _checked_path(given: str | os.PathLike[str]) -> Path:
    path = Path(given)
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(
            f"checkpoint must be the path of a file in a folder that is there, got {str(given)!r}"
        )
    return path
