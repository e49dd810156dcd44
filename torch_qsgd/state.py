"""What outlives a step of ``QuantumSGD``.

Everything that lasts lives in ``state[p]`` and ``param_groups``, because only these survive every
wrapper, pickle and distributed checkpoint:

====================  ===========================================================================
``mask``              bool; where the weight is active; a scalar True for a dense parameter.
``jet_1 … jet_N``     :math:`c_k`, zero outside a window. Only in jets.
``velocity_1 … _N``   the momentum's jets, zero outside a window. Only with momentum.
``basis_1 … _m``      directions of a Krylov window, zero until the first.
``momentum_buffer``   as in ``torch.optim.SGD``; in a window, its value at upload.
``cycle``             in the first group: :func:`torch_qsgd.records.new_cycle`.
====================  ===========================================================================
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer
from torch.utils.hooks import RemovableHandle

from torch_qsgd.derivatives.coordinates import working_dtype
from torch_qsgd.derivatives.recorded import Recorded
from torch_qsgd.readout import Tomography
from torch_qsgd.records import WindowRecord, new_cycle
from torch_qsgd.representations import Representation
from torch_qsgd.solvers import Solver

_NORMALIZATIONS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)


class WindowState(Optimizer):
    """What a windowed optimizer keeps for its parameters, and where its cycle stands."""

    model: nn.Module | None
    loss_fn: Callable[..., Tensor] | None
    solver: Solver
    representation: Representation
    readout: Tomography | None
    _trigger: Callable[[Any], str | None] | None
    _generator: torch.Generator
    _inside: str | None
    _recorded: Recorded | None
    _upload_hooks: OrderedDict[int, Callable[..., None]]
    _download_hooks: OrderedDict[int, Callable[..., None]]

    # ---- Where it stands ---------------------------------------------------------------------

    @property
    def _cycle(self) -> dict[str, Any]:
        group = self.param_groups[0]
        if "cycle" not in group:
            group["cycle"] = new_cycle(self._generator.get_state(), self.representation.name)
        cycle: dict[str, Any] = group["cycle"]
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
    def total_steps(self) -> int:
        """Steps taken since the optimizer was made, in windows and classical ones."""
        return int(self._cycle["step"])

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
        stored = ((p, self._mask(p)) for p in self._trainable())
        return {p: mask for p, mask in stored if mask is not None}

    def _mask(self, p: Tensor) -> Tensor | None:
        """A parameter's mask, frozen or not; ``None`` where it is dense."""
        mask: Tensor | None = self.state[p].get("mask")
        return mask if mask is not None and mask.dim() else None

    @property
    def active(self) -> int:
        """Number of active coordinates under the masks last chosen."""
        masks = self.masks
        return sum(int(masks[p].sum()) if p in masks else p.numel() for p in self._trainable())

    @property
    def trigger(self) -> Callable[[Any], str | None] | None:
        """Asked after each step of a window for a reason to end it; may be set at any time."""
        return self._trigger

    @trigger.setter
    def trigger(self, trigger: Callable[[Any], str | None] | None) -> None:
        if trigger is not None and not callable(trigger):
            raise TypeError(f"trigger must be callable or None, got {type(trigger).__name__}")
        self._trigger = trigger

    def on_upload(self, hook: Callable[[Any], None]) -> RemovableHandle:
        """Call ``hook(optimizer)`` after each upload. As PyTorch's hooks, not pickled."""
        return _registered(self._upload_hooks, hook)

    def on_download(self, hook: Callable[[Any, WindowRecord], None]) -> RemovableHandle:
        """Call ``hook(optimizer, record)`` after each download. As PyTorch's hooks, not pickled."""
        return _registered(self._download_hooks, hook)

    def _trainable(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"] if p.requires_grad]

    def _every(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _by_group(self, params: Sequence[Tensor]) -> Iterator[tuple[dict[str, Any], range]]:
        """Each group with the positions of its parameters among ``params``."""
        start = 0
        for group in self.param_groups:
            stop = start + sum(p.requires_grad for p in group["params"])
            yield group, range(start, stop)
            start = stop

    def _names(self) -> dict[Tensor, str]:
        names: dict[Tensor, str] = {}
        taken: set[str] = set()
        for g, group in enumerate(self.param_groups):
            for i, p in enumerate(group["params"]):
                known = group.get("param_names")
                names[p] = known[i] if known else f"parameter {i} of group {g}"
                if names[p] in taken:
                    names[p] += f" of group {g}"
                taken.add(names[p])
        if self.model is not None:
            names.update((p, n) for n, p in self.model.named_parameters() if p in names)
        return names

    def _require_outside(self, called: str) -> None:
        if self._inside:
            raise RuntimeError(f"{called} inside `with opt.{self._inside}:`; leave the block first")

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
        """Give every parameter what its form of the window asks for, where it has none yet.

        With ``buffers``, also what otherwise starts later: masks with the first upload, momentum
        with the first step.
        """
        prunable = self._prunable() if buffers else set()
        for group, positions in self._by_group(params):
            names = self.representation.tensors(group) if group["window"] else []
            for p in (params[i] for i in positions):
                state = self.state[p]
                if buffers and not self._is_plain_sgd and "mask" not in state:
                    state["mask"] = all_active(p if p in prunable else p.new_zeros(()))
                for name in names:
                    if name in state:
                        continue
                    buffer = state.get("momentum_buffer") if name == "velocity_1" else None
                    zero = torch.zeros_like(p, dtype=working_dtype(p.dtype))
                    state[name] = zero if buffer is None else zero.copy_(buffer)
                if buffers and group["momentum"]:
                    state.setdefault("momentum_buffer", torch.zeros_like(p))

    def _series(self, kind: str, params: Sequence[Tensor]) -> list[list[Tensor]]:
        """The tensors ``kind_1 … kind_N`` of the parameters, one list an order."""
        orders = range(1, self.param_groups[0]["order"] + 1)
        return [[self.state[p][f"{kind}_{k}"] for p in params] for k in orders]

    def _held(self, key: str) -> list[Tensor]:
        """The parameters, trainable or not, that have this state."""
        return [p for p in self._every() if key in self.state[p]]

    def _jets(self, params: Sequence[Tensor]) -> list[list[Tensor]]:
        """c_1 … c_N; parameters, or momentum, that joined in mid-window start from zero."""
        self._allocate(params)
        return self._series("jet", params)

    # ---- What an optimizer must honour -------------------------------------------------------

    def _reset_transients(self) -> None:
        """What is no part of the optimizer's state; hooks and trigger outlive loading."""
        self._recorded = None
        self._inside = None
        self.__dict__.setdefault("_trigger", None)
        self.__dict__.setdefault("_upload_hooks", OrderedDict())
        self.__dict__.setdefault("_download_hooks", OrderedDict())

    def state_dict(self) -> dict[str, Any]:
        """As of any optimizer; of tensors, numbers, strings, lists and dictionaries only."""
        self._cycle["generator"] = self._generator.get_state()
        state: dict[str, Any] = super().state_dict()
        # Like the other options of a group, and unlike tensors, it does not move on later.
        state["param_groups"][0]["cycle"] = copy.deepcopy(self._cycle)
        return state

    def __getstate__(self) -> dict[str, Any]:
        self._cycle["generator"] = self._generator.get_state()
        kept = ("solver", "representation", "readout", "model", "loss_fn", "_generator")
        return {**super().__getstate__(), **{name: self.__dict__[name] for name in kept}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._reset_transients()
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)
        for name, value in new_cycle(None, self.representation.name).items():
            self._cycle.setdefault(name, value)
        self._generator.set_state(self._cycle["generator"].cpu())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; tensors keep the dtype they were saved in, masks stay bool.

        Raises:
            ValueError: for a state saved in mid-window under another representation.
        """
        cycle = state_dict["param_groups"][0].get("cycle", {})
        saved_form = cycle.get("representation", self.representation.name)
        if cycle.get("phase") == "window" and saved_form != self.representation.name:
            raise ValueError(
                f"the state was saved in mid-window under representation {saved_form!r}, and this "
                f"optimizer has {self.representation.name!r}: construct it with "
                f"representation={saved_form!r}, or save after a download"
            )
        super().load_state_dict(state_dict)
        self._cycle["representation"] = self.representation.name
        saved = [i for group in state_dict["param_groups"] for i in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        for index, p in zip(saved, params, strict=True):
            for key, value in state_dict["state"].get(index, {}).items():
                if isinstance(value, Tensor) and value.dtype != self.state[p][key].dtype:
                    self.state[p][key] = value.detach().to(p.device, copy=True)

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} ("]
        lines += [f"{name}: {getattr(self, name)!r}" for name in ("representation", "solver")]
        given = [name for name in ("readout", "trigger") if getattr(self, name) is not None]
        lines += [f"{name}: {getattr(self, name)!r}" for name in given]
        for index, group in enumerate(self.param_groups):
            hidden = ("params", "param_names", "cycle")
            lines.append(f"Parameter Group {index}")
            lines += [f"    {key}: {group[key]}" for key in sorted(group) if key not in hidden]
        return "\n".join([*lines, ")"])


def all_active(like: Tensor) -> Tensor:
    """A mask of the shape of ``like`` that keeps everything."""
    return torch.ones_like(like, dtype=torch.bool)


def _registered(
    hooks: OrderedDict[int, Callable[..., None]], hook: Callable[..., None]
) -> RemovableHandle:
    handle = RemovableHandle(hooks)
    hooks[handle.id] = hook
    return handle
