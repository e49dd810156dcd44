r"""Polynomial maps: one step of gradient descent as :math:`\Phi(u) = \sum_q G_q u^{\otimes q}`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sparse
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import svdvals
from scipy.sparse.linalg import svds
from torch import Tensor

from torch_qsgd.carleman.bases import UnitBasis, add_decay
from torch_qsgd.checks import require_number
from torch_qsgd.derivatives import higher_derivatives, projected_derivatives

Array = NDArray[np.float64]
#: An array, or a ``scipy.sparse`` one, which has no types.
Coefficient = Any


class PolynomialMap:
    r"""The map :math:`\Phi(u) = \sum_{q=0}^{P} G_q\,u^{\otimes q}` on :math:`R^n`.

    Args:
        coefficients: :math:`G_0, G_1, …`. :math:`G_0` has shape (n,); :math:`G_q` has shape
            (n, n^q), or (n, n, …, n), as an array, or is a ``scipy.sparse`` matrix of shape
            (n, n^q). ``None`` stands for zero, if another coefficient tells n.

    Raises:
        ValueError: for shapes that do not fit, NaN, infinity, or no coefficient at all.
        TypeError: for complex numbers.

    Cost: of a value, one pass over the coefficients.

    Example:
        >>> logistic = PolynomialMap([0.0], [[0.5]], [[0.25]])  # u/2 + u²/4
        >>> logistic([2.0])
        array([2.])
        >>> logistic.degree, logistic.dimension
        (2, 1)
    """

    def __init__(self, *coefficients: Any) -> None:
        arrays = [_as_array(c) for c in coefficients]
        sizes = {int(c.shape[0]) if c.ndim else 0 for c in arrays if c is not None}
        if len(sizes) != 1 or 0 in sizes:
            raise ValueError(
                f"G_0, G_1, … must all have n ≥ 1 rows: got {sorted(sizes) or 'no coefficient'}"
            )
        self.dimension = n = sizes.pop()
        while len(coefficients) > 1 and coefficients[-1] is None:
            coefficients = coefficients[:-1]
        self.coefficients: list[Coefficient] = [
            _checked(c, q, n) for q, c in enumerate(coefficients)
        ]

    @classmethod
    def from_loss(
        cls,
        loss: Callable[[Tensor], Tensor],
        anchor: ArrayLike | Tensor,
        *,
        lr: float,
        degree: int,
        weight_decay: float = 0.0,
    ) -> PolynomialMap:
        r"""One step of gradient descent on a loss, expanded at an anchor by exact derivatives.

        .. math::
            \Phi(u) = u - \eta\,(\nabla L(\theta^* + u) + \lambda(\theta^* + u)), \qquad
            G_q = \delta_{q1} I - \frac{\eta}{q!}\nabla^{q+1} L(\theta^*) - \dots

        Args:
            loss: a scalar PyTorch function of a vector of shape (n,).
            anchor: θ*, of shape (n,); taken in float64.
            lr: η.
            degree: P, the highest power of u kept, at least 1.
            weight_decay: λ.

        Raises:
            GraphError: where the loss has no derivatives of that order.
            ValueError: for a degree below 1.

        Cost: about n^P / P! reverse passes; meant for n up to about 50.

        Example:
            >>> descent = PolynomialMap.from_loss(lambda x: (x**3).sum(), [1.0], lr=0.1, degree=2)
            >>> [float(G.ravel()[0]) for G in descent.coefficients]  # 3, 6, 6/2 times −0.1
            [-0.30000000000000004, 0.3999999999999999, -0.30000000000000004]
        """
        theta = torch.as_tensor(anchor).detach().to(torch.float64, copy=True).flatten()
        theta.requires_grad_()
        with torch.enable_grad(), higher_derivatives():
            (gradient,) = torch.autograd.grad(
                loss(theta), theta, create_graph=True, materialize_grads=True
            )
        basis = UnitBasis([theta], [None], limit=theta.numel())
        tensors = [t.numpy() for t in projected_derivatives([gradient], [theta], basis, degree)]
        add_decay(tensors, basis, [theta], weight_decay)
        return cls.from_derivatives(tensors, lr=lr)

    @classmethod
    def from_derivatives(cls, tensors: Sequence[Array], *, lr: float) -> PolynomialMap:
        """The step Φ of gradient descent from ∇L, ∇²L, … at the anchor.

        Args:
            tensors: ∇^{q+1}L, of shape (n,)·(q+1), q = 0 … P, P at least 1.
            lr: η.
        """
        n = len(tensors[0])
        factors = [-lr / math.factorial(q) * t.reshape(n, -1) for q, t in enumerate(tensors)]
        factors[1] = factors[1] + np.eye(n)
        return cls(factors[0].ravel(), *factors[1:])

    def __repr__(self) -> str:
        return f"PolynomialMap(dimension={self.dimension}, degree={self.degree})"

    @property
    def degree(self) -> int:
        """P, the highest power of u."""
        return len(self.coefficients) - 1

    @property
    def norms(self) -> list[float]:
        """Spectral norms ‖G_q‖ of the (n, n^q) matrices, q = 0 … P."""
        return [_spectral_norm(c) for c in self.coefficients]

    @property
    def nonzeros(self) -> list[int]:
        """Non-zero entries of G_q, q = 0 … P."""
        return [
            int(c.nnz) if sparse.issparse(c) else int(np.count_nonzero(c))
            for c in self.coefficients
        ]

    def __call__(self, u: ArrayLike) -> Array:
        """Φ(u), of shape (n,)."""
        value = np.asarray(u, dtype=np.float64)
        if value.shape != (self.dimension,):
            raise ValueError(f"u must have shape ({self.dimension},), got {value.shape}")
        total = np.zeros(self.dimension)
        power = np.ones(1)
        for q, c in enumerate(self.coefficients):
            total += c @ power if q else c
            if q < self.degree:
                power = np.multiply.outer(value, power).ravel()
        return total

    def taylor(self, jets: Array) -> Array:
        r"""Coefficients :math:`[\varepsilon^k]\Phi(\sum_j \varepsilon^j c_j)`, k = 0 … N.

        Args:
            jets: :math:`c_1 … c_N`, of shape (N, n).

        Returns:
            Shape (N + 1, n).

        Cost: about N² P n^P multiplications.
        """
        order = len(jets)
        total = np.zeros((order + 1, self.dimension))
        powers = [np.ones(1), *[np.zeros(1)] * order]  # [ε^k] of u^{⊗q}
        for q, c in enumerate(self.coefficients):
            for k in range(order + 1):
                total[k] += c @ powers[k] if q else (c if k == 0 else 0.0)
            if q == self.degree:
                break
            length = self.dimension ** (q + 1)
            powers = [
                sum(
                    (
                        np.multiply.outer(jets[j - 1], powers[k - j]).ravel()
                        for j in range(1, k + 1)
                    ),
                    start=np.zeros(length),
                )
                for k in range(order + 1)
            ]
        return total

    def rescaled(self, gamma: float) -> PolynomialMap:
        r"""The same map for :math:`u/\gamma`: :math:`G_q \to \gamma^{q-1} G_q`, γ above 0."""
        require_number("gamma", gamma, 0)
        try:
            powers = [float(gamma) ** (q - 1) for q in range(self.degree + 1)]
        except OverflowError:
            raise ValueError(f"gamma={gamma!r} leaves the range of float64") from None
        return PolynomialMap(
            *(c * power for c, power in zip(self.coefficients, powers, strict=True))
        )

    def homogeneous(self) -> PolynomialMap:
        r"""The map of z = (1, u): :math:`P_1 = [[1, 0], [G_0, G_1]]`, :math:`P_q` embeds G_q."""
        n = self.dimension
        embedding = sparse.csr_array(sparse.eye_array(n + 1, n, k=-1))  # u ↦ (0, u)
        factors: list[Any] = [np.zeros(n + 1)]
        columns = embedding
        for q in range(1, max(self.degree, 1) + 1):
            if q > 1:
                columns = sparse.csr_array(sparse.kron(columns, embedding, format="csr"))
            known = self.coefficients[q] if q <= self.degree else sparse.csr_array((n, n**q))
            factors.append(sparse.csr_array(embedding @ sparse.csr_array(known) @ columns.T))
        column = np.concatenate([[1.0], self.coefficients[0]])
        constant = sparse.csr_array((column, (np.arange(n + 1), np.zeros(n + 1, np.int64))),
                                    shape=(n + 1, n + 1))  # fmt: skip
        constant.eliminate_zeros()
        factors[1] = sparse.csr_array(factors[1] + constant)
        return PolynomialMap(*factors)


def trajectory(maps: Sequence[PolynomialMap], start: ArrayLike) -> Array:
    """The plain nonlinear loop u(t+1) = Φ_t(u(t)): shape (T + 1, n), the start included.

    Raises:
        OverflowError: where it leaves the range of float64.
    """
    points = [np.asarray(start, dtype=np.float64)]
    with np.errstate(over="ignore", invalid="ignore"):
        for step in maps:
            points.append(step(points[-1]))
    if not np.isfinite(points[-1]).all():
        raise OverflowError("the map's trajectory is infinite: lower the learning rate")
    return np.stack(points)


def _as_array(value: Any) -> Any:
    return value if value is None or sparse.issparse(value) else np.asarray(value)


def _checked(value: Any, q: int, n: int) -> Coefficient:
    if value is None:
        return np.zeros(n) if q == 0 else sparse.csr_array((n, n**q))
    array = _as_array(value)
    data = array.data if sparse.issparse(array) else array
    if np.iscomplexobj(data):
        raise TypeError(f"G_{q} must be real, got {data.dtype}")
    if array.shape not in {(n, n**q), (n,) * (q + 1)}:
        raise ValueError(f"G_{q} must have shape ({n}, {n**q}), got {array.shape}")
    if not np.isfinite(np.asarray(data, dtype=np.float64)).all():
        raise ValueError(f"G_{q} holds NaN or infinity")
    if sparse.issparse(array) and q > 0:
        thinned = sparse.csr_array(array, dtype=np.float64, copy=True)
        thinned.eliminate_zeros()
        return thinned
    dense = array.toarray() if sparse.issparse(array) else np.asarray(array, dtype=np.float64)
    return dense.reshape((n,) if q == 0 else (n, n**q))


def _spectral_norm(c: Coefficient) -> float:
    if c.ndim == 1:
        return float(np.linalg.norm(c))
    if not sparse.issparse(c):
        # Of a wide matrix the small Gram matrix would square the rounding; svdvals does not.
        return float(svdvals(c)[0])
    if c.nnz == 0:
        return 0.0
    if min(c.shape) < 3:
        return float(svdvals(c.toarray())[0])
    start = np.random.default_rng(0).standard_normal(min(c.shape))
    return float(svds(c, k=1, return_singular_vectors=False, v0=start)[0])
