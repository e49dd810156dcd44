"""What a spectrum says of itself, against closed forms, dense matrices and plain sums."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_qsgd.hessian.spectrum import Spectrum

FIELDS = [field.name for field in dataclasses.fields(Spectrum)]


def spectrum(nodes: Any = (-2.0, -1e-9, 0.5, 3.0), weights: Any = None, **changes: Any) -> Spectrum:
    size = len(nodes)
    values: dict[str, Any] = {
        "nodes": nodes,
        "weights": np.full(size, 1 / size) if weights is None else weights,
        "exact": np.zeros(size, dtype=bool),
        "dimension": 100,
        "lambda_min": float(np.min(nodes)),
        "lambda_min_bound": 1e-6,
        "lambda_max": float(np.max(nodes)),
        "lambda_max_bound": 1e-5,
        "trace": 37.5,
        "trace_error": 0.1,
        "resolution": 1e-8,
        "products": 240,
        "steps": 80,
        "probes": 3,
        "seconds": 1.5,
        "kind": "hessian",
    }
    return Spectrum(**{**values, **changes})


@pytest.fixture(autouse=True)
def _no_warnings() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# ---- Where the eigenvalues lie -------------------------------------------------------------------


@pytest.mark.parametrize("width", [None, 0.01, 1.0])
@pytest.mark.parametrize("scale", [1.0, 1e-8, 1e8])
def test_the_density_integrates_to_one(width: float | None, scale: float) -> None:
    found = spectrum(np.array([-2.0, 0.0, 0.5, 3.0]) * scale)
    width = width and width * scale
    reach = 10 * (width or found.default_width)
    grid = np.linspace(-2 * scale - reach, 3 * scale + reach, 20_001)
    density = found.density(grid, width)
    assert np.trapezoid(density, grid) == pytest.approx(1, abs=1e-9)
    assert np.trapezoid(density * grid, grid) == pytest.approx(0.375 * scale, rel=1e-8)


def test_the_density_is_the_plain_sum_of_gaussians() -> None:
    found = spectrum([-1.0, 2.0], [0.25, 0.75])
    for x in (-1.0, 0.3, 2.5):
        terms = [
            w * math.exp(-(((x - node) / 0.5) ** 2) / 2) / (0.5 * math.sqrt(2 * math.pi))
            for node, w in ((-1.0, 0.25), (2.0, 0.75))
        ]
        assert found.density(x, 0.5) == pytest.approx(sum(terms), rel=1e-13)
    assert found.density([[0.0, 1.0, 2.0]], 0.5).shape == (1, 3)


def test_a_density_of_many_points_and_nodes_is_made_in_pieces() -> None:
    nodes = np.linspace(-1, 1, 700)
    found = spectrum(nodes)
    grid = np.linspace(-3, 3, 4001)
    pieces = np.concatenate([found.density(part, 0.1) for part in np.array_split(grid, 7)])
    np.testing.assert_allclose(found.density(grid, 0.1), pieces, rtol=1e-12, atol=1e-300)


def test_the_default_width_follows_the_bulk_and_not_the_outliers() -> None:
    bulk = np.linspace(-1, 1, 201)
    weights = np.append(np.full(201, (1 - 1e-3) / 201), 1e-3)
    near, far = (spectrum(np.append(bulk, x), weights).default_width for x in (2.0, 1000.0))
    assert near == far == pytest.approx(1.8 / 40, rel=0.05)


@pytest.mark.parametrize(("node", "width"), [(0.0, 1.0), (3.0, 0.03), (-2e-9, 2e-11)])
def test_a_single_node_has_a_width(node: float, width: float) -> None:
    assert spectrum([node]).default_width == pytest.approx(width)


def test_the_distribution_steps_at_nodes() -> None:
    found = spectrum([-1.0, 2.0, 2.0, 3.0], [0.1, 0.2, 0.3, 0.4])
    points = [-math.inf, -1.1, -1.0, 1.9, 2.0, 3.0, math.inf]
    np.testing.assert_allclose(found.cdf(points), [0, 0, 0.1, 0.1, 0.6, 1, 1])
    assert found.cdf(2.0) == pytest.approx(0.6)
    assert isinstance(found.cdf(2.0), float)
    with pytest.raises(ValueError, match="x must hold numbers"):
        found.cdf([math.nan])


def test_only_what_can_be_told_from_zero_is_negative() -> None:
    assert spectrum().negative_mass == pytest.approx(0.25)
    assert spectrum(resolution=1e-10).negative_mass == pytest.approx(0.5)
    assert spectrum([0.0, 1.0]).negative_mass == 0


def test_moments_are_means_of_powers() -> None:
    eigenvalues = np.array([-2.0, 0.5, 0.5, 4.0])
    found = spectrum([-2.0, 0.5, 4.0], [0.25, 0.5, 0.25])
    expected = [np.mean(eigenvalues**p) for p in (1, 2, 3, 4)]
    np.testing.assert_allclose(found.moments(4), expected, rtol=1e-14)


def test_moments_beyond_the_range_are_infinite() -> None:
    assert list(spectrum([-1e200]).moments(3)) == [-1e200, math.inf, -math.inf]
    assert spectrum([-1e200, 1e200]).moments(3)[2] == math.inf
    assert spectrum([1.0, 1e200], [1.0, 0.0]).moments(2)[1] == 1


# ---- Effective rank ------------------------------------------------------------------------------


def entropy_rank(eigenvalues: Any) -> float:
    sizes = np.abs(eigenvalues)[np.abs(eigenvalues) > 0]
    shares = sizes / sizes.sum()
    return float(np.exp(-np.sum(shares * np.log(shares))))


def test_effective_rank_is_that_of_the_dense_spectrum() -> None:
    values, counts = np.array([-3.0, 0.0, 0.1, 5.0]), np.array([2, 50, 47, 1])
    found = spectrum(values, counts / 100)
    assert found.effective_rank == pytest.approx(entropy_rank(np.repeat(values, counts)), rel=1e-12)


@pytest.mark.parametrize(
    ("nodes", "weights", "rank"),
    [
        ([0.0, 2.0], [0.99, 0.01], 1),
        ([0.0, 2.0], [0.9, 0.1], 10),
        ([-2.0, 2.0], [0.5, 0.5], 100),
        ([3.0], [1.0], 100),
        ([0.0], [1.0], 0),
        ([-1e-9, 1e-9], [0.5, 0.5], 0),
        ([0.0, 2.0], [0.999, 0.001], 1),
        ([0.0, 1e300, 1e300], [0.98, 0.01, 0.01], 2),
    ],
)
def test_effective_rank_of_closed_forms(nodes: Any, weights: Any, rank: float) -> None:
    assert spectrum(nodes, weights).effective_rank == pytest.approx(rank, rel=1e-12)


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=8), st.floats(1e-8, 1e8))
@settings(max_examples=100, deadline=None)
def test_effective_rank_has_no_scale(nodes: list[float], scale: float) -> None:
    ordered = np.sort(np.array(nodes))
    plain = spectrum(ordered, resolution=1e-9).effective_rank
    scaled = spectrum(ordered * scale, resolution=1e-9 * scale).effective_rank
    assert scaled == pytest.approx(plain, rel=1e-6)
    assert plain == 0 or 1 <= plain <= 100


# ---- Dynamics ------------------------------------------------------------------------------------


def test_dynamics_are_those_of_the_nodes_with_the_resolution() -> None:
    found = spectrum([-1e-9, 5.0], [0.5, 0.5])
    assert found.best_window(0.1) == math.inf
    proxy = found.error_proxy(0.1, [0, 1, 2])
    np.testing.assert_allclose(proxy.total, [1, 0.75, 0.625])
    assert (proxy.negative == 0).all()
    assert spectrum([-1.0, 5.0], [0.25, 0.75]).best_window(0.1) == 4
    np.testing.assert_allclose(found.multipliers(0.1), [1 + 1e-10, 0.5])


# ---- Checks --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nodes": [1.0, 0.0], "lambda_min": 0.0}, "nodes must ascend"),
        ({"nodes": [0.0, math.nan], "lambda_max": 1.0}, "nodes must hold finite numbers"),
        ({"nodes": [[0.0, 1.0]], "lambda_max": 1.0}, "nodes must be a list of numbers"),
        ({"nodes": [0.0, 1.0, 2.0], "weights": [0.5, 0.5]}, "one length.*3 nodes, 2 weights"),
        ({"weights": [0.6, 0.6]}, "sum to 1.*the sum 1.2"),
        ({"weights": [1.5, -0.5]}, "at least 0.*the least is -0.5"),
        ({"exact": [0, 1]}, "exact must be a list of True and False"),
        ({"exact": [True]}, "one length"),
        ({"dimension": 0}, "dimension must be an integer of at least 1"),
        ({"products": 1.5}, "products must be an integer"),
        ({"lambda_min": 2.0}, "lies above lambda_max"),
        ({"trace": math.inf}, "trace must be a number"),
        ({"trace_error": -1.0}, "trace_error must be a number above 0, or 0, or math.inf"),
        ({"trace_error": math.nan}, "trace_error must be a number above 0, or 0, or math.inf"),
        ({"resolution": math.inf}, "resolution must be a number above 0, or 0, got"),
        ({"seconds": "long"}, "seconds must be a number"),
        ({"kind": 3}, "kind must be a name"),
    ],
)
def test_bad_fields_are_named(changes: dict[str, Any], message: str) -> None:
    given_ = {"nodes": [0.0, 1.0], **changes}
    ends = {"lambda_min": 0.0, "lambda_max": 1.0}
    if "weights" not in given_:
        given_["weights"] = [0.5, 0.5]
    with pytest.raises(ValueError, match=message):
        spectrum(**{"exact": [False, False], **ends, **given_})


@pytest.mark.parametrize("width", [0.0, -1.0, math.nan, math.inf, "wide", [0.1, 0.1, 0.1, 0.1]])
def test_a_width_must_be_a_positive_number(width: Any) -> None:
    with pytest.raises(ValueError, match="width must be a number above 0"):
        spectrum().density([0.0], width)


def test_nothing_can_be_changed_afterwards() -> None:
    nodes = np.array([0.0, 1.0])
    found = spectrum(nodes)
    nodes[0] = -5
    assert found.nodes[0] == 0
    for name in ("nodes", "weights", "exact"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(found, name)[0] = 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.trace = 1.0  # type: ignore[misc]


# ---- Files ---------------------------------------------------------------------------------------


@given(
    st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=6),
    st.floats(0, allow_nan=False, allow_infinity=True),
)
@settings(max_examples=100, deadline=None)
def test_json_gives_the_same_spectrum_to_the_bit(nodes: list[float], error: float) -> None:
    ordered = np.sort(np.array(nodes))
    one = spectrum(
        ordered,
        exact=ordered > 0,
        trace_error=error,
        lambda_max_bound=error,
        seconds=1 / 3,
        resolution=np.float64(5e-324),
    )
    text = json.dumps(one.to_json(), allow_nan=False)
    other = Spectrum.from_json(json.loads(text))
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
        assert type(getattr(one, name)) is type(getattr(other, name))


def test_files_are_written_whole_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "spectrum.json"
    path.write_text("old")
    one = spectrum(trace_error=math.inf)
    one.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["spectrum.json"]
    assert Spectrum.load(str(path)).to_json() == one.to_json()
    assert Spectrum.load(path).trace_error == math.inf


def test_a_failure_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "spectrum.json").mkdir()
    with pytest.raises(OSError, match="spectrum"):
        spectrum().save(tmp_path / "spectrum.json")
    assert [p.name for p in tmp_path.iterdir()] == ["spectrum.json"]
    with pytest.raises(OSError, match="missing"):
        spectrum().save(tmp_path / "missing" / "spectrum.json")


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ([1, 2], "this is no spectrum"),
        ({"format": "picture"}, "this is no spectrum"),
        ({**spectrum().to_json(), "version": 2}, "has version 2 .* reads version 1"),
        ({k: v for k, v in spectrum().to_json().items() if k != "trace"}, "lacks: trace"),
        ({**spectrum().to_json(), "weights": [1.0]}, "one length"),
    ],
)
def test_what_is_no_spectrum_is_refused(plain: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Spectrum.from_json(plain)
    path = tmp_path / "other.json"
    path.write_text(json.dumps(plain))
    with pytest.raises(ValueError, match=f"other.json.*{message}"):
        Spectrum.load(path)


@pytest.mark.parametrize("content", [b"{half", b"\xff\xfe"])
def test_files_that_are_no_json_are_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_bytes(content)
    with pytest.raises(ValueError, match="broken"):
        Spectrum.load(tmp_path / "broken.json")


# ---- In words ------------------------------------------------------------------------------------


def test_the_table_holds_what_matters() -> None:
    text = repr(
        spectrum(
            np.linspace(-1, 60, 2000),
            dimension=272_474,
            exact=np.arange(2000) > 1989,
            trace_error=math.inf,
            kind="ggn",
        )
    )
    for part in (
        "Gauss–Newton matrix, dimension 272,474",
        "-1 ± 1e-06  to  60 ± 1e-05",
        "37.5 (error unknown)",
        "1.7 % (1.5 to 1.8 %), below -1e-08",
        "2,000, of them 10 converged",
        "240 products (3 probes of 80 steps), 1.5 s",
    ):
        assert part in text, text
    assert max(map(len, text.splitlines())) <= 80
