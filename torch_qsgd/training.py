"""A training loop that measures: loss, accuracy, and every window against true SGD."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from torch_qsgd.batches import forward, mapped, samples
from torch_qsgd.carleman.jet import norm
from torch_qsgd.optim import QuantumSGD
from torch_qsgd.records import WindowRecord

Batch = tuple[Any, Any]
LossFunction = Callable[..., Tensor]


@dataclass(frozen=True)
class Evaluation:
    """Mean loss and accuracy over the validation batches.

    Attributes:
        step: steps taken before it.
        loss: mean loss, in nats a sample for cross entropy.
        accuracy: share of targets that are the class of the largest output; NaN where targets are
            no classes.
        predicted: whether it was taken at θ* + Σ c_k, in mid-window, rather than at the weights.
    """

    step: int
    loss: float
    accuracy: float
    predicted: bool = False


@dataclass(frozen=True)
class WindowReport:
    """One window, as measured.

    Attributes:
        start, stop: step numbers of its upload and its download.
        before, after: evaluations just after the upload and just after the download.
        error: ‖u − u_SGD‖/‖u_SGD‖ against masked SGD from the same anchor on the same batches.
        record: the optimizer's own record.
    """

    start: int
    stop: int
    before: Evaluation
    after: Evaluation
    error: float
    record: WindowRecord


@dataclass
class History:
    """All that a run measured.

    Attributes:
        name: of the run.
        evaluations: in order of steps.
        windows: of a ``QuantumSGD`` run.
        active: active coordinates at the end.
        total: all trainable coordinates.
    """

    name: str
    evaluations: list[Evaluation] = field(default_factory=list)
    windows: list[WindowReport] = field(default_factory=list)
    active: int = 0
    total: int = 0

    @property
    def final(self) -> Evaluation:
        """The last evaluation of the weights themselves."""
        return [e for e in self.evaluations if not e.predicted][-1]

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, lists and strings."""
        return asdict(self)

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> History:
        """The inverse of :meth:`to_json`; what it does not know is left out.

        Raises:
            ValueError: where a part is missing.
        """
        try:
            windows = [
                WindowReport(
                    **{
                        **report,
                        "before": Evaluation(**report["before"]),
                        "after": Evaluation(**report["after"]),
                        "record": WindowRecord.from_state(report["record"]),
                    }
                )
                for report in plain["windows"]
            ]
            evaluations = [Evaluation(**evaluation) for evaluation in plain["evaluations"]]
            return cls(plain["name"], evaluations, windows, plain["active"], plain["total"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"this is no history of a run: {error}") from error


def evaluate(
    model: nn.Module, loss_fn: LossFunction, batches: Iterable[Batch], device: torch.device
) -> tuple[float, float]:
    """Mean loss and accuracy in eval mode; the model's mode is put back.

    Args:
        model, loss_fn: ``loss_fn(model(inputs), targets)`` is a mean over samples.
        batches: pairs (inputs, targets).
        device: where they are moved to.

    Returns:
        The loss, and the share of targets that are the class of the largest output. Classes are
        dimension 1 of the outputs, or the last one where only that fits the targets' shape; where
        neither does, or targets are no integers, the accuracy is NaN.

    Cost: one forward pass over the batches.
    """
    training = {module: module.training for module in model.modules()}
    loss, right, count, scored = 0.0, 0, 0.0, 0
    model.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                inputs, targets = _on(device, batch)
                outputs = forward(model, inputs)
                weight = samples(inputs, targets)
                loss += float(loss_fn(outputs, targets)) * weight
                count += weight
                classes = _class_dimension(outputs, targets)
                if classes is not None:
                    right += int((outputs.argmax(classes) == targets).sum())
                    scored += targets.numel()
    finally:
        for module, flag in training.items():
            module.training = flag
    return loss / count, right / scored if scored else math.nan


def _on(device: torch.device, batch: Any) -> Batch:
    """A pair (inputs, targets) on a device."""
    inputs, targets = batch
    return mapped(inputs, lambda t: t.to(device)), mapped(targets, lambda t: t.to(device))


def _class_dimension(outputs: Any, targets: Any) -> int | None:
    """The dimension of the outputs that holds classes; ``None`` where there are none."""
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor):
        return None
    if targets.dtype != torch.int64 or outputs.dim() != targets.dim() + 1:
        return None
    for dimension in (1, outputs.dim() - 1):
        others = outputs.shape[:dimension] + outputs.shape[dimension + 1 :]
        if others == targets.shape and outputs.shape[dimension] > 1:
            return dimension
    return None


