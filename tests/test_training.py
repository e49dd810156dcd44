"""The training loop's measurements, against plain computations of the same numbers."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_qsgd import QuantumSGD
from torch_qsgd.training import History, TrueSGD, WindowReport, endless, evaluate, train

Batches = list[tuple[Tensor, Tensor]]


def network(seed: int = 0, dropout: float = 0.0) -> nn.Sequential:
    """A small smooth network with batch normalisation, in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(4, 12),
            nn.BatchNorm1d(12),
            nn.Tanh(),
            nn.Dropout(dropout),
            nn.Linear(12, 10, bias=False),
            nn.Tanh(),
            nn.Linear(10, 3),
        ).double()


def batches(count: int, size: int = 16, seed: int = 1) -> Batches:
    draw = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(size, 4, generator=draw, dtype=torch.float64),
            torch.randint(0, 3, (size,), generator=draw),
        )
        for _ in range(count)
    ]


def by_closure(
    optimizer: torch.optim.Optimizer, model: nn.Module, inputs: Tensor, labels: Tensor
) -> None:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), labels)
        loss.backward()
        return loss

    optimizer.step(closure)


class PlainSGD:
    """Masked SGD written out: no optimizer, its own copy of everything at the upload."""

    def __init__(self, model: nn.Module, optimizer: QuantumSGD) -> None:
        self.model = copy.deepcopy(model)
        originals = dict(model.named_parameters())
        self.names = [n for n, p in originals.items() if p.requires_grad]
        self.group_of = {
            n: g
            for n in self.names
            for g in optimizer.param_groups
            if any(p is originals[n] for p in g["params"])
        }
        self.parameters = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self.anchor = {n: p.detach().clone() for n, p in self.parameters.items()}
        self.masks = {
            n: optimizer.masks.get(originals[n], torch.ones_like(p, dtype=torch.bool))
            for n, p in self.parameters.items()
        }
        self.velocity: dict[str, Tensor] = {}
        for n in self.names:
            if "momentum_buffer" in optimizer.state[originals[n]]:
                self.velocity[n] = optimizer.state[originals[n]]["momentum_buffer"].clone()

    def step(self, inputs: Tensor, labels: Tensor) -> None:
        loss = F.cross_entropy(self.model(inputs), labels)
        gradients = torch.autograd.grad(loss, list(self.parameters.values()))
        with torch.no_grad():
            for (n, p), g in zip(self.parameters.items(), gradients, strict=True):
                o = self.group_of[n]
                d = g * self.masks[n]
                d = -d if o["maximize"] else d
                if o["weight_decay"]:
                    d = torch.add(d, p, alpha=o["weight_decay"])
                if o["momentum"]:
                    if n in self.velocity:
                        v = o["momentum"] * self.velocity[n]
                        self.velocity[n] = torch.add(v, d, alpha=1 - o["dampening"])
                    else:
                        self.velocity[n] = d
                    v = self.velocity[n]
                    d = torch.add(d, v, alpha=o["momentum"]) if o["nesterov"] else v
                p.copy_(torch.add(p, d, alpha=-o["lr"]))

    def error(self, model: nn.Module) -> float:
        """Relative distance of the model's weights from these, one coordinate at a time."""
        gap = way = 0.0
        weights = dict(model.named_parameters())
        for n, p in self.parameters.items():
            for mine, theirs, start in zip(
                p.flatten().tolist(),
                weights[n].flatten().tolist(),
                self.anchor[n].flatten().tolist(),
                strict=True,
            ):
                gap += (theirs - mine) ** 2
                way += (mine - start) ** 2
        return math.sqrt(gap / way)


# ---- evaluate ------------------------------------------------------------------------------------


def test_evaluate_is_the_mean_over_samples_in_eval_mode_also_with_unequal_batches():
    model = network(dropout=0.5)
    data = batches(3) + batches(1, size=5, seed=2) + batches(1, size=1, seed=3)
    with torch.no_grad():
        for inputs, _ in batches(4, seed=9):  # running statistics that are not the initial ones
            model(inputs)
    reference = copy.deepcopy(model).eval()
    total, right, count = 0.0, 0, 0
    for inputs, labels in data:
        for x, y in zip(inputs, labels.tolist(), strict=True):
            scores = reference(x[None])[0].tolist()
            total += math.log(sum(map(math.exp, scores))) - scores[y]
            right += scores.index(max(scores)) == y
            count += 1
    loss, accuracy = evaluate(model, F.cross_entropy, data, torch.device("cpu"))
    assert count == 54
    assert loss == pytest.approx(total / count, rel=1e-12)
    assert accuracy == right / count


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ArithmeticError


