"""Orthonormal vectors in one contiguous block of memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

#: Coordinates converted at once where the basis has another dtype or device than the vectors.
_CHUNK = 1 << 18


class OrthonormalBasis:
    r"""Orthonormal rows :math:`v_1 … v_k` of one (capacity, n) tensor.

    Args:
        capacity: the most rows.
        like: a vector of shape (n,), whose dtype and device the arithmetic has.
        dtype: of the storage; half of the arithmetic's precision halves the memory, and limits
            orthogonality to that precision.
        device: of the storage; the CPU, say, where the accelerator's memory is short.

    Cost: capacity × n numbers of ``dtype``.

    Example:
        >>> basis = OrthonormalBasis(2, like=torch.zeros(3))
        >>> basis.append(torch.tensor([1.0, 0.0, 0.0]))
        >>> w = torch.tensor([3.0, 4.0, 0.0])
        >>> basis.orthogonalize(w)
        tensor([3.], dtype=torch.float64)
        >>> w
        tensor([0., 4., 0.])
    """

    def __init__(
        self,
        capacity: int,
        like: Tensor,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self._compute = like.new_empty(0)
        self._storage = torch.empty(
            capacity, like.numel(), dtype=dtype or like.dtype, device=device or like.device
        )
        self.size = 0

    @property
    def rows(self) -> Tensor:
        """The vectors so far, of shape (size, n), as they are stored."""
        return self._storage[: self.size]

    @property
    def capacity(self) -> int:
        """The most rows."""
        return self._storage.shape[0]

    def _blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """The rows in the arithmetic's dtype and device, some coordinates at a time."""
        rows, like = self.rows, self._compute
        if rows.dtype == like.dtype and rows.device == like.device:
            yield slice(None), rows
            return
        for start in range(0, rows.shape[1], _CHUNK):
            part = slice(start, start + _CHUNK)
            yield part, rows[:, part].to(like)

    def coordinates(self, w: Tensor) -> Tensor:
        """⟨v_i, w⟩ for a vector (n,) or several (n, r). Cost: one pass over the basis."""
        products = [block @ w[part] for part, block in self._blocks()]
        return torch.stack(products).sum(0)

    def orthogonalize(self, w: Tensor) -> Tensor:
        """Take the rows' components out of ``w``, in place, twice (classical Gram–Schmidt).

        Args:
            w: shape (n,), in the arithmetic's dtype.

        Returns:
            The components, of shape (size,), float64, on the CPU.

        Cost: four passes over the basis.
        """
        total = torch.zeros(self.size, dtype=torch.float64)
        if self.size == 0:
            return total
        for _ in range(2):
            components = self.coordinates(w)
            for part, block in self._blocks():
                w[part].addmv_(block.T, components, alpha=-1)
            total += components.double().cpu()
        return total

    def append(self, w: Tensor) -> None:
        """Add a vector of unit length, orthogonal to the rows."""
        self._storage[self.size].copy_(w)
        self.size += 1

    def combine(self, coefficients: Tensor) -> Tensor:
        """Σ_i c_ij v_i for coefficients (size, r): shape (r, n), in the arithmetic's dtype."""
        weights = coefficients.to(self._compute)
        found = self._compute.new_empty(weights.shape[1], self._storage.shape[1])
        for part, block in self._blocks():
            found[:, part] = weights.T @ block
        return found

    def rotate(self, coefficients: Tensor) -> None:
        """Replace the rows by Σ_i c_ij v_i for orthonormal coefficients (size, r), in place.

        Cost: 2 n · size · r operations, and memory for some coordinates at a time.
        """
        rows, found = self.rows, coefficients.shape[1]
        weights = coefficients.T.to(self._compute)
        for start in range(0, rows.shape[1], _CHUNK // 4):
            part = rows[:, start : start + _CHUNK // 4]
            part[:found] = (weights @ part.to(self._compute)).to(part)
        self.size = found

    def restart(self, rows: Tensor) -> None:
        """Replace all rows by others, orthonormal ones, of shape (r, n)."""
        self.size = len(rows)
        self.rows.copy_(rows)
