from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import poisson
from torch import Tensor

from tests.cases import randn
from torch_qsgd.readout import Tomography, expected_copies, guaranteed_copies


def seed(value: int) -> torch.Generator:
    return torch.Generator().manual_seed(value)


def flat(size: int) -> Tensor:
    return randn(size).sign()


def heavy(size: int) -> Tensor:
    return randn(size, seed=1) / randn(size, seed=2).abs().sqrt()


VECTORS = {"gaussian": randn(500), "flat": flat(500), "heavy": heavy(500)}


# ---- The error -------------------------------------------------------------------------------


@pytest.mark.parametrize("signs", ["reference", "known"])
@pytest.mark.parametrize("kind", VECTORS)
def test_the_error_follows_the_copies_over_four_decades(kind: str, signs: Any) -> None:
    vector = VECTORS[kind]
    for copies in (5_000, 50_000, 500_000, 5_000_000, 50_000_000):
        law = math.sqrt(vector.numel() / (4 * copies))
        errors = [
            Tomography(copies=copies, signs=signs).measure(vector, seed(k)).error for k in range(5)
        ]
        assert law / 2 < np.mean(errors) < 2 * law
    # The last is the limit of many copies, which knows no kind.
    assert np.mean(errors) == pytest.approx(law, rel=0.1)


def test_the_error_does_not_depend_on_the_ambient_dimension() -> None:
    values = VECTORS["gaussian"]
    errors = []
    for size in (500, 50_000, 2_000_000):
        vector = torch.zeros(size, dtype=torch.float64)
        where = torch.randperm(size, generator=seed(0))[:500].sort().values
        vector[where] = values
        mask = vector != 0
        readings = [
            Tomography(copies=20_000).measure(vector, seed(k), support=mask) for k in range(3)
        ]
        assert {r.support for r in readings} == {500}
        errors.append([r.error for r in readings])
        assert not readings[0].estimate[~mask].any()
    # The same seeds draw the same outcomes: the dimension does not enter at all.
    np.testing.assert_allclose(errors[1], errors[0], rtol=1e-10)
    np.testing.assert_allclose(errors[2], errors[0], rtol=1e-10)


@pytest.mark.parametrize("signs", ["reference", "known"])
@pytest.mark.parametrize("kind", VECTORS)
@pytest.mark.parametrize("precision", [0.03, 0.1, 0.3])
def test_the_precision_asked_for_is_about_met(kind: str, precision: float, signs: Any) -> None:
    tomography = Tomography(precision=precision, signs=signs)
    errors = [tomography.measure(VECTORS[kind], seed(k)).error for k in range(8)]
    assert 0.5 * precision < np.mean(errors) < 1.3 * precision


def test_the_guarantee_holds() -> None:
    size, precision = 16, 0.3
    copies = guaranteed_copies(size, precision, "known")
    for k in range(200):
        reading = Tomography(copies=copies).measure(randn(size, seed=k), seed(k))
        assert reading.copies == guaranteed_copies(size, precision)
        assert reading.error <= precision
    # And it is a demand of another size than what suffices.
    assert copies > 100 * expected_copies(size, precision, "known")


def test_signs_are_right_with_copies_enough() -> None:
    vector = randn(300, seed=5)
    vector = torch.where(vector.abs() < 0.05, 0.05 * vector.sign(), vector)
    reading = Tomography(copies=10_000_000).measure(vector, seed(0))
    assert torch.equal(reading.estimate.sign(), vector.sign())
    # With few, some are not told, and a coordinate without one is left at zero.
    few = Tomography(copies=300).measure(vector, seed(0)).estimate
    assert (few.sign() != vector.sign()).any()
    told = few != 0
    assert (few.sign() == vector.sign())[told].double().mean() > 0.9


