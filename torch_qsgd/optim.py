"""``QuantumSGD``: stochastic gradient descent through windows of a quantum linear system."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from torch_qsgd.batches import forward
from torch_qsgd.cycle import Batch, Cycle
from torch_qsgd.derivatives import keep_graph
from torch_qsgd.derivatives.graph import RECORDING
from torch_qsgd.derivatives.recorded import Recorded, Watch, require_dense
from torch_qsgd.errors import GraphError
from torch_qsgd.options import check_options, check_parameters, check_shared
from torch_qsgd.pruning import NEEDS_MODEL
from torch_qsgd.readout import Tomography
from torch_qsgd.representations import Representation
from torch_qsgd.representations import resolve as resolve_representation
from torch_qsgd.solvers import Solver
from torch_qsgd.solvers import resolve as resolve_solver

Gradients = list[Tensor | None]


class QuantumSGD(Cycle):
    r"""SGD on a pruned network, a window of steps at a time as one linear system.

    A cycle: **upload** (prune to ``density``; the weights become the anchor θ*), **window** (each
    step takes its own minibatch and advances the jets :math:`c_1 … c_N` of the truncated Carleman
    system, the weights stay at the anchor), **download** (weights := θ* + Σ_k c_k on active
    coordinates), then ``classical_steps`` dense steps of plain SGD. With ``window=0`` nothing is
    uploaded: it is SGD, masked where ``density < 1`` (after ``upload()``, or the first recorded
    step, has pruned); with ``density=1`` too it is ``torch.optim.SGD`` to the bit, and like it
    does not look whether a gradient is a number.

    A window's steps need the gradient's derivatives, handed in by one of

    - ``with opt.recording(): loss = …; loss.backward()``, then ``opt.step()``;
    - ``opt.step(closure)`` with an ordinary closure that calls ``loss.backward()``;
    - ``model=`` and ``loss_fn=`` here, and ``opt.step(inputs, targets)``.

    Args:
        params: parameters, named parameters, or groups; real floating point.
        lr, momentum, dampening, weight_decay, nesterov, maximize: as in ``torch.optim.SGD``. They
            act on the jets as they act on SGD, and are read anew each step.
        density: share of the prunable weights that stays active, in (0, 1]; stem and classifier
            count as any layer. Groups of equal density and method are pruned together.
            One-dimensional parameters stay dense, and so do biases and normalisation parameters of
            more dimensions where names or ``model`` tell them; otherwise give those a group with
            density 1.
        window: steps in a window, at least 0.
        order: N, the truncation order, at least 1.
        classical_steps: dense steps between a download and the next upload, at least 0.
        pruning: ``"magnitude"``, ``"magnitude-layerwise"``, ``"erk"``, ``"random"``, ``"snip"`` or
            ``"synflow"``; the last two need ``model``, and a batch at upload.
        solver: a name, or a :class:`torch_qsgd.solvers.Solver`: ``"exact"``, ``"noise"``, and,
            for a system written out, ``"hhl"``, ``"qsvt"`` or ``"circuit"``.
        representation: the form of the window, a name or a
            :class:`torch_qsgd.representations.Representation`: ``"jet"`` at any size,
            ``"krylov"`` in a few dimensions, ``"explicit"`` for up to some fifty active weights.
            The latter two need the gradient's graph from a window's first step on, and know no
            momentum.
        readout: a :class:`torch_qsgd.readout.Tomography`; ``None`` reads exactly.
        tolerance: a window ends early once ‖c_N‖/‖c_1‖ passes it; ``inf`` never.
        trigger: ``trigger(optimizer)``, asked after each step of a window that goes on; where it
            returns a non-empty string, the window ends by a download with that reason. If it has a
            method ``attach``, as :class:`torch_qsgd.hessian.DissipativityMonitor`, that is called
            with the optimizer first. As hooks, it is neither pickled nor copied, and is no part
            of ``state_dict()``: set ``optimizer.trigger`` again.
        prune_vectors: prune biases, normalisation and one-dimensional parameters too.
        model, loss_fn: for ``step(inputs, targets)``: ``loss_fn(model(inputs), targets)``. A
            tuple of inputs is unpacked, a mapping is passed by keyword.
        generator: source of random masks, solver noise and measurements; by default a CPU
            generator with seed 0.

    Raises:
        ValueError, TypeError: for an option or a parameter outside what is allowed.

    Cost: a window step about 3.5, 10 and 29 gradient evaluations at order 1, 2 and 3; N vectors of
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
        representation: str | Representation = "jet",
        readout: Tomography | None = None,
        tolerance: float = math.inf,
        prune_vectors: bool = False,
        model: nn.Module | None = None,
        loss_fn: Callable[..., Tensor] | None = None,
        trigger: Callable[[Any], str | None] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if (model is None) != (loss_fn is None):
            raise ValueError("model and loss_fn go together: give both, or neither")
        if isinstance(model, nn.parallel.DistributedDataParallel):
            raise ValueError("DistributedDataParallel models cannot be trained in windows yet")
        if not isinstance(generator, torch.Generator | None):
            raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")
        self.model = model
        self.loss_fn = loss_fn
        if not isinstance(readout, Tomography | None):
            raise TypeError(f"readout must be a Tomography or None, got {type(readout).__name__}")
        self.solver = resolve_solver(solver)
        self.representation = resolve_representation(representation)
        self.representation.require_solver(self.solver)
        self.readout = readout
        self._generator = generator or torch.Generator().manual_seed(0)
        self._reset_transients()
        self.trigger = trigger
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
        attach = getattr(trigger, "attach", None)
        if attach is not None:
            attach(self)

    # ---- What an optimizer must honour -------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters. In mid-window they join it, unpruned until the next upload."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            check_parameters(group)
            check_options(group)
            check_shared(group, self.param_groups[0])
            self.representation.check(group, self.param_groups[0], self.solver)
            if group["pruning"] in NEEDS_MODEL and self.model is None:
                raise ValueError(f"pruning {group['pruning']!r} needs model= and loss_fn=")
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise
        if group["window"] == 0 and group["density"] < 1 and self.phase == "classical":
            self._cycle["phase"] = "upload"  # masked SGD: the newcomers are still to be pruned

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
        needed = self._needs_derivatives
        watch = Watch(params, self._recorded, needs_graph=needed)
        self._recorded = None
        try:
            with keep_graph(needed, watch):
                with self._entered("recording()"):
                    yield
                gradients = _gradients(params)
                record = watch.latest
                if needed and _any(gradients):
                    if record is None:
                        raise GraphError(
                            "no backward pass was seen: call `loss.backward()` itself inside the "
                            "block, rather than `torch.autograd.backward`"
                        )
                    continued = watch.earlier is not None
                    record.coefficients = self._differentiate(gradients, params, continued)
        finally:
            _detach(params)
        if record is not None and record.belongs_to(gradients):
            record.follow_scaling()  # clipped inside the block
            if watch.earlier is not None:
                record.add(watch.earlier)
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
            DivergenceError: for a NaN or infinite loss, gradient, jet or solution. Nothing is
                advanced; the weights are those of the last good anchor.
            Exception: what the solver or the readout raises at a window's end. The step has been
                taken and the download stays due: see ``download()``. What the trigger raises: the
                step has been taken and the window goes on.
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
        record, self._recorded = self._recorded, None
        if record is not None and record.belongs_to(gradients):
            record.follow_scaling()
        elif self.phase == "classical" or not _any(gradients):
            record = Recorded(())
        elif self._is_checkpoint_template(gradients):
            self._allocate(params, buffers=True)
            return loss
        else:
            record = self._record_bare_graph(params, gradients, stale=record is not None)
        _detach(params)
        seen = record.loss
        if seen is None and isinstance(loss, Tensor):
            seen = loss.detach()
        self._advance(params, gradients, record.coefficients, seen, record.factor)
        return loss

    def _step_on_batch(self, inputs: Any, targets: Any) -> Tensor:
        if self.model is None or self.loss_fn is None:
            raise TypeError(
                "step(inputs, targets) needs QuantumSGD(..., model=model, loss_fn=loss_fn); "
                "otherwise call step(closure), or step() after `with opt.recording():`"
            )
        self._begin_step((inputs, targets))
        params = self._trainable()
        windowed, needed = self.phase == "window", self._needs_derivatives
        with torch.enable_grad(), keep_graph(False) if windowed else contextlib.nullcontext():
            loss = self.loss_fn(forward(self.model, inputs), targets)
            gradients: Gradients = list(
                torch.autograd.grad(loss, params, create_graph=needed, allow_unused=True)
            )
            require_dense(gradients)
            coefficients = self._differentiate(gradients, params) if needed else None
        gradients = [None if g is None else g.detach() for g in gradients]
        self._advance(params, gradients, coefficients, loss.detach(), 1.0)
        return loss.detach()

    def _begin_step(self, batch: Batch | None) -> None:
        self._download_if_due()
        if self.phase == "upload":
            self._upload(batch)

    @property
    def is_second_order(self) -> bool:
        """By this timm's training script knows to call ``loss.backward(create_graph=True)``."""
        return bool(self.param_groups[0]["window"] > 0)

    @property
    def _needs_derivatives(self) -> bool:
        """Whether the next step needs more than a gradient."""
        return self.phase == "window" and self.representation.needs_derivatives(self)

    def _differentiate(
        self, gradients: Gradients, params: list[Tensor], continued: bool = False
    ) -> list[list[Tensor]]:
        return self.representation.differentiate(self, gradients, params, continued)

    def _is_checkpoint_template(self, gradients: Gradients) -> bool:
        """Distributed checkpoints take an empty first step to have the state allocated."""
        return self._cycle["step"] == 0 and all(g is None or not g.any() for g in gradients)

    def _record_bare_graph(
        self, params: list[Tensor], gradients: Gradients, stale: bool
    ) -> Recorded:
        """Derivatives from a ``loss.backward(create_graph=True)`` outside ``recording()``."""
        if self.param_groups[0]["window"] == 0:
            self._upload(None, weights_are_used=True)
            return Recorded(())
        if self._cycle["due"]:
            raise RuntimeError(
                "a download is due, which would move the weights that this gradient was taken at: "
                "call opt.download(), or opt.discard(), before the forward pass"
            )
        known = [g for g in gradients if g is not None]
        if not any(g.grad_fn is not None for g in known):
            raise GraphError(
                f"step {self.window_step + 1} of the window needs derivatives of the gradient, "
                f"and `.grad` has no graph: {RECORDING}, or call opt.step(closure), or give "
                "QuantumSGD model= and loss_fn= and call opt.step(inputs, targets)"
            )
        record = Recorded(())
        try:
            if stale or any(map(_changed_in_place, known)):
                raise GraphError(
                    "`.grad` was changed in place, or added to, since its graph was made, which "
                    f"therefore no longer is the gradient's: {RECORDING}, and clip after it"
                )
            if self.phase == "upload":
                self._upload(None, weights_are_used=True)
            if self._needs_derivatives:
                record.coefficients = self._differentiate(gradients, params)
        finally:
            _detach(params)
        return record


def _gradients(params: list[Tensor]) -> Gradients:
    found = [p.grad for p in params]
    require_dense(found)
    return found


def _changed_in_place(gradient: Tensor) -> bool:
    """Whether a gradient's values have been written to since ``backward`` made it with a graph."""
    made = gradient.grad_fn
    # A first gradient is copied into its place, which counts as one write.
    return made is not None and gradient._version > int("CopyBackwards" in made.name())


def _any(gradients: Gradients) -> bool:
    return any(g is not None for g in gradients)


def _detach(params: list[Tensor]) -> None:
    """Cut the graph off ``.grad``: it would keep the model alive."""
    for p in params:
        if p.grad is not None and p.grad.requires_grad:
            p.grad.detach_()
