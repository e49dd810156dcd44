from __future__ import annotations

import itertools
from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from torch_qsgd.readout import block_norms, post_selection

Array = NDArray[np.float64]


def dense_block(jets: Array, level: int, rescaling: float, constant: bool) -> Array:
    """y_j by Kronecker products, term by term; jets has shape (N, n)."""
    order = len(jets)
    graded = [
        np.concatenate([[float(k == 0)], jet / rescaling]) if constant else jet / rescaling
        for k, jet in enumerate(jets)
    ]
    terms = [
        reduce(np.kron, [graded[k] for k in orders])
        for orders in itertools.product(range(order), repeat=level)
        if sum(orders) + level <= order
    ]
    return np.sum(terms, axis=0)


def gram(jets: Array) -> Array:
    return jets @ jets.T


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    order=st.integers(1, 4),
    size=st.integers(1, 3),
    seed=st.integers(0, 2**16),
    rescaling=st.floats(0.1, 10.0),
    constant=st.booleans(),
)
def test_block_norms_against_kronecker_products(
    order: int, size: int, seed: int, rescaling: float, constant: bool
) -> None:
    jets = np.random.default_rng(seed).standard_normal((order, size))
    expected = [np.sum(dense_block(jets, j, rescaling, constant) ** 2) for j in range(1, order + 1)]
    found = block_norms(gram(jets), order, rescaling, constant)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12 * max(expected))


def test_many_gram_matrices_at_once_and_a_lower_order() -> None:
    jets = np.random.default_rng(0).standard_normal((5, 4, 3))
    grams = np.stack([gram(j) for j in jets])
    together = block_norms(grams, 3, 0.7)
    assert together.shape == (5, 3)
    for row, one in zip(together, grams, strict=True):
        np.testing.assert_allclose(row, block_norms(one[:3, :3], 3, 0.7))


# ---- Against the linear system itself --------------------------------------------------------


def carleman_history(
    order: int, steps: int, rescaling: float
) -> tuple[list[list[Array]], list[Array], list[Array]]:
    """Blocks of the truncated homogeneous Carleman system of u ← G_0 + G_1 u + G_2 u⊗u.

    Returns the blocks at every step as the system's matrices give them, and the jets' Gram
    matrices and displacements from a recursion of their own.
    """
    random = np.random.default_rng(3)
    n = 2
    g0 = 0.3 * random.standard_normal(n)
    g1 = 0.8 * np.eye(n) + 0.1 * random.standard_normal((n, n))
    g2 = 0.3 * random.standard_normal((n, n, n))

    # z ← P_1 z + P_2 z⊗z with z = (1, u/γ).
    p1 = np.zeros((n + 1, n + 1))
    p1[0, 0], p1[1:, 0], p1[1:, 1:] = 1.0, g0 / rescaling, g1
    p2 = np.zeros((n + 1, n + 1, n + 1))
    p2[1:, 1:, 1:] = g2 * rescaling
    factors = {1: p1, 2: p2.reshape(n + 1, -1)}

    start = np.eye(n + 1)[0]
    blocks = [[reduce(np.kron, [start] * j) for j in range(1, order + 1)]]
    for _ in range(steps):
        blocks.append(
            [
                sum(
                    (
                        reduce(np.kron, [factors[q] for q in orders]) @ blocks[-1][sum(orders) - 1]
                        for orders in itertools.product((1, 2), repeat=j)
                        if sum(orders) <= order
                    ),
                    start=np.zeros((n + 1) ** j),
                )
                for j in range(1, order + 1)
            ]
        )

    jets = np.zeros((order, n))
    grams, displacements = [gram(jets)], [jets.sum(0)]
    for _ in range(steps):
        new = jets @ g1.T
        new[0] += g0
        for k in range(order):
            for a in range(k):
                new[k] += np.einsum("iab,a,b->i", g2, jets[a], jets[k - 1 - a])
        jets = new
        grams.append(gram(jets))
        displacements.append(jets.sum(0))
    return blocks, grams, displacements


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("idle", [0, 3])
def test_odds_of_a_real_carleman_system(order: int, idle: int) -> None:
    rescaling, steps = 0.6, 4
    blocks, grams, displacements = carleman_history(order, steps, rescaling)
    lengths = np.array([sum(np.sum(y**2) for y in row) for row in blocks])
    weight = np.array([1.0] * steps + [1.0 + idle])
    odds = post_selection(np.stack(grams), rescaling, idle)
    first = blocks[-1][0]
    np.testing.assert_allclose(first[1:] * rescaling, displacements[-1], rtol=1e-12)
    assert odds.norm == pytest.approx(np.sqrt(weight @ lengths), rel=1e-12)
    assert odds.final == pytest.approx(weight[-1] * lengths[-1] / (weight @ lengths), rel=1e-12)
    assert odds.level_one == pytest.approx(np.sum(first[1:] ** 2) / lengths[-1], rel=1e-12)
    assert odds.constant == pytest.approx(first[0] ** 2 / lengths[-1], rel=1e-12)
    assert odds.probability == odds.final * odds.level_one
    assert odds.rescaling == rescaling
    if order == 1:
        assert odds.level_one + odds.constant == pytest.approx(1.0, rel=1e-12)


