"""The cycle of ``QuantumSGD``: what happens to weights, masks and jets once derivatives are known.

upload → window of steps → download → classical steps → upload …

Everything that lasts lives in ``state[p]`` and ``param_groups``, because only these survive every
wrapper, pickle and distributed checkpoint:

====================  ===========================================================================
``mask``              bool; where the weight is active. Only for prunable weights.
``jet_1 … jet_N``     :math:`c_k`, zero outside a window.
``velocity_1 … _N``   the momentum's jets, zero outside a window. Only with momentum.
``momentum_buffer``   as in ``torch.optim.SGD``; in a window, its value at upload.
``cycle``             in the first group: :func:`torch_qsgd.records.new_cycle`.
====================  ===========================================================================
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer
from torch.optim.sgd import sgd
from torch.utils.hooks import RemovableHandle

from torch_qsgd.carleman.jet import jet_dtype, jet_sgd, norm
from torch_qsgd.derivatives import loss_along_path
from torch_qsgd.derivatives.finite import require_finite
from torch_qsgd.derivatives.graph import RECORDING
from torch_qsgd.errors import DivergenceError, GraphError
from torch_qsgd.pruning import NEEDS_MODEL, PruningContext, choose_masks
from torch_qsgd.records import WindowRecord
from torch_qsgd.solvers import JetWindow, Solver

_NORMALIZATIONS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)

Gradients = Sequence[Tensor | None]
Batch = tuple[Any, Any]


class Cycle(Optimizer):
    """Base of :class:`torch_qsgd.QuantumSGD`: the cycle, without ways to hand in derivatives."""

    model: nn.Module | None
    loss_fn: Callable[..., Tensor] | None
    solver: Solver
    _generator: torch.Generator
    _upload_hooks: OrderedDict[int, Callable[..., None]]
    _download_hooks: OrderedDict[int, Callable[..., None]]

    # ---- Where it stands ---------------------------------------------------------------------

    @property
    def _cycle(self) -> dict[str, Any]:
        cycle: dict[str, Any] = self.param_groups[0]["cycle"]
        return cycle

    @property
    def _is_plain_sgd(self) -> bool:
        return all(group["window"] == 0 and group["density"] == 1 for group in self.param_groups)

    @property
    def phase(self) -> str:
        """``"upload"`` (due at the next step), ``"window"``, or ``"classical"``."""
        phase: str = self._cycle["phase"]
        return "classical" if phase == "upload" and self._is_plain_sgd else phase

    @property
    def window_step(self) -> int:
        """Steps taken in the open window; 0 outside one."""
        return int(self._cycle["window_step"])

    @property
    def jet_norms(self) -> tuple[float, ...]:
        """‖c_1‖ … ‖c_N‖ after the last step of the open window; empty outside one."""
        return tuple(self._cycle["jet_norms"])

    @property
    def windows(self) -> list[WindowRecord]:
        """A record of every finished window, oldest first."""
        return [WindowRecord.from_state(w) for w in self._cycle["windows"]]

    @property
    def masks(self) -> dict[Tensor, Tensor]:
        """The masks last chosen, bool, by parameter; a parameter without one is dense."""
        return {p: self.state[p]["mask"] for p in self._trainable() if "mask" in self.state[p]}

    @property
    def active(self) -> int:
        """Number of active coordinates under the masks last chosen."""
        masks = self.masks
        return sum(int(masks[p].sum()) if p in masks else p.numel() for p in self._trainable())

    def on_upload(self, hook: Callable[[Any], None]) -> RemovableHandle:
        """Call ``hook(optimizer)`` after each upload. As PyTorch's hooks, not pickled."""
        return _registered(self._upload_hooks, hook)

    def on_download(self, hook: Callable[[Any, WindowRecord], None]) -> RemovableHandle:
        """Call ``hook(optimizer, record)`` after each download. As PyTorch's hooks, not pickled."""
        return _registered(self._download_hooks, hook)

    def _trainable(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"] if p.requires_grad]

    def _by_group(self, params: Sequence[Tensor]) -> Iterator[tuple[dict[str, Any], range]]:
        """Each group with the positions of its parameters among ``params``."""
        start = 0
        for group in self.param_groups:
            stop = start + sum(p.requires_grad for p in group["params"])
            yield group, range(start, stop)
            start = stop

    def _names(self) -> dict[Tensor, str]:
        names: dict[Tensor, str] = {}
        for g, group in enumerate(self.param_groups):
            for i, p in enumerate(group["params"]):
                known = group.get("param_names")
                names[p] = known[i] if known else f"parameter {i} of group {g}"
        if self.model is not None:
            names.update((p, n) for n, p in self.model.named_parameters() if p in names)
        return names

    # ---- State -------------------------------------------------------------------------------

    def _prunable(self) -> set[Tensor]:
        """Weights that their groups prune: all, or all but vectors, biases and normalisation."""
        dense: set[Tensor] = set()
        if self.model is not None:
            for module in self.model.modules():
                if isinstance(module, _NORMALIZATIONS):
                    dense.update(module.parameters(recurse=False))
        dense.update(p for p, name in self._names().items() if name.split(".")[-1] == "bias")
        return {
            p
            for group in self.param_groups
            for p in group["params"]
            if p.requires_grad and group["density"] < 1
            if group["prune_vectors"] or (p.dim() > 1 and p not in dense)
        }

    def _allocate(self, params: Sequence[Tensor], buffers: bool = False) -> None:
        """Give every parameter the jets its group asks for, where it has none yet.

        With ``buffers``, also what otherwise starts later: masks with the first upload, momentum
        with the first step.
        """
        prunable = self._prunable() if buffers else set()
        for group, positions in self._by_group(params):
            orders = range(1, group["order"] + 1) if group["window"] else ()
            kinds = ("jet", "velocity") if group["momentum"] else ("jet",)
            for p in (params[i] for i in positions):
                state = self.state[p]
                if p in prunable and "mask" not in state:
                    state["mask"] = torch.ones_like(p, dtype=torch.bool)
                for name in (f"{kind}_{k}" for kind in kinds for k in orders):
                    if name in state:
                        continue
                    buffer = state.get("momentum_buffer") if name == "velocity_1" else None
                    zero = torch.zeros_like(p, dtype=jet_dtype(p.dtype))
                    state[name] = zero if buffer is None else zero.copy_(buffer)
                if buffers and group["momentum"]:
                    state.setdefault("momentum_buffer", torch.zeros_like(p))

    def _series(self, kind: str, params: Sequence[Tensor]) -> list[list[Tensor]]:
        """The tensors ``kind_1 … kind_N`` of the parameters, one list an order."""
        orders = range(1, self.param_groups[0]["order"] + 1)
        return [[self.state[p][f"{kind}_{k}"] for p in params] for k in orders]

    def _jets(self, params: Sequence[Tensor]) -> list[list[Tensor]]:
        """c_1 … c_N; parameters, or momentum, that joined in mid-window start from zero."""
        self._allocate(params)
        return self._series("jet", params)

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
            if p in masks:
                state["mask"] = masks[p]
                if buffer is not None:
                    buffer.mul_(masks[p])
            if buffer is not None and "velocity_1" in state:
                state["velocity_1"].copy_(buffer)
        windowed = self.param_groups[0]["window"] > 0
        self._cycle.update(phase="window" if windowed else "classical", window_step=0)
        for hook in list(self._upload_hooks.values()):
            hook(self)

    def _choose_masks(self, batch: Batch | None) -> dict[Tensor, Tensor]:
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
            if method in NEEDS_MODEL and batch is None:
                raise ValueError(
                    f"pruning {method!r} needs a batch at upload: call opt.upload(inputs, targets) "
                    "before the forward pass, or opt.step(inputs, targets)"
                )
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
    ) -> None:
        """Take one step, whose derivatives are known, in whatever phase the cycle is in."""
        if all(g is None for g in gradients):
            return
        cycle = self._cycle
        if not self._is_plain_sgd:
            series = [gradients, *(coefficients or [])]
            require_finite(
                series, loss, lambda: [self._names()[p] for p in params], cycle["step"] + 1
            )
        cycle["step"] += 1
        if self.phase == "window":
            self._advance_window(params, gradients, coefficients, loss)
            return
        if self.param_groups[0]["window"] == 0:
            gradients = self._masked(params, gradients)
        self._descend(params, gradients)
        cycle["classical_step"] += 1
        group = self.param_groups[0]
        if group["window"] > 0 and cycle["classical_step"] >= group["classical_steps"]:
            cycle["phase"] = "upload"

    def _masked(self, params: Sequence[Tensor], gradients: Gradients) -> Gradients:
        masks = self.masks
        if not masks:
            return gradients
        return [
            g if g is None or p not in masks else g * masks[p]
            for p, g in zip(params, gradients, strict=True)
        ]

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
    ) -> None:
        cycle, options = self._cycle, self.param_groups[0]
        jets = self._jets(params)
        if loss is not None:
            change = loss_along_path([gradients, *coefficients], jets) if coefficients else 0.0
            cycle.update(loss=float(loss), predicted_loss=float(loss + change))
        for group, positions in self._by_group(params):
            used = [i for i in positions if gradients[i] is not None]
            if not used:
                continue
            states = [self.state[params[i]] for i in used]
            anchor = [params[i] for i in used]
            jet_sgd(
                anchor,
                [g for i in used if (g := gradients[i]) is not None],
                [[row[i] for i in used] for row in coefficients] if coefficients else None,
                [[jet[i] for i in used] for jet in jets],
                self._series("velocity", anchor) if group["momentum"] else None,
                [s.get("mask") for s in states],
                [s.get("momentum_buffer") is None for s in states],
                lr=float(group["lr"]),
                momentum=group["momentum"],
                dampening=group["dampening"],
                weight_decay=group["weight_decay"],
                nesterov=group["nesterov"],
                maximize=group["maximize"],
            )
            if group["momentum"]:
                for p, state in zip(anchor, states, strict=True):
                    state.setdefault("momentum_buffer", torch.zeros_like(p))
        norms = torch.stack([norm(jet) for jet in jets]).tolist()
        if not all(map(math.isfinite, norms)):
            self._leave_window(params, "upload")
            raise DivergenceError(
                f"step {cycle['step']}: the window's jets have overflowed. It is dropped, and the "
                "weights are those of its anchor: lower lr, shorten the window, or set a tolerance"
            )
        cycle.update(window_step=self.window_step + 1, jet_norms=norms)
        if self.window_step >= options["window"]:
            self._download("length")
        elif norms[0] > 0 and norms[-1] / norms[0] > options["tolerance"]:
            self._download("tolerance")

    # ---- Download ----------------------------------------------------------------------------

    @torch.no_grad()
    def download(self) -> WindowRecord:
        """End the open window now: weights := θ* + u on the active coordinates.

        Returns:
            The window's record, also in ``windows``.

        Raises:
            RuntimeError: where no window is open.

        Cost: N + 1 passes over the parameters, twice that with momentum.
        """
        if self.phase != "window":
            raise RuntimeError(f"no window is open (phase {self.phase!r}): nothing to download")
        return self._download("requested")

    def _download(self, reason: str) -> WindowRecord:
        params, cycle = self._trainable(), self._cycle
        jets = self._jets(params)
        with_momentum = [p for p in params if "velocity_1" in self.state[p]]
        velocities = self._series("velocity", with_momentum) if with_momentum else []
        window = JetWindow(jets, velocities, self.window_step)
        solution = self.solver.solve(window)
        displace(params, solution.displacement)
        for p, momentum in zip(with_momentum, solution.momentum, strict=True):
            if "momentum_buffer" in self.state[p]:
                self.state[p]["momentum_buffer"].copy_(momentum)
        record = WindowRecord(
            steps=self.window_step,
            jet_norms=self.jet_norms,
            displacement=float(norm(solution.displacement)),
            active=self.active,
            reason=reason,
            loss=cycle["loss"],
            predicted_loss=cycle["predicted_loss"],
            solver_error=solution.error,
        )
        cycle["windows"].append(record.to_state())
        classical = self.param_groups[0]["classical_steps"] > 0
        self._leave_window(params, "classical" if classical else "upload")
        for hook in list(self._download_hooks.values()):
            hook(self, record)
        return record

    def _leave_window(self, params: Sequence[Tensor], phase: str) -> None:
        for kind in ("jet", "velocity"):
            kept = [p for p in params if f"{kind}_1" in self.state[p]]
            for row in self._series(kind, kept) if kept else ():
                torch._foreach_zero_(row)
        self._cycle.update(
            phase=phase,
            window_step=0,
            classical_step=0,
            jet_norms=[],
            loss=None,
            predicted_loss=None,
        )


def displace(params: Sequence[Tensor], displacement: Sequence[Tensor]) -> None:
    """Add a displacement to the parameters, in place, rounded once to their dtype."""
    for p, u in zip(params, displacement, strict=True):
        p.copy_(p + u)


def _registered(
    hooks: OrderedDict[int, Callable[..., None]], hook: Callable[..., None]
) -> RemovableHandle:
    handle = RemovableHandle(hooks)
    hooks[handle.id] = hook
    return handle
