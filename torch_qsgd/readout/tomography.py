r"""Download: read a real vector from copies of its quantum state, with its signs.

With M copies of :math:`|x\rangle` measured, :math:`n_i` of them as i, the magnitudes are
:math:`\hat x_i = \sqrt{n_i/M}`. For the signs, M more copies interfere with a reference
:math:`|\hat x\rangle` that holds the magnitudes just read: a Hadamard gate on the first qubit of
:math:`(|0\rangle|x\rangle + |1\rangle|\hat x\rangle)/\sqrt 2` gives outcome (0, i) with
probability :math:`(x_i + \hat x_i)^2/4` and (1, i) with :math:`(x_i - \hat x_i)^2/4`, so that the
larger of their counts tells the sign [Kerenidis2020]_. That the reference holds the magnitudes just
measured, rather than the weights before the window, is our choice: the counts differ by
:math:`x_i` times the reference, and so would tell nothing where those weights are near zero.

With s coordinates to read, the ℓ2 error of the magnitudes tends to :math:`\sqrt{s/4M}`: each
:math:`\sqrt{n_i/M}` has variance 1/4M. It does not depend on the ambient dimension. At small M,
signs not told add to it: measured over Gaussian, flat and heavy-tailed vectors, it is 1.0 to 1.25
times that at errors below 0.1, and at most 1.65 times above.

.. [Kerenidis2020] I. Kerenidis and A. Prakash, A quantum interior point method for LPs and SDPs,
   ACM Trans. Quantum Computing 1 (2020), arXiv:1808.09266.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, isfinite, log
from typing import Any, Generic, Literal, TypeVar, cast, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torch_qsgd.checks import checked_generator, require_integer, require_number, require_one_of
from torch_qsgd.linear_system import normalized, real_array
from torch_qsgd.solvers.base import numpy_generator

#: Copies a coordinate, times the squared error: measured, see the module's text.
COPIES = 0.35
#: Counts are 64-bit integers.
MOST_COPIES = 2**63 - 1

Signs = Literal["reference", "known"]
Array = NDArray[np.float64]
V = TypeVar("V")


def expected_copies(support: int, precision: float, signs: Signs = "reference") -> int:
    r"""Copies that reach an ℓ2 error in practice: :math:`0.35\,s/\varepsilon^2`.

    Args:
        support: s, the coordinates read.
        precision: ε, relative to the vector's length.
        signs: with ``"reference"``, as many again.

    Raises:
        ValueError: for a support, precision or signs out of their range, or more copies than
            float64 counts.

    Source: measured. A single coordinate needs one copy: its outcome is certain.

    Example:
        >>> f"{expected_copies(10**7, precision=0.1):.0e}"
        '7e+08'
    """
    return _copies_of(support, precision, signs, COPIES)


def guaranteed_copies(support: int, precision: float, signs: Signs = "reference") -> int:
    r"""Copies the theorem asks for: :math:`36\,s \ln s/\delta^2` [Kerenidis2020]_.

    Args:
        support: s, the coordinates read.
        precision: δ, relative to the vector's length.
        signs: with ``"reference"``, as many again.

    Raises:
        ValueError: as :func:`expected_copies` does.

    Example:
        >>> f"{guaranteed_copies(10**7, precision=0.1):.0e}"
        '1e+12'
    """
    factor = 36 * log(require_integer("support", support, 1))
    return _copies_of(support, precision, signs, factor)


def _copies_of(support: int, precision: float, signs: Signs, factor: float) -> int:
    support = require_integer("support", support, 1)
    precision = require_number("precision", precision, 0)
    require_one_of("signs", signs, ("reference", "known"))
    copies = factor * support / precision / precision if support > 1 else 1.0
    if not isfinite(copies):
        raise ValueError(f"precision {precision:g} takes more copies than float64 counts")
    return _sets(signs) * ceil(copies)


def _sets(signs: Signs) -> int:
    return 2 if signs == "reference" else 1


@dataclass(frozen=True)
class Reading(Generic[V]):
    """A vector as read from its state.

    Attributes:
        estimate: in the shapes, dtypes and devices of the vector; zero outside of its support.
        error: ‖estimate − vector‖/‖vector‖, before rounding to the vector's dtype.
        copies: of the state used up, those for the signs included.
        expected_copies: what :func:`expected_copies` gives for the precision asked for or, where
            copies were given, for the error made.
        guaranteed_copies: likewise :func:`guaranteed_copies`.
        support: s, the coordinates read.
    """

    estimate: V
    error: float
    copies: int
    expected_copies: int
    guaranteed_copies: int
    support: int


@dataclass(frozen=True)
class Tomography:
    r"""Reads a vector from copies of its state. Give either ``copies`` or ``precision``.

    Args:
        copies: M, for the magnitudes; with ``signs="reference"`` as many again are used.
        precision: the relative ℓ2 error asked for, in (0, 1); M is then
            :math:`\lceil 0.35\,s/\varepsilon^2 \rceil`, which reaches it about.
        signs: ``"reference"`` reads them by interference with the magnitudes read before;
            ``"known"`` takes them as known.

    Raises:
        ValueError: for both or neither of ``copies`` and ``precision``, for fewer copies than 1
            or more than 2⁶³ − 1 or not an integer, a precision outside of (0, 1), unknown
            ``signs``.

    Example:
        >>> tomography = Tomography(precision=0.1)
        >>> vector = torch.tensor([3.0, 0.0, -4.0])
        >>> reading = tomography.measure(vector, torch.Generator().manual_seed(0))
        >>> reading.copies, reading.support, reading.error < 0.2
        (140, 2, True)
        >>> reading.estimate.sign()
        tensor([ 1.,  0., -1.])
    """

    copies: int | None = None
    precision: float | None = None
    signs: Signs = "reference"

    def __post_init__(self) -> None:
        if (self.copies is None) == (self.precision is None):
            raise ValueError("give either copies or precision, the other follows")
        if self.copies is not None:
            try:
                require_integer("copies", self.copies, 1, MOST_COPIES)
            except ValueError:  # with nineteen digits for 2^63 − 1
                raise ValueError(
                    f"copies must lie in 1 … 2^63 − 1 and be an integer, got {self.copies!r}"
                ) from None
        if self.precision is not None:
            require_number("precision", self.precision, 0, 1)
        require_one_of("signs", self.signs, ("reference", "known"))

    @overload
    def measure(
        self, vector: Tensor, generator: torch.Generator | None = None, support: Any = None
    ) -> Reading[Tensor]: ...
    @overload
    def measure(
        self,
        vector: NDArray[Any],
        generator: torch.Generator | None = None,
        support: Any = None,
    ) -> Reading[NDArray[Any]]: ...
    @overload
    def measure(
        self,
        vector: Sequence[Tensor],
        generator: torch.Generator | None = None,
        support: Any = None,
    ) -> Reading[list[Tensor]]: ...
    def measure(
        self, vector: Any, generator: torch.Generator | None = None, support: Any = None
    ) -> Reading[Any]:
        """Measure copies of a vector's state, and estimate the vector; it is left as it was.

        The vector's length is taken as known: it follows from the solver's success
        probabilities, far more precisely than the direction.

        Args:
            vector: real, an array or tensor of any shape, or a list of tensors, one a parameter,
                whose coordinates together make up one vector.
            generator: the source of all randomness; by default one with seed 0.
            support: bool, True for a coordinate that may differ from zero: an array or tensor of
                the vector's shape, or a list, where ``None`` stands for all of a tensor. By
                default the coordinates that do differ.

        Raises:
            ValueError: for a zero vector, of which there is nothing to read, NaN or infinity, a
                coordinate outside of the support that is not zero, a support of another shape;
                where the precision takes more than 2⁶³ − 1 copies; where the estimate overflows
                the vector's dtype.
            TypeError: for complex or integer tensors, sparse ones, what is no vector or support,
                or a generator that is not PyTorch's.

        Cost: O(s) time and memory, however many copies: 10⁷ coordinates take two to
        five seconds.
        """
        generator = checked_generator(generator)
        tensors, masks = _as_tensors(vector, support)
        indices = [_support_of(t, mask) for t, mask in zip(tensors, masks, strict=True)]
        values = [_read(t, index) for t, index in zip(tensors, indices, strict=True)]
        state = np.concatenate(values)
        if not np.isfinite(state).all():
            raise ValueError("the vector holds NaN or infinity")
        state, length = normalized(state)
        if length == 0:
            raise ValueError("the vector is zero: there is nothing to read")

        copies = self._copies(state.size)
        estimate = _measured(state, copies, self.signs, numpy_generator(generator))
        error = float(np.linalg.norm(estimate - state))
        with np.errstate(over="ignore"):
            estimate *= length

        pieces = np.split(estimate, np.cumsum([v.size for v in values])[:-1])
        written = [_written(*row) for row in zip(tensors, indices, pieces, strict=True)]
        precision = self.precision or max(error, float(np.finfo(np.float64).eps))
        return Reading(
            estimate=_like(vector, written),
            error=error,
            copies=_sets(self.signs) * copies,
            expected_copies=expected_copies(state.size, precision, self.signs),
            guaranteed_copies=guaranteed_copies(state.size, precision, self.signs),
            support=state.size,
        )

    def _copies(self, support: int) -> int:
        if self.copies is not None:
            return int(self.copies)
        copies = expected_copies(support, cast(float, self.precision), "known")
        if copies > MOST_COPIES:
            raise ValueError(
                f"precision {self.precision:g} over {support:,} coordinates takes {copies:.1e} "
                "copies, more than a 64-bit counter holds: ask for less"
            )
        return copies


# ---- Measurement -----------------------------------------------------------------------------


def _measured(state: Array, copies: int, signs: Signs, generator: np.random.Generator) -> Array:
    """The estimate of a unit vector."""
    magnitudes: Array = np.sqrt(_counts(state * state, copies, generator) / copies)
    if signs == "known":
        magnitudes *= np.sign(state)
        return magnitudes
    outcomes = np.concatenate([state + magnitudes, state - magnitudes])
    outcomes *= outcomes
    counts = _counts(outcomes, copies, generator)
    # As many of one as of the other, mostly none of either, say nothing of the sign: zero is then
    # the better estimate. A guess is wrong by 2|x| half of the time, zero by |x| always.
    magnitudes *= np.sign(counts[: state.size] - counts[state.size :])
    return magnitudes


def _counts(weights: Array, copies: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """How often each outcome occurs, with probabilities proportional to ``weights``."""
    # NumPy draws one outcome after the other from the probability that is left, and gives the
    # last one what remains. With the likeliest outcome last, rounding in what is left is small
    # beside it; after it, it could be all there is, or below zero.
    likeliest = int(np.argmax(weights))
    probabilities = weights / weights.sum()
    probabilities[[likeliest, -1]] = probabilities[[-1, likeliest]]
    counts: NDArray[np.int64] = generator.multinomial(copies, probabilities)
    counts[[likeliest, -1]] = counts[[-1, likeliest]]
    return counts


# ---- Shapes, dtypes and devices --------------------------------------------------------------


def _as_tensors(vector: Any, support: Any) -> tuple[list[Tensor], list[Tensor | None]]:
    if isinstance(vector, Tensor):
        tensors, masks = [vector], [support]
    elif isinstance(vector, np.ndarray):
        if vector.dtype.kind not in "iuf":
            raise TypeError(f"the vector must be real, got {vector.dtype}")
        tensors, masks = [torch.from_numpy(real_array("the vector", vector).copy())], [support]
    elif isinstance(vector, Sequence) and all(isinstance(t, Tensor) for t in vector):
        tensors = list(vector)
        if support is None:
            masks = [None] * len(tensors)
        elif not isinstance(support, Sequence):
            raise TypeError(
                "the support of a list of tensors must be a list of masks, got "
                f"{type(support).__name__}"
            )
        elif len(support) != len(tensors):
            raise ValueError(
                f"the support must have a mask, or None, for each of {len(tensors)} tensors, got "
                f"{len(support)}"
            )
        else:
            masks = [
                torch.ones_like(t, dtype=torch.bool) if mask is None else mask
                for t, mask in zip(tensors, support, strict=True)
            ]
    else:
        raise TypeError(
            f"the vector must be an array, a tensor or a list of tensors, got {type(vector)}"
        )
    if not tensors:
        raise ValueError("the vector is empty: there is nothing to read")
    for tensor in tensors:
        if not tensor.is_floating_point():
            raise TypeError(f"the vector must be real and of floating point, got {tensor.dtype}")
        if tensor.layout != torch.strided:
            raise TypeError(f"the vector must be dense, got {tensor.layout}: use to_dense()")
    masks = [_mask(mask, tensor) for mask, tensor in zip(masks, tensors, strict=True)]
    return [t.detach() for t in tensors], masks


def _mask(given: Any, tensor: Tensor) -> Tensor | None:
    if given is None:
        return None
    if not isinstance(given, Tensor | np.ndarray):
        raise TypeError(f"the support must be a bool tensor or array, got {type(given).__name__}")
    if given.dtype not in (torch.bool, np.bool_) or given.shape != tensor.shape:
        raise ValueError(
            f"the support must be bool and of the vector's shape {tuple(tensor.shape)}, got "
            f"{given.dtype} and {tuple(given.shape)}"
        )
    return given if isinstance(given, Tensor) else torch.from_numpy(given.copy())


def _support_of(tensor: Tensor, mask: Tensor | None) -> Tensor:
    flat = tensor.reshape(-1)
    if mask is None:
        return flat.nonzero().squeeze(1)
    index = mask.to(tensor.device).reshape(-1).nonzero().squeeze(1)
    if torch.count_nonzero(flat) > torch.count_nonzero(flat[index]):
        raise ValueError("the vector has coordinates outside of its support that are not zero")
    return index


def _read(tensor: Tensor, index: Tensor) -> Array:
    values: Array = tensor.reshape(-1)[index].cpu().double().numpy()
    return values


def _written(tensor: Tensor, index: Tensor, values: Array) -> Tensor:
    result = torch.zeros_like(tensor, memory_format=torch.contiguous_format)
    rounded = torch.from_numpy(values).to(tensor.dtype)
    if not rounded.isfinite().all():
        raise ValueError(_overflow(values, tensor.dtype))
    result.view(-1)[index] = rounded.to(tensor.device)
    return result


def _overflow(values: Array, dtype: Any) -> str:
    return (
        f"the estimate reaches {np.abs(values).max():.3g}, more than {dtype} holds: read the "
        "vector in a wider dtype"
    )


def _like(vector: Any, tensors: list[Tensor]) -> Any:
    if isinstance(vector, Tensor):
        return tensors[0]
    if isinstance(vector, np.ndarray):
        values = tensors[0].numpy()
        dtype = vector.dtype if vector.dtype.kind == "f" else np.dtype(np.float64)
        with np.errstate(over="ignore"):
            rounded = values.astype(dtype)
        if not np.isfinite(rounded).all():
            raise ValueError(_overflow(values, dtype))
        return rounded
    return tensors
