r"""The jet representation: the first block of the truncated Carleman system, at any model size.

A window of SGD expands the parameters around their **anchor** :math:`\theta^*`, their values at
upload. For the homogeneous Carleman system truncated at order N, the first block of the solution
is exactly :math:`(1, \sum_{k=1}^{N} c_k)`, where the **jets** :math:`c_k` are N vectors of the
parameters' size. They obey the update rule of SGD, order by order in a counting variable
:math:`\varepsilon` of the path :math:`\theta^* + \sum_k \varepsilon^k c_k`:

.. math::
    d_k = s\,[\varepsilon^k]\nabla L_t + \lambda c_k + \delta_{k1}(s\,g_t + \lambda\theta^*)

    v_k \leftarrow \mu v_k + (1 - \tau) d_k, \qquad
    c_k \leftarrow c_k - \eta_t\,(d_k + \mu v_k \text{ if Nesterov, else } v_k)

with learning rate η, momentum μ, dampening τ, weight decay λ, and s = −1 to maximise, else 1.
The anchor's own terms enter at order 1, because the homogeneous form counts its constant 1 as
part of the first block.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Tensors = list[Tensor]


def jet_sgd(
    anchor: Sequence[Tensor],
    gradients: Sequence[Tensor],
    coefficients: Sequence[Tensors] | None,
    jets: Sequence[Tensors],
    velocities: Sequence[Tensors] | None,
    masks: Sequence[Tensor | None],
    fresh: Sequence[bool],
    *,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
) -> None:
    r"""One step of SGD on the jets, in place: one block row of the Carleman system.

    Args:
        anchor: :math:`\theta^*`, one tensor a parameter; read only.
        gradients: :math:`g_t` at the anchor; read only.
        coefficients: :math:`[\varepsilon^k]\nabla L_t`, k = 1…N; read only, for tensors of
            several parameters may share their storage. ``None`` where all are zero, as in a
            window's first step.
        jets: :math:`c_1 … c_N`, updated; in float32 at least
            (:func:`torch_qsgd.derivatives.coordinates.working_dtype`).
        velocities: :math:`v_1 … v_N`; updated. ``None`` without momentum.
        masks: bool, True where a coordinate is active; ``None`` where all are.
        fresh: True for a parameter whose momentum starts with this step: as in PyTorch, its
            first velocity is the gradient itself, undampened.
        lr, momentum, dampening, weight_decay, nesterov, maximize: as in ``torch.optim.SGD``.

    Cost: 5N to 8N passes over the parameters, all in ``torch._foreach_*``.
    """
    sign = -1.0 if maximize else 1.0
    masked = [(i, mask) for i, mask in enumerate(masks) if mask is not None]
    # Without coefficients the path is still a point: only the constant term moves, at order 1.
    for k, jet in enumerate(jets if coefficients is not None else jets[:1]):
        dtypes = [c.dtype for c in jet]
        terms = [gradients] if k == 0 else []
        terms += [coefficients[k]] if coefficients is not None else []
        update = list(torch._foreach_mul(_cast(terms[0], dtypes), sign))
        for term in terms[1:]:
            torch._foreach_add_(update, _cast(term, dtypes), alpha=sign)
        if k == 0 and weight_decay:
            torch._foreach_add_(update, _cast(anchor, dtypes), alpha=weight_decay)
        if weight_decay:
            torch._foreach_add_(update, jet, alpha=weight_decay)
        if masked:
            torch._foreach_mul_([update[i] for i, _ in masked], [mask for _, mask in masked])
        if velocities is not None:
            velocity = velocities[k]
            torch._foreach_mul_(velocity, momentum)
            for first in {*fresh}:
                of_kind = [i for i, f in enumerate(fresh) if f == first]
                torch._foreach_add_(
                    [velocity[i] for i in of_kind],
                    [update[i] for i in of_kind],
                    alpha=1.0 if first else 1.0 - dampening,
                )
            if nesterov:
                torch._foreach_add_(update, velocity, alpha=momentum)
            else:
                update = velocity
        torch._foreach_add_(jet, update, alpha=-lr)


def _cast(tensors: Sequence[Tensor], dtypes: Sequence[torch.dtype]) -> Tensors:
    return [t.to(dtype) for t, dtype in zip(tensors, dtypes, strict=True)]


def summed(jets: Sequence[Sequence[Tensor]]) -> Tensors:
    """The displacement from the anchor, Σ_k c_k, as new tensors. Cost: N passes."""
    total = [c.clone() for c in jets[0]]
    for jet in jets[1:]:
        torch._foreach_add_(total, list(jet))
    return total


def gram(jets: Sequence[Sequence[Tensor]]) -> Tensor:
    """Inner products ⟨c_k, c_l⟩ of the jets, of shape (N, N), float64, on the CPU.

    Cost: N (N + 1)/2 inner products, and one transfer to the host.
    """
    order = len(jets)
    flat = [[c.flatten() for c in jet] for jet in jets]
    products = [
        torch.stack([torch.dot(a, b).double() for a, b in zip(flat[k], flat[l], strict=True)]).sum()
        for k in range(order)
        for l in range(k + 1)  # noqa: E741 - as in the formula
    ]
    found = torch.zeros(order, order, dtype=torch.float64)
    rows, columns = torch.tril_indices(order, order)
    found[rows, columns] = found[columns, rows] = torch.stack(products).cpu()
    return found


def norm(tensors: Tensors) -> Tensor:
    """Euclidean norm over all coordinates of all tensors, a scalar. Cost: one pass."""
    return torch.nn.utils.get_total_norm(tensors)