# ---- Rescaling -------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [2, 3, 4])
def test_the_rescaling_chosen_is_the_best(order: int) -> None:
    grams = np.stack(carleman_history(order, 4, 1.0)[1])
    best = post_selection(grams)
    length = np.sqrt(grams[-1].sum())
    for factor in np.geomspace(1e-2, 1e2, 201):
        assert post_selection(grams, length * factor).probability <= best.probability + 1e-9
    assert post_selection(grams, best.rescaling) == best
    assert 1e-2 < best.rescaling / length < 1e2


def test_the_rescaling_follows_the_unit_of_the_parameters() -> None:
    grams = np.stack(carleman_history(3, 4, 1.0)[1])
    one, other = post_selection(grams), post_selection(1e-12 * grams)
    assert other.rescaling == pytest.approx(1e-6 * one.rescaling, rel=1e-6)
    assert other.probability == pytest.approx(one.probability, rel=1e-9)


def test_at_order_one_a_smaller_rescaling_is_better() -> None:
    grams = np.array([[[0.0]], [[1.0]], [[4.0]]])
    odds = post_selection(grams)
    assert odds.rescaling == pytest.approx(2e-3, rel=1e-2)
    # Then only u counts: 4 of 1 + 4.
    assert odds.probability == pytest.approx(0.8, rel=1e-4)


def test_idle_steps_raise_the_weight_of_the_last() -> None:
    grams = np.stack(carleman_history(2, 4, 1.0)[1])
    finals = [post_selection(grams, 1.0, idle).final for idle in (0, 4, 40)]
    assert finals[0] < finals[1] < finals[2] < 1
    levels = {post_selection(grams, 1.0, idle).level_one for idle in (0, 4, 40)}
    assert len(levels) == 1


# ---- Refusals --------------------------------------------------------------------------------


def test_refusals() -> None:
    good = np.array([[[0.0]], [[1.0]]])
    with pytest.raises(ValueError, match="nothing to read"):
        post_selection(0 * good)
    with pytest.raises(ValueError, match="T ≥ 1"):
        post_selection(good[:1])
    with pytest.raises(ValueError, match="T ≥ 1"):
        post_selection(good[1])
    with pytest.raises(ValueError, match="NaN"):
        post_selection(np.nan * good)
    with pytest.raises(ValueError, match="idle"):
        post_selection(good, idle=-1)
    for rescaling in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="rescaling"):
            post_selection(good, rescaling)
    with pytest.raises(ValueError, match="square"):
        block_norms(np.ones((2, 3)), 2)
    with pytest.raises(ValueError, match="order"):
        block_norms(np.ones((2, 2)), 3)
    with pytest.raises(ValueError, match="order"):
        block_norms(np.ones((2, 2)), 0)
