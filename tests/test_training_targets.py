"""Evaluating and training with targets and inputs of any kind; a history from its JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_qsgd.optim import QuantumSGD
from torch_qsgd.training import History, endless, evaluate, train

CPU = torch.device("cpu")


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def integers(most: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(most, shape, generator=torch.Generator().manual_seed(seed))


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build().double()


def token_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())


class Identity(nn.Module):
    """Gives its input back, so that a test chooses the outputs."""

    def forward(self, x: Tensor) -> Tensor:
        return x


# ---- Accuracy ------------------------------------------------------------------------------------


def scores_of(outputs: Tensor, place: tuple[int, ...], classes: int) -> list[float]:
    """The outputs of one target, whose indices without the classes' are ``place``."""
    return [float(outputs.select(classes, c)[place]) for c in range(outputs.shape[classes])]


def counted(outputs: Tensor, targets: Tensor, classes: int) -> float:
    """Share of targets that are their largest output, one by one."""
    right = 0
    for place in torch.cartesian_prod(*(torch.arange(n) for n in targets.shape)).tolist():
        at = tuple(place) if isinstance(place, list) else (place,)
        scores = scores_of(outputs, at, classes)
        right += scores.index(max(scores)) == int(targets[at])
    return right / targets.numel()


@pytest.mark.parametrize(
    ("shape", "targets", "classes"),
    [
        ((6, 5), (6,), 1),  # classification
        ((6, 7, 5), (6, 7), 2),  # a language model: the classes are last
        ((6, 5, 3, 4), (6, 3, 4), 1),  # segmentation
        ((6, 3, 4, 5), (6, 3, 4), 3),  # the same with channels last
        ((6, 5, 5), (6, 5), 1),  # both fit: PyTorch's losses have them second
    ],
    ids=str,
)
def test_accuracy_is_counted_target_by_target(
    shape: tuple[int, ...], targets: tuple[int, ...], classes: int
):
    outputs = [normal(*shape, seed=s) for s in (1, 2)]
    wanted = [integers(5, *targets, seed=s) for s in (3, 4)]
    batches = list(zip(outputs, wanted, strict=True))

    def loss(given: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(given.movedim(classes, 1), labels)

    mean, accuracy = evaluate(Identity(), loss, batches, CPU)
    both = [counted(o, t, classes) for o, t in batches]
    assert accuracy == pytest.approx(sum(both) / 2, abs=1e-12)
    assert 0 < accuracy < 1
    assert mean == pytest.approx(sum(float(loss(o, t)) for o, t in batches) / 2)


@pytest.mark.parametrize(
    ("outputs", "targets"),
    [
        (normal(6, 3), normal(6, 3)),  # regression
        (normal(6), normal(6)),
        (normal(6, 4), integers(2, 6, 4)),  # several labels each
        (normal(6, 4), integers(2, 6).bool()),
        (normal(6, 4, 3), integers(2, 6, 5)),  # no dimension fits
        (normal(6, 4), (integers(2, 6), normal(6))),
    ],
    ids=["same shape", "one number", "multi-label", "bool", "unlike shapes", "pair"],
)
def test_without_classes_the_accuracy_is_not_known(outputs: Tensor, targets: Any):
    def loss(given: Tensor, _: Any) -> Tensor:
        return given.square().mean()

    mean, accuracy = evaluate(Identity(), loss, [(outputs, targets)], CPU)
    assert math.isnan(accuracy)
    assert mean == pytest.approx(float(outputs.square().mean()))


def test_batches_without_classes_do_not_count_for_the_accuracy():
    scores, labels = normal(8, 3), integers(3, 8)
    batches = [(scores, labels), (normal(8, 3), normal(8, 3))]

    def loss(given: Tensor, _: Any) -> Tensor:
        return given.mean()

    _, accuracy = evaluate(Identity(), loss, batches, CPU)
    assert accuracy == counted(scores, labels, 1)


# ---- Inputs --------------------------------------------------------------------------------------


class Two(nn.Module):
    """Of two inputs, by position or by name."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(2, 4)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.tanh(self.first(a)) * self.second(b)


def pairs() -> list[tuple[Tensor, Tensor, Tensor]]:
    return [
        (normal(n, 3, seed=n), normal(n, 2, seed=n + 1), integers(4, n, seed=n)) for n in (5, 8)
    ]


FORMS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tuple": lambda a, b: (a, b),
    "list": lambda a, b: [a, b],
    "mapping": lambda a, b: {"b": b, "a": a},
}


@pytest.mark.parametrize("form", FORMS)
def test_inputs_may_be_several_and_have_names(form: str):
    model = seeded(Two)
    batches = [(FORMS[form](a, b), labels) for a, b, labels in pairs()]
    loss, accuracy = evaluate(model, F.cross_entropy, batches, CPU)
    with torch.no_grad():
        each = [(F.cross_entropy(model(a, b), y), len(y), model(a, b), y) for a, b, y in pairs()]
    assert loss == pytest.approx(sum(float(x) * n for x, n, _, _ in each) / 13)
    right = sum(int((o.argmax(1) == y).sum()) for _, _, o, y in each)
    assert accuracy == pytest.approx(right / 13)


def trained(model: nn.Module, batches: list[Any], loss: Any, **options: Any) -> History:
    optimizer = QuantumSGD(
        model.parameters(),
        **{"lr": 0.1, "density": 0.6, "window": 3, "order": 2, "classical_steps": 1, **options},
        model=model,
        loss_fn=loss,
    )
    data = endless(batches)
    return train("run", model, loss, optimizer, data, batches, steps=9, every=2, windows=2)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_inputs_is_trained_on_and_gives_the_same_run(form: str):
    histories = []
    for name in ("tuple", form):
        batches = [(FORMS[name](a, b), labels) for a, b, labels in pairs()]
        histories.append(trained(seeded(Two), batches, F.cross_entropy))
    assert len(histories[0].windows) == 2
    assert histories[0] == histories[1]
    assert all(0 < report.error < 0.2 for report in histories[0].windows)


def language_model() -> nn.Module:
    return nn.Sequential(nn.Embedding(7, 6), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 7))


def segmenter() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.SiLU(), nn.Conv2d(4, 3, 1))


def autoencoder() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 6))


TASKS: dict[str, tuple[Callable[[], nn.Module], list[Any], Any]] = {
    "language model": (
        language_model,
        [(integers(7, 4, 9, seed=s), integers(7, 4, 9, seed=s + 9)) for s in range(3)],
        token_loss,
    ),
    "segmentation": (
        segmenter,
        [(normal(3, 2, 5, 5, seed=s), integers(3, 3, 5, 5, seed=s)) for s in range(3)],
        F.cross_entropy,
    ),
    "regression": (
        autoencoder,
        [(normal(8, 6, seed=s), normal(8, 6, seed=s + 9)) for s in range(3)],
        F.mse_loss,
    ),
}


@pytest.mark.parametrize("task", TASKS)
def test_windows_are_measured_on_any_task(task: str):
    build, batches, loss = TASKS[task]
    history = trained(seeded(build), batches, loss)
    assert len(history.windows) == 2
    unknown = {math.isnan(e.accuracy) for e in history.evaluations}
    assert unknown == {task == "regression"}
    assert all(math.isfinite(e.loss) for e in history.evaluations)
    one = trained(seeded(build), batches, loss, window=1)
    for long, short in zip(history.windows, one.windows, strict=True):
        assert 0 < long.error < 0.1
        assert short.error < 1e-10  # one step is SGD


# ---- JSON ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["language model", "segmentation"])
def test_a_history_comes_back_from_json(task: str):
    build, batches, loss = TASKS[task]
    history = trained(seeded(build), batches, loss)
    again = History.from_json(json.loads(json.dumps(history.to_json(), allow_nan=False)))
    assert again == history
    assert again.windows[0].record.jet_ratio == history.windows[0].record.jet_ratio
    assert again.final == history.final


def test_a_history_without_classes_comes_back_with_its_unknown_accuracies():
    build, batches, loss = TASKS["regression"]
    history = trained(seeded(build), batches, loss)
    again = History.from_json(json.loads(json.dumps(history.to_json())))
    assert repr(again) == repr(history)
    assert "accuracy=nan" in repr(again)


@pytest.mark.parametrize("name", ["name", "evaluations", "windows", "active", "total"])
def test_a_history_that_lacks_a_part_is_refused_by_its_name(name: str):
    plain = History("run").to_json()
    del plain[name]
    with pytest.raises(ValueError, match=f"no history of a run: '{name}'"):
        History.from_json(plain)


@pytest.mark.parametrize("wrong", [{"evaluations": 3}, {"windows": [{}]}, {"evaluations": [{}]}])
def test_a_damaged_history_is_refused(wrong: dict[str, Any]):
    with pytest.raises(ValueError, match="no history of a run: "):
        History.from_json({**History("run").to_json(), **wrong})
