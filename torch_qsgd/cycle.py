"""The cycle of ``QuantumSGD``: what happens to weights, masks and jets once derivatives are known.

upload → window of steps → download → classical steps → upload …
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.sgd import sgd

from torch_qsgd.carleman.jet import norm
from torch_qsgd.derivatives.finite import require_finite
from torch_qsgd.derivatives.graph import RECORDING
from torch_qsgd.errors import DivergenceError, GraphError
from torch_qsgd.pruning import NEEDS_MODEL, PruningContext, choose_masks
from torch_qsgd.records import WindowRecord
from torch_qsgd.state import WindowState, all_active

Gradients = Sequence[Tensor | None]
Batch = tuple[Any, Any]


class Cycle(WindowState):
    """Base of :class:`torch_qsgd.QuantumSGD`: the cycle, without ways to hand in derivatives.

    A window ends for the first of these that holds after a step: its length is reached, the jets'
    ratio has passed the tolerance, the trigger names a reason.
    """

    # ---- Upload ------------------------------------------------------------------------------

    def upload(self, inputs: Any = None, targets: Any = None) -> None:
        """Prune and open a window now: the weights become the anchor.

        Args:
            inputs, targets: a batch, for the pruning methods that need one.

        Raises:
            RuntimeError: where a window is open; ``download()`` closes it.
            ValueError: where the pruning method needs a batch and has none.
            DivergenceError: where a weight is NaN or infinite.

        Cost: a selection over the prunable weights.
        """
        self._require_outside("upload()")
        if self.phase == "window":
            raise RuntimeError("a window is open: call download() before upload()")
        self._upload(None if inputs is None else (inputs, targets))

    @torch.no_grad()
    def _upload(self, batch: Batch | None, weights_are_used: bool = False) -> None:
        params = self._trainable()
        masks = self._choose_masks(batch)
        moved = [p for p, mask in masks.items() if bool(p[~mask].any())]
        if weights_are_used and moved:
            raise GraphError(
                "an upload is due, and its pruning moves the weights that this gradient was taken "
                f"at: call `opt.upload()` before the forward pass, or {RECORDING}"
            )
        self._allocate(params)
        for p in moved:
            p.mul_(masks[p])
        for p in params:
            state = self.state[p]
            buffer = state.get("momentum_buffer")
            # Every parameter gets a mask, for if one has state, every one must.
            if not self._is_plain_sgd:
                state["mask"] = masks.get(p, all_active(p.new_zeros(())))
            if p in masks and buffer is not None:
                buffer.mul_(masks[p])
            if buffer is not None and "velocity_1" in state:
                state["velocity_1"].copy_(buffer)
        windowed = self.param_groups[0]["window"] > 0
        self._cycle.update(phase="window" if windowed else "classical", window_step=0)
        for hook in list(self._upload_hooks.values()):
            hook(self)

    def _require_batch(self, batch: Batch | None) -> None:
        for group in self.param_groups:
            if batch is None and group["pruning"] in NEEDS_MODEL and group["density"] < 1:
                raise ValueError(
                    f"pruning {group['pruning']!r} needs a batch at upload: call "
                    "opt.upload(inputs, targets) before the forward pass, or "
                    "opt.step(inputs, targets)"
                )

    def _choose_masks(self, batch: Batch | None) -> dict[Tensor, Tensor]:
        self._require_batch(batch)
        names, prunable = self._names(), self._prunable()
        bundles: dict[tuple[float, str], dict[str, Tensor]] = {}
        for group in self.param_groups:
            for p in group["params"]:
                if p in prunable:
                    bundle = bundles.setdefault((group["density"], group["pruning"]), {})
                    bundle[names[p]] = p
        chosen: dict[Tensor, Tensor] = {}
        known = self.masks
        for (density, method), named in bundles.items():
            previous = {name: known[p] for name, p in named.items() if p in known}
            context = PruningContext(self._generator, previous, self.model, self.loss_fn, batch)
            masks = choose_masks(method, named, density, context)
            chosen.update((named[name], mask) for name, mask in masks.items())
        self._cycle["generator"] = self._generator.get_state()
        return chosen

    # ---- One step ----------------------------------------------------------------------------

    def _advance(
        self,
        params: Sequence[Tensor],
        gradients: Gradients,
        coefficients: list[list[Tensor]] | None,
        loss: Tensor | None,
        factor: float,
    ) -> None:
        """Take one step, whose derivatives are known, in whatever phase the cycle is in.

        The gradients are ``factor`` times those of the loss.
        """
        if all(g is None for g in gradients):
            return
        cycle = self._cycle
        if not self._is_plain_sgd:
            series = [gradients, *(coefficients or [])]
            require_finite(
                series, loss, lambda: [self._names()[p] for p in params], cycle["step"] + 1
            )
        if self.phase == "window":
            self._advance_window(params, gradients, coefficients, loss, factor)
            return
        if self.param_groups[0]["window"] == 0:
            gradients = self._masked(params, gradients)
        self._descend(params, gradients)
        cycle["step"] += 1
        cycle["classical_step"] += 1
        group = self.param_groups[0]
        if group["window"] > 0 and cycle["classical_step"] >= group["classical_steps"]:
            cycle["phase"] = "upload"

    def _masked(self, params: Sequence[Tensor], gradients: Gradients) -> Gradients:
        masks = self.masks
        pairs = {p: g for p, g in zip(params, gradients, strict=True) if g is not None}
        pruned = [p for p in masks if p in pairs]
        if pruned:
            products = torch._foreach_mul([pairs[p] for p in pruned], [masks[p] for p in pruned])
            pairs.update(zip(pruned, products, strict=True))
        return [pairs.get(p) for p in params]

    def _descend(self, params: Sequence[Tensor], gradients: Gradients) -> None:
        """One step of ``torch.optim.SGD``, through its own functional form."""
        for group, positions in self._by_group(params):
            used = [i for i in positions if gradients[i] is not None]
            states = [self.state[params[i]] for i in used]
            buffers = [s.get("momentum_buffer") for s in states] if group["momentum"] else []
            sgd(
                [params[i] for i in used],
                [g for i in used if (g := gradients[i]) is not None],
                buffers,
                weight_decay=group["weight_decay"],
                momentum=group["momentum"],
                lr=group["lr"],
                dampening=group["dampening"],
                nesterov=group["nesterov"],
                maximize=group["maximize"],
                has_sparse_grad=False,
                foreach=True,
            )
            for state, buffer in zip(states, buffers, strict=False):
                state["momentum_buffer"] = buffer

    def _advance_window(
        self,
        params: Sequence[Tensor],
        gradients: Gradients,
        coefficients: list[list[Tensor]] | None,
        loss: Tensor | None,
        factor: float,
    ) -> None:
        cycle, options = self._cycle, self.param_groups[0]
        advance = self.representation.advance(self, params, gradients, coefficients)
        cycle.update(step=cycle["step"] + 1, loss=None, predicted_loss=None)
        if loss is not None:
            change = advance.loss_change / factor if factor else 0.0
            cycle.update(loss=float(loss), predicted_loss=float(loss) + change)
        norms = advance.jet_norms
        if not all(map(math.isfinite, norms)):
            self._leave_window("upload")
            raise DivergenceError(
                f"step {cycle['step']}: the window's jets have overflowed. It is dropped, and the "
                "weights are those of its anchor: lower lr, shorten the window, or set a tolerance"
            )
        cycle.update(window_step=self.window_step + 1, jet_norms=norms)
        if self.window_step >= options["window"]:
            cycle["due"] = "length"
        elif norms[0] > 0 and norms[-1] / norms[0] > options["tolerance"]:
            cycle["due"] = "tolerance"
        elif self.trigger is not None:
            self._ask(self.trigger)
        self._download_if_due()

    def _ask(self, trigger: Callable[[Any], str | None]) -> None:
        """Asked when the step has been taken in full, which an error of the trigger leaves so."""
        opened = self.total_steps - self.window_step
        reason = trigger(self)
        if reason is not None and not isinstance(reason, str):
            raise TypeError(
                "trigger must return the reason to end the window, a string, or None to go on; "
                f"got {type(reason).__name__}"
            )
        # The trigger may have ended the window itself, and opened the next one.
        if self.phase == "window" and self.total_steps - self.window_step == opened:
            self._cycle["due"] = reason or ""

    def _download_if_due(self) -> None:
        """Where a solver or a readout has failed, the download stays due for the next step."""
        if self._cycle["due"]:
            self._download(self._cycle["due"])

    # ---- Download ----------------------------------------------------------------------------

    def download(self) -> WindowRecord:
        """End the open window now: weights := θ* + u on the active coordinates.

        Returns:
            The window's record, also in ``windows``.

        Raises:
            RuntimeError: where no window is open.
            DivergenceError: where the solution is NaN or infinite: the window is dropped.
            Exception: what the solver or the readout raises: the window stays open, so that
                another call, or the next step, tries again; ``discard()`` drops it.

        Cost: N + 1 passes over the parameters, twice that with momentum.
        """
        self._require_outside("download()")
        if self.phase != "window":
            raise RuntimeError(f"no window is open (phase {self.phase!r}): nothing to download")
        return self._download("requested")

    def reupload(self, inputs: Any = None, targets: Any = None) -> WindowRecord | None:
        """Download the open window and upload at once, with a new anchor.

        The classical steps between the two, or what is left of them, are skipped: so pruning
        finds the pruned weights at zero, and the mask stays unless the density has changed.
        Outside a window there is nothing to download, and it only uploads.

        Args:
            inputs, targets: a batch, for the pruning methods that need one.

        Returns:
            The window's record, with the reason ``"requested"``; ``None`` outside a window.

        Raises:
            ValueError: where the pruning method needs a batch and has none; nothing is done then.
            Exception: what ``download()`` and ``upload()`` raise.
        """
        self._require_outside("reupload()")
        batch = None if inputs is None else (inputs, targets)
        self._require_batch(batch)
        record = self._download("requested") if self.phase == "window" else None
        self._upload(batch)
        return record

    @torch.no_grad()
    def _download(self, reason: str) -> WindowRecord:
        cycle = self._cycle
        outcome = self.representation.download(self)
        solved = [*outcome.displacement, *outcome.momentum]
        if solved and not math.isfinite(norm(solved)):
            self.discard()
            raise DivergenceError(
                f"solver {self.solver.name!r} returned NaN or infinity. The window is dropped, and "
                "the weights are those of its anchor"
            )
        displace(outcome.params, outcome.displacement)
        for p, momentum in zip(outcome.with_momentum, outcome.momentum, strict=True):
            if "momentum_buffer" in self.state[p]:
                self.state[p]["momentum_buffer"].copy_(momentum)
        record = WindowRecord(
            steps=self.window_step,
            jet_norms=self.jet_norms,
            displacement=float(norm(outcome.displacement)) if outcome.displacement else 0.0,
            active=self.active,
            reason=reason,
            loss=cycle["loss"],
            predicted_loss=cycle["predicted_loss"],
            **outcome.facts,
        )
        cycle["windows"].append(record.to_state())
        classical = self.param_groups[0]["classical_steps"] > 0
        self._leave_window("classical" if classical else "upload")
        for hook in list(self._download_hooks.values()):
            hook(self, record)
        return record

    def discard(self) -> None:
        """Drop the open window: the weights stay at its anchor, and an upload is due.

        Raises:
            RuntimeError: where no window is open.
        """
        self._require_outside("discard()")
        if self.phase != "window":
            raise RuntimeError(f"no window is open (phase {self.phase!r}): nothing to discard")
        self._leave_window("upload")

    def _leave_window(self, phase: str) -> None:
        self.representation.clear(self)
        self._cycle.update(
            phase=phase,
            due="",
            window_step=0,
            classical_step=0,
            jet_norms=[],
            loss=None,
            predicted_loss=None,
        )

    # ---- Looking ahead -----------------------------------------------------------------------

    @contextlib.contextmanager
    def predicted_weights(self) -> Iterator[None]:
        """Hold the weights at θ* + Σ_k c_k, which an emulator may see in mid-window.

        On leaving, the weights are what they were, to the bit; so are the model's buffers, where
        ``model=`` was given. Outside a window it does nothing.

        Cost: one copy of the parameters, and N passes.
        """
        self._require_outside("predicted_weights()")
        if self.phase != "window" or self.window_step == 0:
            yield
            return
        params, displacement = self.representation.displacement(self)
        kept = [*params, *(self.model.buffers() if self.model is not None else ())]
        with torch.no_grad():
            saved = [t.clone() for t in kept]
            displace(params, displacement)
        try:
            with self._entered("predicted_weights()"):
                yield
        finally:
            with torch.no_grad():
                for tensor, original in zip(kept, saved, strict=True):
                    tensor.copy_(original)

    @contextlib.contextmanager
    def _entered(self, block: str) -> Iterator[None]:
        self._inside = block
        try:
            yield
        finally:
            self._inside = None


def displace(params: Sequence[Tensor], displacement: Sequence[Tensor]) -> None:
    """Add a displacement to the parameters, in place, rounded once to their dtype."""
    if params:
        torch._foreach_copy_(list(params), torch._foreach_add(list(params), list(displacement)))
