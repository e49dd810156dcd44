"""The active coordinates of some parameters, as one vector."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 for half precision, whose vectors and jets would be too coarse, else the dtype.

    Example:
        >>> working_dtype(torch.bfloat16), working_dtype(torch.float64)
        (torch.float32, torch.float64)
    """
    return torch.float32 if dtype.itemsize < 4 else dtype


class Coordinates:
    """Vectors of the n active coordinates, and the tensors that they stand for.

    Coordinates follow the order of the parameters and, in each, of ``Tensor.flatten``, whatever
    the memory format.

    Args:
        parameters: at least one.
        masks: bool, True on active coordinates, one a parameter; ``None`` where all are.

    Raises:
        ValueError: for a mask of another shape than its parameter's.

    Cost: 8 bytes an active coordinate of a masked parameter.

    Example:
        >>> theta = torch.tensor([1.0, 2.0, 3.0])
        >>> some = Coordinates([theta], [torch.tensor([True, False, True])])
        >>> some.flatten([theta])
        tensor([1., 3.])
        >>> some.unflatten(torch.tensor([5.0, 6.0]))
        [tensor([5., 0., 6.])]
    """

    def __init__(
        self, parameters: Sequence[Tensor], masks: Sequence[Tensor | None] | None = None
    ) -> None:
        self._like = [p.detach() for p in parameters]
        self._positions: list[Tensor | None] = []
        for p, mask in zip(parameters, masks or [None] * len(parameters), strict=True):
            if mask is not None and mask.shape != p.shape:
                raise ValueError(
                    f"a mask has shape {tuple(mask.shape)} beside a parameter of shape "
                    f"{tuple(p.shape)}"
                )
            whole = mask is None or bool(mask.all())
            self._positions.append(
                None if whole or mask is None else mask.flatten().nonzero().flatten().to(p.device)
            )
        self.sizes = [
            p.numel() if index is None else len(index)
            for p, index in zip(self._like, self._positions, strict=True)
        ]
        self.size = sum(self.sizes)
        self.dtype = torch.float32
        for p in self._like:
            self.dtype = torch.promote_types(self.dtype, working_dtype(p.dtype))
        self.device = self._like[0].device

    def flatten(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """The vector (n,) of some tensors, with their graph; ``None`` stands for zeros.

        Args:
            tensors: one a parameter, of its shape.

        Cost: one pass.
        """
        parts = []
        for x, index, size in zip(tensors, self._positions, self.sizes, strict=True):
            if x is None:
                parts.append(torch.zeros(size, dtype=self.dtype, device=self.device))
                continue
            flat = x.flatten() if index is None else x.flatten()[index]
            parts.append(flat.to(self.device, self.dtype))
        return torch.cat(parts)

    def unflatten(
        self, vector: Tensor, dtype: torch.dtype | None = None, keep_format: bool = True
    ) -> list[Tensor]:
        """Tensors of the parameters' shapes and devices, zero outside the active coordinates.

        Args:
            vector: shape (n,).
            dtype: of the tensors; by default each parameter's.
            keep_format: whether in the parameters' memory format. Convolutions in channels-last
                would otherwise convert them again and again.

        Cost: one pass, and another for parameters that are not contiguous.
        """
        tensors = []
        for part, p, index in zip(
            vector.split(self.sizes), self._like, self._positions, strict=True
        ):
            values = part.to(p.device, dtype or p.dtype)
            if index is not None:
                values = values.new_zeros(p.numel()).index_copy_(0, index, values)
            shaped = values.view(p.shape)
            if keep_format and not p.is_contiguous():
                shaped = torch.empty_like(p, dtype=shaped.dtype).copy_(shaped)
            tensors.append(shaped)
        return tensors
