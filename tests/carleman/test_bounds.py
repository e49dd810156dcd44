"""Bounds against the errors and condition numbers they bound."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.sparse as sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.carleman.reference import random_map
from torch_qsgd.carleman.bounds import (
    Certificate,
    NoCertificate,
    best_rescaling,
    certificate,
    homogeneous_bound,
    required_order,
)
from torch_qsgd.carleman.conditioning import condition_bound
from torch_qsgd.carleman.explicit import CarlemanSystem
from torch_qsgd.carleman.polynomial import PolynomialMap, trajectory

ROUNDING = 1e-14
MILD = PolynomialMap([0.01], [[0.8]], [[0.1]])
GROWING = PolynomialMap([0.1], [[1.1]], [[0.5]])
CUBIC = PolynomialMap([0.1], [[0.9]], None, [[-1.0]])


def diagonal(*entries: float) -> sparse.csr_array:
    return sparse.csr_array(np.diag(entries))


@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 3),
    order=st.integers(1, 3),
    degree=st.integers(1, 3),
    forced=st.booleans(),
    started=st.booleans(),
    several=st.booleans(),
    linear=st.floats(0.1, 1.05),
    higher=st.floats(0.01, 0.4),
)
@settings(max_examples=200, deadline=None)
def test_the_bound_is_never_below_the_error(
    seed: int,
    n: int,
    order: int,
    degree: int,
    forced: bool,
    started: bool,
    several: bool,
    linear: float,
    higher: float,
) -> None:
    rng = np.random.default_rng(seed)
    steps = 6
    scales = rng.uniform(0.1, 1.0, (steps if several else 1, 3))
    scales[-1] = 1.0
    maps = [
        random_map(rng, n, degree, forcing=0.05 * forced * a, linear=linear * b, higher=higher * c)
        for a, b, c in scales
    ]
    given_maps = maps if several else maps[0]
    start = rng.standard_normal(n)
    start *= 0.3 * (started or not forced) / np.linalg.norm(start)
    true = trajectory(maps if several else maps * steps, start)
    errors = {}
    for closure in ("standard", "homogeneous"):
        system = CarlemanSystem(given_maps, steps, order=order, start=start, closure=closure)
        history = system.history(system.solution)
        errors[closure] = np.linalg.norm(history - true, axis=1)
    found = certificate(given_maps, steps, order=order, start=start)
    if found:
        assert found.rho <= 1
        assert (np.linalg.norm(true, axis=1) <= found.rho * found.gamma * (1 + 1e-9)).all()
        for t in range(steps + 1):
            assert errors["standard"][t] <= found.bound(order, t) * (1 + 1e-9) + ROUNDING
    else:
        assert linear > 0.5  # only a map that hardly contracts, or does not, goes uncertified
    bound = homogeneous_bound(given_maps, steps, order, start=start)
    assert errors["homogeneous"][-1] <= bound * (1 + 1e-9) + ROUNDING


def test_the_bounds_of_several_maps_take_the_largest_norms() -> None:
    weak, strong = PolynomialMap([0.001], [[0.1]], [[0.01]]), PolynomialMap([0.1], [[0.5]], [[0.3]])
    both = PolynomialMap([0.1], [[0.5]], [[0.3]], [[0.2]])
    cubic = PolynomialMap([0.0], [[0.3]], None, [[0.2]])
    maps = [weak, strong, cubic]
    assert certificate(maps, 3, order=2) == certificate(both, 3, order=2)
    assert homogeneous_bound(maps, 3, 2) == homogeneous_bound(both, 3, 2)
    maps = [weak, *[strong] * 5]
    true = trajectory(maps, [0.0])[-1]
    for closure in ("standard", "homogeneous"):
        system = CarlemanSystem(maps, 6, order=2, closure=closure)
        error = float(np.abs(system.displacement(system.solution) - true)[0])
        if closure == "standard":
            of_weak, bound = (certificate(m, 6, order=2).bound(2) for m in (weak, maps))
        else:
            of_weak, bound = (homogeneous_bound(m, 6, 2) for m in (weak, maps))
        assert of_weak < error <= bound


def test_norms_of_sparse_coefficients_are_bounded_from_above() -> None:
    for seed in range(30):
        step = random_map(np.random.default_rng(seed), 4, linear=0.9)
        thin = PolynomialMap(
            step.coefficients[0], *(sparse.csr_array(c) for c in step.coefficients[1:])
        )
        dense, found = (
            certificate(step, 1, start=np.ones(4)),
            certificate(thin, 1, start=np.ones(4)),
        )
        reach = [c.rho * c.gamma for c in (dense, found)]
        assert reach[0] < reach[1] < reach[0] * (1 + 1e-8) or reach[0] == reach[1] == 2.0
        assert homogeneous_bound(thin, 3, 2) > homogeneous_bound(step, 3, 2)


def test_the_homogeneous_bound_is_attained_in_one_dimension() -> None:
    """With one variable and positive coefficients the majorant is the map itself."""
    step = PolynomialMap([0.02], [[0.7]], [[0.2]])
    for order in (1, 2, 3):
        system = CarlemanSystem(step, 8, order=order)
        error = trajectory([step] * 8, [0.0])[-1] - system.displacement(system.solution)
        bound = homogeneous_bound(step, 8, order)
        assert bound == pytest.approx(float(error[0]), rel=1e-6)


def test_published_errors_of_a_forced_map_and_their_bound() -> None:
    """K = 0.6: the errors fall about 150-fold an order, the bound by the factor γ−/γ."""
    a, b = 0.5, 0.2
    forcing = 0.6 * (1 - a) ** 2 / (4 * b)
    step = PolynomialMap([forcing], [[a]], [[b]])
    found = certificate(step, 40)
    assert isinstance(found, Certificate)
    assert abs(found.K - 0.6) < 1e-12
    smaller = (1 - a - math.sqrt((1 - a) ** 2 - 4 * b * forcing)) / (2 * b)
    assert found.rho * found.gamma == pytest.approx(smaller, rel=1e-3)
    assert found.q <= 1
    errors = []
    for order in range(1, 5):
        system = CarlemanSystem(step, 40, order=order, closure="standard")
        error = abs(system.displacement(system.solution) - trajectory([step] * 40, [0.0])[-1])
        assert error[0] <= certificate(step, 40, order=order).bound(order)
        errors.append(float(error[0]))
    assert all(later < 0.3 * earlier for earlier, later in itertools.pairwise(errors))


def test_liu_criterion_of_an_unforced_map() -> None:
    step = PolynomialMap([0.0], [[0.6]], [[0.2]])
    unforced = certificate(step, 30, start=[0.5])
    forced = certificate(PolynomialMap([0.1], [[0.6]], [[0.2]]), 30, start=[0.5])
    assert abs(unforced.R - 0.2 * 0.5 / 0.4) < 1e-12
    assert abs(forced.R - (0.2 * 0.5 + 0.1 / 0.5) / 0.4) < 1e-12


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (PolynomialMap([1.0], [[0.99]], [[1.0]]), "K = 40000 > 1"),
        (PolynomialMap([0.1], [[1.2]], [[0.5]]), "not below 1: the linear part does not contract"),
    ],
)
def test_where_there_is_no_certificate_it_says_why(step: PolynomialMap, reason: str) -> None:
    found = certificate(step, 100)
    assert not found
    assert isinstance(found, NoCertificate)
    assert str(found).startswith("no certificate, because")
    assert reason in str(found)
    assert not required_order(step, 100, 1e-6, closure="standard")


def test_the_reason_names_the_cause() -> None:
    forced = certificate(PolynomialMap([1.0], [[0.5]], None, [[1.0]]), 20)
    assert "the forcing ‖G_0‖ = 1 is too strong" in str(forced)
    assert "K" not in str(forced)  # which is not defined for a cubic map
    far = certificate(PolynomialMap([0.0], [[0.5]], [[1.0]]), 20, start=[3.0])
    assert "because the starting point, of length 3, is outside" in str(far)
    step = PolynomialMap([0.05], [[0.5]], [[1.0]])
    assert certificate(step, 20)
    assert certificate(PolynomialMap([0.0], [[0.5]], [[1.0]]), 20, start=[0.49])
    assert "together with the forcing" in str(certificate(step, 20, start=[0.49]))
    # K > 1, and yet over so few steps the forcing alone does no harm.
    step = PolynomialMap([0.02], [[0.9]], [[0.5]])
    assert certificate(step, 3).K > 1
    assert "the starting point, of length 9, is outside" in str(certificate(step, 3, start=[9.0]))


def test_a_certificate_exists_where_some_rescaling_makes_the_bound_fall() -> None:
    """At order 1 the bound of u ← 3u³ is least at ρ = 1, where it does not fall with N."""
    step = PolynomialMap([0.0], [[0.0]], [[0.0]], [[3.0]])
    order = required_order(step, 1, 1e-3, closure="standard", start=[0.25])
    assert order == 7
    bounds = [certificate(step, 1, order=N, start=[0.25]).bound(N) for N in (1, order - 1, order)]
    assert bounds[0] > bounds[1] > 1e-3 >= bounds[2]
    # A linear part that grows is certified at a rescaling far away.
    growing = certificate(PolynomialMap([0.0], [[1.2]]), 200, order=2, start=[1.0])
    assert growing.bound(400) < 1e-30 < 1 < growing.bound(4) < math.inf


def test_of_a_map_that_is_zero_every_order_is_exact() -> None:
    assert certificate(PolynomialMap([0.0], [[0.0]]), 3, start=[2.0]).bound(1) == 0
    assert certificate(PolynomialMap([0.0], [[1.5]]), 3).bound(1) == 0
    assert best_rescaling(PolynomialMap([0.0], [[1.5]]), 3, 1) == 1


@pytest.mark.filterwarnings("error")
def test_what_overflows_is_infinite_or_uncertified() -> None:
    assert homogeneous_bound(GROWING, 60, 2) == math.inf
    for closure in ("homogeneous", "standard"):
        assert "not below 1" in str(required_order(GROWING, 60, 1e-3, closure=closure))
    assert not certificate(CUBIC, 14)
    longest = trajectory([CUBIC] * 14, [0.0]).max()
    assert best_rescaling(CUBIC, 14, 2) == longest
    assert CarlemanSystem(CUBIC, 14, order=2, rescaling="auto").rescaling == longest
    doubling = PolynomialMap([0.0], [[2.0]])
    assert not certificate(doubling, 1010, start=[1.0])
    for steps in (600, 1010, 2000):  # the last leaves the range of float64 itself
        assert best_rescaling(doubling, steps, 2, start=[1.0]) == 1.0
    squaring = PolynomialMap([0.0], [[0.0]], [[1.0]])
    assert best_rescaling(squaring, 2, 1, start=[1e30]) == pytest.approx(1e120)
    assert best_rescaling(squaring, 2, 2, start=[1e30]) == 1.0  # (1e120)⁴ has no float64
    for start in ([1e30], [1e200], [1e308]):
        assert homogeneous_bound(squaring, 5, 3, start=start) == math.inf
        assert best_rescaling(squaring, 5, 3, start=start) == 1.0
    assert Certificate(1e300, 1e10, 1.0, 5, None, None).bound(3) == math.inf
    assert Certificate(1.0, math.inf, 0.5, 5, None, None).bound(3) == math.inf
    assert Certificate(1.0, 0.5, 1e-200, 5, None, None).bound(3) == 0


def test_the_bound_of_a_certificate_in_its_closed_form() -> None:
    for q in (0.3, 1.0, 1 + 1e-12, 1.4):
        found = Certificate(2.0, q, 0.5, 9, None, None)
        for order, t in itertools.product((1, 4), (1, 5, 9)):
            Q = q if q <= 1 else q**order
            expected = 2 * 0.5 ** (order + 1) * sum(Q**k for k in range(1, t + 1))
            assert found.bound(order, t) == pytest.approx(expected)
        assert found.bound(4) == found.bound(4, 9)
        assert found.bound(3, 0) == 0


@pytest.mark.parametrize("maps", [[MILD] * 2, [MILD] * 4, [], [MILD, MILD, None], 7, "abc"])
def test_maps_are_one_or_one_a_step(maps: object) -> None:
    for call in (
        lambda: certificate(maps, 3),
        lambda: homogeneous_bound(maps, 3, 2),
        lambda: required_order(maps, 3, 1e-3),
        lambda: best_rescaling(maps, 3, 2),
    ):
        with pytest.raises(ValueError, match=r"give one map, or one for|maps must be a Poly"):
            call()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("steps", value) for value in (0, -1, 2.0, True, None)],
        *[("order", value) for value in (0, -3, 1.5, None)],
        *[("start", v) for v in ([math.nan], [math.inf], [0.1, 0.1], [], 0.1, ["a"], [1j])],
    ],
)
def test_arguments_outside_what_is_allowed_are_refused(name: str, value: object) -> None:
    arguments = {"steps": 3, "order": 2, "start": [0.1]} | {name: value}
    for function in (certificate, homogeneous_bound, best_rescaling):
        with pytest.raises(ValueError, match=f"{name} must"):
            function(MILD, **arguments)
    del arguments["order"]
    if name != "order":
        with pytest.raises(ValueError, match=f"{name} must"):
            required_order(MILD, tolerance=1e-3, **arguments)
    else:
        with pytest.raises(ValueError, match="order must"):
            certificate(MILD, 3).bound(value)


def test_the_arguments_of_the_required_order_and_of_a_bound_are_checked() -> None:
    for tolerance in (0.0, -1.0, math.nan, math.inf, None, "1"):
        with pytest.raises(ValueError, match="tolerance must be a number above 0"):
            required_order(MILD, 3, tolerance)
    for name, value in (("closure", "x"), ("closure", None), ("most", 0), ("most", 2.5)):
        with pytest.raises(ValueError, match=f"{name} must be"):
            required_order(MILD, 3, 1e-3, **{name: value})
    for t in (4, -1, 1.5):
        with pytest.raises(
            ValueError, match="steps must be an integer of at least 0 and at most 3"
        ):
            certificate(MILD, 3).bound(2, t)
    with pytest.raises(ValueError, match="the same dimension"):
        certificate([MILD, PolynomialMap([0.0, 0.0])], 2)


@pytest.mark.parametrize("closure", ["homogeneous", "standard"])
def test_the_required_order_reaches_the_tolerance(closure: str) -> None:
    step = random_map(np.random.default_rng(5), 2, forcing=0.03, linear=0.6, higher=0.1)
    tolerance = 1e-5
    order = required_order(step, 10, tolerance, closure=closure)
    assert isinstance(order, int)
    assert 1 < order <= 6
    system = CarlemanSystem(step, 10, order=order, closure=closure, basis="monomial")
    true = trajectory([step] * 10, np.zeros(2))[-1]
    assert np.linalg.norm(system.displacement(system.solution) - true) <= tolerance
    assert not required_order(step, 10, 1e-300, closure=closure, most=4)


def test_the_certified_rescaling_makes_the_bound_least() -> None:
    step = random_map(np.random.default_rng(7), 2, forcing=0.05, linear=0.7, higher=0.1)
    found = certificate(step, 10, order=3)
    assert isinstance(found, Certificate)
    assert best_rescaling(step, 10, 3) == found.gamma
    norms = step.norms
    reach = found.rho * found.gamma

    def bound(gamma: float) -> float:
        q = sum(n * gamma ** (p - 1) for p, n in enumerate(norms))
        Q = q if q <= 1 else q**3
        return gamma * (reach / gamma) ** 4 * sum(Q**k for k in range(1, 11))

    for gamma in np.geomspace(reach, 1e4 * reach, 500):
        assert found.bound(3) <= bound(gamma) * (1 + 1e-3)
    assert found.bound(3) == pytest.approx(bound(found.gamma))


def test_without_a_certificate_the_rescaling_is_the_longest_displacement() -> None:
    step = PolynomialMap([0.1], [[1.1]], [[-0.5]])
    assert not certificate(step, 60)
    longest = np.abs(trajectory([step] * 60, [0.0])).max()
    assert best_rescaling(step, 60, 2) == pytest.approx(longest)
    system = CarlemanSystem(step, 60, order=2, rescaling="auto")
    assert system.rescaling == pytest.approx(longest)


# ---- Condition number --------------------------------------------------------------------------


def the_formula(matrices: list[np.ndarray], idle: int) -> float:
    """(1 + max ‖A_t‖) Σ_k max_t ‖A_{t+k−1} … A_t‖, every product written out."""
    chain = [*matrices, *[np.eye(len(matrices[0]))] * idle]
    total = 0.0
    for k in range(len(chain) + 1):
        norms = []
        for t in range(len(chain) - k + 1):
            product = np.eye(len(matrices[0]))
            for a in chain[t : t + k]:
                product = a @ product
            norms.append(np.linalg.norm(product, 2))
        total += max(norms)
    return float((1 + max(np.linalg.norm(a, 2) for a in chain)) * total)


@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 3),
    order=st.integers(1, 2),
    linear=st.floats(0.2, 1.1),
    idle=st.integers(0, 7),
    steps=st.integers(1, 5),
    several=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_the_condition_bound_is_its_formula_and_never_below_the_condition_number(
    seed: int, n: int, order: int, linear: float, idle: int, steps: int, several: bool
) -> None:
    rng = np.random.default_rng(seed)
    maps = [random_map(rng, n, linear=linear * rng.uniform(0.3, 1)) for _ in range(steps)]
    system = CarlemanSystem(
        maps if several else maps[0], steps, order=order, closure="standard", idle=idle
    )
    kappa = float(np.linalg.cond(system.matrix.toarray()))
    assert system.condition_number == pytest.approx(kappa, rel=1e-6)
    bound = condition_bound(system.step_matrices, idle)
    assert kappa <= bound * (1 + 1e-12)
    assert bound == pytest.approx(the_formula([a.toarray() for a in system.step_matrices], idle))


def test_the_condition_bound_in_closed_form() -> None:
    """(1 + a)(1 + a + … + a^T) for one contracting variable; 2 (T + 1) at a = 1."""
    for a, expected in ((0.5, 1.5 * (2 - 0.5**10)), (1.0, 2 * 11)):
        system = CarlemanSystem(PolynomialMap([0.1], [[a]]), 10, order=1, closure="standard")
        assert condition_bound(system.step_matrices) == pytest.approx(expected)


def test_the_condition_bound_of_alternating_maps_multiplies_them() -> None:
    """Each grows in turn what the other shrinks; powers of ‖A‖ = 1.2 would make it 1.9e4."""
    maps = [PolynomialMap([0.0, 0.0], np.diag(d)) for d in ((0.5, 1.2), (1.2, 0.5))]
    system = CarlemanSystem(maps * 20, 40, order=1, start=[1.0, 1.0], closure="standard")
    bound = condition_bound(system.step_matrices)
    halves = sum(0.6**k for k in range(20))
    assert bound == pytest.approx(2.2 * (halves * 2.2 + 0.6**20))
    assert system.condition_number == pytest.approx(8.8, abs=0.01)
    assert bound == pytest.approx(12.1, abs=0.01)
    copies = [a.copy() for a in system.step_matrices]
    assert condition_bound(copies, 2) == condition_bound(system.step_matrices, 2)


@pytest.mark.filterwarnings("error")
def test_a_condition_number_out_of_range_is_infinite() -> None:
    assert condition_bound([diagonal(3.0)] * 800) == math.inf
    assert condition_bound([diagonal(3.0 - 1e-6 * i) for i in range(800)]) == math.inf
    assert condition_bound([diagonal(3.0, 0.0)] * 800, 5) == math.inf
    large = sparse.csr_array(3.0 * sparse.eye_array(3000))
    assert condition_bound([large] * 800) == math.inf


def test_of_many_unknowns_the_condition_bound_takes_powers_of_norms() -> None:
    block = np.array([[1.0, 1.0], [0.0, 1.0]])
    norm = (1 + math.sqrt(5)) / 2  # and ‖block²‖ = 1 + √2 is less than its square
    large = sparse.csr_array(sparse.kron(sparse.eye_array(1500), block))
    powers = (1 + norm) * (1 + norm + norm**2)
    assert condition_bound([large] * 2) == pytest.approx(powers, rel=1e-7)
    assert condition_bound([large] * 2) >= powers
    small = sparse.csr_array(sparse.kron(sparse.eye_array(40), block))
    products = (1 + norm) * (1 + norm + 1 + math.sqrt(2))
    assert condition_bound([small] * 2) == pytest.approx(products)
    zero, half = sparse.csr_array((3000, 3000)), sparse.csr_array(sparse.eye_array(3000) / 2)
    assert condition_bound([zero] * 2) == 1
    assert condition_bound([half] * 2, 1) == pytest.approx(2 * (1 + 1 + 0.5 + 0.25))


def test_equal_matrices_count_once_however_they_are_handed_in() -> None:
    """Of 30 copies the products are formed, of 30 matrices of this size they are not."""
    rng = np.random.default_rng(1)
    matrix = np.triu(rng.standard_normal((300, 300))) / 40
    copies = [sparse.csr_array(matrix) for _ in range(30)]
    assert condition_bound(copies) == condition_bound([copies[0]] * 30)
    others = [sparse.csr_array(matrix * (1 - 1e-9 * i)) for i in range(30)]
    assert condition_bound(others) > condition_bound(copies)


@pytest.mark.parametrize(
    "matrices",
    [[], [diagonal(1.0), diagonal(1.0, 1.0)], [sparse.csr_array(np.ones((1, 2)))], [1.0]],
)
def test_the_arguments_of_the_condition_bound_are_checked(matrices: list) -> None:
    with pytest.raises(ValueError, match="step_matrices must be square"):
        condition_bound(matrices)
    for idle in (-1, 0.5, None):
        with pytest.raises(ValueError, match="idle must be"):
            condition_bound([diagonal(1.0)], idle)
    with pytest.raises(ValueError, match="NaN or infinity"):
        condition_bound([diagonal(math.nan)])
