r"""Lanczos runs that follow one another on one basis, each in the complement of the last ones.

A run from a unit vector :math:`v_1` orthogonal to the kept rows Q builds, by one product a step,

.. math::
    H V = Q C + V T + \beta\, v_{m+1} e_m^\top, \qquad
    T = \operatorname{tridiag}(\beta_{j-1}, \alpha_j, \beta_j),

with all vectors orthogonal to all others (classical Gram–Schmidt twice), so that no value is found
twice by rounding. :math:`C = Q^\top H V` comes from orthogonalizing. A Ritz vector :math:`V s` of T
has, in the complement, the residual :math:`|\beta s_m|`.

Between runs the Ritz vectors of a run, or the best of them where memory is short, become kept rows
(a selective restart). Because kept rows couple to their complement through :math:`v_{m+1}` alone,
the counting functions of H and of H split into these two parts differ by at most one.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from torch_qsgd.errors import DivergenceError
from torch_qsgd.hessian.thick_restart import SymmetricOperator, refuse_underflow, rounding
from torch_qsgd.orthonormal import OrthonormalBasis

Array = NDArray[np.float64]

#: A vector at random shows this share of a mean eigenvalue's mass, or less, once in 10⁴ times.
_SEEN = 1e-8
#: Units of the stored vectors' rounding, below which what is left of a product is lost in it.
_NOISE = 2.0


class _Progress(NamedTuple):
    """A run after some steps; replaced as a whole, so that an interrupt leaves no half of a step.

    ``coupling`` holds Qᵀ H v for each step; ``scale`` is the longest product so far, ``asymmetry``
    the largest deviation of a product's components from what symmetry says. ``ended`` tells that
    what goes on is not known from rounding.
    """

    vector: Tensor
    alpha: tuple[float, ...]
    beta: tuple[float, ...]
    coupling: tuple[Array, ...]
    scale: float
    asymmetry: float
    ended: bool


class RitzPairs(NamedTuple):
    """Of one run of m steps.

    Attributes:
        values: ascending, of shape (m,).
        shares: squared components of the first vector, the weights of Gauss quadrature; sum 1.
        residuals: lengths of what H makes of a Ritz vector outside of kept rows and run.
        couplings: lengths of what it makes in the kept rows.
        coefficients: Ritz vectors by the run's, of shape (m, m).
    """

    values: Array
    shares: Array
    residuals: Array
    couplings: Array
    coefficients: Array


class Lanczos:
    """Runs of a symmetric operator, on one basis.

    Args:
        capacity: vectors held at once, kept ones and those of a run together.
        like: a vector of shape (n,), of the operator's dtype and device.
        dtype, device: of the stored vectors, see :class:`OrthonormalBasis`.

    Cost: a step takes one product and four passes over the basis; keeping a run of m steps takes
    2 n (K + m)² operations.

    Source: C. Lanczos, J. Res. Natl. Bur. Stand. 45, 255 (1950); the runs in complements are ours.

    Example:
        >>> class Diagonal:
        ...     dimension, dtype, device = 3, torch.float64, torch.device("cpu")
        ...     def __matmul__(self, v):
        ...         return torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64) * v
        >>> lanczos = Lanczos(3, like=torch.empty(3, dtype=torch.float64))
        >>> lanczos.start(torch.ones(3, dtype=torch.float64))
        >>> while not lanczos.exhausted:
        ...     lanczos.advance(Diagonal())
        >>> lanczos.ritz().values.round(9)
        array([1., 2., 5.])
    """

    def __init__(
        self,
        capacity: int,
        like: Tensor,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.basis = OrthonormalBasis(capacity, like=like, dtype=dtype, device=device)
        self.kept = np.empty((0, 0))  # the operator in the kept rows
        self.leaks = np.empty(0)  # lengths of H q outside of the kept rows, from above
        self._n = like.numel()
        self._eps = rounding(like.dtype)
        stored = self.basis.rows.dtype
        coarse = stored != like.dtype and torch.finfo(stored).eps > torch.finfo(like.dtype).eps
        self._storage_eps = float(torch.finfo(stored).eps) if coarse else 0.0
        self._run = _Progress(like.new_empty(0), (), (), (), 0.0, 0.0, False)

    # ---- One run -----------------------------------------------------------------------------

    def start(self, vector: Tensor) -> None:
        """Begin a run at a vector, whose components along the kept rows are taken out.

        Raises:
            ValueError: where nothing of the vector is left.
        """
        vector = vector.clone()
        self.basis.size = len(self.kept)
        self.basis.orthogonalize(vector)
        length = _length(vector)
        if not 0 < length < math.inf:
            raise ValueError("the vector a run starts at lies in the kept rows, or is not finite")
        self._run = self._run._replace(
            vector=vector.div_(length), alpha=(), beta=(), coupling=(), ended=False
        )

    def advance(self, operator: SymmetricOperator) -> None:
        """One step: a product, and its orthogonalization.

        Raises:
            DivergenceError: where the product holds NaN or infinity.
            ValueError: where products are so small that they lose digits.
        """
        run, kept = self._run, len(self.kept)
        self.basis.size = kept + self.steps
        self.basis.append(run.vector)
        w = (operator @ run.vector).clone()
        length = _length(w)
        if not math.isfinite(length):
            raise DivergenceError(
                "a product with the operator holds NaN or infinity: look at the weights, the loss "
                "and the data, or compute in float64"
            )
        scale = max(run.scale, length)
        refuse_underflow(scale, w)
        components = self.basis.orthogonalize(w).numpy()
        beta = _length(w)
        # Below the stored vectors' rounding, what is left of a product is not orthogonal to them.
        ended = beta <= _NOISE * self._storage_eps * length
        if beta <= self._eps * scale or self.basis.size == self._n:
            beta, ended = 0.0, True  # an invariant subspace: the Ritz values are eigenvalues
        past = components[kept:-1].copy()
        if len(past):
            past[-1] -= run.beta[-1]
        self._run = _Progress(
            vector=w.div_(beta) if beta else w,
            alpha=(*run.alpha, float(components[-1])),
            beta=(*run.beta, beta),
            coupling=(*run.coupling, components[:kept].copy()),
            scale=scale,
            asymmetry=max(run.asymmetry, float(np.linalg.norm(past))),
            ended=ended,
        )

    @property
    def running(self) -> bool:
        """Whether a run has been started, and not ended."""
        return self._run.vector.numel() > 0

    @property
    def steps(self) -> int:
        """Of the run so far."""
        return len(self._run.alpha)

    @property
    def exhausted(self) -> bool:
        """Whether the run has hit an invariant subspace, up to the stored vectors' rounding."""
        return self.steps > 0 and self._run.ended

    @property
    def alpha(self) -> Array:
        """Diagonal of T, shape (steps,)."""
        return np.array(self._run.alpha)

    @property
    def beta(self) -> Array:
        """Next to the diagonal of T, shape (steps,); the last one couples to the next vector."""
        return np.array(self._run.beta)

    @property
    def scale(self) -> float:
        """‖H‖ from below: the longest product with a unit vector."""
        return self._run.scale

    @property
    def resolution(self) -> float:
        """Rounding of an eigenvalue.

        That of a product and its orthogonalization, and the asymmetry seen of operator and basis.
        """
        return self._eps * self.scale + self._run.asymmetry

    @property
    def rounding(self) -> float:
        """Rounding of a residual: the resolution, and what storing the vectors takes off them.

        That is half of a unit at most in each coordinate, on storing and again on keeping.
        """
        return self.resolution + self._storage_eps * self.scale

    def ritz(self) -> RitzPairs:
        """Eigenpairs of T: Ritz pairs of the operator in the complement of the kept rows."""
        alpha, beta = self.alpha, self.beta
        if len(alpha) == 1:
            values, coefficients = alpha, np.ones((1, 1))
        else:
            # LAPACK's tridiagonal solvers may lose small numbers to underflow: unit scale.
            unit = max(float(np.abs(alpha).max()), float(beta[:-1].max())) or 1.0
            values, coefficients = eigh_tridiagonal(alpha / unit, beta[:-1] / unit)
            values = values * unit
        return RitzPairs(
            values=values,
            shares=coefficients[0] ** 2,
            residuals=np.abs(beta[-1] * coefficients[-1]),
            couplings=np.linalg.norm(self._coupling.T @ coefficients, axis=0),
            coefficients=coefficients,
        )

    def extremes(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """The least and the largest Ritz value over kept rows and the run, each with its bound.

        Returns:
            (value, bound) twice; an eigenvalue lies within ± the bound of the value.

        Cost: eigenvalues of a matrix of the basis's size.
        """
        ritz = self.ritz()
        matrix, leaks = self._joined(ritz)
        values, vectors = np.linalg.eigh(matrix)
        bounds = np.abs(vectors).T @ leaks + self.rounding
        return (float(values[0]), float(bounds[0])), (float(values[-1]), float(bounds[-1]))

    # ---- From one run to the next --------------------------------------------------------------

    def keep(self, most: int) -> NDArray[np.intp]:
        """End the run: its Ritz vectors become kept rows, the best ones where there is no room.

        The best are those farthest from the mean of all values, which take the most variance out
        of what later probes have to estimate; both ends are among them.

        Args:
            most: rows to keep at most.

        Returns:
            Indices of what is kept, into the rows kept before followed by the run's Ritz pairs.
        """
        ritz = self.ritz()
        matrix, leaks = self._joined(ritz)
        values, kept = np.diag(matrix), len(self.kept)
        # What grows from rounding is half a copy of a multiple eigenvalue: the next run, whose
        # vector has its true part of it, finds it as a whole.
        seen = (self._n - kept) * ritz.shares > _SEEN
        wanted = np.append(np.ones(kept, bool), seen | (ritz.residuals <= self.resolution))
        chosen = np.flatnonzero(wanted)
        if most < len(chosen):
            far = np.argsort(-np.abs(values - values.mean())[chosen], kind="stable")
            ends = [values[chosen].argmin(), values[chosen].argmax()]
            first = list(dict.fromkeys([*ends, *far]))[:most]
            chosen = np.sort(chosen[np.array(first, dtype=np.intp)])
        dropped = np.setdiff1d(np.arange(len(values)), chosen)
        leaks = leaks[chosen] + np.linalg.norm(matrix[np.ix_(dropped, chosen)], axis=0)
        coefficients = np.zeros(matrix.shape)
        coefficients[:kept, :kept] = np.eye(kept)
        coefficients[kept:, kept:] = ritz.coefficients
        self.basis.size = kept + self.steps
        self.basis.rotate(torch.from_numpy(coefficients[:, chosen]))
        self.kept, self.leaks = matrix[np.ix_(chosen, chosen)], leaks
        nothing = self._run.vector.new_empty(0)
        self._run = self._run._replace(vector=nothing, alpha=(), beta=(), coupling=())
        return chosen

    def _joined(self, ritz: RitzPairs) -> tuple[Array, Array]:
        """The operator in the kept rows and the run's Ritz vectors, and what leaks out of them."""
        coupling = self._coupling.T @ ritz.coefficients
        matrix = np.block([[self.kept, coupling], [coupling.T, np.diag(ritz.values)]])
        return matrix, np.concatenate([self.leaks, ritz.residuals])

    @property
    def _coupling(self) -> Array:
        """Vᵀ H Q, of shape (steps, kept)."""
        return np.array(self._run.coupling).reshape(self.steps, len(self.kept))

    # ---- To be taken up again ------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that a run needs to go on, as tensors, numbers and lists of them."""
        self.basis.size = len(self.kept) + self.steps
        rows = self.basis.rows
        if 2 * len(rows) < self.basis.capacity:
            rows = rows.clone()  # a view is written with all of its storage
        return {
            "rows": rows,
            "kept": torch.from_numpy(self.kept),
            "leaks": torch.from_numpy(self.leaks),
            **self._run._asdict(),
            "coupling": torch.from_numpy(self._coupling),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave, of an operator and capacity of the same kind."""
        self.basis.restart(state["rows"])
        self.kept, self.leaks = state["kept"].numpy(), state["leaks"].numpy()
        self._run = _Progress(
            vector=state["vector"].to(self._run.vector),
            alpha=tuple(state["alpha"]),
            beta=tuple(state["beta"]),
            coupling=tuple(state["coupling"].numpy()),
            scale=state["scale"],
            asymmetry=state["asymmetry"],
            ended=state["ended"],
        )


def _length(vector: Tensor) -> float:
    """‖v‖ in float64, in which squares of float32 neither over- nor underflow."""
    return float(torch.linalg.vector_norm(vector, dtype=torch.float64))
