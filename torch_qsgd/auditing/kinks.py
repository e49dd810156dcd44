r"""The kink floor: the part of a window's error that more orders do not remove.

A Taylor series at the anchor θ* sees each piecewise operation only on the piece that it is on at
θ*, for that batch: a ReLU as the identity or as zero, max-pooling as the choice of one entry. So
all orders together describe the network whose operations are held on those pieces, not the network
itself, and the distance of SGD on the one from SGD on the other is a floor. Our definition.

:func:`recording_pieces` remembers the pieces of a forward pass, and :meth:`Pieces.replayed` holds
the model on them at other weights. Operations on what does not depend on the weights are left
alone, and so is everything smooth; softmax and its kin are smooth, though PyTorch computes them by
way of a maximum. A function of PyTorch's own that calls others within, and is not listed here,
hides those from view; so does a ``torch.autograd.Function``, and compiled or scripted code, which
:meth:`Pieces.name_unseen` finds in the loss's graph.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from torch_qsgd.auditing.piecewise import DEFINITIONS, Definition, Held, pooled
from torch_qsgd.batches import tensors_in
from torch_qsgd.derivatives.graph import _nodes

Function = Callable[..., Any]

#: Their value is a choice itself, without a derivative.
_CHOICES = (
    "argmax argmin argsort ceil eq fix floor ge greater greater_equal gt le less "
    "less_equal lt ne not_equal round sgn sign trunc"
)

#: Known to have kinks, and not held.
_UNHELD = (
    "aminmax copysign cosine_embedding_loss cummax cummin fmax fmin fmod frac "
    "fractional_max_pool2d fractional_max_pool3d hinge_embedding_loss kthvalue "
    "margin_ranking_loss median mode msort multi_margin_loss multilabel_margin_loss nanmedian "
    "nanquantile quantile remainder rnn_relu rnn_relu_cell rrelu sort topk triplet_margin_loss "
    "triplet_margin_with_distance_loss"
)

_ALIASES = {"absolute": "abs", "clip": "clamp"}


class PiecesError(RuntimeError):
    """A model cannot be held on the pieces that were recorded; the message says why."""


class _Operation:
    """One function of PyTorch that has kinks.

    Args:
        name: for reports, the same in all its forms.
        definition: see ``torch_qsgd/auditing/piecewise.py``.
        inplace: whether this form always writes to its first argument.
    """

    def __init__(self, name: str, definition: Definition, inplace: bool = False) -> None:
        self.name = name
        self._definition = definition
        self._inplace = inplace
        self._signature = inspect.signature(definition)

    def choose(self, held: Held, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Make the definition's choices; ``NotImplementedError`` where they cannot be held."""
        try:
            self._signature.bind(held, *args, **kwargs)
        except TypeError:  # a form that the definition does not know
            raise NotImplementedError from None
        with torch.no_grad():
            self._definition(held, *args, **kwargs)

    def continued(self, held: Held, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the definition makes of choices made before, and written where it belongs."""
        given = self._signature.bind(held, *args, **kwargs).arguments
        if not (self._inplace or given.get("inplace", False)):
            return self._definition(held, *args, **kwargs)
        written, *rest = args
        # A copy, for what the definition keeps for its derivative must not be written to.
        return written.copy_(self._definition(held, written.clone(), *rest, **kwargs))


@dataclass(frozen=True)
class _Call:
    """One call at the anchor; no choices where its arguments made no kink."""

    name: str
    shapes: list[torch.Size]
    smooth: bool
    choices: list[Tensor]


@dataclass
class Pieces:
    """The pieces that a model's kinked operations were on, in the order of its calls.

    Attributes:
        kinks: names of the operations met, each once.
        unfrozen: those of them that cannot be held, and what :meth:`name_unseen` found.
    """

    kinks: list[str] = field(default_factory=list)
    unfrozen: list[str] = field(default_factory=list)
    _calls: list[_Call] = field(default_factory=list, repr=False)

    def name_unseen(self, loss: Tensor) -> None:
        """Add to ``unfrozen`` what may hide kinks: each ``torch.autograd.Function``, and scripts.

        The package's own are smooth, and left out. Scripted code runs as PyTorch's operations the
        first time, as compiled code from then on: only then it is found.

        Args:
            loss: computed while these pieces were recorded, with its graph.

        Cost: one visit a node of the graph, about 1 µs each.
        """
        for node in _nodes([loss]):
            reason = ""
            if isinstance(node, torch.autograd.function.BackwardCFunction):
                function: Any = getattr(type(node), "_forward_cls", type(node))
                if not function.__module__.startswith("torch_qsgd."):
                    reason = f"{function.__name__} (an autograd.Function: kinks in it are not seen)"
            elif "DifferentiableGraph" in node.name():
                reason = "scripted code (kinks in it are not seen)"
            if reason and reason not in self.unfrozen:
                self.unfrozen.append(reason)

    @contextlib.contextmanager
    def replayed(self) -> Iterator[None]:
        """Context in which the same calls, at any weights, stay on these pieces.

        Each time it is entered, it takes one forward pass, and its backward pass. It is local to
        the thread. Checkpointed parts cannot be held: PyTorch runs them again in the backward
        pass, where no mode is on.

        Raises:
            PiecesError: where an operation cannot be held, or the calls are not those recorded.

        Cost: that of the operations themselves, and 3 µs a PyTorch call.
        """
        if self.unfrozen:
            raise PiecesError(f"{', '.join(self.unfrozen)} cannot be held on a piece")
        mode = _Replaying(self._calls)
        with mode:
            yield
        mode.require_finished()


@contextlib.contextmanager
def recording_pieces() -> Iterator[Pieces]:
    """Context in which a forward pass is run as ever, and its pieces are remembered.

    Yields:
        The pieces, complete on leaving. They hold one mask, or its like, for each kinked
        operation: a byte for each of its outputs, 8 bytes for a pooled one.

    Cost: the kinked operations once more, and 3 µs a PyTorch call.

    Example:
        >>> x = torch.tensor([-1.0, 2.0], requires_grad=True)
        >>> with recording_pieces() as pieces:
        ...     y = torch.relu(x)
        >>> with pieces.replayed():
        ...     torch.relu(-3 * x).tolist()
        [0.0, -6.0]
        >>> pieces.kinks
        ['relu']
    """
    pieces = Pieces()
    with _Recording(pieces):
        yield pieces


class _Recording(TorchFunctionMode):
    """Runs every function as it is, and remembers what the kinked ones chose."""

    def __init__(self, pieces: Pieces) -> None:
        super().__init__()
        self._pieces = pieces

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        operation = _OPERATIONS.get(func)
        if operation is not None and _depends_on_weights(args, kwargs or {}):
            self._record(operation, args, kwargs or {})
        return func(*args, **(kwargs or {}))

    def _record(self, operation: _Operation, args: tuple[Any, ...], kwargs: Any) -> None:
        choices: list[Tensor] = []

        def held(function: Function, *operands: Any, **options: Any) -> Tensor:
            choices.append(function(*operands, **options))
            return choices[-1]

        pieces, name = self._pieces, operation.name
        try:
            operation.choose(held, args, kwargs)
        except NotImplementedError:
            if name not in pieces.unfrozen:
                pieces.unfrozen.append(name)
        smooth = not choices and name not in pieces.unfrozen
        if not smooth and name not in pieces.kinks:
            pieces.kinks.append(name)
        pieces._calls.append(_Call(name, _shapes(args), smooth, choices))


class _Replaying(TorchFunctionMode):
    """Puts the held form of each kinked function in its place."""

    def __init__(self, calls: list[_Call]) -> None:
        super().__init__()
        self._calls = calls
        self._position = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        operation = _OPERATIONS.get(func)
        if operation is None or not _depends_on_weights(args, kwargs or {}):
            return func(*args, **(kwargs or {}))
        call = self._next(operation.name, _shapes(args))
        if call.smooth:
            return func(*args, **(kwargs or {}))
        choices = iter(call.choices)
        return operation.continued(lambda *_, **__: next(choices), args, kwargs or {})

    def _next(self, name: str, shapes: list[torch.Size]) -> _Call:
        if self._position == len(self._calls):
            raise PiecesError(
                f"{name} was called once more than when the pieces were recorded: the model's "
                "calls depend on its weights"
            )
        call = self._calls[self._position]
        self._position += 1
        if (call.name, call.shapes) != (name, shapes):
            raise PiecesError(
                f"{name} of {_listed(shapes)} was called where {call.name} of "
                f"{_listed(call.shapes)} was recorded: the model's calls depend on its weights"
            )
        return call

    def require_finished(self) -> None:
        """Raise ``PiecesError`` where fewer calls were made than recorded."""
        left = len(self._calls) - self._position
        if left:
            raise PiecesError(
                f"{left} of {len(self._calls)} recorded calls were not made again, the first of "
                f"them {self._calls[self._position].name}: the model's calls depend on its weights"
            )


def _depends_on_weights(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors_in((args, kwargs)))


def _shapes(args: tuple[Any, ...]) -> list[torch.Size]:
    return [t.shape for t in tensors_in(args)]


def _listed(shapes: list[torch.Size]) -> str:
    return " and ".join(str(tuple(shape)) for shape in shapes)


# ---- Which functions of PyTorch these are ------------------------------------------------------


def _unheld(held: Held, *args: Any, **kwargs: Any) -> Any:
    raise NotImplementedError


def _choice(function: Function) -> Definition:
    def chosen(held: Held, *args: Any, **kwargs: Any) -> Tensor:
        return held(function, *args, **kwargs)

    return chosen


def _operations() -> dict[Function, _Operation]:
    """Every form that PyTorch has of each operation."""
    table: dict[Function, _Operation] = {}

    def add(holder: Any, name: str, operation: _Operation) -> None:
        function = getattr(holder, name, None)
        if function is not None:
            table[function] = operation

    unheld = dict.fromkeys(_UNHELD.split(), _unheld)
    aliases = {alias: DEFINITIONS[name] for alias, name in _ALIASES.items()}
    for holder in (F, torch, torch.linalg, Tensor):
        for name, definition in {**DEFINITIONS, **unheld, **aliases}.items():
            shown = _ALIASES.get(name, name)
            add(holder, name, _Operation(shown, definition))
            add(holder, f"{name}_", _Operation(shown, definition, inplace=True))
        for name in _CHOICES.split():
            if hasattr(holder, name):
                definition = _choice(getattr(holder, name))
                add(holder, name, _Operation(name, definition))
                add(holder, f"{name}_", _Operation(name, definition, inplace=True))
        for spatial in (1, 2, 3):
            for kind in ("", "adaptive_"):
                name = f"{kind}max_pool{spatial}d"
                definition = partial(pooled, spatial, bool(kind))
                # This one returns indices too, though its name does not tell.
                both = (holder, kind) == (torch, "adaptive_")
                add(holder, name, _Operation(name, definition(both)))
                add(holder, f"{name}_with_indices", _Operation(name, definition(True)))
    return table


_OPERATIONS = _operations()