@pytest.mark.parametrize("copies_each", [0.5, 1, 4])
def test_signs_are_told_as_often_as_two_counts_tell_them(copies_each: float) -> None:
    r"""Of λ copies a coordinate, n tell the magnitude √(n/λ) times the true one. The counts of the
    interference are then Poisson, of means (√λ ± √n)²/4: the truth is not looked at twice.
    """
    size = 20_000
    vector = flat(size)
    right = wrong = untold = 0
    for k in range(4):
        read = Tomography(copies=int(copies_each * size)).measure(vector, seed(k)).estimate
        right += int((read * vector > 0).sum())
        wrong += int((read * vector < 0).sum())
        untold += int((read == 0).sum())

    n, count = np.arange(60)[:, None], np.arange(80)
    share = poisson.pmf(n[:, 0], copies_each)
    root = math.sqrt(copies_each)
    agree = poisson.pmf(count, (root + np.sqrt(n)) ** 2 / 4)
    differ = poisson.pmf(count, (root - np.sqrt(n)) ** 2 / 4)
    below = np.cumsum(differ, axis=1) - differ
    expected_right = float(share[1:] @ (agree * below).sum(axis=1)[1:])
    expected_wrong = float(
        share[1:] @ (differ * (np.cumsum(agree, axis=1) - agree)).sum(axis=1)[1:]
    )
    total = 4 * size
    for found, expected in ((right, expected_right), (wrong, expected_wrong)):
        assert abs(found / total - expected) < 5 * math.sqrt(expected / total)
    assert untold == total - right - wrong
    # Each part is there to be missed: signs from the truth make none wrong, and so do true
    # magnitudes as reference, which never leave a count on the wrong side.
    assert wrong > 50
    assert untold / total > math.exp(-copies_each) * 1.1


def test_a_sign_that_is_not_told_is_not_guessed() -> None:
    # A copy a coordinate: many signs get no count. With them at zero the error is 1.6 times the
    # law's √(s/4M) = 1/2, with guesses 1.9 times.
    readings = [Tomography(copies=2000).measure(flat(2000), seed(k)) for k in range(10)]
    assert np.mean([r.error for r in readings]) < 0.5 * 1.75


@pytest.mark.parametrize("signs", ["reference", "known"])
def test_the_mean_of_many_readings_is_the_vector(signs: Any) -> None:
    vector = randn(20, seed=3)
    readings = [
        Tomography(copies=200_000, signs=signs).measure(vector, seed(k)).estimate
        for k in range(300)
    ]
    mean = torch.stack(readings).mean(0)
    alone = (readings[0] - vector).norm() / vector.norm()
    gap = (mean - vector).norm() / vector.norm()
    assert gap < 0.2 * alone


# ---- Counting --------------------------------------------------------------------------------


def test_counts_of_tiny_probabilities_survive_rounding() -> None:
    # NumPy's own order would give the last coordinate what rounding leaves over.
    vector = randn(200_000, seed=1).abs().sort(descending=True).values + 0.1
    vector[-100:] = 1e-12
    estimate = Tomography(copies=10**15, signs="known").measure(vector, seed(0)).estimate
    # Each has an expected count of 1e-14: none of them should be seen.
    assert not estimate[-100:].any()
    assert estimate[:-100].all()


def test_as_many_copies_as_an_integer_holds() -> None:
    for copies in (10**15, 2**63 - 1):
        reading = Tomography(copies=copies).measure(VECTORS["gaussian"], seed(0))
        assert reading.copies == 2 * copies
        assert reading.error < 2 * math.sqrt(500 / (4 * copies)) + 1e-10
    with pytest.raises(ValueError, match="64-bit"):
        Tomography(precision=1e-9).measure(VECTORS["gaussian"], seed(0))


def test_probabilities_in_single_precision_are_summed_in_double() -> None:
    vector = (randn(300_000, seed=2) * 1e-3).float()
    reading = Tomography(copies=10**12).measure(vector, seed(0))
    assert reading.estimate.dtype == torch.float32
    assert reading.error == pytest.approx(math.sqrt(3e5 / 4e12), rel=0.05)


# ---- Reproducibility -------------------------------------------------------------------------


