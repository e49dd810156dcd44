"""A report as an audit makes one: a real training run with spectra; plain numbers for the rest."""

from __future__ import annotations

import copy
import functools
import itertools
import math

import torch
import torch.nn.functional as F

from tests.cases import Batches, classifier, image_batches
from torch_qsgd import QuantumSGD
from torch_qsgd.hessian import DissipativityMonitor, MonitorHistory
from torch_qsgd.report.content import Report
from torch_qsgd.report.findings import Finding, judged
from torch_qsgd.report.measurements import (
    Conditioning,
    DerivativeMode,
    LayerPruning,
    OrderError,
    Pruning,
    ReadoutTrial,
    RowSparsity,
    Transfer,
    Truncation,
)
from torch_qsgd.resources import Entry, WindowSize, ledger, scaling
from torch_qsgd.training import History, train

#: What would end the page's script, or be read as HTML, if it were not escaped.
NASTY = "</script><script>alert(1)</script><b>&amp;\"'"
STEPS = 66
#: Without a physical estimate, which the ledger then does not know.
WINDOW = WindowSize(
    parameters=11_173_962, active=1_117_396, steps=100, order=2, kappa=182.0, flops=3.1e14
)


@functools.cache
def trained() -> tuple[History, History, MonitorHistory]:
    """A run of QuantumSGD, one of SGD from the same weights, and spectra of the first."""
    batches, held_out = image_batches(6), image_batches(9)[6:]
    model = classifier("group")
    twin = copy.deepcopy(model)
    optimizer = QuantumSGD(
        model.parameters(),
        lr=0.1,
        density=0.5,
        window=16,
        order=2,
        classical_steps=4,
        tolerance=math.inf,
        model=model,
        loss_fn=F.cross_entropy,
        generator=torch.Generator().manual_seed(0),
    )
    monitor = DissipativityMonitor(
        None, model, F.cross_entropy, batches[:2], steps=12, probes=2, every=8, min_window=9
    )
    monitor.attach(optimizer)
    quantum = _train("QuantumSGD", model, optimizer, batches, held_out)
    monitor.detach()
    plain = torch.optim.SGD(twin.parameters(), lr=0.1)
    return quantum, _train("SGD", twin, plain, batches, held_out), monitor.history


def _train(
    name: str,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    held_out: Batches,
) -> History:
    endless = itertools.cycle(batches)
    return train(name, model, F.cross_entropy, optimizer, endless, held_out, steps=STEPS, every=3)


def sample() -> Report:
    """A whole audit; a new one each time."""
    quantum, plain, monitor = trained()
    report = Report(
        title="resnet-7m on digits, trained weights",
        kind="audit",
        facts={"parameters": 11_173_962, "active weights": 1_117_396, "loss": 0.412, "gpu": None},
        settings={
            "lr": 0.1,
            "density": 0.5,
            "loss": "cross-entropy",
            "window": 100,
            "quick": False,
        },
        notes=["The spectra are of 2 batches.", "Thresholds are those by default."],
        complete=True,
        seconds=754.2,
        findings=_findings(),
        pruning=_pruning(),
        truncation=_truncation(),
        rows=_rows(),
        conditioning=_conditioning(),
        transfer=_transfer(),
        modes=[
            DerivativeMode("jet, reverse over reverse", 1, True, 3.1e-15, ""),
            DerivativeMode(
                "jet, reverse three times", 2, True, 4.4e-13, "native BatchNorm composed"
            ),
            DerivativeMode("low-level forward AD", 1, False, math.nan, "silu is not implemented"),
        ],
        runs=[quantum, plain],
        monitor=monitor,
        ledger=ledger(WINDOW),
        scaling=[scaling(WINDOW, over) for over in ("active", "steps", "density")],
    )
    return Report.from_json(report.to_json())


def nasty() -> Report:
    """Text everywhere that is not to be read as HTML."""
    report = sample()
    report.title = report.settings["loss"] = NASTY
    report.facts[NASTY] = NASTY
    report.notes = [NASTY]
    report.runs[0].name = NASTY
    assert report.pruning is not None
    assert report.truncation is not None
    assert report.ledger is not None
    layer = report.pruning.layers[0]
    report.pruning.layers[0] = LayerPruning(NASTY, *list(vars(layer).values())[1:])
    report.truncation.kinks.append(NASTY)
    entry = report.ledger.entries[0]
    report.ledger.entries[0] = Entry(entry.key, entry.group, NASTY, entry.value, *[NASTY] * 4)
    return report


