"""``QuantumSGD``: stochastic gradient descent through windows of a quantum linear system."""

from __future__ import annotations

import contextlib
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from torch_qsgd.carleman.jet import summed
from torch_qsgd.cycle import Batch, Cycle, displace
from torch_qsgd.derivatives import keep_graph, taylor_coefficients
from torch_qsgd.derivatives.graph import RECORDING
from torch_qsgd.derivatives.recorded import Recorded
from torch_qsgd.errors import GraphError
from torch_qsgd.options import check_options, check_parameters, check_shared
from torch_qsgd.pruning import NEEDS_MODEL, forward
from torch_qsgd.records import new_cycle
from torch_qsgd.solvers import Solver, resolve

Gradients = list[Tensor | None]


class QuantumSGD(Cycle):
    r"""SGD on a pruned network, a window of steps at a time as one linear system.

    A cycle: **upload** (prune to ``density``; the weights become the anchor θ*), **window** (each
    step takes its own minibatch and advances the jets :math:`c_1 … c_N` of the truncated Carleman
    system, the weights stay at the anchor), **download** (weights := θ* + Σ_k c_k on active
    coordinates), then ``classical_steps`` dense steps of plain SGD. With ``window=0`` nothing is
    uploaded: it is SGD, masked where ``density < 1``; with ``density=1`` too it is
    ``torch.optim.SGD`` to the bit.

    A window's steps need the gradient's derivatives, handed in by one of

    - ``with opt.recording(): loss = …; loss.backward()``, then ``opt.step()``;
    - ``opt.step(closure)`` with an ordinary closure that calls ``loss.backward()``;
    - ``model=`` and ``loss_fn=`` here, and ``opt.step(inputs, targets)``.

    Args:
        params: parameters, named parameters, or groups; real floating point.
        lr, momentum, dampening, weight_decay, nesterov, maximize: as in ``torch.optim.SGD``. They
            act on the jets as they act on SGD, and are read anew each step.
        density: share of the prunable weights that stays active, in (0, 1]. Groups of equal
            density and method are pruned together. One-dimensional parameters stay dense, and so
            do biases and normalisation parameters of more dimensions where names or ``model`` tell
            them; otherwise give those a group with density 1.
        window: steps in a window, at least 0.
        order: N, the truncation order, at least 1.
        classical_steps: dense steps between a download and the next upload, at least 0.
        pruning: ``"magnitude"``, ``"magnitude-layerwise"``, ``"erk"``, ``"random"``, ``"snip"`` or
            ``"synflow"``; the last two need ``model``, and a batch at upload.
        solver: a name, or a :class:`torch_qsgd.solvers.Solver`.
        tolerance: a window ends early once ‖c_N‖/‖c_1‖ passes it; ``inf`` never.
        prune_vectors: prune biases, normalisation and one-dimensional parameters too.
        model, loss_fn: for ``step(inputs, targets)``: ``loss_fn(model(inputs), targets)``. A
            tuple of inputs is unpacked, a mapping is passed by keyword.
        generator: source of random masks; by default a CPU generator with seed 0.

    Raises:
        ValueError, TypeError: for an option or a parameter outside what is allowed.

    Cost: a window step about 3.3, 9 and 26 gradient evaluations at order 1, 2 and 3; N vectors of
    the parameters' size, twice that with momentum.

    Source: Liu et al., Nature Communications 15, 434 (2024), for the cycle; the jets are ours.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> opt = QuantumSGD(model.parameters(), lr=0.1, density=0.5, window=3, classical_steps=1)
        >>> x, y = torch.randn(16, 4), torch.randn(16, 1)
        >>> for _ in range(4):
        ...     opt.zero_grad()
        ...     with opt.recording():
        ...         loss = nn.functional.mse_loss(model(x), y)
        ...         loss.backward()
        ...     _ = opt.step()
        >>> opt.windows[0].steps, opt.windows[0].active, opt.phase
        (3, 29, 'upload')
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        maximize: bool = False,
        *,
        density: float = 0.1,
        window: int = 100,
        order: int = 2,
        classical_steps: int = 10,
        pruning: str = "magnitude",
        solver: str | Solver = "exact",
        tolerance: float = math.inf,
        prune_vectors: bool = False,
        model: nn.Module | None = None,
        loss_fn: Callable[..., Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if (model is None) != (loss_fn is None):
            raise ValueError("model and loss_fn go together: give both, or neither")
        self.model = model
        self.loss_fn = loss_fn
        self.solver = resolve(solver)
        self._generator = generator or torch.Generator().manual_seed(0)
        self._reset_transients()
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "density": density,
            "window": window,
            "order": order,
            "classical_steps": classical_steps,
            "pruning": pruning,
            "tolerance": tolerance,
            "prune_vectors": prune_vectors,
        }
        check_options(defaults)
        super().__init__(params, defaults)
        self.param_groups[0]["cycle"] = new_cycle(self._generator.get_state())

    def _reset_transients(self) -> None:
        """What does not outlive a step: nothing here is part of the optimizer's state."""
        self._recorded: Recorded | None = None
        self._inside: str | None = None
        self._upload_hooks: OrderedDict[int, Callable[..., None]] = OrderedDict()
        self._download_hooks: OrderedDict[int, Callable[..., None]] = OrderedDict()

    # ---- What an optimizer must honour -------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters. In mid-window they join it, unpruned until the next upload."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            check_parameters(group)
            check_options(group)
            check_shared(group, self.param_groups[0])
            if group["pruning"] in NEEDS_MODEL and self.model is None:
                raise ValueError(f"pruning {group['pruning']!r} needs model= and loss_fn=")
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    def __getstate__(self) -> dict[str, Any]:
        kept = ("solver", "model", "loss_fn", "_generator")
        return {**super().__getstate__(), **{name: self.__dict__[name] for name in kept}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._reset_transients()
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)
        cycle = self.param_groups[0].setdefault("cycle", new_cycle(self._generator.get_state()))
        self._generator.set_state(cycle["generator"].cpu())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; tensors keep the dtype they were saved in, masks stay bool."""
        super().load_state_dict(state_dict)
        saved = [i for group in state_dict["param_groups"] for i in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        for index, p in zip(saved, params, strict=True):
            for key, value in state_dict["state"].get(index, {}).items():
                if isinstance(value, Tensor) and value.dtype != self.state[p][key].dtype:
                    self.state[p][key] = value.detach().to(p.device, copy=True)

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} ("]
        for index, group in enumerate(self.param_groups):
            hidden = ("params", "param_names", "cycle")
            lines.append(f"Parameter Group {index}")
            lines += [f"    {key}: {group[key]}" for key in sorted(group) if key not in hidden]
        return "\n".join([*lines, ")"])

    # ---- Handing in derivatives --------------------------------------------------------------

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Run a forward and backward pass so that the next ``step()`` has what it needs.

        An upload that is due happens on entering. In a window, the model runs with composed
        normalisations and ``loss.backward()`` keeps its graph; on leaving, the derivatives are
        taken, the graph is freed, and ``.grad`` is left as SGD would find it. Several backward
        passes, in one block or in several, accumulate. Elsewhere in the cycle it does nothing.

        Raises:
            GraphError: where the derivatives cannot be had; the message names the line to change.
        """
        self._require_outside("recording()")
        self._begin_step(None)
        if self.phase != "window":
            yield
            return
        params = self._trainable()
        earlier = self._matching_record(params)
        self._recorded = None
        try:
            with keep_graph(self._moved) as losses:
                with self._entered("recording()"):
                    yield
                gradients = _gradients(params)
                coefficients = self._differentiate(gradients, params) if self._moved else None
        finally:
            _detach(params)
        record = Recorded(_gradients(params), coefficients, losses)
        if earlier is not None:
            record.add(earlier)
        self._recorded = record

    @torch.no_grad()
    def step(self, closure: Any = None, targets: Any = None) -> Any:
        """Take one step of the cycle.

        Args:
            closure: a function that calls ``loss.backward()`` and returns the loss; or, where
                ``model`` and ``loss_fn`` were given, the inputs of the model.
            targets: second argument of ``loss_fn``, beside inputs.

        Returns:
            The loss, where a closure or a batch was given; else ``None``.

        Raises:
            GraphError: where the window needs derivatives that were not handed in.
            DivergenceError: for a NaN or infinite loss, gradient or jet. Nothing is advanced; the
                weights are those of the last good anchor.
            TypeError: for a sparse gradient, or a batch without a model.
        """
        self._require_outside("step()")
        if targets is not None or not (closure is None or callable(closure)):
            return self._step_on_batch(closure, targets)
        loss = None
        if closure is not None:
            with torch.enable_grad(), self.recording():
                loss = closure()
        params = self._trainable()
        gradients = _gradients(params)
        record = self._matching_record(params)
        self._recorded = None
        if record is None and self.phase != "classical" and _any(gradients):
            record = self._record_bare_graph(params, gradients)
            if record is None:
                return loss
        seen = loss.detach() if isinstance(loss, Tensor) else None
        if record is not None and record.losses and seen is None:
            seen = torch.stack(record.losses).sum()
        _detach(params)
        coefficients = None if record is None else record.coefficients
        self._advance(params, gradients, coefficients, seen)
        return loss

    def _step_on_batch(self, inputs: Any, targets: Any) -> Tensor:
        if self.model is None or self.loss_fn is None:
            raise TypeError(
                "step(inputs, targets) needs QuantumSGD(..., model=model, loss_fn=loss_fn); "
                "otherwise call step(closure), or step() after `with opt.recording():`"
            )
        self._begin_step((inputs, targets))
        params = self._trainable()
        windowed = self.phase == "window"
        with torch.enable_grad(), keep_graph(False) if windowed else contextlib.nullcontext():
            loss = self.loss_fn(forward(self.model, inputs), targets)
            gradients = _dense(
                torch.autograd.grad(loss, params, create_graph=self._moved, allow_unused=True)
            )
            coefficients = self._differentiate(gradients, params) if self._moved else None
        gradients = [None if g is None else g.detach() for g in gradients]
        self._advance(params, gradients, coefficients, loss.detach())
        return loss.detach()

    @contextlib.contextmanager
    def _entered(self, block: str) -> Iterator[None]:
        self._inside = block
        try:
            yield
        finally:
            self._inside = None

    def _require_outside(self, called: str) -> None:
        if self._inside:
            raise RuntimeError(f"{called} inside `with opt.{self._inside}:`; leave the block first")

    def _begin_step(self, batch: Batch | None) -> None:
        if self.phase == "upload":
            self._upload(batch)

    @property
    def is_second_order(self) -> bool:
        """By this timm's training script knows to call ``loss.backward(create_graph=True)``."""
        return bool(self.param_groups[0]["window"] > 0)

    @property
    def _moved(self) -> bool:
        """Whether the jets have left zero, so that the gradient's derivatives count."""
        return self.phase == "window" and self.window_step > 0

    def _differentiate(self, gradients: Gradients, params: list[Tensor]) -> list[list[Tensor]]:
        if _any(gradients) and not any(g is not None and g.requires_grad for g in gradients):
            raise GraphError(
                "the backward pass kept no graph: call `loss.backward()` itself inside the block "
                "(not `torch.autograd.backward`, nor under `torch.no_grad()`)"
            )
        return taylor_coefficients(gradients, params, self._jets(params))

    def _matching_record(self, params: list[Tensor]) -> Recorded | None:
        record = self._recorded
        if record is None or not record.belongs_to([p.grad for p in params]):
            return None
        record.follow_scaling()
        return record

    def _record_bare_graph(self, params: list[Tensor], gradients: Gradients) -> Recorded | None:
        """Derivatives from a ``loss.backward(create_graph=True)`` outside ``recording()``."""
        if not any(g is not None and g.grad_fn is not None for g in gradients):
            if all(g is None or not g.any() for g in gradients):
                # Distributed checkpoints call an empty step to have the state allocated.
                self._allocate(params, buffers=True)
                return None
            raise GraphError(
                f"step {self.window_step + 1} of the window needs derivatives of the gradient, "
                f"and `.grad` has no graph: {RECORDING}, or call opt.step(closure), or give "
                "QuantumSGD model= and loss_fn= and call opt.step(inputs, targets)"
            )
        try:
            if self.phase == "upload":
                self._upload(None, weights_are_used=True)
            coefficients = self._differentiate(gradients, params) if self._moved else None
        finally:
            _detach(params)
        return Recorded([p.grad for p in params], coefficients, [])

    # ---- Looking ahead -----------------------------------------------------------------------

    @contextlib.contextmanager
    def predicted_weights(self) -> Iterator[None]:
        """Hold the weights at θ* + Σ_k c_k, which an emulator may see in mid-window.

        On leaving, the weights are what they were, to the bit; so are the model's buffers, where
        ``model=`` was given. Outside a window it does nothing.

        Cost: one copy of the parameters, and N passes.
        """
        self._require_outside("predicted_weights()")
        if not self._moved:
            yield
            return
        params = self._trainable()
        kept = [*params, *(self.model.buffers() if self.model is not None else ())]
        with torch.no_grad():
            saved = [t.clone() for t in kept]
            displace(params, summed(self._jets(params)))
        try:
            with self._entered("predicted_weights()"):
                yield
        finally:
            with torch.no_grad():
                for tensor, original in zip(kept, saved, strict=True):
                    tensor.copy_(original)


def _dense(gradients: Iterable[Tensor | None]) -> Gradients:
    """The gradients, none of them sparse."""
    found = list(gradients)
    if any(g is not None and g.is_sparse for g in found):
        raise TypeError("QuantumSGD takes no sparse gradients: use Embedding(sparse=False)")
    return found


def _gradients(params: list[Tensor]) -> Gradients:
    return _dense(p.grad for p in params)


def _any(gradients: Gradients) -> bool:
    return any(g is not None for g in gradients)


def _detach(params: list[Tensor]) -> None:
    """Cut the graph off ``.grad``: it would keep the model alive."""
    for p in params:
        if p.grad is not None and p.grad.requires_grad:
            p.grad.detach_()