class TrueSGD:
    """Masked SGD beside a window: same anchor, batches, learning rates and momentum.

    Args:
        model: the model at the anchor; it is copied.
        optimizer: in a window that has just been opened.
        loss_fn: of outputs and labels.

    Cost: a copy of the model; one gradient evaluation a step.
    """

    def __init__(self, model: nn.Module, optimizer: QuantumSGD, loss_fn: LossFunction) -> None:
        memo: dict[int, Any] = {}
        self._model = copy.deepcopy(model, memo)
        self._loss_fn = loss_fn
        self._source = optimizer
        self._anchor: list[Tensor] = []
        self._current: list[Tensor] = []
        self._masks: dict[Tensor, Tensor] = {}
        groups = []
        for group in optimizer.param_groups:
            pairs = [(p, memo[id(p)]) for p in group["params"] if p.requires_grad]
            groups.append({**_sgd_options(group), "params": [twin for _, twin in pairs]})
            for p, twin in pairs:
                self._anchor.append(p.detach().clone())
                self._current.append(p)
                if p in optimizer.masks:
                    self._masks[twin] = optimizer.masks[p]
        self._twin = torch.optim.SGD([g for g in groups if g["params"]])
        for p, twin in zip(self._current, self._parameters(), strict=True):
            buffer = optimizer.state[p].get("momentum_buffer")
            if buffer is not None:
                self._twin.state[twin]["momentum_buffer"] = buffer.clone()

    def _parameters(self) -> list[Tensor]:
        return [p for group in self._twin.param_groups for p in group["params"]]

    def step(self, inputs: Any, labels: Any) -> None:
        """Take one step of masked SGD, with the optimizer's present options."""
        sources = [
            g for g in self._source.param_groups if any(p.requires_grad for p in g["params"])
        ]
        for group, source in zip(self._twin.param_groups, sources, strict=True):
            group.update(_sgd_options(source))
        self._twin.zero_grad()
        self._loss_fn(forward(self._model, inputs), labels).backward()
        for p, mask in self._masks.items():
            if p.grad is not None:
                p.grad.mul_(mask)
        self._twin.step()

    def error(self) -> float:
        """‖u − u_SGD‖/‖u_SGD‖, where u is what the optimizer has downloaded."""
        with torch.no_grad():
            true = [p - a for p, a in zip(self._parameters(), self._anchor, strict=True)]
            gap = [p - q for p, q in zip(self._parameters(), self._current, strict=True)]
            length = float(norm(true))
            return float(norm(gap)) / length if length > 0 else math.nan


def _sgd_options(group: dict[str, Any]) -> dict[str, Any]:
    names = ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize")
    return {name: group[name] for name in names}


def endless(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Batches without end, reshuffled as often as the loader does."""
    while True:
        yield from batches


def train(
    name: str,
    model: nn.Module,
    loss_fn: LossFunction,
    optimizer: Optimizer,
    batches: Iterator[Batch],
    validation: Iterable[Batch],
    *,
    steps: int,
    every: int,
    windows: int | None = None,
    history: History | None = None,
    on_step: Callable[[int], None] = lambda step: None,
    on_window: Callable[[WindowReport], None] = lambda report: None,
) -> History:
    """Train for a number of steps and measure on the way.

    Args:
        name: of the run.
        model, loss_fn, optimizer: any optimizer of PyTorch; a ``QuantumSGD`` has each of its
            windows measured against true SGD.
        batches: training batches (inputs, labels), without end.
        validation: batches to evaluate on, at the start, every ``every`` steps, and around every
            window; in mid-window at the predicted weights, for the weights rest.
        steps: to take, at most. A window still open then is downloaded.
        every: steps between evaluations.
        windows: stop after so many downloads.
        history: filled in place, so that an interrupted run leaves what it measured.
        on_step: called after each step with its number.
        on_window: called after each download.

    Returns:
        What was measured.

    Cost: the optimizer's own, one gradient evaluation a window step, and the evaluations.
    """
    history = History(name) if history is None else history
    device = next(model.parameters()).device
    quantum = optimizer if isinstance(optimizer, QuantumSGD) else None

    def measure(step: int, predicted: bool = False) -> Evaluation:
        loss, accuracy = evaluate(model, loss_fn, validation, device)
        history.evaluations.append(Evaluation(step, loss, accuracy, predicted))
        return history.evaluations[-1]

    try:
        measure(0)
        start, before, twin = 0, history.evaluations[0], None
        for step in range(1, steps + 1):
            inputs, labels = _on(device, next(batches))
            if quantum is not None and quantum.phase == "upload":
                if history.evaluations[-1].step < step - 1:
                    measure(step - 1)  # the dense weights, so that the dip of pruning shows
                quantum.upload(inputs, labels)
                start, before = step - 1, measure(step - 1)
                twin = TrueSGD(model, quantum, loss_fn) if quantum.phase == "window" else None
            if twin is not None:
                # Both then draw the same random numbers, in dropout say.
                with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                    twin.step(inputs, labels)

            def closure(inputs: Any = inputs, labels: Any = labels) -> Any:
                optimizer.zero_grad()
                loss = loss_fn(forward(model, inputs), labels)
                loss.backward()
                return loss

            optimizer.step(closure)
            if quantum is not None and quantum.phase == "window" and step == steps:
                quantum.download()
            if quantum is not None and twin is not None and quantum.phase != "window":
                report = WindowReport(
                    start, step, before, measure(step), twin.error(), quantum.windows[-1]
                )
                history.windows.append(report)
                on_window(report)
                twin = None
            elif quantum is not None and quantum.phase == "window" and step % every == 0:
                with quantum.predicted_weights():
                    measure(step, predicted=True)
            elif step % every == 0 or step == steps:
                measure(step)
            on_step(step)
            if windows is not None and len(history.windows) >= windows:
                break
    finally:
        history.total = sum(p.numel() for p in model.parameters() if p.requires_grad)
        pruned = quantum is not None and not any(
            bool(p.detach()[~mask].any()) for p, mask in quantum.masks.items()
        )
        history.active = quantum.active if quantum is not None and pruned else history.total
    return history