def _findings() -> list[Finding]:
    given = (
        ("dissipative dynamics", "share of negative eigenvalues", 0.31, "", "≤", 0.05, 0.12, 0.44,
         "Their modes grow in a window of SGD instead of being damped."),
        ("dissipative dynamics", "largest eigenvalue over the stability bound", 0.62, "", "≤", 1.0,
         0.61, 0.63, "λ_max = 12.4, and a step amplifies above 20 = 2/η."),
        ("dissipative dynamics", "best window t*", math.inf, "steps", "≥", 100.0, None, None,
         "The error proxy P(t) never rises."),
        ("small learning rate", "window error at order 1", 0.0311234, "", "≤", 0.1, None, None,
         "After 100 steps, ‖u_N − u‖/‖u‖ against true SGD from the same anchor."),
        ("small learning rate", "certificate of the error bound", math.nan, "", "≤", 1.0, None,
         None, "ReLU has no bounded third derivative, so the theorem does not apply."),
        ("sparse parameters", "density", 0.1, "", "≤", 0.2, None, None,
         "1,117,396 of 11,173,962 weights stay."),
        ("sparse model", "non-zeros a row of the Hessian", 8.31e5, "entries", "≤", 404.0, 8.1e5,
         8.5e5, "Mean of 24 random rows of length 1,117,396, beside (log₂ n)²."),
        ("well-conditioned system", "growth exponent of κ in T", 0.97, "", "≤", 1.2, 0.95, 0.99,
         "κ grows with T, as for almost dissipative dynamics: cost grows as T²."),
        ("efficient upload", "gates of one upload without QRAM", 2.2e7, "gates", "≤", 3.1e14, None,
         None, "Upper bound for 1,117,396 weights."),
        ("efficient download", "copies to read the displacement", 3.9e7, "copies", "≤", 1.6e4, None,
         None, "They grow with the weights read."),
        ("explicit gradients", "highest order with correct derivatives", 2.0, "order", "≥", 2.0,
         None, None, "Orders up to 2 run and agree with their references."),
    )  # fmt: skip
    return [
        Finding(what, quantity, value, unit, relation, limit,
                judged(value, relation, limit, low, high), sentence, low, high)
        for what, quantity, value, unit, relation, limit, low, high, sentence in given
    ]  # fmt: skip


def _pruning() -> Pruning:
    layers = []
    for i in range(14):
        weights = 9 * 2 ** (i // 2 + 7)
        active = max(1, round(weights * 0.6 * 0.85**i))
        accuracy = 0.912 - 0.3 * math.exp(-i / 2) + 0.01 * math.sin(i)
        name = f"layer{i // 4 + 1}.{i % 4}.conv{i % 2 + 1}.weight"
        layers.append(LayerPruning(name, weights, active, 0.02 * i, 0.4 + 1 / (i + 1), accuracy))
    return Pruning(11_173_962, 11_164_352, 1_117_396, 0.31, 0.912, 1.24, 0.641, layers)


def _truncation() -> Truncation:
    times = range(1, 101)
    orders = [
        OrderError(
            n, [8e-3**n * (t / 20) ** n + 2e-4 * (t / 100) ** 0.5 for t in times], 0.412 + 0.01**n
        )
        for n in (1, 2, 3)
    ]
    floor = [2e-4 * (t / 100) ** 0.5 for t in times]
    grams = [[[1.0, 0.1], [0.1, 0.2]]] * 101
    return Truncation(
        100, orders, floor, ["relu", "max_pool2d"], [], 0.497, 0.4101, grams, 0.02, 0.3, 0, 3e-6
    )


def _rows() -> RowSparsity:
    nonzeros = [831_000 + 1500 * ((7 * i) % 24) for i in range(24)]
    effective = [2_000 + 900 * ((5 * i) % 24) for i in range(24)]
    return RowSparsity(1_117_396, 24, nonzeros, effective, 1e-7, 3.2, [40] * 24)


def _conditioning() -> Conditioning:
    steps = [1, 2, 5, 10, 20, 50, 100, 200]
    smallest = [1 / (1 + 0.9 * t) for t in steps]
    largest = [2 - 0.5 / t for t in steps]
    kappa = [a / b for a, b in zip(largest, smallest, strict=True)]
    return Conditioning(
        steps, largest, smallest, kappa, [1.3 * k for k in kappa], 2, 0.97, 0.012, "T²",
        [2.1] * 8, [2.5 * (t + 1) for t in steps],
    )  # fmt: skip


def _transfer() -> Transfer:
    trials = []
    for precision in (0.3, 0.1, 0.03, 0.01):
        copies = round(0.35 * 1_117_396 / precision**2)
        errors = [precision * (1 + 0.02 * i) for i in range(3)]
        losses = [0.41 + 0.6 * e**2 * (1 + 0.3 * i) for i, e in enumerate(errors)]
        trials.append(ReadoutTrial(precision, copies, 1400 * copies, errors, losses))
    return Transfer(1_117_396, 21, 22_000_000, 45_000_000, 1_117_395, 21, 0.33, 0.21, 1.7, 0.497,
                    0.4101, trials)  # fmt: skip
