"""The README's code, run from top to bottom as a reader would."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

BLOCKS = re.findall(
    r"^```python\n(.*?)^```",
    (Path(__file__).parent.parent / "README.md").read_text(),
    re.MULTILINE | re.DOTALL,
)


def test_the_readme_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(BLOCKS) == 7
    monkeypatch.chdir(tmp_path)  # it draws pictures
    names: dict[str, Any] = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for block in BLOCKS:
            # One pass over the images says as much as three.
            exec(compile(block.replace("range(3)", "range(1)"), "README.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "‖c_N‖/‖c_1‖" in printed
    assert "success 0." in printed
    assert names["record"].solver_error < 0.05
    assert names["record"].readout_error < 0.1
    assert names["solution"].error < 1e-3
    assert names["spectrum"].lambda_max >= names["pairs"].values[0] * (1 - 1e-4)
    assert names["monitor"].products > 0
    assert {path.name for path in tmp_path.iterdir()} == {"spectrum.png", "monitor.png", "runs"}
