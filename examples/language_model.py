"""A character transformer on English text: trained, then audited.

A decoder-only transformer of 69,000 weights learns to tell the next character of scikit-learn's
descriptions of its datasets, 43,000 characters of English with some tables. It is trained by SGD
with momentum; the audit then measures which of the quantum algorithm's assumptions hold for it.

    python examples/language_model.py                a minute
    python examples/language_model.py --quick        half a minute: fewer measurements
    python examples/language_model.py --output DIR   where the report goes
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from audited import pretrain, report_audit
from rich.console import Console
from torch import Tensor, nn

from torch_qsgd.cli.common import say

Batch = tuple[Tensor, Tensor]

#: Lines a batch, and characters a line.
SIZE, LENGTH = 16, 64
#: Learning rate of the training, which has momentum 0.9.
TRAINING_RATE = 0.15
#: Of the windows: at twice this rate the series no longer follows SGD for 20 steps.
RATE, DENSITY, WINDOW = 0.05, 0.3, 20


# ---- Text ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Text:
    """Characters as numbers; the last tenth of the text is held out.

    Attributes:
        characters: all that occur, in the order of their numbers.
        train, validation: numbers of characters, int64.
    """

    characters: str
    train: Tensor
    validation: Tensor

    @property
    def uniform(self) -> float:
        """Nats a character where nothing is known of it."""
        return math.log(len(self.characters))

    @property
    def unigram(self) -> float:
        """Nats a held-out character by how often each occurs in the training text, plus once."""
        counts = torch.bincount(self.train, minlength=len(self.characters)).double() + 1
        return -float((counts / counts.sum()).log()[self.validation].mean())


def load_text() -> Text:
    """scikit-learn's descriptions of its datasets, one after the other, by name."""
    folder = resources.files("sklearn.datasets.descr")
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".rst")), key=lambda f: f.name)
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    characters = "".join(sorted(set(text)))
    numbers = {character: number for number, character in enumerate(characters)}
    codes = torch.tensor([numbers[character] for character in text])
    held_out = len(codes) // 10
    return Text(characters, codes[:-held_out], codes[-held_out:])


def load_batches(
    codes: Tensor, generator: torch.Generator, *, size: int = SIZE, length: int = LENGTH
) -> Iterator[Batch]:
    """Batches without end from random places of a text: lines, and the next character of each.

    Args:
        codes: numbers of characters.
        generator: of the places.
        size, length: lines a batch, and characters a line.

    Returns:
        Pairs (characters, next characters), both of shape (size, length).
    """
    while True:
        starts = torch.randint(len(codes) - length, (size, 1), generator=generator)
        places = starts + torch.arange(length)
        yield codes[places], codes[places + 1]


def held_out_batches(codes: Tensor, *, size: int = SIZE, length: int = LENGTH) -> list[Batch]:
    """A text once from its start, but for an end that fills no line; likewise."""
    lines = (len(codes) - 1) // length
    inputs, targets = (codes[i : i + lines * length].view(lines, length) for i in (0, 1))
    return list(zip(inputs.split(size), targets.split(size), strict=True))


# ---- Model ---------------------------------------------------------------------------------------


class Block(nn.Module):
    """Causal attention, then a network with one hidden layer, each added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        """Make the layers: ``width`` numbers a character, a multiple of ``heads``."""
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.mixture = nn.Linear(width, width)
        self.network = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Of shape (batch, characters, width), as what it returns."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.query_key_value(self.norm(x)).chunk(3, -1)
        )
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.mixture(seen.transpose(1, 2).flatten(2))
        return x + self.network(x)


class CharacterTransformer(nn.Module):
    """Scores of each next character, given the characters up to there."""

    def __init__(self, characters: int, width: int, depth: int, heads: int, length: int) -> None:
        """Make the layers.

        Args:
            characters: number of different ones.
            width: of the vector that a character becomes, a multiple of ``heads``.
            depth: blocks.
            heads: of each block's attention.
            length: the most characters that a line may have.
        """
        super().__init__()
        self.characters = nn.Embedding(characters, width)
        self.positions = nn.Parameter(torch.empty(length, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.scores = nn.Linear(width, characters)
        for table in (self.characters.weight, self.positions):
            nn.init.normal_(table, std=0.1)

    def forward(self, codes: Tensor) -> Tensor:
        """Numbers of characters, of shape (batch, line), to scores (batch, line, characters)."""
        x = self.characters(codes) + self.positions[: codes.shape[1]]
        return self.scores(self.norm(self.blocks(x)))


def build_model(
    characters: int,
    seed: int = 0,
    *,
    width: int = 48,
    depth: int = 2,
    heads: int = 4,
    length: int = LENGTH,
) -> CharacterTransformer:
    """A transformer at random weights, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CharacterTransformer(characters, width, depth, heads, length)


def cross_entropy(scores: Tensor, targets: Tensor) -> Tensor:
    """Mean over the characters, in nats."""
    return F.cross_entropy(scores.flatten(0, 1), targets.flatten())


# ---- Run -----------------------------------------------------------------------------------------


def main(
    output: Annotated[Path, typer.Option(help="Folder of the report.")] = Path(
        "runs/language_model"
    ),
    steps: Annotated[int, typer.Option(min=1, help="Of training, before the audit.")] = 1000,
    quick: Annotated[bool, typer.Option("--quick", help="Measure less.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, batches and probes.")] = 0,
) -> None:
    """Train a character transformer on English text, then audit it."""
    torch.set_num_threads(1)  # the network is small: on a busy machine more threads only wait
    console = Console()
    text = load_text()
    model = build_model(len(text.characters), seed)
    batches = load_batches(text.train, torch.Generator().manual_seed(seed))
    held_out = held_out_batches(text.validation)
    trained = pretrain(
        model, cross_entropy, batches, held_out, steps=steps, lr=TRAINING_RATE, console=console
    ).final
    say(
        console,
        f"{sum(p.numel() for p in model.parameters()):,} weights, {steps:,} steps of SGD: "
        f"{trained.loss:.2f} nats a held-out character, {100 * trained.accuracy:.0f} % of them "
        f"right; {text.unigram:.2f} nats for a guess by how often each character occurs, "
        f"{text.uniform:.2f} for a uniform one",
    )
    report_audit(
        model,
        cross_entropy,
        list(islice(batches, 2 * WINDOW)),
        held_out,
        lr=RATE,
        density=DENSITY,
        window=WINDOW,
        quick=quick,
        seed=seed,
        title=f"Character transformer on English text, after {steps:,} steps",
        output=output,
        name="language_model",
        console=console,
    )


if __name__ == "__main__":
    typer.run(main)
