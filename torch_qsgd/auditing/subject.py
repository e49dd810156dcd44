"""A model's loss on one batch as a function of its weights, on a copy, with its derivatives."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from torch_qsgd.auditing.kinks import PiecesError, recording_pieces
from torch_qsgd.batches import forward, mapped, tensors_in
from torch_qsgd.derivatives import higher_derivatives, taylor_coefficients
from torch_qsgd.derivatives.coordinates import Coordinates
from torch_qsgd.errors import DivergenceError
from torch_qsgd.hessian.selfcheck import tolerance
from torch_qsgd.training import Batch, LossFunction

#: The largest relative disagreement; wrong derivatives show at 1e-2 and more.
_ALLOWED = 1e-3
_LONGEST = 400  # letters of a reason


class Subject:
    """A copy of the model, its loss on the batch, and vectors of its active coordinates.

    Args:
        model, loss_fn, batch: in one dtype; the model is changed.
        names: of the parameters to differentiate.
        masks: by name.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        batch: Batch,
        names: list[str],
        masks: Mapping[str, Tensor],
    ) -> None:
        self.model, self._loss_fn, self._batch = model, loss_fn, batch
        known = dict(model.named_parameters())
        self.names, self.parameters = names, [known[name] for name in names]
        self.coordinates = Coordinates(self.parameters, [masks.get(name) for name in names])
        if self.coordinates.size == 0:
            raise ValueError("no coordinate is active: all masks are empty")
        self._weights = [p.detach().clone() for p in self.parameters]
        self._buffers = [
            (module, {n: (b, b.clone()) for n, b in module._buffers.items() if b is not None})
            for module in model.modules()
        ]
        narrowest = max((p.dtype for p in self.parameters), key=lambda d: torch.finfo(d).eps)
        self.allowed = max(_ALLOWED, tolerance(narrowest))
        self.rounding = tolerance(narrowest)
        #: Names of the kinked operations that are held on their pieces away from the weights.
        self.held = ""
        #: Why they are not; empty where they are, or there are none.
        self.unheld = ""
        with recording_pieces() as self._pieces:
            self.base = self.gradient(0.0, None)
        if self._pieces.unfrozen:
            self.unheld = f"{', '.join(self._pieces.unfrozen)} cannot be held on a piece"
        else:
            self.held = ", ".join(self._pieces.kinks)
        if not bool(self.base.isfinite().all()):
            raise DivergenceError(
                "the gradient on the batch is NaN or infinite: look at the weights and at the data"
            )

    @classmethod
    def in_float64(
        cls,
        model: nn.Module,
        loss_fn: LossFunction,
        batch: Batch,
        names: list[str],
        masks: Mapping[str, Tensor],
    ) -> Subject:
        """In float64 where the model runs in it, else as it is."""
        twins = copy.deepcopy((model, loss_fn))

        def double(tensor: Tensor) -> Tensor:
            return tensor.double() if tensor.is_floating_point() else tensor

        try:
            for part in twins:
                if isinstance(part, nn.Module):
                    part.double()
            return cls(*twins, mapped(batch, double), names, masks)
        except (RuntimeError, TypeError):
            return cls(*copy.deepcopy((model, loss_fn)), batch, names, masks)

    @contextlib.contextmanager
    def _as_ever(self) -> Iterator[None]:
        """Each evaluation starts from the same buffers and draws the same random numbers."""
        with torch.no_grad():
            for module, buffers in self._buffers:
                for name, (buffer, kept) in buffers.items():
                    module._buffers[name] = buffer.copy_(kept)
        torch.default_generator.manual_seed(0)
        if self.parameters[0].device.type == "cuda":
            torch.cuda.default_generators[self.parameters[0].device.index or 0].manual_seed(0)
        with torch.enable_grad():
            yield

    def loss(self) -> Tensor:
        """With its graph."""
        with self._as_ever():
            loss: Tensor = self._loss_fn(forward(self.model, self._batch[0]), self._batch[1])
        return loss

    def gradient(self, distance: float, direction: Tensor | None) -> Tensor:
        """PyTorch's own at θ + ε v, of shape (n,); away from θ on the pieces at θ, if possible."""
        if direction is None:
            return self._gradient()
        self._move(distance, direction)
        try:
            if self.held:
                try:
                    with self._pieces.replayed():
                        return self._gradient()
                except PiecesError as error:
                    self.held, self.unheld = "", words(error)
            return self._gradient()
        finally:
            self._move(0.0, direction)

    def _gradient(self) -> Tensor:
        with torch.enable_grad():
            found = torch.autograd.grad(self.loss(), self.parameters, allow_unused=True)
        return self.coordinates.flatten(found)

    @torch.no_grad()
    def _move(self, distance: float, direction: Tensor) -> None:
        moves = self.coordinates.unflatten(direction)
        for p, weight, move in zip(self.parameters, self._weights, moves, strict=True):
            p.copy_(weight + distance * move if distance else weight)

    def direction(self, generator: torch.Generator) -> Tensor:
        """Random, in each tensor as long as the weights there, or of length 1."""
        n, dtype = self.coordinates.size, self.coordinates.dtype
        drawn = torch.randn(n, generator=generator, dtype=torch.float64).to(
            self.coordinates.device, dtype
        )
        moves = self.coordinates.unflatten(drawn)
        for move, weight in zip(moves, self._weights, strict=True):
            length = float(torch.linalg.vector_norm(move))
            if length:
                move.mul_((float(torch.linalg.vector_norm(weight)) or 1.0) / length)
        return self.coordinates.flatten(moves)

    def series(self, direction: Tensor, order: int) -> list[Tensor]:
        """The package's own G_1 … G_order."""
        straight = self.coordinates.unflatten(direction)
        still = [torch.zeros_like(c) for c in straight]
        with higher_derivatives(), torch.enable_grad():
            gradients = torch.autograd.grad(
                self.loss(), self.parameters, create_graph=True, allow_unused=True
            )
            jets = [straight, *[still] * (order - 1)]
            found = taylor_coefficients(gradients, self.parameters, jets)
        rows = [self.coordinates.flatten(row) for row in found]
        if not all(bool(row.isfinite().all()) for row in rows):
            raise DivergenceError("it is NaN or infinite")
        return rows

    def forward_over_reverse(self, direction: Tensor) -> tuple[Tensor, float]:
        """H v by ``torch.func``, and the loss that it was taken of."""
        inputs, targets = self._batch
        moves = dict(zip(self.names, self.coordinates.unflatten(direction), strict=True))
        weights = {n: p.detach() for n, p in zip(self.names, self.parameters, strict=True)}

        def loss_of(tensors: dict[str, Tensor]) -> Tensor:
            # Buffers that are written to must be made here.
            buffers = {name: b.clone() for name, b in self.model.named_buffers()}
            known = {**tensors, **buffers}
            if isinstance(inputs, Mapping):
                outputs = torch.func.functional_call(self.model, known, (), dict(inputs))
            else:
                args = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
                outputs = torch.func.functional_call(self.model, known, args)
            return self._loss_fn(outputs, targets)

        with self._as_ever():
            found: Any = torch.func.jvp(torch.func.grad_and_value(loss_of), (weights,), (moves,))
        (_, loss), (product, _) = found
        return self.coordinates.flatten([product[name] for name in self.names]), float(loss)