@pytest.mark.parametrize("fails", [False, True])
def test_evaluate_puts_the_training_flag_of_every_module_back(fails: bool):
    model = nn.Sequential(network(), *([Failing()] if fails else []))
    model.train()
    model[0][1].eval()
    model[0][5].eval()
    flags = [m.training for m in model.modules()]
    assert len(set(flags)) == 2
    before = {n: t.clone() for n, t in model.state_dict().items()}
    if fails:
        with pytest.raises(ArithmeticError):
            evaluate(model, F.cross_entropy, batches(2), torch.device("cpu"))
    else:
        evaluate(model, F.cross_entropy, batches(2), torch.device("cpu"))
    assert [m.training for m in model.modules()] == flags
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


# ---- TrueSGD -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.9},
        {"weight_decay": 0.02},
        {"momentum": 0.9, "weight_decay": 0.02},
        {"momentum": 0.8, "dampening": 0.3, "weight_decay": 0.02},
        {"momentum": 0.8, "nesterov": True, "weight_decay": 0.02},
        {"momentum": 0.8, "maximize": True, "weight_decay": 0.02},
    ],
    ids=str,
)
@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_true_sgd_is_plain_masked_sgd_to_the_bit_while_a_scheduler_changes_lr_in_mid_window(
    options: dict[str, Any], window: int, dtype: torch.dtype
):
    model = network().to(dtype)
    model[1].weight.requires_grad_(False)
    optimizer = QuantumSGD(
        [
            {"params": [*model[0].parameters(), *model[1].parameters(), model[4].weight]},
            {"params": model[6].parameters(), "lr": 0.03, "density": 0.8},
        ],
        lr=0.1,
        density=0.4,
        window=5,
        order=1,
        classical_steps=2,
        **options,
    )
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.7)
    data = iter([(x.to(dtype), y) for x, y in batches(12)])
    if window == 2:  # so that momentum does not start from nothing
        for _ in range(7):
            by_closure(optimizer, model, *next(data))
            scheduler.step()
    optimizer.upload()
    twin = TrueSGD(model, optimizer, F.cross_entropy)
    plain = PlainSGD(model, optimizer)
    assert bool(plain.velocity) == (window == 2 and "momentum" in options)
    rates = set()
    for _ in range(5):
        inputs, labels = next(data)
        twin.step(inputs, labels)
        plain.step(inputs, labels)
        by_closure(optimizer, model, inputs, labels)
        rates.add(optimizer.param_groups[0]["lr"])
        scheduler.step()
    assert len(rates) == 3
    assert optimizer.phase == "classical"
    assert twin.error() == pytest.approx(plain.error(model), rel=1e-5)
    assert twin.error() > 1e-5
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name in plain.parameters:
                p.copy_(plain.parameters[name])
    # The distance is zero only where every bit of every weight agrees.
    assert twin.error() == 0


def test_a_group_may_be_frozen_as_a_whole():
    model = network()
    model[4].weight.requires_grad_(False)
    optimizer = QuantumSGD(
        [{"params": [model[4].weight]}, {"params": [*model[0].parameters(), model[6].weight]}],
        lr=0.1,
        density=0.5,
        window=1,
        order=1,
        classical_steps=0,
    )
    history = run(model, optimizer, steps=3)
    assert all(w.error < 1e-10 for w in history.windows)
    assert torch.equal(model[4].weight, network()[4].weight)


def test_true_sgd_leaves_the_model_and_the_optimizer_alone():
    model = network()
    optimizer = QuantumSGD(model.parameters(), lr=0.1, momentum=0.9, density=0.5, window=4)
    by_closure(optimizer, model, *batches(1)[0])
    tensors = {n: t.clone() for n, t in model.state_dict().items()}
    state = copy.deepcopy(optimizer.state_dict())
    gradients = [p.grad for p in model.parameters()]
    twin = TrueSGD(model, optimizer, F.cross_entropy)
    for inputs, labels in batches(3, seed=5):
        twin.step(inputs, labels)
    assert all(torch.equal(t, tensors[n]) for n, t in model.state_dict().items())
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
    after = optimizer.state_dict()
    assert after["param_groups"][0]["cycle"]["window_step"] == 1
    for index, kept in state["state"].items():
        for name, tensor in kept.items():
            assert torch.equal(tensor, after["state"][index][name]), name


