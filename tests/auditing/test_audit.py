"""Whole audits, of models whose verdicts are known."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from torch import nn

import torch_qsgd
from tests.auditing.models import rectified, summed_squares, theorem_case
from torch_qsgd.auditing import AuditReport, Thresholds
from torch_qsgd.report.content import Report
from torch_qsgd.report.findings import ASSUMPTIONS


@pytest.fixture(scope="module")
def theorem() -> AuditReport:
    model, batches = theorem_case()
    return torch_qsgd.audit(
        model, summed_squares, batches, lr=0.1, window=20, quick=True, rows=40, progress=False
    )


@pytest.fixture(scope="module")
def stiff() -> AuditReport:
    model, batches = rectified()
    return torch_qsgd.audit(
        model,
        nn.functional.cross_entropy,
        batches,
        lr=8.0,
        density=0.5,
        window=20,
        quick=True,
        progress=False,
    )


def test_theorems_own_case_holds_throughout(theorem: AuditReport) -> None:
    broken = [f for f in theorem.findings if f.verdict != "holds"]
    assert not broken, "\n".join(f"{f.quantity}: {f.value} {f.sentence}" for f in broken)
    assert list(theorem.verdicts) == list(ASSUMPTIONS)
    assert theorem.holds
    assert theorem.complete


def test_theorems_case_has_the_numbers_of_its_construction(theorem: AuditReport) -> None:
    assert theorem.pruning is not None
    assert theorem.rows is not None
    assert theorem.truncation is not None
    assert theorem.pruning.active == 40
    assert theorem.pruning.loss == theorem.pruning.loss_dense
    assert max(theorem.rows.nonzeros) <= 3
    assert theorem.truncation.orders[0].errors[-1] < 1e-12
    assert theorem.truncation.smooth_degree == 2
    assert theorem.truncation.floor == [0.0] * 20


def test_relu_at_a_large_rate_says_what_broke(stiff: AuditReport) -> None:
    verdicts = stiff.verdicts
    assert list(verdicts) == list(ASSUMPTIONS)
    assert verdicts["dissipative dynamics"] == "breaks"
    assert verdicts["small learning rate"] == "breaks"
    of = {finding.quantity: finding for finding in stiff.findings}
    assert of["largest eigenvalue over the stability bound"].verdict == "breaks"
    assert of["window error at order 2"].verdict == "breaks"
    assert not stiff.holds


def test_the_model_is_left_as_it_was() -> None:
    model, batches = rectified()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    torch_qsgd.audit(
        model, nn.functional.cross_entropy, batches, lr=0.01, window=3, quick=True, progress=False
    )
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(state, torch.get_rng_state())


def test_a_seed_repeats_every_number() -> None:
    model, batches = rectified()
    runs = [
        torch_qsgd.audit(
            model,
            nn.functional.cross_entropy,
            batches,
            lr=0.05,
            window=4,
            quick=True,
            progress=False,
            seed=3,
        )
        for _ in range(2)
    ]
    first, second = ([(f.quantity, f.value) for f in run.findings] for run in runs)
    assert repr(first) == repr(second)


def test_parts_come_one_by_one_and_say_what_is_missing() -> None:
    model, batches = rectified()
    seen: list[tuple[bool, int]] = []

    def on_part(report: AuditReport) -> None:
        known = [f for f in report.findings if not math.isnan(f.value)]
        seen.append((report.complete, len(known)))

    torch_qsgd.audit(
        model,
        nn.functional.cross_entropy,
        batches,
        lr=0.05,
        window=3,
        quick=True,
        progress=False,
        on_part=on_part,
    )
    assert [complete for complete, _ in seen] == [False] * (len(seen) - 1) + [True]
    counts = [count for _, count in seen]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


def test_an_operation_without_second_derivative_breaks_one_assumption_and_leaves_a_note() -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):  # type: ignore[no-untyped-def]
            ctx.save_for_backward(x)
            return x.tanh()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, grad):  # type: ignore[no-untyped-def]
            (x,) = ctx.saved_tensors
            return grad * (1 - x.tanh() ** 2)

    class Activation(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return Once.apply(x)

    model = nn.Sequential(nn.Linear(8, 6), Activation(), nn.Linear(6, 3)).double()
    _, batches = rectified()
    report = torch_qsgd.audit(
        model, nn.functional.cross_entropy, batches, lr=0.05, window=3, quick=True, progress=False
    )
    assert report.verdicts["explicit gradients"] == "breaks"
    assert report.verdicts["dissipative dynamics"] == "cannot tell"
    assert report.pruning is not None
    assert report.complete
    assert any("could not be measured" in note for note in report.notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr must be a number above 0"),
        ({"lr": 0.1, "density": 2.0}, "density"),
        ({"lr": 0.1, "window": 0}, "window must be an integer of at least 1"),
        ({"lr": 0.1, "pruning": "magnitud"}, "pruning must be one of"),
        ({"lr": 0.1, "readout_error": 1.5}, "readout_error"),
    ],
)
def test_refusals(options: dict[str, float], message: str) -> None:
    model, batches = rectified()
    with pytest.raises(ValueError, match=message):
        torch_qsgd.audit(model, nn.functional.cross_entropy, batches, progress=False, **options)


def test_one_batch_is_enough_and_the_report_says_so() -> None:
    model, batches = rectified()
    report = torch_qsgd.audit(
        model,
        nn.functional.cross_entropy,
        batches[0],
        lr=0.05,
        window=3,
        quick=True,
        progress=False,
    )
    assert report.complete
    assert any("no others" in note for note in report.notes)


def test_report_reads_back(theorem: AuditReport, stiff: AuditReport) -> None:
    for report in (theorem, stiff):
        text = json.dumps(report.to_json(), allow_nan=False)
        again = Report.from_json(json.loads(text))
        assert json.dumps(again.to_json(), allow_nan=False) == text
        assert again.verdicts == report.verdicts


def test_printing_shows_the_verdicts(theorem: AuditReport) -> None:
    text = str(theorem)
    for assumption in ASSUMPTIONS:
        assert f"{assumption}: holds" in text


def test_thresholds_decide() -> None:
    model, batches = theorem_case()
    report = torch_qsgd.audit(
        model,
        summed_squares,
        batches,
        lr=0.1,
        window=4,
        quick=True,
        thresholds=Thresholds(density=0.05),
        progress=False,
    )
    assert report.verdicts["sparse parameters"] == "breaks"


def test_momentum_on_a_convex_loss_breaks_no_dynamics() -> None:
    model, batches = theorem_case()
    report = torch_qsgd.audit(
        model,
        summed_squares,
        batches,
        lr=0.02,
        momentum=0.9,
        window=10,
        quick=True,
        progress=False,
    )
    assert "breaks" not in [f.verdict for f in report.of("dissipative dynamics")]
    assert "breaks" not in [f.verdict for f in report.of("small learning rate")]


def test_a_tiny_rate_in_single_precision_breaks_nothing_by_rounding() -> None:
    model, batches = rectified()
    single = [(x.float(), y) for x, y in batches]
    report = torch_qsgd.audit(
        model.float(),
        nn.functional.cross_entropy,
        single,
        lr=1e-6,
        window=5,
        quick=True,
        progress=False,
    )
    assert "breaks" not in [f.verdict for f in report.of("small learning rate")]


def test_few_rows_do_not_prove_a_hessian_sparse() -> None:
    model, batches = theorem_case()
    report = torch_qsgd.audit(
        model, summed_squares, batches, lr=0.1, window=2, quick=True, rows=6, progress=False
    )
    assert report.verdicts["sparse model"] == "cannot tell"


def test_a_network_that_pruning_cuts_is_not_called_sparse() -> None:
    model, batches = rectified()
    with torch.no_grad():
        model[4].weight.mul_(1e-6)
    report = torch_qsgd.audit(
        model,
        nn.functional.cross_entropy,
        batches,
        lr=0.05,
        density=0.1,
        window=3,
        quick=True,
        progress=False,
    )
    (empty,) = [f for f in report.findings if f.quantity == "tensors that pruning leaves empty"]
    assert empty.value >= 1
    assert report.verdicts["sparse parameters"] == "breaks"


@pytest.mark.parametrize(
    ("loss_fn", "message"),
    [
        (lambda outputs, y: (outputs**2).sum(1), "one number"),
        (lambda outputs, y: nn.functional.cross_entropy(outputs.detach(), y), "detach"),
        (lambda outputs, y: outputs.sum() * math.nan, "is nan"),
        (lambda outputs, y: outputs.logits, "inputs of shape .*AttributeError"),
    ],
)
def test_a_loss_that_cannot_be_audited_is_refused_first(loss_fn, message: str) -> None:  # type: ignore[no-untyped-def]
    model, batches = rectified()
    with pytest.raises(ValueError, match=message):
        torch_qsgd.audit(model, loss_fn, batches, lr=0.1, progress=False)


def test_a_part_that_raises_leaves_the_others() -> None:
    class Moody(nn.Sequential):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            Moody.calls += 1
            if Moody.calls > 60:
                raise KeyError("moody")
            return super().forward(x)

    layers, batches = rectified()
    report = torch_qsgd.audit(
        Moody(*layers),
        nn.functional.cross_entropy,
        batches,
        lr=0.05,
        window=30,
        quick=True,
        progress=False,
    )
    assert report.complete
    assert report.pruning is not None
    assert any("KeyError" in note for note in report.notes)
    assert set(report.verdicts) == set(ASSUMPTIONS)
