r"""What an optimizer's step makes of a Hessian: its linear dynamics around an anchor.

With learning rates :math:`η_g`, weight decays :math:`λ_g` and dampenings :math:`τ_g` by parameter
group, a step without momentum takes the displacement u to

.. math:: u - D\,(\pm H + Λ)\,u - Dg, \qquad D = \operatorname{diag}(η_g (1 - τ_g)), \quad
   Λ = \operatorname{diag}(λ_g),

the minus where the groups maximise. Its modes are those of the symmetric matrix
:math:`η\,S(\pm H + Λ)S` with :math:`S = (D/η)^{1/2}` and η the largest entry of D: that matrix's
spectrum, at the learning rate η, is what the step damps and amplifies. With one group and no
weight decay it is the Hessian's own.

Momentum μ turns a mode of curvature λ into two, whose multipliers are the roots z of

.. math:: z^2 - (1 + μ - ηλ) z + μ = 0, \qquad
   z^2 - (1 + μ)(1 - ηλ) z + μ(1 - ηλ) = 0 \quad\text{(Nesterov)}.

The mode is taken to shrink or grow by the larger |z|. Slow modes thereby move as at the rate
η/(1 − μ), stiff ones shrink by √μ, and the bound 2/η becomes 2(1 + μ)/η,
with Nesterov's 2(1 + μ)/(η(1 + 2μ)).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from torch_qsgd.hessian.dissipativity import ErrorProxy, best_window, error_proxy
from torch_qsgd.hessian.operator import HessianOperator
from torch_qsgd.hessian.spectrum import Spectrum

Array = NDArray[np.float64]
Groups = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Dynamics:
    """How a step treats a mode of a given curvature.

    Args:
        lr: η, the largest η(1 − τ) of the groups, at least 0.
        momentum: μ, in [0, 1); the largest of the groups.
        nesterov: whether the momentum is Nesterov's.

    Example:
        >>> Dynamics(lr=0.1).multipliers([-1.0, 5.0, 30.0])
        array([1.1, 0.5, 2. ])
        >>> Dynamics(lr=0.1, momentum=0.81).multipliers([5.0, 30.0])
        array([0.9, 0.9])
    """

    lr: float
    momentum: float = 0.0
    nesterov: bool = False

    @classmethod
    def of(cls, groups: Groups) -> Dynamics:
        """The dynamics of an optimizer's parameter groups, as they stand."""
        momentum = max(float(group["momentum"]) for group in groups)
        return cls(max(_rates(groups)), momentum, any(group["nesterov"] for group in groups))

    @property
    def largest_stable(self) -> float:
        """The curvature above which a step amplifies; 2/η without momentum, inf at a rate of 0."""
        if self.lr == 0:
            return math.inf
        return 2 * (1 + self.momentum) / (self.lr * (1 + 2 * self.momentum * self.nesterov))

    def multipliers(self, nodes: ArrayLike) -> Array:
        """The factor of each mode's size in a step: |1 − ηλ|, or the larger |z|.

        Args:
            nodes: eigenvalues λ, of shape (k,).

        Returns:
            Shape (k,), float64.
        """
        return 1 - self._damping(np.asarray(nodes, dtype=np.float64))

    def _damping(self, nodes: Array) -> Array:
        """1 − |z|, without loss near zero: with z = 1 + δ, δ² + bδ + ηλ = 0."""
        x, mu = self.lr * nodes, self.momentum
        total = (1 + mu) * (1 - x) if self.nesterov else 1 + mu - x
        product = mu * (1 - x) if self.nesterov else mu + 0 * x
        b = 2 - total
        under_root = b**2 - 4 * x
        root = np.sqrt(np.maximum(under_root, 0))
        with np.errstate(divide="ignore", invalid="ignore"):
            slow = np.where(b > 0, 2 * x / (b + root), (b - root) / 2)
        real = np.where(total >= 0, slow, 2 - (b + root) / 2)
        found: Array = np.where(under_root < 0, 1 - np.sqrt(np.abs(product)), real)
        return found

    def equivalent_nodes(self, nodes: ArrayLike) -> Array:
        """Curvatures that gradient descent at η, without momentum, treats as this treats λ.

        They keep the sign of λ.
        """
        given = np.asarray(nodes, dtype=np.float64)
        if self.momentum == 0 or self.lr == 0:
            return given
        damping = self._damping(given)
        too_stiff = (given > 0) & (damping < 0)
        found: Array = np.where(too_stiff, 2 - damping, damping) / self.lr
        return found

    def best_window(self, spectrum: Spectrum) -> int | float:
        """t*, at which the error proxy is least; ``math.inf`` where it never rises."""
        if self.lr == 0:
            return math.inf
        return best_window(*self._modes(spectrum), self.lr)

    def error_proxy(self, spectrum: Spectrum, steps: float) -> ErrorProxy[float]:
        """P(t) after t steps, with its positive and negative part."""
        # At a rate of zero every mode keeps its size, as it does after no step at any rate.
        lr, steps = (self.lr, steps) if self.lr else (1.0, 0)
        return error_proxy(*self._modes(spectrum), lr, steps)

    def _modes(self, spectrum: Spectrum) -> tuple[Array, Array]:
        resolved = np.where(np.abs(spectrum.nodes) > spectrum.resolution, spectrum.nodes, 0.0)
        return self.equivalent_nodes(resolved), spectrum.weights