# ---- train ---------------------------------------------------------------------------------------


def quantum(model: nn.Module, **options: Any) -> QuantumSGD:
    given = {"lr": 0.1, "density": 0.5, "window": 4, "order": 2, "classical_steps": 1, **options}
    return QuantumSGD(model.parameters(), **given)


def run(model: nn.Module, optimizer: torch.optim.Optimizer, **options: Any) -> History:
    given = {"steps": 10, "every": 2, **options}
    data = endless(batches(3))
    return train("run", model, F.cross_entropy, optimizer, data, batches(2, seed=8), **given)


def test_a_short_run_has_its_windows_and_evaluates_where_it_says():
    model = network()
    optimizer = quantum(model)
    steps: list[int] = []
    reports: list[WindowReport] = []
    history = run(
        model, optimizer, steps=99, windows=2, on_step=steps.append, on_window=reports.append
    )
    assert [(w.start, w.stop) for w in history.windows] == [(0, 4), (5, 9)]
    # Uploads after steps 0 and 5, each with an evaluation before its pruning and one after;
    # downloads after 4 and 9; predictions at even steps between.
    assert [(e.step, e.predicted) for e in history.evaluations] == [
        (0, False),
        (0, False),
        (2, True),
        (4, False),
        (5, False),
        (5, False),
        (6, True),
        (8, True),
        (9, False),
    ]
    assert steps == list(range(1, 10))
    assert reports == history.windows
    assert [w.record for w in history.windows] == optimizer.windows
    for report in history.windows:
        assert report.before in history.evaluations
        assert report.after in history.evaluations
        assert (report.before.step, report.after.step) == (report.start, report.stop)
    assert history.final == history.evaluations[-1]


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9, "weight_decay": 0.01}], ids=str)
@pytest.mark.parametrize("order", [1, 2])
def test_errors_and_evaluations_are_those_of_a_run_written_out(
    order: int, options: dict[str, float]
):
    model = network()
    history = run(model, quantum(model, order=order, **options), steps=9)

    again = network()
    optimizer = quantum(again, order=order, **options)
    data, held_out = endless(batches(3)), batches(2, seed=8)
    errors, losses = [], []

    def loss() -> float:
        seen = copy.deepcopy(again).eval()
        return sum(F.cross_entropy(seen(x), y).item() for x, y in held_out) / 2

    plain = None
    for _ in range(9):
        inputs, labels = next(data)
        if optimizer.phase == "upload":
            optimizer.upload()
            plain = PlainSGD(again, optimizer)
            losses.append(loss())
        if plain is not None:
            plain.step(inputs, labels)
        by_closure(optimizer, again, inputs, labels)
        if plain is not None and optimizer.phase != "window":
            errors.append(plain.error(again))
            losses.append(loss())
            plain = None
    assert len(errors) == 2
    assert [w.error for w in history.windows] == pytest.approx(errors, rel=1e-8)
    assert all(1e-6 < e < 0.5 for e in errors)
    seen = [e.loss for w in history.windows for e in (w.before, w.after)]
    assert seen == pytest.approx(losses, rel=1e-12)


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9, "weight_decay": 0.01}], ids=str)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_window_of_one_step_is_sgd(order: int, options: dict[str, float]):
    model = network()
    optimizer = quantum(model, window=1, order=order, classical_steps=1, **options)
    history = run(model, optimizer, steps=8)
    assert [(w.start, w.stop) for w in history.windows] == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert all(w.error < 1e-10 for w in history.windows)


def test_a_longer_window_errs_less_at_a_higher_order():
    errors = []
    for order in (1, 2, 3):
        model = network()
        history = run(model, quantum(model, window=6, order=order, lr=0.05), steps=6)
        errors.append(history.windows[0].error)
    assert errors[0] > 3 * errors[1] > 9 * errors[2] > 0