def test_a_seed_gives_one_reading_and_leaves_global_states() -> None:
    tomography = Tomography(copies=1000)
    vector = randn(50)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    one, same = (tomography.measure(vector, seed(4)) for _ in range(2))
    assert torch.equal(one.estimate, same.estimate)
    assert one.error == same.error
    generator = seed(4)
    again = tomography.measure(vector, generator)
    following = tomography.measure(vector, generator)
    assert torch.equal(again.estimate, one.estimate)
    assert not torch.equal(following.estimate, one.estimate)
    default = tomography.measure(vector)
    assert torch.equal(default.estimate, tomography.measure(vector, seed(0)).estimate)
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()  # noqa: NPY002


def test_tomography_is_a_value() -> None:
    tomography = Tomography(precision=0.1)
    assert pickle.loads(pickle.dumps(tomography)) == tomography
    assert "precision=0.1" in repr(tomography)


# ---- Shapes, dtypes, scales ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_parameters_come_back_in_their_shapes(dtype: torch.dtype) -> None:
    parameters = [
        torch.nn.Parameter(randn(4, 3).to(dtype)),
        randn(5, 2, seed=1).to(dtype).t(),
        randn(6, seed=2).to(dtype),
        torch.zeros(2, 2, dtype=dtype),
    ]
    masks = [torch.ones(4, 3, dtype=torch.bool), None, torch.arange(6) < 3, None]
    with torch.no_grad():
        parameters[2][3:] = 0
    kept = [p.detach().clone() for p in parameters]
    reading = Tomography(copies=10**12).measure(parameters, seed(0), support=masks)
    assert reading.support == 12 + 10 + 3 + 4
    assert isinstance(reading.estimate, list)
    for estimate, vector, before in zip(reading.estimate, parameters, kept, strict=True):
        assert (estimate.shape, estimate.dtype) == (vector.shape, dtype)
        assert not estimate.requires_grad
        assert torch.equal(vector, before)
        tolerance = max(1e-4, 2 * torch.finfo(dtype).eps)
        torch.testing.assert_close(estimate, vector.detach(), rtol=tolerance, atol=1e-4)


def test_a_list_and_its_concatenation_read_the_same() -> None:
    parts = [randn(3, 2), randn(4, seed=1)]
    joined = torch.cat([p.flatten() for p in parts])
    one = Tomography(copies=500).measure(parts, seed(0))
    other = Tomography(copies=500).measure(joined, seed(0))
    array = Tomography(copies=500).measure(joined.numpy(), seed(0))
    assert torch.equal(torch.cat([p.flatten() for p in one.estimate]), other.estimate)
    assert isinstance(array.estimate, np.ndarray)
    assert array.estimate.dtype == np.float64
    np.testing.assert_array_equal(array.estimate, other.estimate.numpy())
    assert one.error == other.error == array.error


def test_the_length_is_known_and_any_scale_is_read() -> None:
    vector = randn(50)
    one = Tomography(copies=10_000, signs="known").measure(vector, seed(0))
    assert one.estimate.norm().item() == pytest.approx(vector.norm().item(), rel=1e-12)
    for scale in (1e-300, 1e300):
        other = Tomography(copies=10_000, signs="known").measure(scale * vector, seed(0))
        torch.testing.assert_close(other.estimate / scale, one.estimate)
    whole = Tomography(copies=10_000).measure(np.array([3, -4]), seed(0))
    assert whole.estimate.dtype == np.float64
    np.testing.assert_allclose(whole.estimate, [3, -4], rtol=0.05)


def test_the_error_is_that_of_the_estimate() -> None:
    vector = randn(40)
    reading = Tomography(copies=100).measure(vector, seed(1))
    gap = (reading.estimate - vector).norm() / vector.norm()
    assert reading.error == pytest.approx(gap.item(), rel=1e-12)


@pytest.mark.parametrize("vector", [[-2.5], [0.0, -2.5, 0.0]])
def test_a_single_coordinate_is_read_exactly(vector: list[float]) -> None:
    reading = Tomography(copies=1).measure(np.array(vector), seed(0))
    np.testing.assert_allclose(reading.estimate, vector)
    assert (reading.error, reading.copies, reading.support) == (0.0, 2, 1)
    assert reading.expected_copies == reading.guaranteed_copies == 2