def words(error: Exception) -> str:
    """What an error says, on one line of bounded length."""
    found = " ".join(str(error).split()) or type(error).__name__
    return found if len(found) <= _LONGEST else f"{found[:_LONGEST]} …"


def cut(batch: Batch, most: int) -> Batch:
    """The first samples of a batch, where all tensors have the same number of them."""
    lengths = {len(t) for t in tensors_in(batch) if t.dim()}
    if len(lengths) != 1 or max(lengths) <= most:
        return batch
    inputs, targets = (mapped(part, lambda t: t[:most] if t.dim() else t) for part in batch)
    return inputs, targets


def masks_by_name(model: nn.Module, masks: Mapping[Any, Tensor]) -> dict[str, Tensor]:
    """Masks by the parameter's name, which were given by it or by the parameter itself."""
    known = dict(model.named_parameters())
    names = {id(p): name for name, p in known.items()}
    found = {}
    for key, mask in masks.items():
        name = names.get(id(key)) if isinstance(key, Tensor) else key
        if name not in known or mask.dtype != torch.bool:
            raise ValueError(
                "masks must map parameters of the model, or their names, to bool tensors: got "
                f"{'a tensor' if isinstance(key, Tensor) else repr(key)} with {mask.dtype}"
            )
        found[name] = mask
    return found
