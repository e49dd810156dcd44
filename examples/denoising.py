"""A U-Net that removes noise from photographs: trained, then audited.

A U-Net of 67,000 weights learns to remove Gaussian noise from patches of the two photographs that
scikit-learn holds, and is tested on a part of each that it has not seen. It is trained by SGD with
momentum; the audit then measures which of the quantum algorithm's assumptions hold for it.

    python examples/denoising.py                a minute and a half
    python examples/denoising.py --quick        three quarters of a minute: fewer measurements
    python examples/denoising.py --output DIR   where the report goes
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from audited import pretrain, report_audit
from rich.console import Console
from sklearn.datasets import load_sample_images
from torch import Tensor, nn

from torch_qsgd.cli.common import say
from torch_qsgd.training import evaluate

Batch = tuple[Tensor, Tensor]

#: Patches a batch, and pixels a side.
SIZE, SIDE = 8, 32
#: Standard deviation of the noise, where black is 0 and white is 1.
NOISE = 0.1
#: Learning rate of the training, which has momentum 0.9.
TRAINING_RATE = 0.3
#: Of the windows: from about five times this rate on, the series diverges.
RATE, DENSITY, WINDOW = 0.1, 0.3, 20


# ---- Photographs ---------------------------------------------------------------------------------


def load_photographs() -> tuple[list[Tensor], list[Tensor]]:
    """scikit-learn's photographs, in units of the noise around middle grey.

    Returns:
        The left four fifths of each to train on, and the rest, each (3, height, width), float32.
    """
    seen, unseen = [], []
    for photograph in load_sample_images().images:
        image = (torch.tensor(photograph).permute(2, 0, 1) / 255 - 0.5) / NOISE
        edge = image.shape[2] * 4 // 5
        seen.append(image[:, :, :edge])
        unseen.append(image[:, :, edge:])
    return seen, unseen


def noisy(patches: Tensor, generator: torch.Generator) -> Batch:
    """The pair (patches with noise of variance 1, patches)."""
    return patches + torch.randn(patches.shape, generator=generator), patches


def load_batches(
    photographs: Sequence[Tensor],
    generator: torch.Generator,
    *,
    size: int = SIZE,
    side: int = SIDE,
) -> Iterator[Batch]:
    """Batches without end of noisy patches from random places, and the patches without noise.

    Args:
        photographs: each (3, height, width).
        generator: of places and noise.
        size, side: patches a batch, and pixels a side.

    Returns:
        Pairs (noisy, clean), both of shape (size, 3, side, side).
    """

    def below(count: int) -> int:
        return int(torch.randint(count, (), generator=generator))

    def patch() -> Tensor:
        image = photographs[below(len(photographs))]
        top, left = (below(length - side + 1) for length in image.shape[1:])
        return image[:, top : top + side, left : left + side]

    while True:
        yield noisy(torch.stack([patch() for _ in range(size)]), generator)


def held_out_batches(
    photographs: Sequence[Tensor],
    generator: torch.Generator,
    *,
    size: int = 2 * SIZE,
    side: int = SIDE,
) -> list[Batch]:
    """Photographs cut into patches, but for edges that fill none, in random order; likewise."""
    patches = torch.cat(
        [
            image.unfold(1, side, side).unfold(2, side, side).flatten(1, 2).transpose(0, 1)
            for image in photographs
        ]
    )
    mixed = patches[torch.randperm(len(patches), generator=generator)]
    return [noisy(part, generator) for part in mixed.split(size)]


def peak_signal_to_noise(loss: float) -> float:
    """In decibels, of white to the root of a mean square error in units of the noise's variance."""
    return -20 * math.log10(NOISE) - 10 * math.log10(loss)


# ---- Model ---------------------------------------------------------------------------------------


def convolutions(channels: int, width: int) -> nn.Sequential:
    """Two convolutions, each with its normalisation and activation."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        nn.GroupNorm(4, width),
        nn.SiLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.GroupNorm(4, width),
        nn.SiLU(),
    )


class UNet(nn.Module):
    """Images less the noise found in them."""

    def __init__(self, channels: int, widths: Sequence[int]) -> None:
        """Make the levels.

        Args:
            channels: of the images, whose sides can be halved at each level but the first.
            widths: channels of each level, multiples of four, the finest first.
        """
        super().__init__()
        self.down = nn.ModuleList(
            convolutions(before, width)
            for before, width in zip((channels, *widths), widths, strict=False)
        )
        self.up = nn.ModuleList(
            convolutions(coarse + width, width)
            for coarse, width in reversed(list(zip(widths[1:], widths, strict=False)))
        )
        self.noise = nn.Conv2d(widths[0], channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Of shape (batch, channels, height, width), as what it returns."""
        x, finer = self.down[0](images), []
        for level in self.down[1:]:
            finer.append(x)
            x = level(F.avg_pool2d(x, 2))
        for level in self.up:
            x = level(torch.cat([F.interpolate(x, scale_factor=2), finer.pop()], 1))
        return images - self.noise(x)


def build_model(seed: int = 0, *, widths: Sequence[int] = (12, 24, 48)) -> UNet:
    """A U-Net at random weights, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet(3, widths)


# ---- Run -----------------------------------------------------------------------------------------


def main(
    output: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("runs/denoising"),
    steps: Annotated[int, typer.Option(min=1, help="Of training, before the audit.")] = 400,
    quick: Annotated[bool, typer.Option("--quick", help="Measure less.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, batches and probes.")] = 0,
) -> None:
    """Train a U-Net to remove noise from photographs, then audit it."""
    torch.set_num_threads(1)  # the network is small: on a busy machine more threads only wait
    console = Console()
    seen, unseen = load_photographs()
    model = build_model(seed)
    batches = load_batches(seen, torch.Generator().manual_seed(seed))
    held_out = held_out_batches(unseen, torch.Generator().manual_seed(seed))
    trained = pretrain(
        model, F.mse_loss, batches, held_out, steps=steps, lr=TRAINING_RATE, console=console
    ).final
    before = evaluate(nn.Identity(), F.mse_loss, held_out, torch.device("cpu"))[0]
    say(
        console,
        f"{sum(p.numel() for p in model.parameters()):,} weights, {steps:,} steps of SGD: "
        f"{peak_signal_to_noise(trained.loss):.1f} dB of peak signal to noise on unseen patches, "
        f"{peak_signal_to_noise(before):.1f} dB with the noise left in",
    )
    report_audit(
        model,
        F.mse_loss,
        list(islice(batches, 2 * WINDOW)),
        held_out,
        lr=RATE,
        density=DENSITY,
        window=WINDOW,
        quick=quick,
        seed=seed,
        title=f"U-Net that removes noise from photographs, after {steps:,} steps",
        output=output,
        name="denoising",
        console=console,
    )


if __name__ == "__main__":
    typer.run(main)
