r"""Download: read a real vector from copies of its quantum state, with its signs.

With M copies of :math:`|x\rangle` measured, :math:`n_i` of them as i, the magnitudes are
:math:`\hat x_i = \sqrt{n_i/M}`. For the signs, M more copies interfere with a reference
:math:`|\hat x\rangle` that holds the magnitudes just read: a Hadamard gate on the first qubit of
:math:`(|0\rangle|x\rangle + |1\rangle|\hat x\rangle)/\sqrt 2` gives outcome (0, i) with
probability :math:`(x_i + \hat x_i)^2/4` and (1, i) with :math:`(x_i - \hat x_i)^2/4`, so that the
larger of their counts tells the sign [Kerenidis2020]_.

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
from math import ceil, log
from numbers import Integral
from typing import Any, Generic, Literal, TypeVar, cast, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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

    Source: measured. A single coordinate needs one copy: its outcome is certain.

    Example:
        >>> f"{expected_copies(10**7, precision=0.1):.0e}"
        '7e+08'
    """
    return _sets(signs) * (ceil(COPIES * support / precision**2) if support > 1 else 1)


def guaranteed_copies(support: int, precision: float, signs: Signs = "reference") -> int:
    r"""Copies the theorem asks for: :math:`36\,s \ln s/\delta^2` [Kerenidis2020]_.

    Args:
        support: s, the coordinates read.
        precision: δ, relative to the vector's length.
        signs: with ``"reference"``, as many again.

    Example:
        >>> f"{guaranteed_copies(10**7, precision=0.1):.0e}"
        '1e+12'
    """
    return _sets(signs) * (ceil(36 * support * log(support) / precision**2) if support > 1 else 1)


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
            or more than 2⁶³ − 1, a precision outside of (0, 1), unknown ``signs``.
        TypeError: for copies that are not an integer.

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
        if self.copies is not None and not isinstance(self.copies, Integral):
            raise TypeError(f"copies must be an integer, got {self.copies!r}")
        if self.copies is not None and not 1 <= self.copies <= MOST_COPIES:
            raise ValueError(f"copies must lie in 1 … 2^63 − 1, got {self.copies}")
        if self.precision is not None and not 0 < self.precision < 1:
            raise ValueError(f"precision must lie between 0 and 1, got {self.precision}")
        if self.signs not in ("reference", "known"):
            raise ValueError(f"signs must be 'reference' or 'known', got {self.signs!r}")

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
                where the precision takes more than 2⁶³ − 1 copies.
            TypeError: for complex or integer tensors.

        Cost: O(s) time and memory, however many copies: 10⁷ coordinates take two to
        five seconds.
        """
        tensors, masks = _as_tensors(vector, support)
        indices = [_support_of(t, mask) for t, mask in zip(tensors, masks, strict=True)]
        values = [_read(t, index) for t, index in zip(tensors, indices, strict=True)]
        state = np.concatenate(values)
        if not np.isfinite(state).all():
            raise ValueError("the vector holds NaN or infinity")
        # Divided by its largest entry first, so that no square overflows or vanishes.
        largest = float(np.abs(state).max(initial=0.0))
        if largest == 0:
            raise ValueError("the vector is zero: there is nothing to read")
        state /= largest
        length = float(np.linalg.norm(state))
        state /= length

        copies = self._copies(state.size)
        generator = generator or torch.Generator().manual_seed(0)
        estimate = _measured(state, copies, self.signs, numpy_generator(generator))
        error = float(np.linalg.norm(estimate - state))
        estimate *= length
        estimate *= largest

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
        if np.iscomplexobj(vector):
            raise TypeError(f"the vector must be real, got {vector.dtype}")
        tensors = [torch.from_numpy(vector.astype(np.float64))]
        masks = [None if support is None else torch.from_numpy(np.array(support, dtype=bool))]
    elif isinstance(vector, Sequence) and all(isinstance(t, Tensor) for t in vector):
        tensors = list(vector)
        if support is None:
            masks = [None] * len(tensors)
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
    for tensor, mask in zip(tensors, masks, strict=True):
        if not tensor.is_floating_point():
            raise TypeError(f"the vector must be real and of floating point, got {tensor.dtype}")
        if mask is not None and (mask.dtype != torch.bool or mask.shape != tensor.shape):
            raise ValueError(
                f"the support must be bool and of the vector's shape {tuple(tensor.shape)}, got "
                f"{mask.dtype} and {tuple(mask.shape)}"
            )
    return [t.detach() for t in tensors], masks


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
    result.view(-1)[index] = torch.from_numpy(values).to(tensor.dtype).to(tensor.device)
    return result


def _like(vector: Any, tensors: list[Tensor]) -> Any:
    if isinstance(vector, Tensor):
        return tensors[0]
    if isinstance(vector, np.ndarray):
        dtype = vector.dtype if vector.dtype.kind == "f" else np.float64
        return tensors[0].numpy().astype(dtype)
    return tensors
