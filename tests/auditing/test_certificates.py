"""Certificates of networks by norms alone, beside those of maps written out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_qsgd.auditing.certificates import window_certificate
from torch_qsgd.carleman import PolynomialMap, certificate, trajectory


def quadratic_map(seed: int, forcing: float, spread: float, cubic: float) -> PolynomialMap:
    """A random map u ← G_0 + G_1 u + G_2 u⊗u with a symmetric, contracting G_1."""
    draw = np.random.default_rng(seed)
    q, _ = np.linalg.qr(draw.standard_normal((4, 4)))
    linear = q @ np.diag(np.linspace(-spread, spread, 4)) @ q.T
    return PolynomialMap(
        forcing * draw.standard_normal(4), linear, cubic * draw.standard_normal((4, 16))
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**16), st.floats(1e-3, 0.3), st.floats(0.1, 0.95), st.floats(1e-4, 0.5))
def test_norms_alone_give_the_certificate_of_the_map(
    seed: int, forcing: float, spread: float, cubic: float
) -> None:
    step = quadratic_map(seed, forcing, spread, cubic)
    norms = tuple(float(norm) for norm in step.norms)
    assert len(norms) == 3
    of_norms, of_map = window_certificate(norms, 20, 2), certificate(step, 20, order=2)
    assert bool(of_norms) == bool(of_map)
    if of_norms and of_map:
        assert of_norms.bound(2) == pytest.approx(of_map.bound(2), rel=1e-6)


def test_the_bound_lies_above_the_true_error() -> None:
    step = quadratic_map(1, 0.01, 0.7, 0.05)
    proof = window_certificate(tuple(map(float, step.norms)), 20, 1)  # type: ignore[arg-type]
    assert proof
    true = trajectory([step] * 20, np.zeros(4))[-1]
    linear = PolynomialMap(step.coefficients[0], step.coefficients[1])
    cut = trajectory([linear] * 20, np.zeros(4))[-1]
    assert 0 < np.linalg.norm(true - cut) <= proof.bound(1)


def test_a_growing_linear_part_has_none_and_says_why() -> None:
    found = window_certificate((0.1, 1.5, 0.2), 50, 2)
    assert not found
    assert "1.5" in str(found)
