"""A small report with every part, infinities and unknown numbers among them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from torch_qsgd.hessian import MonitorHistory, Spectrum
from torch_qsgd.hessian.dynamics import Dynamics
from torch_qsgd.hessian.history import SpectrumRecord, WindowSpan
from torch_qsgd.records import WindowRecord
from torch_qsgd.report.content import Report
from torch_qsgd.report.findings import Finding
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
from torch_qsgd.resources import Entry, Ledger, ScalingCurve
from torch_qsgd.training import Evaluation, History, WindowReport


def findings() -> list[Finding]:
    return [
        Finding("sparse parameters", "density", 0.1, "", "≤", 0.2, "holds", "Few weights stay."),
        Finding(
            "dissipative dynamics", "growth", 3.25, "×", "≤", 2.0, "breaks", "It grows.", 3.1, 4.5
        ),
        Finding(
            "dissipative dynamics", "best window", math.inf, "steps", "≥", 20.0, "holds", "No end."
        ),
        Finding(
            "efficient upload", "gates", math.nan, "gates", "≤", math.nan, "cannot tell", "Unknown."
        ),
    ]


def run(name: str = "QuantumSGD", accuracy: float = 0.5) -> History:
    before, after = (Evaluation(s, 1 / (s + 1.5), accuracy) for s in (0, 7))
    record = WindowRecord(7, (1.25, 0.125), 0.75, 1234, "best window", 0.5, None, copies=96)
    return History(
        name,
        [before, Evaluation(3, 0.625, accuracy, predicted=True), after],
        [WindowReport(0, 7, before, after, 0.0375, record)],
        1234,
        12340,
    )


def spectrum() -> Spectrum:
    return Spectrum(
        nodes=np.array([-0.375, 0.5, 4.25]),
        weights=np.array([0.25, 0.5, 0.25]),
        exact=np.array([True, False, True]),
        dimension=1234,
        lambda_min=-0.375,
        lambda_min_bound=1e-9,
        lambda_max=4.25,
        lambda_max_bound=math.inf,
        trace=1.0,
        trace_error=math.inf,
        resolution=1e-7,
        products=6,
        steps=3,
        probes=2,
        seconds=0.5,
        kind="hessian",
    )


def monitor() -> MonitorHistory:
    found, dynamics = spectrum(), Dynamics(0.125)
    seen = SpectrumRecord(
        0,
        0,
        "upload",
        found,
        dynamics,
        20,
        dynamics.best_window(found),
        dynamics.error_proxy(found, 20).total,
        found.negative_mass,
        products=6,
    )
    failed = SpectrumRecord(9, 0, "upload", None, dynamics, 20, error="it | diverged")
    spans = [WindowSpan(0, 7, "best window", triggered=True), WindowSpan(9)]
    return MonitorHistory([seen, failed], spans, 0.5, 2.0)


def report(**parts: Any) -> Report:
    """With every part; keywords replace some."""
    given: dict[str, Any] = {
        "title": "a model | on data",
        "kind": "audit",
        "facts": {"parameters": 12340, "device": "CPU", "operations": 1.5e12, "least": -math.inf},
        "settings": {"lr": 0.125, "quick": True, "tolerance": math.inf, "layers": ["a", "b"]},
        "notes": ["Losses are of *few* batches.", "One\nmore."],
        "complete": True,
        "seconds": 12.5,
        "findings": findings(),
        "pruning": Pruning(
            12340,
            12000,
            1234,
            2.125,
            math.nan,
            2.375,
            math.nan,
            [LayerPruning("0.w|eight", 12000, 1200, 0.5625, 2.25, math.nan)],
        ),
        "truncation": Truncation(
            3,
            [OrderError(1, [0.0, 0.03125, 0.0625], 1.875), OrderError(2, [0.0, 0.0, 0.0078125], 2)],
            None,
            ["relu"],
            ["max_pool2d"],
            2.375,
            1.8125,
            [[[0.0]], [[1.0]], [[4.0]], [[9.0]]],
            0.46875,
            math.nan,
            0,
            0.00390625,
        ),
        "rows": RowSparsity(1234, 2, [1000, 1200], [30, 90], 1e-6, 5.75, [3, 7]),
        "conditioning": Conditioning(
            [1, 10, 100], [2.0] * 3, [0.5, 0.25, 0.125], [4.0, 8.0, 16.0], [4.5, 9.5, math.inf], 2,
            0.3125, 0.0625, "T²", [2.25] * 3, [5.25, 21.5, 201.25],
        ),
        "transfer": Transfer(
            1234, 14, 2500, 10**9, 2468, 1235, 0.0234375, 0.40625, 1.0625, 2.375, 1.9375,
            [ReadoutTrial(0.1, 98304, 10**7, [0.09375, 0.109375], [1.96875, 1.984375])],
        ),
        "modes": [
            DerivativeMode("jets", 2, True, 3.5e-13, ""),
            DerivativeMode("forward over reverse", 1, False, math.nan, "not implemented"),
        ],
        "runs": [run(), run("dense SGD", math.nan)],
        "monitor": monitor(),
        "ledger": Ledger(
            {"steps": 20, "error": 0.001},
            [
                Entry("q", "qubits", "data qubits", 17.0, "qubits", "⌈log₂ n⌉", "DESIGN", "proven"),
                Entry("t", "T gates", "T gates", 3.5e23, "", "a|b·c", "we", "our estimate"),
                Entry("p", "physical", "wall time", math.nan, "s", "", "", "our estimate"),
            ],
            "t",
            "T gates dominate.",
        ),
        "scaling": [
            ScalingCurve("steps", [10.0, 1e3], [2e9, 2e13], [1e8, math.inf], [1e6, 1e8], ["t", "q"])
        ],
    }  # fmt: skip
    return Report(**{**given, **parts})
