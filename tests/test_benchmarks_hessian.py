"""The Hessian benchmark: its plain methods are right, and a small run ends in a report."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("hessian_peers")


@pytest.fixture
def problem(peers: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    inputs = torch.randn(6, 3, dtype=torch.float64, generator=generator)
    return peers.Problem(model, inputs, torch.randint(2, (6,), generator=generator))


def dense(problem: Any) -> Tensor:
    """Row by row through PyTorch's functional interface, which none of the methods use."""
    names = [name for name, _ in problem.model.named_parameters()]
    shapes = [p.shape for p in problem.parameters]

    def loss(v: Tensor) -> Tensor:
        parts = v.split([shape.numel() for shape in shapes])
        state = {k: part.view(s) for k, part, s in zip(names, parts, shapes, strict=True)}
        outputs = torch.func.functional_call(problem.model, state, (problem.inputs,))
        return nn.functional.cross_entropy(outputs, problem.targets)

    at = torch.cat([p.detach().flatten() for p in problem.parameters])
    matrix: Tensor = torch.autograd.functional.hessian(loss, at)
    return matrix


@pytest.mark.parametrize("masked", [False, True])
def test_products_are_those_of_the_dense_hessian(peers: Any, problem: Any, masked: bool) -> None:
    matrix = dense(problem)
    if masked:
        mask = torch.tensor([[True, False, True]] * 4)
        problem = peers.Problem(problem.model, *problem.batch, {"0.weight": mask})
        kept = problem.active
        assert problem.dimension == len(kept) == len(matrix) - 4
        matrix = matrix[kept][:, kept]
    v = torch.randn(problem.dimension, dtype=torch.float64)
    for name in (peers.OURS, peers.KEPT, peers.REBUILT, peers.FORWARD):
        product = peers.PRODUCTS[name](problem.copy())
        torch.testing.assert_close(product(v), matrix @ v, rtol=1e-11, atol=1e-13)


def test_the_plain_density_is_gauss_quadrature(peers: Any, problem: Any) -> None:
    matrix, steps = dense(problem), 6
    found = peers.kept_density(problem, steps, 3)
    signs = torch.randint(2, (problem.dimension,), generator=torch.Generator().manual_seed(3))
    power = (2.0 * signs - 1).double() / problem.dimension**0.5
    probe = power
    # m nodes are exact for polynomials up to degree 2m - 1.
    for degree in range(2 * steps):
        moment = float(probe @ power)
        np.testing.assert_allclose(found.weights @ found.nodes**degree, moment, rtol=1e-9)
        power = matrix @ power


def run(output: Path, *parts: str) -> dict[str, Any]:
    chosen = [word for part in parts for word in ("--part", part)]
    command = [sys.executable, str(FOLDER / "hessian.py"), "--small", "--output", str(output)]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        command + chosen, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Aims" in done.stdout
    log: dict[str, Any] = json.loads(output.read_text())
    return log


def test_a_small_run_reports_each_part(tmp_path: Path) -> None:
    output = tmp_path / "hessian.json"
    earlier = {"rows": [], "machine": "another"}
    output.write_text(json.dumps({"small": True, "parts": {"product": earlier}}))
    parts = ["channels-last", "spectrum", "memory", "accuracy"]
    log = run(output, *parts)
    assert log["parts"].pop("product") == earlier
    assert list(log["parts"]) == parts
    assert output.with_suffix(".png").stat().st_size > 10_000
    mine = {
        name: [row for row in part["rows"] if row["method"] == "torch_qsgd"]
        for name, part in log["parts"].items()
    }
    assert all(rows and not any("error" in row for row in rows) for rows in mine.values())
    assert all(row["difference"] < 1e-12 for row in mine["channels-last"])
    assert all(row["dense_difference"] < 1e-12 for row in mine["accuracy"])
    peaks = {row["method"]: row.get("peak_mb") for row in log["parts"]["memory"]["rows"]}
    assert peaks["torch_qsgd"] > peaks["gradient"] > 0
    assert all(row["held"] is None for row in log["verdicts"])
