r"""Thick-restart Lanczos: the ends of a symmetric operator's spectrum, in bounded memory.

The Lanczos sequence of a random vector has the operator tridiagonal in an orthonormal basis; ends
of the spectrum converge first. Where the basis is full it is restarted with the best Ritz vectors
in the place of the first rows [Wu2000]_. All vectors are kept orthogonal to all others, so there
are no ghosts: no value is found twice by rounding.

One sequence sees a single vector of each eigenspace. So the pairs found are locked, and a new
sequence from a random vector in their complement looks for what the first could not see; where it
finds a value that is wanted it goes on until that has converged, and the search is repeated.

.. [Wu2000] K. Wu and H. Simon, Thick-restart Lanczos method for large symmetric eigenvalue
   problems, SIAM J. Matrix Anal. Appl. 22, 602 (2000), doi:10.1137/S0895479898334605.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import block_diag
from torch import Tensor

from torch_qsgd.errors import DivergenceError
from torch_qsgd.orthonormal import OrthonormalBasis

Array = NDArray[np.float64]
Indices = NDArray[np.intp]
Key = Callable[[Array], Array]

ENDS = ("both", "largest", "smallest", "magnitude")
_SEARCH = 4  # products after which a search that finds nothing new may end
_MARGIN = 4.0  # residuals, by which a search's best value must lie below what is locked
_UNITS = 32.0  # of rounding in products and orthogonalizations, over many restarts


class SymmetricOperator(Protocol):
    """What a Lanczos method asks of a symmetric matrix."""

    @property
    def dimension(self) -> int:
        """n."""

    @property
    def dtype(self) -> torch.dtype:
        """Of vectors."""

    @property
    def device(self) -> torch.device:
        """Of vectors."""

    def __matmul__(self, vectors: Tensor, /) -> Tensor: ...


class ThickRestart:
    """One run for the best k eigenpairs; :meth:`advance` it until it is ``done``.

    The basis holds ``locked`` vectors, which have converged, then the rows of a sequence in their
    complement. ``projected`` is the operator in these rows: diagonal with an arrow after a restart,
    tridiagonal beyond. ``leaks`` are ⟨locked, H row⟩, of which exact eigenvectors would have none.

    Args:
        operator: any symmetric one; its ``broadcast``, where it has one, makes ranks agree on the
            first vectors.
        k: pairs wanted, at most n.
        which: one of ``ENDS``.
        tolerance: of residuals, relative to ‖H‖.
        size: rows of the basis; at least 2k + 2, or n.
        generator: source of the first vectors.

    Cost: a product, four passes over the basis, and the eigenvalues of a matrix of its size, for
    each step.

    Source: [Wu2000]_; the search in the complement is ours.
    """

    def __init__(
        self,
        operator: SymmetricOperator,
        k: int,
        which: str,
        tolerance: float,
        size: int,
        generator: torch.Generator,
    ) -> None:
        self.operator, self.k, self.which, self.tolerance = operator, k, which, tolerance
        self.generator = generator
        self.n = operator.dimension
        like = torch.empty(self.n, dtype=operator.dtype, device=operator.device)
        self.basis = OrthonormalBasis(size, like=like)
        self._next = like
        self._rounding = rounding(operator.dtype)
        self.products = 0
        self.patience = _SEARCH  # products that a search may take
        self.norm = 0.0  # ‖H‖ as seen so far, from below
        self.settled = 0  # of the k, for whoever watches
        self.locked = self.locked_residuals = np.empty(0)
        self.done = False
        self._begin()

    # ---- One product -------------------------------------------------------------------------

    def advance(self) -> None:
        """Spend one product, and see what it shows."""
        if self.basis.size == self.basis.capacity:
            self._restart()
        self.basis.append(self._next)
        # A copy: the operator may hand out what it still needs.
        image = (self.operator @ self._next).detach().clone()
        self.products += 1
        largest = float(torch.linalg.vector_norm(image, dtype=torch.float64))
        refuse_underflow(max(largest, self.norm), image)  # NaN is refused below
        components = self.basis.orthogonalize(image).numpy()
        self.beta = float(torch.linalg.vector_norm(image, dtype=torch.float64))
        length = math.hypot(float(np.linalg.norm(components)), self.beta)
        if not math.isfinite(length):
            raise DivergenceError(
                f"product {self.products} with the operator holds NaN or infinity: look at the "
                "weights and at the data"
            )
        self.norm = max(self.norm, length)
        row = self.active - 1
        self.projected[row, row] = components[-1]
        self.leaks[:, row] = components[: len(self.locked)]
        self._follow(image)
        if row + 1 < len(self.projected):
            self.projected[row, row + 1] = self.projected[row + 1, row] = self.beta
        self._judge()

    @property
    def active(self) -> int:
        """Rows of the sequence."""
        return self.basis.size - len(self.locked)

    def _follow(self, image: Tensor) -> None:
        """Make the next vector, of what the product left or of a random one."""
        if self.basis.size == self.n:
            self.beta = 0.0
        elif self.beta <= self._rounding * self.norm:
            # The rows span an invariant space: what goes on has no coupling to them.
            self.beta = 0.0
            self._next = self._random()
        else:
            self._next = image.div_(self.beta)

    def _random(self) -> Tensor:
        drawn: Tensor = torch.randn(
            self.n,
            generator=self.generator,
            device=self.generator.device,
            dtype=self.operator.dtype,
        )
        vector = drawn.to(self.operator.device)
        if hasattr(self.operator, "broadcast"):
            vector = self.operator.broadcast(vector)
        for _ in range(2):  # in few dimensions, little may be left outside of the rows
            self.basis.orthogonalize(vector)
            vector /= float(torch.linalg.vector_norm(vector, dtype=torch.float64))
        return vector

    # ---- Sequences ---------------------------------------------------------------------------

    def _begin(self) -> None:
        """Begin a sequence in the complement of the locked vectors."""
        free = self.basis.capacity - len(self.locked)
        self.projected = np.zeros((free, free))
        self.leaks = np.zeros((len(self.locked), free))
        self.beta = 0.0
        self.begun_at = self.products
        self._next = self._random()

    def _ritz(self) -> tuple[Array, Array, Array]:
        """Values, orthonormal vectors as columns, and couplings to the next row."""
        values, vectors = np.linalg.eigh(self.projected[: self.active, : self.active])
        self.norm = max(self.norm, float(np.abs(values).max()))
        return values, vectors, self.beta * vectors[-1]

    def _restart(self) -> None:
        """Keep the sequence's best Ritz vectors in its place."""
        values, vectors, couplings = self._ritz()
        free = len(self.projected)
        count = min(self.k + (free - self.k) // 2, free - 2)
        best = _best(values, self.which, count)
        self._keep(np.eye(len(self.locked)), vectors[:, best])
        leaks = self.leaks @ vectors[:, best]
        self.leaks = np.zeros_like(self.leaks)
        self.leaks[:, :count] = leaks
        self.projected = np.zeros((free, free))
        self.projected[range(count), range(count)] = values[best]
        self.projected[count, :count] = self.projected[:count, count] = couplings[best]

    def _keep(self, locked: Array, active: Array) -> None:
        """Replace the basis by combinations of its rows, given as columns."""
        self.basis.rotate(torch.from_numpy(block_diag(locked, active)))

    # ---- What has been found -----------------------------------------------------------------

    def _judge(self) -> None:
        """Lock what is wanted once it has converged; end where a search finds nothing more."""
        if self.basis.size < self.k:
            return
        values, vectors, couplings = self._ritz()
        if len(self.locked) and not self._surpassed(values):
            self.done = self.basis.size == self.n or self._exhausted(values, couplings)
            return
        wanted = _best(np.append(self.locked, values), self.which, self.k)
        found = wanted[wanted >= len(self.locked)] - len(self.locked)
        settled = np.abs(couplings[found]) <= self.tolerance / 2 * self.norm
        self.settled = self.k - int((~settled).sum())
        if settled.all():
            self.done = self.basis.size == self.n
            self._lock(wanted, values, vectors, couplings)
            if not self.done:
                self._begin()

    def _surpassed(self, values: Array) -> bool:
        """Whether the sequence shows a value beyond one that is locked."""
        for key, count in _ends(self.which, self.k):
            worst = np.sort(key(self.locked))[-count]
            if key(values).max() > worst + self.tolerance * self.norm:
                return True
        return False

    def _exhausted(self, values: Array, couplings: Array) -> bool:
        """Whether a search may end: its own best lies, with its error, below all that is locked."""
        spent = self.products - self.begun_at
        if spent < _SEARCH:
            return False
        for key, count in _ends(self.which, self.k):
            worst = np.sort(key(self.locked))[-count]
            best = int(np.argmax(key(values)))
            if key(values)[best] + _MARGIN * abs(couplings[best]) > worst:
                return spent >= self.patience
        return True

    def _lock(self, wanted: Indices, values: Array, vectors: Array, couplings: Array) -> None:
        """Let the basis hold the wanted ones only, of the locked and of the sequence's."""
        count = len(self.locked)
        if count == 0:
            self.patience = max(_SEARCH, self.products)
        old, new = wanted[wanted < count], wanted[wanted >= count] - count
        leaked = np.linalg.norm(self.leaks[:, : self.active] @ vectors[:, new], axis=0)
        residuals = np.hypot(couplings[new], leaked)
        self._keep(np.eye(count)[:, old], vectors[:, new])
        self.locked = np.append(self.locked[old], values[new])
        self.locked_residuals = np.append(self.locked_residuals[old], residuals)

    def best(self) -> tuple[Array, Tensor, Array]:
        """The best k as they stand: values (k,), vectors (k, n), and residuals (k,)."""
        if self.active and not self.done:
            values, vectors, couplings = self._ritz()
            if len(self.locked) == 0 or self._surpassed(values):
                wanted = _best(np.append(self.locked, values), self.which, self.k)
                self._lock(wanted, values, vectors, couplings)
        order = _best(self.locked, self.which, self.k)
        rows = self.basis.rows[torch.from_numpy(order).to(self.basis.rows.device)]
        least = self._rounding * self.norm
        return self.locked[order], rows, self.locked_residuals[order] + least


# ---- Order ---------------------------------------------------------------------------------------


def _ends(which: str, count: int) -> list[tuple[Key, int]]:
    """Keys by which larger is better, and how many of each."""
    keys: dict[str, Key] = {"largest": np.positive, "smallest": np.negative, "magnitude": np.abs}
    if which == "both":
        parts = [(keys["largest"], count - count // 2), (keys["smallest"], count // 2)]
    else:
        parts = [(keys[which], count)]
    return [(key, of_these) for key, of_these in parts if of_these]


def _best(values: Array, which: str, count: int) -> Indices:
    """Positions of the best values, in the order in which they are returned."""
    (first, number), *others = _ends(which, count)
    order = np.argsort(-first(values), kind="stable")
    # With two ends, both are taken from one order: of equal values none is taken twice.
    return np.concatenate([order[:number], *(order[len(order) - least :] for _, least in others)])


def rounding(dtype: torch.dtype) -> float:
    """Rounding of one product and its orthogonalization, relative to ‖H‖."""
    return _UNITS * float(torch.finfo(dtype).eps)


def refuse_underflow(norm: float, image: Tensor) -> None:
    """Refuse products so small that they, or squares of their lengths, lose digits.

    Raises:
        ValueError: where ‖H‖, as seen so far, is so small and not zero.
    """
    limits = torch.finfo(image.dtype)
    least = math.sqrt(limits.tiny) if image.dtype == torch.float64 else limits.tiny
    least /= limits.eps
    if norm < least and bool(image.any()):
        raise ValueError(
            f"products with the operator are of size {norm:.1e}, below {least:.0e}, where "
            f"{image.dtype} loses digits: scale the loss up"
        )
