"""Watch the Hessian's spectrum while ``QuantumSGD`` trains, and end windows in time."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from torch_qsgd.batches import Count
from torch_qsgd.checks import require_integer
from torch_qsgd.errors import DivergenceError
from torch_qsgd.hessian.dynamics import Dynamics, UpdateOperator
from torch_qsgd.hessian.estimate import spectrum_of
from torch_qsgd.hessian.history import MonitorHistory, SpectrumRecord, WindowSpan
from torch_qsgd.hessian.operator import HessianOperator
from torch_qsgd.hessian.rules import Rules, jet_ratio

if TYPE_CHECKING:
    from torch_qsgd.optim import QuantumSGD
    from torch_qsgd.records import WindowRecord

_PLACES = ("upload", "download")
_ENOUGH = 10  # spectra after which their share of the time is judged


class DissipativityMonitor:
    r"""A trigger of ``QuantumSGD``: takes spectra, and ends windows that stop to be dissipative.

    Around its anchor, a window multiplies the mode of eigenvalue λ by :math:`1 - ηλ` a step:
    positive modes are damped, negative ones, and those beyond 2/η, grow, and with them what the
    truncated series neglects. The error proxy :math:`P(t) = \sum_i w_i |1 - ηλ_i|^t` over a
    spectrum falls to its least at t*, and then grows exponentially.

    Spectra are taken of the step's own linear map on the active coordinates, with learning rates,
    weight decay, dampening, momentum, ``maximize`` and groups as the optimizer has them
    (:mod:`torch_qsgd.hessian.dynamics`). At an upload it is taken at the anchor; inside a window,
    where the weights rest, at the predicted weights θ* + u(t).

    After each step of an open window, its latest spectrum is judged. The first rule that holds
    ends the window, with its name as the reason in the ``WindowRecord``; all but the first rule
    wait for ``min_window`` steps:

    ===================  ========================================================================
    ``"jet ratio"``      ‖c_N‖/‖c_1‖ is over ``jet_ratio``; at order 1 it says nothing and is
                         left out.
    ``"negative mass"``  the share of negative eigenvalues is over ``negative_mass``.
    ``"best window"``    t* steps have been taken: one more lets P grow.
    ``"error proxy"``    P after the steps taken is over ``proxy``.
    ===================  ========================================================================

    Spectra at uploads alone cannot see a turn inside a window, from a convex region to a saddle,
    say. For that, give ``every``, and ``negative_mass`` to end the window at the turn: the rules on
    P take the newest spectrum as if it had held since the upload, and so end it later.

    The optimizer's ``window`` is not written to and stays the most that a window can take; where
    it is 0 there is nothing to end, which is warned about. Loading a state into the optimizer cuts
    the history back to it and forgets the spectrum; in mid-window the next step takes it anew. The
    learning rate is read anew at each step; a change counts as if it had held since the upload.

    Args:
        optimizer: to watch; its ``trigger`` must be free. ``None`` where the monitor is given to
            ``QuantumSGD(trigger=monitor)``, or attached later.
        model, loss_fn, data: as of :class:`torch_qsgd.hessian.HessianOperator`. One large batch,
            or a few, describe the loss better than the single batches that steps see.
        every: steps of a window between spectra inside it; ``None`` takes none there, and then no
            turn inside a window is seen.
        at: of ``"upload"`` and ``"download"``. Those at downloads are kept, and judge no window.
        adapt_window: whether to end windows at t*.
        min_window: the least steps before a rule other than the jet ratio may end a window, at
            least 1. At the start of training t* is often 0; windows then last this long, and each
            costs a spectrum (:attr:`budget`).
        negative_mass: in [0, 1), or ``None``. Off by default: it counts an eigenvalue however
            small, and many of a network's lie near zero on either side, where few Lanczos steps
            get their share wrong by 0.2 and more; P weighs each by how fast it grows. For few
            weights, or a loss that should be convex.
        proxy: at least 1, or ``None``; by default 1: at the window's start P is 1, so the mean
            mode has grown. Matters where ``adapt_window`` is off.
        jet_ratio: above 0, or ``None``; by default 0.5: the series' last term is then no longer
            small beside its first, and what is cut off is of its size.
        steps, probes: of a spectrum's Lanczos runs. P near its least is made of coarse masses,
            which more probes pin down and more steps do not: on a network of 1926 active weights,
            beside the dense Hessian, t* is some 15 % off with 4 probes of 10 steps, and 25 to 40 %
            with one of 40 at the same cost. Where the trace is all but zero, as in a network that
            has not begun to learn, t* is a few steps either way and scatters by as much.
        reduction, count, memory: as of :class:`torch_qsgd.hessian.HessianOperator`.
        process_group: of ranks with a part of the data each: all judge by the same spectrum, that
            of all data. ``QuantumSGD`` itself trains no distributed model in windows yet.
        basis_dtype, basis_device: as of :func:`torch_qsgd.hessian.spectrum_of`, for millions of
            active weights: ``steps`` × ``probes`` vectors of their size are stored.
        seed: of the probes; with the number of the step, so that a resumed run draws the same.

    Raises:
        ValueError: for an argument outside what is allowed.
        RuntimeError: where the optimizer has a trigger, or the monitor an optimizer, already.

    A spectrum that fails is no reason to stop a training run. Only the first one may raise, for an
    operation without a second derivative, say, or parameters that are not the model's: that is a
    mistake to correct. A loss or product that is NaN, and anything from the second spectrum on, is
    kept in the history, warned about, and leaves the window to the other rules and its length.

    The model, its ``.grad`` and running statistics, and the random state are left as they were:
    a run in which no rule fires has the bits of one without monitor.

    Cost: a spectrum takes ``steps`` × ``probes`` products over ``data`` (:attr:`budget`), each of
    two to three gradients; the first also a self-check. What was spent: ``products``, ``seconds``,
    and ``share`` of the time since it was attached. A warning tells, once, where that is over one
    half after ten spectra; times never enter a rule.

    Source: the rules are ours; the cycle is Liu et al., Nature Communications 15, 434 (2024).

    Example:
        >>> from torch_qsgd import QuantumSGD
        >>> model = nn.Linear(2, 1, bias=False)
        >>> def saddle(outputs, _):  # curvature 2 along one weight, -0.6 along the other
        ...     return (outputs[0] ** 2 - 0.3 * outputs[1] ** 2).sum()
        >>> x, y = torch.eye(2), torch.zeros(2, 1)
        >>> monitor = DissipativityMonitor(None, model, saddle, (x, y))
        >>> opt = QuantumSGD(model.parameters(), lr=0.1, density=1, window=50, trigger=monitor)
        >>> for _ in range(9):
        ...     opt.zero_grad()
        ...     with opt.recording():
        ...         saddle(model(x), y).backward()
        ...     _ = opt.step()
        >>> monitor.history.records[0].best_window, opt.windows[0].steps, opt.windows[0].reason
        (5, 5, 'best window')
    """

    def __init__(
        self,
        optimizer: QuantumSGD | None,
        model: nn.Module,
        loss_fn: Callable[..., Tensor],
        data: Any,
        *,
        every: int | None = None,
        at: Collection[str] = ("upload",),
        adapt_window: bool = True,
        min_window: int = 1,
        negative_mass: float | None = None,
        proxy: float | None = 1.0,
        jet_ratio: float | None = 0.5,
        steps: int = 10,
        probes: int = 4,
        reduction: str = "mean",
        count: Count | None = None,
        memory: float | None = None,
        process_group: dist.ProcessGroup | None = None,
        basis_dtype: torch.dtype | None = None,
        basis_device: torch.device | str | None = None,
        seed: int = 0,
    ) -> None:
        if isinstance(at, str) or not set(at) <= set(_PLACES):
            raise ValueError(f"at must hold names of {', '.join(_PLACES)}, got {at!r}")
        if every is None and "upload" not in at:
            raise ValueError("nothing would judge a window: put 'upload' into at, or give every")
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module  # by whose names the operator knows the parameters
        self.model, self.loss_fn, self.data = model, loss_fn, data
        self.every = None if every is None else require_integer("every", every, 1)
        self.at = tuple(at)
        self.rules = Rules(adapt_window, min_window, negative_mass, proxy, jet_ratio)
        self.steps = require_integer("steps", steps, 1)
        self.probes = require_integer("probes", probes, 1)
        self.seed = require_integer("seed", seed, 0)
        self._options: dict[str, Any] = {"reduction": reduction, "count": count, "memory": memory}
        self._options["process_group"] = process_group
        self._basis = {"basis_dtype": basis_dtype, "basis_device": basis_device}
        #: What was seen; may be replaced by one that was loaded, before going on.
        self.history = self._followed = MonitorHistory()
        self._optimizer: QuantumSGD | None = None
        self._handles: list[RemovableHandle] = []
        self._latest: SpectrumRecord | None = None
        self._checked = False
        self._told = False
        self._clock = 0.0
        if optimizer is not None:
            self.attach(optimizer)

    # ---- Watching ----------------------------------------------------------------------------

    def attach(self, optimizer: QuantumSGD) -> None:
        """Become the optimizer's trigger. In mid-window, its next step takes the spectrum due.

        Raises:
            RuntimeError: where it has a trigger, or the monitor an optimizer, already.
        """
        if self._optimizer not in (None, optimizer):
            raise RuntimeError("the monitor watches another optimizer: call detach() first")
        if optimizer.trigger is not None and not self._is_trigger_of(optimizer):
            raise RuntimeError(
                f"the optimizer has a trigger, {optimizer.trigger!r}: set optimizer.trigger = None "
                "first"
            )
        optimizer.trigger = self
        if self._optimizer is optimizer:
            return
        if optimizer.param_groups[0]["window"] == 0:
            warnings.warn(
                "the optimizer has window=0: there is no window that the monitor could end",
                RuntimeWarning,
                stacklevel=2,
            )
        self._optimizer = optimizer
        self._handles = [
            optimizer.on_upload(self._opened),
            optimizer.on_download(self._closed),
            optimizer.register_load_state_dict_post_hook(self._loaded),
        ]
        self._latest = None
        self._clock = time.perf_counter()

    def detach(self) -> None:
        """Leave the optimizer alone, and stop the clock; the history stays."""
        self._tick()
        optimizer, self._optimizer = self._optimizer, None
        for handle in self._handles:
            handle.remove()
        if optimizer is not None and self._is_trigger_of(optimizer):
            optimizer.trigger = None

    def __enter__(self) -> DissipativityMonitor:
        return self

    def __exit__(self, *error: object) -> None:
        self.detach()

    def __call__(self, optimizer: QuantumSGD) -> str | None:
        """Take the spectrum that is due, if any, and return the reason to end the window."""
        if self._optimizer is not optimizer:
            self.attach(optimizer)
        start = optimizer.total_steps - optimizer.window_step
        if self._latest is None or self._latest.window_start != start:
            self._latest = None
            self.history.cut(start)
        span = self._span(start)
        if self._latest is None and "upload" in self.at:
            self._take(optimizer, "upload", 0)  # attached in mid-window: weights rest at the anchor
        if self.every is not None and optimizer.window_step % self.every == 0:
            with optimizer.predicted_weights():
                self._take(optimizer, "window", optimizer.window_step)
        reason = self.rules.reason(
            None if self._latest is None else self._latest.spectrum,
            Dynamics.of(optimizer.param_groups),
            optimizer.jet_norms,
            optimizer.window_step,
        )
        span.triggered = reason is not None
        return reason

    def _opened(self, optimizer: QuantumSGD) -> None:
        self._latest = None
        if not self._is_trigger_of(optimizer):
            return
        if optimizer.phase == "window":
            self._span(optimizer.total_steps)
        if "upload" in self.at:
            self._take(optimizer, "upload", 0)

    def _closed(self, optimizer: QuantumSGD, record: WindowRecord) -> None:
        self._latest = None
        if not self._is_trigger_of(optimizer):
            return
        span = self._span(optimizer.total_steps - record.steps)
        span.stop, span.reason = optimizer.total_steps, record.reason
        if "download" in self.at:
            self._take(optimizer, "download", 0)

    def _is_trigger_of(self, optimizer: QuantumSGD) -> bool:
        return optimizer.trigger is self

    def _loaded(self, optimizer: Any) -> None:
        self._latest = None
        self.history.cut(optimizer.total_steps - optimizer.window_step)

    def _span(self, start: int) -> WindowSpan:
        """Of the window that was opened after so many steps."""
        if self.history is not self._followed:  # it was loaded, and may be of a longer run
            self.history.cut(start)
            self._followed = self.history
        spans = self.history.windows
        if not spans or spans[-1].stop is not None or spans[-1].start != start:
            spans.append(WindowSpan(start))
        return spans[-1]

    # ---- Spectra -----------------------------------------------------------------------------

    @property
    def budget(self) -> int:
        """The most products with the Hessian, over all of the data, that a spectrum takes."""
        return self.steps * self.probes

    def _take(self, optimizer: QuantumSGD, taken: str, window_step: int) -> None:
        began = time.perf_counter()
        facts: dict[str, Any] = {
            "step": optimizer.total_steps - (optimizer.window_step - window_step),
            "window_step": window_step,
            "taken": taken,
            "dynamics": Dynamics.of(optimizer.param_groups),
            "window": int(optimizer.param_groups[0]["window"]),
            "jet_ratio": jet_ratio(optimizer.jet_norms if taken == "window" else ()),
        }
        first = not self.history.records
        try:
            record = self._spectrum(optimizer, facts)
        except Exception as error:
            if first and not isinstance(error, DivergenceError):
                raise
            said = f"{type(error).__name__}: {error}"
            record = SpectrumRecord(**facts, spectrum=None, error=said)
            warnings.warn(
                f"the monitor's spectrum at step {record.step} failed, and training goes on "
                f"without it: {said}",
                RuntimeWarning,
                stacklevel=2,
            )
        finally:
            seconds = time.perf_counter() - began
            self.history.seconds += seconds
            self._tick()
        self.history.records.append(dataclasses.replace(record, seconds=seconds))
        if taken != "download":
            self._latest = record
        self._warn_of_cost()

    def _spectrum(self, optimizer: QuantumSGD, facts: dict[str, Any]) -> SpectrumRecord:
        groups = optimizer.param_groups
        hessian = HessianOperator(
            self.model,
            self.loss_fn,
            self.data,
            parameters=[p for group in groups for p in group["params"] if p.requires_grad],
            masks=optimizer.masks,
            check=not self._checked,
            **self._options,
        )
        self._checked = True
        generator = torch.Generator().manual_seed(self.seed + facts["step"])
        with torch.enable_grad(), hessian:
            update = UpdateOperator(hessian, groups, dict(self.model.named_parameters()))
            options: dict[str, Any] = {"steps": self.steps, "probes": self.probes, **self._basis}
            spectrum = spectrum_of(update, generator=generator, progress=False, **options)
            dynamics: Dynamics = facts["dynamics"]
            return SpectrumRecord(
                **facts,
                spectrum=spectrum,
                best_window=dynamics.best_window(spectrum),
                proxy=dynamics.error_proxy(spectrum, facts["window"]).total,
                negative_mass=spectrum.negative_mass,
                products=hessian.products,
            )

    # ---- What it cost ------------------------------------------------------------------------

    def _tick(self) -> None:
        if self._optimizer is not None:
            now = time.perf_counter()
            self.history.elapsed += now - self._clock
            self._clock = now

    def _warn_of_cost(self) -> None:
        spectra, share = len(self.history.records), self.history.share
        if not self._told and spectra >= _ENOUGH and share > 0.5:
            self._told = True
            change = "fewer steps or probes, less data, or a larger min_window or every"
            said = f"{spectra} spectra took {100 * share:.0f} % of the time: give the monitor "
            warnings.warn(said + change, RuntimeWarning, stacklevel=2)

    @property
    def products(self) -> int:
        """Products with the Hessian, of the spectra in the history."""
        return self.history.products

    @property
    def seconds(self) -> float:
        """What the spectra have taken so far."""
        return self.history.seconds

    @property
    def share(self) -> float:
        """Of the time since it was attached."""
        self._tick()
        return self.history.share

    def __repr__(self) -> str:
        spectra = len(self.history.records)
        ended = sum(span.triggered for span in self.history.windows)
        return (
            f"DissipativityMonitor({spectra} spectra, {self.products:,} products, "
            f"{self.seconds:.3g} s, {100 * self.share:.0f} % of the time; ended {ended} of "
            f"{len(self.history.windows)} windows)"
        )
