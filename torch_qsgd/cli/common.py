"""What the commands share: options, losses, progress, complaints and JSON."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text
from torch import Tensor, nn

from torch_qsgd.models import ACTIVATIONS, NORMS
from torch_qsgd.names import from_module, suggestion
from torch_qsgd.training import LossFunction

# ---- Options -------------------------------------------------------------------------------------

Data = Annotated[
    str,
    typer.Option(help="digits, cifar10, cifar100, or a folder with train/ and val/ image folders."),
]
Model = Annotated[
    str,
    typer.Option(
        help="resnet, resnet-7m, resnet-103m, one of torchvision's image classifiers, or "
        "module:function."
    ),
]
Width = Annotated[int | None, typer.Option(help="Channels of the first stage.")]
Depth = Annotated[int | None, typer.Option(help="Layers: 8, 14, 20, … (6n + 2).")]
Activation = Annotated[str | None, typer.Option(help=", ".join(ACTIVATIONS) + ".")]
Norm = Annotated[str | None, typer.Option(help=", ".join(NORMS) + ".")]
Loss = Annotated[
    str, typer.Option(help="cross-entropy, mse (to one-hot labels), or module:function; a mean.")
]
BatchSize = Annotated[int, typer.Option(help="Images a batch.")]
ImageSize = Annotated[int | None, typer.Option(min=1, help="Side in pixels.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, …")]
Workers = Annotated[int, typer.Option(help="Processes that read images.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON in place of tables.")]


def model_shape(
    width: int | None, depth: int | None, activation: str | None, norm: str | None
) -> dict[str, Any]:
    """The fields of ``ResNetConfig`` that were asked for."""
    given = {"width": width, "depth": depth, "activation": activation, "norm": norm}
    return {name: value for name, value in given.items() if value is not None}


def usable_device(name: str) -> torch.device:
    """A device by name, after a first tensor on it.

    Raises:
        ValueError: where there is no such device here, with those that there are.
    """
    here = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    here += ["mps"] if torch.backends.mps.is_available() else []
    try:
        device = torch.device(name)
    except RuntimeError:
        known = [*(["cuda"] if torch.cuda.is_available() else []), *here]
        hint = "; a GPU is 'cuda'" if "gpu" in name.lower() else suggestion(name, known)
        raise ValueError(f"unknown device {name!r}; here: {', '.join(here)}{hint}") from None
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # PyTorch built without it asserts
        reason = str(error).split("\n")[0]
        if device.type == "cuda" and not torch.cuda.is_available():
            reason = (
                "this PyTorch finds no GPU: the driver is missing, or PyTorch was built without "
                "CUDA"
            )
        raise ValueError(
            f"device {name!r} cannot be used: {reason}; here: {', '.join(here)}"
        ) from error
    return device


# ---- Losses --------------------------------------------------------------------------------------


def _squared_error(outputs: Tensor, labels: Tensor) -> Tensor:
    """Mean square of the outputs' distance from one-hot labels, over images and classes."""
    return F.mse_loss(outputs, F.one_hot(labels, outputs.shape[1]).to(outputs.dtype))


LOSSES: dict[str, LossFunction] = {"cross-entropy": F.cross_entropy, "mse": _squared_error}


def build_loss(name: str) -> LossFunction:
    """A loss of (outputs, labels) by name.

    Args:
        name: a key of :data:`LOSSES`, or ``"module:function"``; a module class, such as
            ``torch.nn:CrossEntropyLoss``, is made with its defaults.

    Raises:
        ValueError: for an unknown name, with the nearest known one.

    Example:
        >>> build_loss("torch.nn:CrossEntropyLoss")
        CrossEntropyLoss()
    """
    if name in LOSSES:
        return LOSSES[name]
    if ":" not in name:
        raise ValueError(
            f"unknown loss {name!r}; known: {', '.join(LOSSES)}, module:function"
            f"{suggestion(name, LOSSES)}"
        )
    found = from_module(name, "loss")
    try:
        loss = found() if isinstance(found, type) and issubclass(found, nn.Module) else found
    except TypeError as error:
        raise ValueError(f"loss {name!r} cannot be made without arguments: {error}") from error
    if not callable(loss):
        raise ValueError(f"loss {name!r} is no function: it is of type {type(loss).__name__}")
    return loss  # type: ignore[no-any-return]


# ---- What is shown -------------------------------------------------------------------------------


def progress_bar(console: Console) -> Progress:
    """A bar with steps done and time left, gone at the end."""
    return Progress(
        TextColumn("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("time left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )


@contextmanager
def interrupts() -> Iterator[Callable[[], None]]:
    """Yield what raises KeyboardInterrupt once Ctrl-C was pressed.

    Where it lands in a callback of a library, Python raises it there, and it may be lost.
    """
    pressed = False

    def press(number: int, frame: Any) -> None:
        nonlocal pressed
        pressed = True
        raise KeyboardInterrupt

    def heed() -> None:
        if pressed:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, press)
    try:
        yield heed
    finally:
        signal.signal(signal.SIGINT, before)


def say(console: Console, text: str) -> None:
    """Print text as it is: brackets and numbers are not marked up, long lines stay whole."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def fail(error: Exception | str) -> typer.Exit:
    """Complain in one line on stderr; raise what is returned to end with exit code 2."""
    message = Text.assemble(("error ", "bold red"), " ".join(str(error).split("\n")))
    Console(stderr=True).print(message, highlight=False, soft_wrap=True)
    return typer.Exit(2)


# ---- What is written -----------------------------------------------------------------------------


def finite(value: Any) -> Any:
    """The same, with ``None`` for numbers that JSON has no word for."""
    if isinstance(value, dict):
        return {key: finite(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_json(value: Any) -> str:
    """JSON text of plain numbers, lists and strings."""
    return json.dumps(finite(value), indent=1, allow_nan=False)


def write_json(path: Path, value: Any) -> None:
    """Write :func:`as_json` to a file."""
    path.write_text(as_json(value), encoding="utf-8")