def test_an_evaluation_in_mid_window_is_at_the_weights_a_download_there_would_give():
    model = network()
    whole = run(model, quantum(model), steps=4)
    model = network()
    cut_short = run(model, quantum(model), steps=2)
    predicted = next(e for e in whole.evaluations if e.predicted)
    assert predicted.step == cut_short.final.step == 2
    # Running statistics follow the anchor in both, so that only the weights count.
    assert predicted.loss == pytest.approx(cut_short.final.loss, rel=1e-12)
    assert predicted.accuracy == cut_short.final.accuracy
    assert whole.final.step == 4


def test_a_window_open_at_the_last_step_is_downloaded_and_measured():
    model = network()
    history = run(model, quantum(model, window=50), steps=3)
    (report,) = history.windows
    assert (report.start, report.stop, report.record.steps) == (0, 3, 3)
    assert report.record.reason == "requested"
    assert history.final.step == 3


def test_the_active_weights_are_counted_as_the_run_leaves_them():
    model = network()
    total = sum(p.numel() for p in model.parameters())
    pruned = run(model, quantum(model), steps=4)
    nonzero = sum(int(p.count_nonzero()) for p in model.parameters() if p.dim() > 1)
    assert nonzero == round(0.5 * (4 * 12 + 12 * 10 + 10 * 3))
    vectors = sum(p.numel() for p in model.parameters() if p.dim() == 1)
    assert (pruned.active, pruned.total) == (nonzero + vectors, total)
    model = network()
    dense = run(model, quantum(model), steps=5)  # one dense step after the download
    assert (dense.active, dense.total) == (total, total)


def test_another_optimizer_is_trained_and_evaluated_without_windows():
    model, reference = network(), network()
    options: dict[str, Any] = {"lr": 0.1, "momentum": 0.9}
    history = run(model, torch.optim.SGD(model.parameters(), **options), steps=7, every=3)
    assert [(e.step, e.predicted) for e in history.evaluations] == [
        (0, False),
        (3, False),
        (6, False),
        (7, False),
    ]
    assert history.windows == []
    assert history.active == history.total == sum(p.numel() for p in model.parameters())
    sgd = torch.optim.SGD(reference.parameters(), **options)
    data = endless(batches(3))
    for _ in range(7):
        inputs, labels = next(data)
        sgd.zero_grad()
        F.cross_entropy(reference(inputs), labels).backward()
        sgd.step()
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.equal(p, q)


def test_masked_sgd_alone_keeps_its_mask_and_has_no_windows():
    model = network()
    history = run(model, quantum(model, window=0), steps=5, every=5)
    nonzero = sum(int(p.count_nonzero()) for p in model.parameters() if p.dim() > 1)
    assert nonzero == round(0.5 * (4 * 12 + 12 * 10 + 10 * 3))
    assert history.windows == []
    assert history.active < history.total
    assert history.final.step == 5


def test_an_interrupted_run_leaves_what_it_measured():
    def interrupted() -> Iterator[tuple[Tensor, Tensor]]:
        yield from batches(6)
        raise KeyboardInterrupt

    model, history = network(), History("cut")
    with pytest.raises(KeyboardInterrupt):
        train(
            "cut",
            model,
            F.cross_entropy,
            quantum(model),
            interrupted(),
            batches(2),
            steps=20,
            every=2,
            history=history,
        )
    assert [(w.start, w.stop) for w in history.windows] == [(0, 4)]
    assert history.evaluations[-1].predicted
    assert history.final.step == 5
    assert history.total == sum(p.numel() for p in model.parameters())


def test_a_history_is_plain_json():
    model = network()
    history = run(model, quantum(model, order=3), steps=9)
    read = json.loads(json.dumps(history.to_json(), allow_nan=False))
    assert read["name"] == "run"
    assert [e["loss"] for e in read["evaluations"]] == [e.loss for e in history.evaluations]
    assert [w["error"] for w in read["windows"]] == [w.error for w in history.windows]
    norms = [w["record"]["jet_norms"] for w in read["windows"]]
    assert norms == [list(w.record.jet_norms) for w in history.windows]
    assert all(len(row) == 3 for row in norms)


def test_endless_batches_go_round_the_loader_again_and_again():
    data = batches(3)
    stream = endless(data)
    assert all(next(stream)[0] is data[i % 3][0] for i in range(10))


def test_a_window_of_one_step_is_sgd_also_with_dropout():
    model = network(dropout=0.5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        history = run(model, quantum(model, window=1, order=1), steps=6)
    assert all(w.error < 1e-10 for w in history.windows)
