from __future__ import annotations

import pickle

import pytest
import torch

from tests.cases import randn
from torch_qsgd.solvers import Exact, JetWindow, resolve


def test_exact_sums_the_jets_and_leaves_them() -> None:
    jets = [[randn(3, seed=k), randn(2, 2, seed=k + 10)] for k in range(3)]
    velocities = [[randn(3, seed=k + 20)] for k in range(3)]
    before = [[c.clone() for c in row] for row in jets]
    solution = Exact().solve(JetWindow(jets, velocities, steps=7))
    for i in range(2):
        expected = torch.stack([row[i] for row in jets]).sum(0)
        torch.testing.assert_close(solution.displacement[i], expected)
    expected = torch.stack([row[0] for row in velocities]).sum(0)
    torch.testing.assert_close(solution.momentum[0], expected)
    assert solution.error == 0
    for row, kept in zip(jets, before, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(row, kept, strict=True))


def test_solvers_are_found_by_name_or_instance() -> None:
    assert isinstance(resolve("exact"), Exact)
    mine = Exact()
    assert resolve(mine) is mine
    assert isinstance(pickle.loads(pickle.dumps(mine)), Exact)
    with pytest.raises(ValueError, match="known: circuit, exact, hhl, noise, qsvt"):
        resolve("hhl2")
    with pytest.raises(TypeError, match="Solver"):
        resolve(3)  # type: ignore[arg-type]
