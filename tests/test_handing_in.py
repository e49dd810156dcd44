"""The three ways to hand derivatives in: they agree, accumulate, and refuse what is wrong."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.cases import classifier, image_batches, randn, run_recorded, seeded, vector
from torch_qsgd import GraphError, QuantumSGD
from torch_qsgd.derivatives import checkpoint_contexts

CYCLE = {"lr": 0.05, "momentum": 0.5, "density": 0.6, "window": 4, "classical_steps": 2}


def by_recording(opt: QuantumSGD, model: nn.Module, x: Tensor, y: Tensor) -> None:
    run_recorded(opt, model, [(x, y)], F.cross_entropy)


def by_closure(opt: QuantumSGD, model: nn.Module, x: Tensor, y: Tensor) -> None:
    def closure() -> Tensor:
        opt.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    assert float(opt.step(closure).detach()) > 0


def by_batch(opt: QuantumSGD, model: nn.Module, x: Tensor, y: Tensor) -> None:
    assert opt.step(x, y).grad_fn is None


def by_bare_graph(opt: QuantumSGD, model: nn.Module, x: Tensor, y: Tensor) -> None:
    if opt.phase == "upload":
        opt.upload()
    opt.zero_grad()
    F.cross_entropy(model(x), y).backward(create_graph=opt.phase == "window")
    opt.step()


def train(way: Any, model: nn.Module, order: int, steps: int = 10) -> tuple[Tensor, QuantumSGD]:
    opt = QuantumSGD(model.parameters(), order=order, model=model, loss_fn=F.cross_entropy, **CYCLE)
    for x, y in image_batches(steps):
        way(opt, model, x, y)
    return vector([*model.parameters(), *(b.double() for b in model.buffers())]), opt


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("norm", ["batch", "layer", "instance", "group"])
def test_the_ways_agree_to_rounding(norm: str, order: int) -> None:
    model = classifier(norm)
    reference, opt = train(by_recording, copy.deepcopy(model), order)
    assert len(opt.windows) == 2
    for way in (by_closure, by_batch):
        found, other = train(way, copy.deepcopy(model), order)
        torch.testing.assert_close(found, reference, rtol=1e-10, atol=1e-12)
        assert other.windows[0].predicted_loss == pytest.approx(opt.windows[0].predicted_loss)


@pytest.mark.filterwarnings("ignore:Using backward")
@pytest.mark.parametrize(("norm", "order"), [("group", 3), ("batch", 1), ("layer", 1)])
def test_a_bare_graph_agrees_where_it_is_taken(norm: str, order: int) -> None:
    model = classifier(norm)
    reference, _ = train(by_recording, copy.deepcopy(model), order)
    found, _ = train(by_bare_graph, model, order)
    torch.testing.assert_close(found, reference, rtol=1e-9, atol=1e-11)


@pytest.mark.filterwarnings("ignore:Using backward")
@pytest.mark.parametrize("norm", ["batch", "layer", "instance"])
def test_a_bare_graph_is_refused_where_it_would_be_silently_wrong(norm: str) -> None:
    model = classifier(norm)
    with pytest.raises(GraphError, match=r"Native.*with opt\.recording\(\)"):
        train(by_bare_graph, model, order=2)
    assert all(p.grad is None or p.grad.grad_fn is None for p in model.parameters())


def test_a_plain_loop_is_told_which_line_to_change() -> None:
    model = classifier()
    before = vector(model.parameters())
    opt = QuantumSGD(model.parameters(), **CYCLE)
    (x, y), *_ = image_batches(1)
    F.cross_entropy(model(x), y).backward()
    with pytest.raises(
        GraphError, match=r"recording\(\).*step\(closure\).*step\(inputs, targets\)"
    ):
        opt.step()
    assert torch.equal(vector(model.parameters()), before)
    with pytest.raises(TypeError, match="model=model"):
        opt.step(x, y)


@pytest.mark.filterwarnings("ignore:Using backward")
def test_a_graph_taken_before_the_pruning_it_needs_is_refused() -> None:
    model = classifier("group")
    opt = QuantumSGD(model.parameters(), **CYCLE)
    (x, y), *_ = image_batches(1)
    F.cross_entropy(model(x), y).backward(create_graph=True)
    with pytest.raises(GraphError, match=r"opt\.upload\(\)"):
        opt.step()
    assert opt.phase == "upload"


def test_backward_by_another_name_is_told_so() -> None:
    model = classifier()
    opt = QuantumSGD(model.parameters(), **CYCLE)
    batches = image_batches(2)
    run_recorded(opt, model, batches[:1], F.cross_entropy)
    with pytest.raises(GraphError, match=r"loss\.backward\(\)"), opt.recording():
        torch.autograd.backward(F.cross_entropy(model(batches[1][0]), batches[1][1]))


def test_a_step_inside_the_recording_is_told_to_leave_it() -> None:
    model = classifier()
    opt = QuantumSGD(model.parameters(), **CYCLE)
    with pytest.raises(RuntimeError, match="leave the block"), opt.recording():
        opt.step()


@pytest.mark.parametrize("blocks", [1, 2])
def test_gradients_accumulate_with_their_derivatives(blocks: int) -> None:
    whole, parts = classifier("group"), classifier("group")
    a = QuantumSGD(whole.parameters(), order=3, **CYCLE)
    b = QuantumSGD(parts.parameters(), order=3, **CYCLE)
    for x, y in image_batches(4):
        run_recorded(a, whole, [(x, y)], F.cross_entropy)
        b.zero_grad()
        halves = list(zip(x.chunk(2), y.chunk(2), strict=True))
        if blocks == 1:
            with b.recording():
                for half, labels in halves:
                    (F.cross_entropy(parts(half), labels) / 2).backward()
        else:
            for half, labels in halves:
                with b.recording():
                    (F.cross_entropy(parts(half), labels) / 2).backward()
        b.step()
    torch.testing.assert_close(
        vector(parts.parameters()), vector(whole.parameters()), rtol=1e-10, atol=1e-12
    )
    assert a.windows[0].predicted_loss == pytest.approx(b.windows[0].predicted_loss)


def test_a_record_whose_gradients_were_cleared_is_forgotten() -> None:
    model, other = classifier("group"), classifier("group")
    a = QuantumSGD(model.parameters(), **CYCLE)
    b = QuantumSGD(other.parameters(), **CYCLE)
    batches = image_batches(4)
    for x, y in batches:
        a.zero_grad()
        with a.recording():  # a pass that is thrown away
            F.cross_entropy(model(x * 2), y).backward()
        run_recorded(a, model, [(x, y)], F.cross_entropy)
        run_recorded(b, other, [(x, y)], F.cross_entropy)
    torch.testing.assert_close(
        vector(model.parameters()), vector(other.parameters()), rtol=1e-12, atol=1e-12
    )


def test_clipping_by_norm_scales_the_derivatives_too() -> None:
    clipped, scaled = classifier("group"), classifier("group")
    a = QuantumSGD(clipped.parameters(), order=3, **CYCLE)
    b = QuantumSGD(scaled.parameters(), order=3, **CYCLE)
    for x, y in image_batches(4):
        a.zero_grad()
        with a.recording():
            F.cross_entropy(clipped(x), y).backward()
        length = nn.utils.clip_grad_norm_(clipped.parameters(), 0.05)
        a.step()
        factor = min(1.0, 0.05 / (float(length) + 1e-6))
        assert factor < 1
        b.zero_grad()
        with b.recording():
            (factor * F.cross_entropy(scaled(x), y)).backward()
        b.step()
    torch.testing.assert_close(
        vector(clipped.parameters()), vector(scaled.parameters()), rtol=1e-9, atol=1e-11
    )


@pytest.mark.parametrize("by_closure", [True, False])
def test_clipping_by_norm_inside_the_block_is_clipping_after_it(by_closure: bool) -> None:
    inside, after = classifier("group"), classifier("group")
    a = QuantumSGD(inside.parameters(), order=3, **CYCLE)
    b = QuantumSGD(after.parameters(), order=3, **CYCLE)
    batches = image_batches(4)
    stream = iter(batches)

    def closure() -> Tensor:
        x, y = next(stream)
        a.zero_grad()
        loss = F.cross_entropy(inside(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(inside.parameters(), 0.05)
        return loss

    for x, y in batches:
        if by_closure:
            a.step(closure)
        else:
            with a.recording():
                closure()
            a.step()
        b.zero_grad()
        with b.recording():
            F.cross_entropy(after(x), y).backward()
        nn.utils.clip_grad_norm_(after.parameters(), 0.05)
        b.step()
    torch.testing.assert_close(
        vector(inside.parameters()), vector(after.parameters()), rtol=1e-10, atol=1e-12
    )
    assert a.windows[0].predicted_loss == pytest.approx(b.windows[0].predicted_loss)


@pytest.mark.filterwarnings("ignore:Using backward")
def test_a_bare_graph_whose_gradient_was_clipped_is_refused() -> None:
    model = classifier("group")
    opt = QuantumSGD(model.parameters(), **CYCLE)
    batches = image_batches(2)
    by_bare_graph(opt, model, *batches[0])
    opt.zero_grad()
    F.cross_entropy(model(batches[1][0]), batches[1][1]).backward(create_graph=True)
    nn.utils.clip_grad_norm_(model.parameters(), 0.05)
    with pytest.raises(GraphError, match="clip after it"):
        opt.step()


def test_clearing_inside_the_block_forgets_what_was_recorded_before() -> None:
    model, other = classifier("group"), classifier("group")
    a = QuantumSGD(model.parameters(), **CYCLE)
    b = QuantumSGD(other.parameters(), **CYCLE)
    for x, y in image_batches(4):
        a.zero_grad()
        with a.recording():  # not stepped
            F.cross_entropy(model(x * 2), y).backward()
        by_closure(a, model, x, y)
        by_closure(b, other, x, y)
    assert torch.equal(vector(model.parameters()), vector(other.parameters()))


def test_gradients_from_outside_a_recording_are_not_added_to() -> None:
    model = classifier("group")
    opt = QuantumSGD(model.parameters(), **CYCLE)
    batches = image_batches(2)
    by_recording(opt, model, *batches[0])
    with pytest.raises(GraphError, match=r"zero_grad\(\)"), opt.recording():
        F.cross_entropy(model(batches[1][0]), batches[1][1]).backward()


def test_changes_through_data_are_seen() -> None:
    model = classifier("group")
    opt = QuantumSGD(model.parameters(), **CYCLE)
    batches = image_batches(2)
    by_recording(opt, model, *batches[0])
    opt.zero_grad()
    with opt.recording():
        F.cross_entropy(model(batches[1][0]), batches[1][1]).backward()
    model[0].weight.grad.data.mul_(0.5)
    with pytest.raises(GraphError, match="common factor"):
        opt.step()


def test_parameters_that_enter_as_a_sum_share_their_derivatives_safely() -> None:
    """autograd returns one tensor for both: nothing may be done to it twice."""
    errors = []
    for order in (1, 2, 3):
        a, b = (nn.Parameter(0.3 * randn(3, 2, seed=k)) for k in (1, 2))
        c, d = (nn.Parameter(p.detach().clone()) for p in (a, b))
        opt = QuantumSGD(
            [a, b], lr=0.02, momentum=0.5, nesterov=True, weight_decay=0.1, density=1, window=6,
            order=order,
        )  # fmt: skip
        sgd = torch.optim.SGD([c, d], lr=0.02, momentum=0.5, nesterov=True, weight_decay=0.1)
        start = vector([a, b])
        for t in range(6):
            x = randn(8, 3, seed=10 + t)
            opt.zero_grad()
            with opt.recording():
                (torch.tanh(x @ (a + b)) ** 3).mean().backward()
            opt.step()
            sgd.zero_grad()
            (torch.tanh(x @ (c + d)) ** 3).mean().backward()
            sgd.step()
        moved = vector([c, d]) - start
        errors.append(float((vector([a, b]) - vector([c, d])).norm() / moved.norm()))
    assert errors[2] < 0.2 * errors[1] < 0.04 * errors[0], errors


def test_a_loss_linear_in_the_parameters_needs_no_graph() -> None:
    p = nn.Parameter(randn(4, seed=1))
    start, slope = p.detach().clone(), randn(4, seed=2)
    opt = QuantumSGD([p], lr=0.1, density=1, window=3)
    for _ in range(3):
        opt.zero_grad()
        with opt.recording():
            (p * slope).sum().backward()
        opt.step()
    torch.testing.assert_close(p.detach(), start - 0.3 * slope)


@pytest.mark.filterwarnings("ignore:Using backward")
def test_a_bare_layer_norm_that_enters_the_loss_linearly_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)).double()
    opt = QuantumSGD(model.parameters(), lr=0.1, density=1, window=3)
    weights = randn(5, 4, seed=1)

    def step() -> None:
        opt.zero_grad()
        (model(randn(5, 3, seed=2)) * weights).sum().backward(create_graph=True)
        opt.step()

    step()
    with pytest.raises(GraphError, match="LayerNorm"):
        step()


def test_a_gradient_scaler_scales_nothing_in_the_end() -> None:
    scaled, plain = classifier("group").float(), classifier("group").float()
    a = QuantumSGD(scaled.parameters(), order=3, **CYCLE)
    b = QuantumSGD(plain.parameters(), order=3, **CYCLE)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for x, y in image_batches(4):
        a.zero_grad()
        with a.recording():
            scaler.scale(F.cross_entropy(scaled(x.float()), y)).backward()
        scaler.step(a)
        scaler.update()
        run_recorded(b, plain, [(x.float(), y)], F.cross_entropy)
    assert a.windows[0].steps == 4
    torch.testing.assert_close(vector(scaled.parameters()), vector(plain.parameters()))


def test_clipping_by_value_is_refused() -> None:
    model = classifier("group")
    opt = QuantumSGD(model.parameters(), **CYCLE)
    batches = image_batches(2)
    run_recorded(opt, model, batches[:1], F.cross_entropy)
    opt.zero_grad()
    with opt.recording():
        F.cross_entropy(model(batches[1][0]), batches[1][1]).backward()
    nn.utils.clip_grad_value_(model.parameters(), 1e-3)
    with pytest.raises(GraphError, match="clip by norm"):
        opt.step()


def test_a_closure_is_called_once_and_its_loss_returned() -> None:
    model = classifier()
    opt = QuantumSGD(model.parameters(), **CYCLE)
    batches = iter(image_batches(7))
    losses: list[Tensor] = []

    def closure() -> Tensor:
        assert torch.is_grad_enabled()
        x, y = next(batches)
        opt.zero_grad()
        losses.append(F.cross_entropy(model(x), y))
        losses[-1].backward(retain_graph=False)
        return losses[-1]

    for _ in range(7):
        assert opt.step(closure) is losses[-1]
    assert len(losses) == 7


def test_no_graph_outlives_a_step() -> None:
    """A gradient with a graph keeps its parameter, hence the model, alive for ever."""
    model = classifier()
    opt = QuantumSGD(model.parameters(), **CYCLE)
    run_recorded(opt, model, image_batches(3), F.cross_entropy)
    assert all(p.grad.grad_fn is None for p in model.parameters())
    alive = weakref.ref(model[0].weight)
    del model, opt
    gc.collect()
    assert alive() is None


def test_a_failing_forward_pass_leaves_no_graph_and_no_record() -> None:
    model = classifier()
    opt = QuantumSGD(model.parameters(), **CYCLE)
    batches = image_batches(3)
    run_recorded(opt, model, batches[:2], F.cross_entropy)
    opt.zero_grad()

    def failing(x: Tensor, y: Tensor) -> None:
        with opt.recording():
            F.cross_entropy(model(x), y).backward()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing(*batches[2])
    assert all(p.grad.grad_fn is None for p in model.parameters())
    with pytest.raises(GraphError):
        opt.step()
    run_recorded(opt, model, batches[2:], F.cross_entropy)
    assert opt.window_step == 3


class Checkpointed(nn.Module):
    def __init__(self, inner: nn.Module, **options: Any) -> None:
        super().__init__()
        self.inner, self.options = inner, options

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, **self.options)


def test_checkpointing_without_reentry_agrees_with_none() -> None:
    inner = classifier("layer")
    reference, _ = train(by_closure, copy.deepcopy(inner), order=2)
    options = {"use_reentrant": False, "context_fn": checkpoint_contexts}
    found, _ = train(by_closure, Checkpointed(inner, **options), order=2)
    torch.testing.assert_close(found, reference, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "says"),
    [({"use_reentrant": False}, "context_fn"), ({"use_reentrant": True}, "use_reentrant=False")],
)
def test_other_checkpointing_is_told_what_to_pass(options: Any, says: str) -> None:
    class First(nn.Module):
        """Reentrant checkpoints need an input that has a gradient."""

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))
            self.rest = Checkpointed(classifier("layer"), **options)

        def forward(self, x: Tensor) -> Tensor:
            return self.rest(x * self.scale)

    with pytest.raises(GraphError, match=says):
        train(by_closure, First(), order=2)


def test_a_compiled_model_is_refused_by_name() -> None:
    model = classifier("group")
    compiled = torch.compile(model, backend="aot_eager")
    opt = QuantumSGD(model.parameters(), **CYCLE)
    batches = image_batches(2)
    try:
        run_recorded(opt, compiled, batches[:1], F.cross_entropy)
    except ImportError as error:
        pytest.skip(f"torch.compile does not run here: {error}")
    with pytest.raises(GraphError, match=r"torch\.compile"):
        run_recorded(opt, compiled, batches[1:], F.cross_entropy)


class Translator(nn.Module):
    """Embedding, attention, layer norm: a transformer encoder over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 8)
        layer = nn.TransformerEncoderLayer(
            8, 2, 16, dropout=0.0, activation="gelu", batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(8, 7)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encoder(self.embedding(tokens))).mean(1)