# ---- Copies ----------------------------------------------------------------------------------


def test_copies_expected_and_guaranteed() -> None:
    assert expected_copies(10**7, 0.1) == pytest.approx(7e8)
    assert guaranteed_copies(100, 0.5, "known") == math.ceil(36 * 100 * math.log(100) / 0.25)
    assert guaranteed_copies(100, 0.5) == 2 * guaranteed_copies(100, 0.5, "known")
    vector = randn(100)
    asked = Tomography(precision=0.2).measure(vector, seed(0))
    assert asked.copies == asked.expected_copies == expected_copies(100, 0.2) == 1750
    assert asked.guaranteed_copies == guaranteed_copies(100, 0.2)
    known = Tomography(precision=0.2, signs="known").measure(vector, seed(0))
    assert known.copies == known.expected_copies == 875
    given = Tomography(copies=1000).measure(vector, seed(0))
    assert given.copies == 2000
    assert given.expected_copies == expected_copies(100, given.error)
    assert given.guaranteed_copies == guaranteed_copies(100, given.error)


# ---- Refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either copies or precision"),
        ({"copies": 10, "precision": 0.1}, "either copies or precision"),
        ({"copies": 0}, "copies must lie"),
        ({"copies": -3}, "copies must lie"),
        ({"copies": 2**63}, "copies must lie"),
        ({"precision": 0.0}, "above 0 and below 1"),
        ({"precision": 1.0}, "above 0 and below 1"),
        ({"precision": math.nan}, "above 0 and below 1"),
        ({"copies": 10, "signs": "guess"}, "signs"),
    ],
)
def test_settings_that_make_no_sense(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tomography(**arguments)


def test_copies_are_whole() -> None:
    with pytest.raises(ValueError, match="integer"):
        Tomography(copies=10.5)  # type: ignore[arg-type]
    assert Tomography(copies=np.int64(10)).measure(randn(3)).copies == 20  # type: ignore[arg-type]


def test_vectors_that_cannot_be_read() -> None:
    tomography = Tomography(copies=10)
    with pytest.raises(ValueError, match="nothing to read"):
        tomography.measure(torch.zeros(3))
    with pytest.raises(ValueError, match="nothing to read"):
        tomography.measure([torch.zeros(3)], support=[None])
    with pytest.raises(ValueError, match="nothing to read"):
        tomography.measure([])
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="NaN or infinity"):
            tomography.measure(torch.tensor([1.0, bad]))
    mask = torch.tensor([True, False])
    with pytest.raises(ValueError, match="outside of its support"):
        tomography.measure(torch.tensor([1.0, math.nan]), support=mask)
    with pytest.raises(ValueError, match="bool and of the vector's shape"):
        tomography.measure(torch.ones(3), support=mask)
    with pytest.raises(ValueError, match="bool and of the vector's shape"):
        tomography.measure(torch.ones(2), support=torch.ones(2))
    with pytest.raises(ValueError, match="for each of 2 tensors"):
        tomography.measure([torch.ones(2), torch.ones(2)], support=[mask])
    with pytest.raises(TypeError, match="real"):
        tomography.measure(torch.ones(2, dtype=torch.complex64))
    with pytest.raises(TypeError, match="real"):
        tomography.measure(np.array([1j]))
    with pytest.raises(TypeError, match="list of tensors"):
        tomography.measure("weights")  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="list of tensors"):
        tomography.measure([1.0, 2.0])  # type: ignore[list-item]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_parameters_on_a_device_come_back_there() -> None:
    parameters = [randn(3, 2).cuda(), randn(4, seed=1).float().cuda()]
    masks = [parameters[0] > 0, None]
    parameters[0] *= masks[0]
    reading = Tomography(copies=10**10).measure(parameters, seed(0), support=masks)
    for estimate, vector in zip(reading.estimate, parameters, strict=True):
        assert (estimate.device, estimate.dtype) == (vector.device, vector.dtype)
        torch.testing.assert_close(estimate, vector, rtol=1e-3, atol=1e-3)
