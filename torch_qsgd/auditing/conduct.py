"""The parts of an audit, one after the other, into one report."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import nn

from torch_qsgd.auditing.batches import AuditBatches, split_batches
from torch_qsgd.auditing.conditioning import conditioning
from torch_qsgd.auditing.costs import audited_ledger
from torch_qsgd.auditing.layer_pruning import measure_pruning
from torch_qsgd.auditing.loss_check import require_scalar_loss
from torch_qsgd.auditing.modes import derivative_modes
from torch_qsgd.auditing.plan import Plan
from torch_qsgd.auditing.progress import Progress, shown
from torch_qsgd.auditing.report import AuditReport
from torch_qsgd.auditing.row_sparsity import probe_rows
from torch_qsgd.auditing.run import Tick, measured_run, watching_monitor
from torch_qsgd.auditing.thresholds import Thresholds
from torch_qsgd.auditing.transfer import measure_transfer
from torch_qsgd.auditing.truncation import measure_truncation
from torch_qsgd.auditing.verdicts import findings
from torch_qsgd.batches import samples
from torch_qsgd.checks import require_flag
from torch_qsgd.errors import DivergenceError, GraphError, SizeError
from torch_qsgd.hessian import HessianOperator
from torch_qsgd.optim import QuantumSGD
from torch_qsgd.resources.classical import step_cost
from torch_qsgd.surroundings import surroundings
from torch_qsgd.training import History, LossFunction

#: Failures whose message says all; of others, which may be the model's own, the kind is said too.
_OURS = (DivergenceError, GraphError, SizeError, ValueError)
#: The run's windows end early once ‖c_N‖/‖c_1‖ passes it, as those of ``torch-qsgd train`` do.
RUN_TOLERANCE = 0.5


class Conduct:
    """Measures part by part; :attr:`report` holds what there is at any time.

    Args:
        model: is copied, never changed.
        loss_fn, plan, batches, limits: see :func:`torch_qsgd.auditing.audit`.
        report: filled in place.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        plan: Plan,
        batches: AuditBatches,
        limits: Thresholds,
        report: AuditReport,
    ) -> None:
        self.report = report
        self._dense, self._loss_fn, self._plan = model, loss_fn, plan
        self._batches, self._limits = batches, limits
        self._model = copy.deepcopy(model)
        self._model.zero_grad(set_to_none=True)
        self._optimizer = self._new_optimizer(self._model, plan.window + 1)
        self._operator: HessianOperator | None = None
        self.parts: dict[str, Callable[[Tick], None]] = {
            "pruning": self._pruning,
            "classical cost": self._classical,
            "derivatives": self._derivatives,
            "Hessian rows": self._rows,
            "training run": self._run,
            "truncation": self._truncation,
            "upload, download": self._transfer,
            "conditioning": self._conditioning,
            "ledger": self._ledger,
        }

    def _new_optimizer(self, model: nn.Module, window: int) -> QuantumSGD:
        plan = self._plan
        return QuantumSGD(
            model.parameters(),
            lr=plan.lr,
            momentum=plan.momentum,
            weight_decay=plan.weight_decay,
            density=plan.density,
            pruning=plan.pruning,
            window=window,
            order=plan.order,
            classical_steps=plan.classical_steps,
            tolerance=math.inf,
            model=model,
            loss_fn=self._loss_fn,
            generator=self._generator(),
        )

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self._plan.seed)

    @property
    def _masks(self) -> dict[str, torch.Tensor]:
        names: dict[torch.Tensor, str] = {p: name for name, p in self._model.named_parameters()}
        return {names[p]: mask for p, mask in self._optimizer.masks.items()}

    def measure(self, part: str, tick: Tick) -> None:
        """Make one part; where it fails, a note says why and the findings cannot tell."""
        began = time.perf_counter()
        devices = [next(self._model.parameters()).device]
        said: list[str] = []
        try:
            with (
                warnings.catch_warnings(record=True) as caught,
                torch.random.fork_rng(devices=[d for d in devices if d.type == "cuda"]),
            ):
                warnings.simplefilter("always")
                torch.manual_seed(self._plan.seed)
                self.parts[part](tick)
        except Exception as error:  # whatever a user's model raises; other parts may succeed
            kind = "" if isinstance(error, _OURS) else f"{type(error).__name__}: "
            said.append(f"{part} could not be measured: {kind}{error}")
        finally:
            # Of these, only what is said about the model: no library's word on its own future.
            ours = [w for w in caught if issubclass(w.category, (UserWarning, RuntimeWarning))]
            said = [*(f"{warning.message}" for warning in ours), *said]
            notes = self.report.notes
            for note in (" ".join(text.split()) for text in said):
                notes += [note] if note not in notes else []
            self.report.seconds += time.perf_counter() - began
            self.report.findings = findings(self.report, self._plan, self._limits)

    # ---- The parts -------------------------------------------------------------------------------

    def _pruning(self, tick: Tick) -> None:
        # The training run's first upload sees the same batch, for methods that look at one.
        self._optimizer.upload(*self._batches.steps[0])
        self.report.facts["active weights"] = self._optimizer.active
        self.report.pruning = measure_pruning(
            self._dense, self._model, self._masks, self._loss_fn, self._batches.held_out, tick=tick
        )

    def _classical(self, tick: Tick) -> None:
        cost = step_cost(self._model, self._loss_fn, self._batches.steps[0])
        facts, steps = self.report.facts, self._plan.window
        facts["classical operations"] = float(cost.operations) * steps
        facts["classical bytes moved"] = float(cost.bytes_moved) * steps

    def _derivatives(self, tick: Tick) -> None:
        self.report.modes = derivative_modes(
            self._model,
            self._loss_fn,
            self._batches.spectrum[0],
            order=self._plan.order,
            generator=self._generator(),
        )

    def _rows(self, tick: Tick) -> None:
        with HessianOperator(
            self._model, self._loss_fn, self._batches.spectrum, masks=self._masks
        ) as operator:
            rows = min(self._plan.rows, operator.dimension)
            self.report.rows = probe_rows(
                operator, rows=rows, generator=self._generator(), tick=tick
            )

    def _run(self, tick: Tick) -> None:
        plan = self._plan
        model = copy.deepcopy(self._dense)
        optimizer = self._new_optimizer(model, plan.window)
        if plan.order > 1:
            optimizer.param_groups[0]["tolerance"] = RUN_TOLERANCE
        monitor = watching_monitor(
            model, self._loss_fn, self._batches.spectrum, plan.lanczos_steps, plan.probes
        )
        history = History("QuantumSGD")
        self.report.runs, self.report.monitor = [history], monitor.history
        measured_run(
            model,
            optimizer,
            self._loss_fn,
            self._batches.steps,
            self._batches.held_out,
            windows=plan.windows,
            monitor=monitor,
            history=history,
            tick=tick,
        )

    def _truncation(self, tick: Tick) -> None:
        self.report.truncation = measure_truncation(
            self._model,
            self._optimizer,
            self._loss_fn,
            self._batches.steps,
            self._batches.held_out,
            steps=self._plan.window,
            cubic_iterations=self._plan.cubic_iterations,
            tick=tick,
        )

    def _transfer(self, tick: Tick) -> None:
        found = self.report.truncation
        if found is None or found.steps < self._plan.window:
            raise ValueError("the window it would read has not been taken to its end")
        target = self._plan.readout_error
        transfer = measure_transfer(
            self._model,
            self._optimizer,
            self._loss_fn,
            self._batches.held_out,
            grams=found.grams,
            precisions=(min(3 * target, 0.9), target, target / 3),
            generator=self._generator(),
            tick=tick,
        )
        # The window's own change is from the anchor with its running statistics.
        self.report.transfer = replace(transfer, loss_before=found.loss_anchor)

    def _conditioning(self, tick: Tick) -> None:
        monitor = self.report.monitor
        records = monitor.records if monitor is not None else []
        spectra = [(r.spectrum, r.dynamics) for r in records if r.spectrum is not None]
        if not spectra:
            raise ValueError("there is no spectrum")
        self.report.conditioning = conditioning(
            *spectra[0],
            steps=self._plan.window,
            order=self._plan.order,
            truncation=self.report.truncation,
        )

    def _ledger(self, tick: Tick) -> None:
        self.report.ledger, self.report.scaling, notes = audited_ledger(self.report)
        self.report.notes += notes