@pytest.mark.parametrize("way", [by_recording, by_closure, by_batch])
def test_a_transformer_trains_and_order_two_beats_order_one(way: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.randint(7, (8, 5), generator=generator), torch.randint(7, (8,), generator=generator))
        for _ in range(8)
    ]
    errors = []
    for order in (1, 2):
        model = seeded(Translator).double()
        plain = copy.deepcopy(model)
        anchor = vector(model.parameters())
        opt = QuantumSGD(
            model.parameters(),
            lr=0.05,
            density=1,
            window=8,
            order=order,
            model=model,
            loss_fn=F.cross_entropy,
        )
        sgd = torch.optim.SGD(plain.parameters(), lr=0.05)
        for x, y in batches:
            way(opt, model, x, y)
            sgd.zero_grad()
            F.cross_entropy(plain(x), y).backward()
            sgd.step()
        target = vector(plain.parameters())
        gap = vector(model.parameters()) - target
        errors.append(float(gap.norm() / (target - anchor).norm()))
    assert errors[1] < 0.3 * errors[0] < 0.3 * 0.2, errors


def test_inputs_may_be_a_tuple_or_a_mapping() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(randn(3, seed=1))

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return torch.tanh(a * self.weight) * b

    a, b, y = (randn(4, 3, seed=k) for k in (2, 3, 4))
    weights = []
    for inputs in ((a, b), [a, b], {"a": a, "b": b}):
        model = Pair()
        opt = QuantumSGD(
            model.parameters(),
            lr=0.1,
            density=1,
            window=3,
            classical_steps=1,
            model=model,
            loss_fn=F.mse_loss,
        )
        for _ in range(4):
            opt.step(inputs, y)
        weights.append(model.weight.detach().clone())
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])


def displacement_by_closures(autocast: bool) -> Tensor:
    model = classifier("group").float()
    anchor = vector(model.parameters())
    opt = QuantumSGD(model.parameters(), **{**CYCLE, "density": 1})
    batches = iter(image_batches(4))

    def closure() -> Tensor:
        x, y = next(batches)
        opt.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = F.cross_entropy(model(x.float()), y)
        loss.backward()
        return loss

    for _ in range(4):
        opt.step(closure)
    return vector(model.parameters()) - anchor


def test_bf16_autocast_closures_follow_full_precision() -> None:
    exact = displacement_by_closures(autocast=False)
    assert (displacement_by_closures(autocast=True) - exact).norm() < 0.1 * exact.norm()
