"""Multipliers, error proxy and best window: closed forms, plain loops, and hard numbers."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from torch_qsgd.hessian.dissipativity import best_window, error_proxy, multipliers

NODES = np.array([-1.0, -0.01, 0.0, 0.5, 3.0, 10.0, 19.0, 25.0])
WEIGHTS = np.array([0.05, 0.1, 0.4, 0.2, 0.1, 0.05, 0.05, 0.05])
LR = 0.1


def plain_proxy(nodes: Any, weights: Any, lr: float, t: float) -> float:
    return math.fsum(w * abs(1 - lr * x) ** t for x, w in zip(nodes, weights, strict=True))


@st.composite
def spectra(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    size = draw(st.integers(1, 6))
    nodes = draw(st.lists(st.floats(-30, 30), min_size=size, max_size=size))
    parts = draw(st.lists(st.floats(0.01, 1), min_size=size, max_size=size))
    weights = np.array(parts)
    return np.array(nodes), weights / weights.sum()


@pytest.fixture(autouse=True)
def _no_warnings() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_multipliers_are_the_factors_of_one_step() -> None:
    expected = [1.1, 1.001, 1.0, 0.95, 0.7, 0.0, 0.9, 1.5]
    np.testing.assert_allclose(multipliers(NODES, LR), expected, atol=1e-15)


@pytest.mark.parametrize("t", [0, 1, 2, 7, 2.5, 300])
def test_proxy_is_the_plain_sum(t: float) -> None:
    proxy = error_proxy(NODES, WEIGHTS, LR, t)
    negative = NODES < 0
    assert proxy.total == pytest.approx(plain_proxy(NODES, WEIGHTS, LR, t), rel=1e-12)
    parts = [plain_proxy(NODES[s], WEIGHTS[s], LR, t) for s in (negative, ~negative)]
    assert [proxy.negative, proxy.positive] == pytest.approx(parts, rel=1e-12)
    assert isinstance(proxy.total, float)


@pytest.mark.parametrize("shape", [(0,), (1,), (5,), (2, 3)])
def test_arrays_of_times_keep_their_shape(shape: tuple[int, ...]) -> None:
    times = np.arange(math.prod(shape)).reshape(shape)
    proxy = error_proxy(NODES, WEIGHTS, LR, times)
    assert proxy.total.shape == proxy.negative.shape == proxy.positive.shape == shape
    expected = [error_proxy(NODES, WEIGHTS, LR, int(t)).total for t in times.flat]
    np.testing.assert_array_equal(proxy.total.ravel(), expected)


def test_many_times_are_evaluated_in_pieces() -> None:
    nodes = np.linspace(-0.01, 1, 3000)
    weights = np.full(3000, 1 / 3000)
    proxy = error_proxy(nodes, weights, LR, np.arange(1000))
    for t in (0, 349, 350, 999):
        assert proxy.total[t] == pytest.approx(plain_proxy(nodes, weights, LR, t), rel=1e-12)


def test_zero_steps_give_one_whatever_the_modes() -> None:
    proxy = error_proxy([-1e300, 0.0, 1.0, 1e300], [0.25] * 4, 1e300, [0, 1])
    assert proxy.total[0] == 1
    assert proxy.total[1] == np.inf


def test_overflow_is_infinite_and_never_nan() -> None:
    nodes, weights = [-5.0, 10.0, 400.0], [0.5, 0.5, 0.0]
    proxy = error_proxy(nodes, weights, LR, [10, 10_000, 1e300])
    assert np.isfinite(proxy.total[0])
    assert (proxy.total[1:] == np.inf).all()
    # The mode at 1/η is gone after one step, and the one without weight does not count.
    np.testing.assert_array_equal(proxy.positive, 0)


def test_long_times_of_small_modes_do_not_lose_them() -> None:
    # 1 − ηλ rounds to 1 here; (1 + 1e-20)^t is exp(t·1e-20) to rounding.
    proxy = error_proxy([-1e-19], [1.0], LR, [1e20, 3e20])
    np.testing.assert_allclose(proxy.total, np.exp([1.0, 3.0]), rtol=1e-12)


def test_modes_within_the_resolution_are_zero() -> None:
    nodes, weights = [-2e-3, -1e-3, 1e-3], [0.25, 0.25, 0.5]
    proxy = error_proxy(nodes, weights, LR, 1000, resolution=1e-3)
    assert proxy.positive == pytest.approx(0.75)
    assert proxy.negative == pytest.approx(0.25 * 1.0002**1000)


@pytest.mark.parametrize(
    ("weight", "negative", "positive"),
    [(0.25, -1.0, 5.0), (1e-3, -0.1, 0.3), (1e-6, -0.5, 19.5), (1e-9, -1e-7, 1e-3)],
)
def test_two_modes_have_the_window_that_their_derivative_gives(
    weight: float, negative: float, positive: float
) -> None:
    # P(t) = w a^t + (1 − w) b^t has P'(t) = 0 at (b/a)^t = −w log a / ((1 − w) log b).
    a, b = math.log1p(-LR * negative), math.log(abs(1 - LR * positive))
    exact = math.log(-weight * a / ((1 - weight) * b)) / (b - a)
    found = best_window([negative, positive], [weight, 1 - weight], LR)
    # Of the integers, the best is one of the two beside it.
    assert abs(found - exact) <= 1
    assert found > 0


def test_a_growing_mode_beyond_the_learning_rates_limit_ends_the_window_too() -> None:
    found = best_window([1.0, 21.0], [0.999, 0.001], LR)
    trials = [plain_proxy([1.0, 21.0], [0.999, 0.001], LR, t) for t in range(200)]
    assert found == int(np.argmin(trials)) > 0


@given(spectra(), st.floats(0.01, 2))
@settings(max_examples=300, deadline=None)
def test_no_other_window_is_better(spectrum: Any, lr: float) -> None:
    nodes, weights = spectrum
    found = best_window(nodes, weights, lr)
    if math.isinf(found):
        assert (multipliers(nodes, lr) <= 1 + 1e-12).all()
        return
    assume(found < 1e6)
    assert isinstance(found, int)
    others = np.array([0, 1, 2, 3, max(found - 1, 0), found, found + 1, 2 * found])
    values = error_proxy(nodes, weights, lr, others).total
    least = error_proxy(nodes, weights, lr, found).total
    assert (least <= values * (1 + 1e-12)).all()


@given(spectra(), st.floats(0.01, 2))
@settings(max_examples=100, deadline=None)
def test_the_window_is_that_of_a_plain_loop(spectrum: Any, lr: float) -> None:
    nodes, weights = spectrum
    found = best_window(nodes, weights, lr)
    assume(found <= 100)
    values = [plain_proxy(nodes, weights, lr, t) for t in range(102)]
    assert values[int(found)] <= min(values) * (1 + 1e-12)
    # It is the first of them, to rounding.
    assert all(value >= values[int(found)] * (1 - 1e-12) for value in values[: int(found)])


@given(spectra(), st.floats(0.01, 2), st.floats(1e-8, 1e8))
@settings(max_examples=100, deadline=None)
def test_a_scaled_spectrum_has_the_same_window(spectrum: Any, lr: float, scale: float) -> None:
    nodes, weights = spectrum
    power = 2.0 ** round(math.log2(scale))
    assert best_window(nodes * power, weights, lr / power) == best_window(nodes, weights, lr)


@pytest.mark.parametrize("nodes", [[0.0], [0.0, 5.0], [10.0], [20.0], [1.0, 2.0, 19.9]])
def test_without_a_growing_mode_no_window_is_too_long(nodes: list[float]) -> None:
    assert best_window(nodes, np.full(len(nodes), 1 / len(nodes)), LR) == math.inf


@pytest.mark.parametrize("nodes", [[-1.0], [-1.0, 0.0], [30.0, 0.0], [-1.0, -2.0]])
def test_without_a_damped_mode_every_step_is_too_many(nodes: list[float]) -> None:
    assert best_window(nodes, np.full(len(nodes), 1 / len(nodes)), LR) == 0


def test_rounding_below_zero_ends_no_window() -> None:
    assert best_window([-1e-9, 5.0], [0.5, 0.5], LR) < math.inf
    assert best_window([-1e-9, 5.0], [0.5, 0.5], LR, resolution=1e-8) == math.inf


def test_modes_without_weight_do_not_count() -> None:
    assert best_window([-1.0, 5.0], [0.0, 1.0], LR) == math.inf
    assert error_proxy([-400.0, 5.0], [0.0, 1.0], LR, 1e308).total == 0


def test_huge_windows_are_found() -> None:
    nodes, weights = [-1e-30, 1e-28], [1e-3, 1 - 1e-3]
    a, b = 1e-31, -1e-29
    exact = math.log(-1e-3 * a / ((1 - 1e-3) * b)) / (b - a)
    assert best_window(nodes, weights, LR) == pytest.approx(exact, rel=1e-9)
    assert best_window([-1e308, 1e308], [0.5, 0.5], 1e300) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nodes": [1.0, math.nan]}, "nodes must be a list of finite numbers"),
        ({"nodes": [[1.0], [2.0]]}, "nodes must be a list of finite numbers"),
        ({"nodes": [1.0]}, "one weight"),
        ({"nodes": [], "weights": []}, "at least one node"),
        ({"weights": [1.5, -0.5]}, "one weight of at least 0"),
        ({"lr": 0.0}, "lr must be a number above 0"),
        ({"lr": "fast"}, "lr must be a number above 0"),
        ({"resolution": -1.0}, "resolution must be a number above 0, or 0"),
        ({"steps": -1}, "steps must be finite numbers of at least 0"),
        ({"steps": [0, math.inf]}, "steps must be finite numbers"),
        ({"steps": "many"}, "steps must be finite numbers"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"nodes": [0.0, 1.0], "weights": [0.5, 0.5], "lr": LR, "steps": 1}
    with pytest.raises(ValueError, match=message):
        error_proxy(**{**arguments, **change})
    if "steps" not in change:
        del arguments["steps"]
        with pytest.raises(ValueError, match=message):
            best_window(**{**arguments, **change})
