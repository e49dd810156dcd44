"""The command line run in this process, and what its tests share."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from typer.testing import CliRunner

from torch_qsgd.cli import app

TINY = ["--width=8", "--depth=8", "--window=4", "--windows=2", "--warmup=5", "--classical-steps=2"]

#: Blue, vermilion and green of the three runs, and blue at 8 % over white, of the windows.
BLUE, VERMILION, GREEN, SHADE = (0, 114, 178), (213, 94, 0), (0, 158, 115), (235, 243, 248)


@dataclass
class Outcome:
    code: int
    stdout: str
    stderr: str
    exception: BaseException | None
    output: Path

    @property
    def log(self) -> dict[str, Any]:
        return json.loads((self.output / "run.json").read_text())

    @property
    def runs(self) -> list[dict[str, Any]]:
        return self.log["runs"]


def invoke(output: Path, *arguments: str, command: str = "train", columns: int = 200) -> Outcome:
    with torch.random.fork_rng():
        result = CliRunner().invoke(
            app, [command, *arguments, "--output", str(output)], env={"COLUMNS": str(columns)}
        )
    return Outcome(result.exit_code, result.stdout, result.stderr, result.exception, output)


def train(output: Path, *arguments: str) -> Outcome:
    outcome = invoke(output, *arguments)
    assert outcome.code == 0, (outcome.stderr, outcome.exception)
    return outcome


def finals(run: dict[str, Any]) -> dict[str, Any]:
    return [e for e in run["evaluations"] if not e["predicted"]][-1]


def assert_one_clear_line(outcome: Outcome, message: str) -> None:
    assert isinstance(outcome.exception, SystemExit), outcome.exception
    assert outcome.code == 2
    (line,) = outcome.stderr.strip().splitlines()
    assert line.startswith("error ")
    assert re.search(message, line)
    assert "Traceback" not in outcome.stdout + outcome.stderr
    assert not (outcome.output / "run.json").exists()
    assert not (outcome.output / "spectrum.json").exists()


def tree(root: Path) -> Path:
    """Red and blue images of unequal sizes, eight and four a class."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 4)):
        for name, channel in (("red", 0), ("blue", 2)):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 120, (12 + i % 3, 12 + i % 2, 3))
                pixels[..., channel] += 120
                image = Image.fromarray(pixels.astype(np.uint8))
                image.save(root / part / name / f"{i}.png")
    return root


def pixels(path: Path) -> Counter[tuple[int, ...]]:
    with Image.open(path) as picture:
        return Counter(picture.convert("RGB").get_flattened_data())


def near(colours: Counter[tuple[int, ...]], wanted: tuple[int, ...]) -> int:
    """Pixels of a colour, give or take the rounding of its blending."""
    return sum(
        count
        for colour, count in colours.items()
        if all(abs(a - b) <= 1 for a, b in zip(colour, wanted, strict=True))
    )