def audit(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Any,
    *,
    lr: float,
    validation: Any = None,
    density: float = 0.1,
    window: int | None = None,
    order: int = 2,
    classical_steps: int = 10,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    pruning: str = "magnitude",
    windows: int | None = None,
    lanczos_steps: int | None = None,
    probes: int | None = None,
    spectrum_batches: int | None = None,
    held_out_samples: int | None = None,
    rows: int | None = None,
    cubic_iterations: int | None = None,
    solver_error: float = 1e-3,
    readout_error: float = 0.1,
    thresholds: Thresholds | None = None,
    quick: bool = False,
    title: str = "",
    seed: int = 0,
    progress: Progress = True,
    on_part: Callable[[AuditReport], object] = lambda report: None,
) -> AuditReport:
    """Measure which of the paper's assumptions hold for a model, and what a window would cost.

    A copy of the model is pruned, as ``QuantumSGD`` prunes at an upload. Measured are: what that
    costs in accuracy, layer by layer; which derivatives the model supports; how sparse the
    Hessian's rows are; a short training run with a spectrum at each upload; a window against true
    SGD, step by step and order by order; loading and reading it, with real tomography noise; the
    conditioning of its linear system; and from all that the ledger of resources. Nothing here
    asserts an advantage.

    Args:
        model: in the mode, train or eval, in which it is trained; it is copied, never changed.
        loss_fn: of outputs and targets; a mean.
        data: training data: one batch as a tuple ``(inputs, targets)``, batches as a list, or a
            ``DataLoader``.
        lr, momentum, weight_decay: of SGD.
        validation: held-out data, likewise; by default the last batches of ``data``.
        density, pruning: as of :class:`torch_qsgd.QuantumSGD`.
        window: T, steps of a window; 100, with ``quick`` 15.
        order: N, the highest truncation order measured; 3 costs three times as much as 2.
        classical_steps: dense steps between the windows of the training run.
        windows: of the training run; 3, with ``quick`` 2.
        lanczos_steps, probes: of each spectrum; 40 and 2, with ``quick`` 12 and 2.
        spectrum_batches: batches of the loss whose Hessian is looked at; 2, with ``quick`` 1.
        held_out_samples: to evaluate on, in whole batches; 1024, with ``quick`` 128.
        rows: of the Hessian to probe; 60, with ``quick`` 6, which cannot show it sparse.
        cubic_iterations: of the power iteration for the third derivative's norm, 10 gradients
            each; 10, with ``quick`` 3; 0 leaves it out, and with it the certificate.
        solver_error: ε of the history state, for the ledger's queries.
        readout_error: relative error of the displacement that is read.
        thresholds: of the verdicts.
        quick: smaller numbers wherever an option is not given.
        title: of the report.
        seed: of all randomness; no global random state is changed.
        progress: whether to show a bar, in a terminal; or a function of the part's name, steps
            done in it, and their number.
        on_part: called with the report after each part, so that an interrupted audit leaves what
            it has measured.

    Returns:
        The report, with ``verdicts``, ``findings``, all measurements, and ``write(folder, name)``
        for HTML, Markdown and JSON. A part that fails leaves a note that says why.

    Raises:
        ValueError, TypeError: for an argument outside what is allowed; for a model and loss that
            fail on the first batch, or give no finite number that depends on the weights.

    Cost: about 3.5 T gradients a window at order 1 and 10 T at order 2, for each window of the
    run and for the one that is measured; two gradients for each of the spectra's products; the
    copy, and a handful of vectors of its size.

    Source: the assumptions are those of Liu et al., Nature Communications 15, 434 (2024); measures
    and thresholds are ours.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> data = [(torch.randn(16, 4), torch.randn(16, 1)) for _ in range(6)]
        >>> found = audit(
        ...     model, nn.functional.mse_loss, data, lr=0.01, density=0.5, window=4, quick=True,
        ...     progress=False,
        ... )
        >>> len(found.verdicts), found.complete
        (8, True)
    """
    given = {name: value for name, value in locals().items() if name in Plan.__annotations__}
    plan = Plan.of(require_flag("quick", quick), **given)
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("the model has no trainable parameter: there is nothing to audit")
    if thresholds is not None and not isinstance(thresholds, Thresholds):
        raise TypeError(f"thresholds must be a Thresholds, got {type(thresholds).__name__}")
    batches = split_batches(data, validation, plan, parameters[0].device)
    require_scalar_loss(model, loss_fn, batches.steps[0])
    report = AuditReport(title=title or type(model).__name__, kind="audit")
    report.settings = {**asdict(plan), "tolerance of the run": RUN_TOLERANCE}
    report.notes = batches.notes
    report.facts = {
        "parameters": sum(p.numel() for p in parameters),
        "samples a step": int(batches.size),
        "batches of a window": len(batches.steps),
        "held-out samples": int(sum(samples(*batch) for batch in batches.held_out)),
        **surroundings(parameters[0]),
    }
    conduct = Conduct(model, loss_fn, plan, batches, thresholds or Thresholds(), report)
    with shown(progress, list(conduct.parts)) as tick_of:
        for part in conduct.parts:
            conduct.measure(part, tick_of(part))
            on_part(report)
    report.complete = True
    on_part(report)
    return report