class UpdateOperator:
    r"""The matrix :math:`S(\pm H + Λ)S` of an optimizer's step.

    Args:
        hessian: H, restricted to what the step moves.
        groups: the optimizer's parameter groups.
        parameters: by name, those of ``hessian``.

    Raises:
        ValueError: where some groups maximise and others do not: then no symmetric matrix has
            the step's modes.

    Cost: three passes over a vector beside each product with H; none where all groups have one
    learning rate and no weight decay.
    """

    def __init__(
        self, hessian: HessianOperator, groups: Groups, parameters: dict[str, Tensor]
    ) -> None:
        signs = {bool(group["maximize"]) for group in groups}
        if len(signs) > 1:
            raise ValueError(
                "some parameter groups have maximize=True and others not: the steps of such a "
                "game have no spectrum of real eigenvalues, and cannot be monitored"
            )
        self._hessian = hessian
        self._sign = -1.0 if signs.pop() else 1.0
        rates = _rates(groups)
        largest = max(rates)
        group_of = {p: i for i, group in enumerate(groups) for p in group["params"]}
        of_name = {name: group_of[parameters[name]] for name in hessian.parameter_names}

        def spread(values: list[float]) -> Tensor:
            """A value of each group, at the group's active coordinates."""
            return hessian.flatten(
                {
                    name: torch.full_like(parameters[name], values[i], dtype=hessian.dtype)
                    for name, i in of_name.items()
                }
            )

        even = largest == 0 or all(rate == largest for rate in rates)
        self._scale = None if even else spread([math.sqrt(rate / largest) for rate in rates])
        decays = [float(group["weight_decay"]) for group in groups]
        self._decay = spread(decays) if any(decays) else None

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """The product with vectors of shape (n,) or (n, k)."""
        scale, decay = (
            part if part is None or vectors.dim() == 1 else part.unsqueeze(1)
            for part in (self._scale, self._decay)
        )
        moved = vectors if scale is None else scale * vectors
        product = self._sign * (self._hessian @ moved)
        if decay is not None:
            product = product + decay * moved
        return product if scale is None else scale * product

    @property
    def dimension(self) -> int:
        """n, the number of active coordinates."""
        return self._hessian.dimension

    @property
    def shape(self) -> tuple[int, int]:
        """(n, n)."""
        return self._hessian.shape

    @property
    def dtype(self) -> torch.dtype:
        """Of vectors."""
        return self._hessian.dtype

    @property
    def device(self) -> torch.device:
        """Of vectors."""
        return self._hessian.device

    @property
    def products(self) -> int:
        """Products with one vector so far."""
        return self._hessian.products

    def broadcast(self, vector: Tensor) -> Tensor:
        """The vector as the first of the ranks that share the data has it."""
        return self._hessian.broadcast(vector)


def _rates(groups: Groups) -> list[float]:
    """η(1 − τ) of each group; of one with less momentum than others, as its slow modes move."""
    most = max(float(group["momentum"]) for group in groups)
    rates = []
    for group in groups:
        rate, momentum = float(group["lr"]), float(group["momentum"])
        if momentum:
            rate *= 1 - float(group["dampening"])
        rates.append(rate * (1 - most) / (1 - momentum) if momentum != most else rate)
    return rates
