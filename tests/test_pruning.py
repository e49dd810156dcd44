"""Masks: how many weights stay, which ones, and what choosing them leaves behind: nothing."""

from __future__ import annotations

import copy
import itertools
import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from torch_qsgd import DivergenceError, QuantumSGD
from torch_qsgd.models import build_model
from torch_qsgd.pruning import METHODS, NEEDS_MODEL, Masks, PruningContext, choose_masks

WEIGHTS_ONLY = [name for name in METHODS if name not in NEEDS_MODEL]

shapes_of_layers = st.lists(
    st.lists(st.integers(1, 6), min_size=1, max_size=4), min_size=1, max_size=5
)
densities = st.floats(0, 1, exclude_min=True)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weights(shapes: list[Any], seed: int, tied: bool = False) -> dict[str, Tensor]:
    """Normal weights; or small integers, so that most magnitudes are shared by many."""
    draw = generator(seed)
    return {
        f"layer{i}": (
            torch.randint(-2, 3, tuple(shape), generator=draw).double()
            if tied
            else torch.randn(*shape, generator=draw, dtype=torch.float64)
        )
        for i, shape in enumerate(shapes)
    }


def chosen(
    method: str,
    parameters: Mapping[str, Tensor],
    density: float,
    *,
    seed: int = 0,
    previous: Mapping[str, Tensor] | None = None,
    **context: Any,
) -> Masks:
    """The masks; an emptied layer is no matter here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return choose_masks(
            method, parameters, density, PruningContext(generator(seed), previous or {}, **context)
        )


def active(masks: Masks) -> int:
    return sum(int(mask.sum()) for mask in masks.values())


def flat(tensors: Mapping[str, Tensor]) -> np.ndarray:
    return np.concatenate([t.detach().flatten().numpy() for t in tensors.values()])


def first_largest(scores: np.ndarray, count: int) -> np.ndarray:
    """Mask of the largest scores by a stable sort: among equals, the first."""
    mask = np.zeros(scores.size, dtype=bool)
    mask[np.argsort(-scores, kind="stable")[:count]] = True
    return mask


class Net(nn.Module):
    """A convolutional network with batch normalisation, in float64."""

    def __init__(self, seed: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Conv2d(4, 3, 3, stride=2, bias=False),
            nn.BatchNorm2d(3),
            nn.SiLU(),
        )
        self.head = nn.Linear(3 * 2 * 2, 3)
        draw = generator(seed)
        self.double()
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=draw, dtype=p.dtype) * 0.5 + 0.1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images).flatten(1))


def images(seed: int = 1, count: int = 6) -> tuple[Tensor, Tensor]:
    draw = generator(seed)
    labels = torch.randint(0, 3, (count,), generator=draw)
    return torch.randn(count, 2, 6, 6, generator=draw, dtype=torch.float64), labels


def prunable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.dim() > 1}


def chosen_on(method: str, model: nn.Module, density: float, batch: Any = None) -> Masks:
    return chosen(
        method,
        prunable(model),
        density,
        model=model,
        loss_fn=F.cross_entropy,
        batch=images() if batch is None else batch,
    )


# ---- How many ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", WEIGHTS_ONLY)
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(shapes=shapes_of_layers, density=densities, seed=st.integers(0, 99), tied=st.booleans())
def test_exactly_the_rounded_number_of_weights_stays_active(
    method: str, shapes: list[list[int]], density: float, seed: int, tied: bool
):
    parameters = weights(shapes, seed, tied)
    masks = chosen(method, parameters, density, seed=seed)
    assert active(masks) == round(density * sum(p.numel() for p in parameters.values()))
    assert list(masks) == list(parameters)
    for name, mask in masks.items():
        assert mask.dtype == torch.bool
        assert mask.shape == parameters[name].shape


@pytest.mark.parametrize("density", [0.003, 0.02, 0.1, 1 / 3, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("method", METHODS)
def test_exactly_the_rounded_number_stays_active_in_a_convolutional_network(
    method: str, density: float
):
    model = Net()
    masks = chosen_on(method, model, density)
    assert active(masks) == round(density * sum(p.numel() for p in prunable(model).values()))
    assert {name: mask.shape for name, mask in masks.items()} == {
        name: p.shape for name, p in prunable(model).items()
    }


@pytest.mark.parametrize("method", WEIGHTS_ONLY)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_number_is_exact_in_every_floating_point_dtype(method: str, dtype: torch.dtype):
    # Half precision ties thousands of these magnitudes.
    parameters = {name: p.to(dtype) for name, p in weights([(64, 60), (30, 64)], 0).items()}
    assert active(chosen(method, parameters, 0.1)) == round(0.1 * (64 * 60 + 30 * 64))


# ---- Magnitude -----------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(shapes=shapes_of_layers, density=densities, seed=st.integers(0, 99), tied=st.booleans())
def test_magnitude_keeps_the_largest_of_all_and_among_equals_the_first(
    shapes: list[list[int]], density: float, seed: int, tied: bool
):
    parameters = weights(shapes, seed, tied)
    sizes = np.abs(flat(parameters))
    kept = flat(chosen("magnitude", parameters, density))
    count = round(density * sizes.size)
    np.testing.assert_array_equal(
        np.sort(sizes[kept])[::-1], np.sort(sizes)[::-1][:count], strict=True
    )
    np.testing.assert_array_equal(kept, first_largest(sizes, count), strict=True)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(shapes=shapes_of_layers, density=densities, seed=st.integers(0, 99), tied=st.booleans())
def test_layerwise_magnitude_keeps_the_largest_of_each_layer_at_one_density(
    shapes: list[list[int]], density: float, seed: int, tied: bool
):
    parameters = weights(shapes, seed, tied)
    for name, mask in chosen("magnitude-layerwise", parameters, density).items():
        assert abs(int(mask.sum()) - density * mask.numel()) < 1 + 1e-9
        sizes = np.abs(flat({name: parameters[name]}))
        np.testing.assert_array_equal(
            flat({name: mask}), first_largest(sizes, int(mask.sum())), strict=True
        )


# ---- ERK -----------------------------------------------------------------------------------------


def erk_densities(shapes: list[tuple[int, ...]], density: float) -> tuple[np.ndarray, set[int]]:
    """Density of each layer by the rule: the most crowded layer is made whole, one at a time."""
    sizes = np.array([math.prod(shape) for shape in shapes], dtype=float)
    raw = np.array([sum(shape) for shape in shapes]) / sizes
    whole: set[int] = set()
    while len(whole) < len(shapes):
        rest = [i for i in range(len(shapes)) if i not in whole]
        budget = density * sizes.sum() - sizes[list(whole)].sum()
        factor = budget / (raw[rest] * sizes[rest]).sum()
        most = max(rest, key=lambda i: raw[i])
        if factor * raw[most] <= 1:
            break
        whole.add(most)
    return np.array([1.0 if i in whole else factor * raw[i] for i in range(len(raw))]), whole


NETWORK = [(16, 3, 3, 3), (16, 16, 3, 3), (32, 16, 1, 1), (32, 32, 3, 3), (64, 32, 3, 3), (10, 64)]


@pytest.mark.parametrize(
    ("density", "whole"),
    [(0.02, 0), (0.05, 0), (0.1, 1), (0.15, 2), (0.25, 3), (0.5, 4), (0.9, 5), (1.0, 6)],
)
def test_erk_gives_each_layer_its_density_by_the_rule_and_keeps_its_largest(
    density: float, whole: int
):
    parameters = weights(NETWORK, seed=4)
    wanted, crowded = erk_densities(NETWORK, density)
    # At density 1 the last layer fills up exactly, with or without being called crowded.
    assert len(crowded) == whole or density == 1
    masks = chosen("erk", parameters, density)
    for i, (name, mask) in enumerate(masks.items()):
        assert abs(int(mask.sum()) - wanted[i] * mask.numel()) < 1 + 1e-9, name
        if i in crowded:
            assert mask.all(), name
        kept = first_largest(np.abs(flat({name: parameters[name]})), int(mask.sum()))
        np.testing.assert_array_equal(flat({name: mask}), kept, strict=True)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(shapes=shapes_of_layers, density=densities)
def test_erk_follows_the_rule_for_any_shapes(shapes: list[list[int]], density: float):
    wanted, _ = erk_densities([tuple(shape) for shape in shapes], density)
    masks = chosen("erk", weights(shapes, 0), density)
    for share, mask in zip(wanted, masks.values(), strict=True):
        assert abs(int(mask.sum()) - share * mask.numel()) < 1 + 1e-6


# ---- Random --------------------------------------------------------------------------------------


def test_random_keeps_its_mask_when_given_the_previous_one():
    parameters = weights([(20, 30), (40, 5, 3)], 0)
    first = chosen("random", parameters, 0.2, seed=1)
    second = chosen("random", parameters, 0.2, seed=2, previous=first)
    fresh = chosen("random", parameters, 0.2, seed=2)
    for name, mask in first.items():
        assert torch.equal(second[name], mask)
        assert not torch.equal(fresh[name], mask)


@pytest.mark.parametrize("density", [0.05, 0.1, 0.3, 0.6])
def test_random_takes_from_the_previous_mask_before_it_takes_others(density: float):
    parameters = weights([(20, 30), (40, 5, 3)], 0)
    first = flat(chosen("random", parameters, 0.2, seed=1))
    second = flat(
        chosen(
            "random",
            parameters,
            density,
            seed=2,
            previous=chosen("random", parameters, 0.2, seed=1),
        )
    )
    smaller, larger = (second, first) if density < 0.2 else (first, second)
    assert not (smaller & ~larger).any()
    assert larger.sum() > smaller.sum()


def test_random_masks_follow_the_generator_and_not_the_weights():
    first = chosen("random", weights([(50, 40)], 0), 0.3, seed=5)
    same = chosen("random", weights([(50, 40)], 1), 0.3, seed=5)
    assert torch.equal(first["layer0"], same["layer0"])
    # 600 of 2000: the rows of a fair draw hold 12 of 40 each, give or take.
    rows = first["layer0"].sum(1)
    assert int(rows.min()) >= 2
    assert int(rows.max()) <= 24


def test_random_masks_of_the_optimizer_last_from_window_to_window():
    model = Net()
    optimizer = QuantumSGD(
        model.parameters(), density=0.3, window=2, classical_steps=2, pruning="random"
    )
    seen = []
    optimizer.on_upload(lambda opt: seen.append([m.clone() for m in opt.masks.values()]))
    batch, labels = images()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch), labels)
        loss.backward()
        return loss

    for _ in range(5):
        optimizer.step(closure)
    assert len(seen) == 2
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


# ---- SNIP ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", [0.05, 0.2, 0.6])
def test_snip_keeps_the_weights_of_the_largest_weight_times_slope(density: float):
    model, (batch, labels) = Net(), images()
    copied = copy.deepcopy(model).train()
    step, scores = 1e-6, []
    with torch.no_grad():
        for p in prunable(copied).values():
            for i in range(p.numel()):
                weight = float(p.view(-1)[i])
                sides = []
                for sign in (1, -1):
                    p.view(-1)[i] = weight + sign * step
                    sides.append(float(F.cross_entropy(copied(batch), labels)))
                p.view(-1)[i] = weight
                scores.append(abs(weight * (sides[0] - sides[1]) / (2 * step)))
    count = round(density * len(scores))
    ranked = sorted(scores, reverse=True)
    # The differences are good to 1e-8 or so; the scores around the cut are further apart.
    assert ranked[count - 1] - ranked[count] > 1e-6
    kept = flat(chosen_on("snip", model, density))
    np.testing.assert_array_equal(kept, first_largest(np.array(scores), count), strict=True)


def test_snip_scores_a_weight_that_the_loss_does_not_see_with_zero():
    model = Net()
    unused = nn.Parameter(torch.full((4, 4), 100.0, dtype=torch.float64))
    parameters = {"unused": unused, **prunable(model)}
    masks = chosen("snip", parameters, 0.5, model=model, loss_fn=F.cross_entropy, batch=images())
    assert not masks["unused"].any()


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 5).double(), nn.Linear(3, 5).double()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.left(a).tanh() + self.right(b)


@pytest.mark.parametrize("method", NEEDS_MODEL)
def test_inputs_may_be_a_tuple_a_list_or_a_mapping(method: str):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = TwoInputs()
    draw = generator(1)
    a = torch.randn(6, 4, generator=draw, dtype=torch.float64)
    b = torch.randn(6, 3, generator=draw, dtype=torch.float64)
    labels = torch.randint(0, 5, (6,), generator=draw)
    first, *others = [
        chosen_on(method, model, 0.4, (inputs, labels))
        for inputs in ((a, b), [a, b], {"b": b, "a": a})
    ]
    assert active(first) == round(0.4 * 35)
    assert all(torch.equal(first[n], other[n]) for other in others for n in first)


# ---- SynFlow -------------------------------------------------------------------------------------


def linear_stack(widths: list[int], seed: int = 0) -> nn.Sequential:
    model = nn.Sequential(
        *(nn.Linear(a, b, bias=False) for a, b in itertools.pairwise(widths))
    ).double()
    draw = generator(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=draw, dtype=p.dtype))
    return model


def linear_flow(layers: list[np.ndarray]) -> list[np.ndarray]:
    """θ ∂R/∂θ of each layer, R = 1ᵀ |W_L| … |W_1| 1, in closed form."""
    below = [np.ones(layers[0].shape[1])]
    for w in layers:
        below.append(w @ below[-1])
    above = [np.ones(layers[-1].shape[0])]
    for w in layers[::-1]:
        above.append(w.T @ above[-1])
    above = above[::-1]
    return [w * np.outer(above[i + 1], below[i]) for i, w in enumerate(layers)]


@pytest.mark.parametrize("density", [0.02, 0.1, 0.4])
def test_synflow_on_linear_layers_is_the_closed_form_and_its_flow_is_conserved(density: float):
    model = linear_stack([12, 30, 20, 25, 6])
    layers = [np.abs(p.detach().numpy()) for p in model.parameters()]
    masks = [np.ones(w.shape, dtype=bool) for w in layers]
    total = sum(w.size for w in layers)
    for round_ in range(1, 101):
        flow = linear_flow([w * mask for w, mask in zip(layers, masks, strict=True)])
        np.testing.assert_allclose([s.sum() for s in flow], flow[0].sum(), rtol=1e-12)
        # What is out ranks below what carries no flow any more.
        scores = np.concatenate(
            [np.where(mask, s, -1).ravel() for s, mask in zip(flow, masks, strict=True)]
        )
        kept = first_largest(scores, round(density ** (round_ / 100) * total))
        ends = np.cumsum([w.size for w in layers])[:-1]
        masks = [k.reshape(w.shape) for k, w in zip(np.split(kept, ends), layers, strict=True)]
    ours = chosen_on("synflow", model, density, (torch.randn(2, 12, generator=generator(0)), None))
    for mask, wanted in zip(ours.values(), masks, strict=True):
        np.testing.assert_array_equal(mask.numpy(), wanted, strict=True)


def reaches(model: nn.Module, masks: Masks, inputs: Tensor) -> bool:
    """Whether a path of kept weights leads from the inputs to the outputs."""
    pruned = copy.deepcopy(model).eval()
    with torch.no_grad():
        for name, p in prunable(pruned).items():
            p.copy_(p.abs() * masks[name])
    inputs = inputs.clone().requires_grad_()
    (slope,) = torch.autograd.grad(pruned(inputs).sum(), inputs)
    return bool(slope.any())


def convolutional() -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise([3, 16, 16, 32]):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after)]
        layers += [nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


@pytest.mark.parametrize("kind", ["linear", "convolutional"])
@pytest.mark.parametrize("victim", [0, 1, -2, -1])
def test_synflow_cuts_no_layer_off_at_density_2_percent_where_magnitude_does(
    kind: str, victim: int
):
    linear = kind == "linear"
    model = linear_stack([20, 60, 40, 50, 30, 10]) if linear else convolutional().double()
    draw = generator(2)
    with torch.no_grad():
        for p in prunable(model).values():
            p.copy_(torch.randn(p.shape, generator=draw, dtype=p.dtype))
        name, small = list(prunable(model).items())[victim]
        small.mul_(1e-4)
    inputs = torch.ones(2, 20) if linear else torch.ones(2, 3, 8, 8)
    context = PruningContext(
        generator(0), {}, model, F.cross_entropy, (inputs, torch.zeros(2, dtype=torch.long))
    )
    with pytest.warns(UserWarning, match=f"left no weight in {name}:"):
        by_magnitude = choose_masks("magnitude", prunable(model), 0.02, context)
    assert not by_magnitude[name].any()
    assert not reaches(model, by_magnitude, inputs.double())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        masks = choose_masks("synflow", prunable(model), 0.02, context)
    assert all(mask.any() for mask in masks.values())
    assert reaches(model, masks, inputs.double())


@pytest.mark.parametrize(
    "norm",
    [
        "none",
        "batch",
        "group",
        "instance",
    ],
)
def test_synflow_leaves_a_path_through_a_residual_network_at_density_2_percent(norm: str):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        models = [build_model("resnet", 10, 1, width=8, depth=8, norm=norm) for _ in range(4)]
    for model in models:
        masks = chosen_on("synflow", model, 0.02, (torch.ones(2, 1, 8, 8), None))
        image = torch.randn(1, 1, 8, 8, generator=generator(0))
        assert reaches(model, masks, image)


def test_synflow_reads_the_shape_of_the_batch_and_not_its_values():
    model, (batch, labels) = Net(), images()
    first = chosen_on("synflow", model, 0.2, (batch, labels))
    second = chosen_on("synflow", model, 0.2, (-7 * batch[:1], None))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_synflow_takes_token_inputs_as_they_are():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(11, 6), nn.Flatten(), nn.Linear(4 * 6, 3, bias=False))
    tokens = torch.tensor([[1, 4, 4, 9], [2, 2, 2, 2]])
    masks = chosen_on("synflow", model, 0.2, (tokens, None))
    assert active(masks) == round(0.2 * (66 + 72))
    # Only the first example's words carry flow.
    assert masks["0.weight"].any(1).nonzero().flatten().tolist() == [1, 4, 9]


# ---- Nothing is left behind ----------------------------------------------------------------------


def snapshot(model: nn.Module) -> dict[str, Any]:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "identity": {name: id(t) for name, t in tensors.items()},
        "values": {name: t.detach().clone() for name, t in tensors.items()},
        "versions": {name: t._version for name, t in tensors.items()},
        "requires_grad": {name: t.requires_grad for name, t in tensors.items()},
        "grad": {name: (None if t.grad is None else id(t.grad)) for name, t in tensors.items()},
        "grads": {name: t.grad.clone() for name, t in tensors.items() if t.grad is not None},
        "flags": {name: module.training for name, module in model.named_modules()},
        "random": torch.get_rng_state(),
    }


def assert_same(before: Any, after: Any) -> None:
    if isinstance(before, Tensor):
        assert before.dtype == after.dtype
        assert torch.equal(before, after)
    elif isinstance(before, dict):
        assert list(before) == list(after)
        for name in before:
            assert_same(before[name], after[name])
    else:
        assert before == after


def lived_in(dropout: float) -> Net:
    """A network with running statistics, some gradients, a frozen bias, and mixed modes."""
    model = Net(dropout=dropout)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model(images(5)[0])
    model.body[0].weight.grad = torch.full_like(model.body[0].weight, 0.25)
    model.head.bias.grad = torch.full_like(model.head.bias, -1.5)
    model.head.bias.requires_grad_(False)
    model.body[5].eval()
    return model


@pytest.mark.parametrize("method", NEEDS_MODEL)
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("training", ["mixed", "train", "eval"])
def test_the_model_and_the_random_state_are_left_untouched(
    method: str, dropout: float, training: str
):
    model = lived_in(dropout)
    if training != "mixed":
        model.train(training == "train")
    before = snapshot(model)
    assert int(model.body[1].num_batches_tracked) == 1
    chosen_on(method, model, 0.3)
    with torch.no_grad():
        chosen_on(method, model, 0.3)
    assert_same(before, snapshot(model))
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("method", NEEDS_MODEL)
def test_the_model_is_left_untouched_where_its_forward_pass_fails(method: str):
    model = lived_in(0.5)
    before = snapshot(model)
    wrong = (torch.zeros(2, 7, 6, 6, dtype=torch.float64), torch.zeros(2, dtype=torch.long))
    with pytest.raises(RuntimeError, match="channels"):
        chosen_on(method, model, 0.3, wrong)
    assert_same(before, snapshot(model))


def test_snip_runs_the_model_in_the_mode_it_is_in():
    model = lived_in(0.0)
    in_training = chosen_on("snip", model.train(), 0.3)
    in_eval = chosen_on("snip", model.eval(), 0.3)
    assert any(not torch.equal(in_training[name], in_eval[name]) for name in in_eval)


def test_synflow_runs_the_model_in_eval_mode_whatever_it_is_in():
    model = lived_in(0.9)
    in_training = chosen_on("synflow", model.train(), 0.3)
    in_eval = chosen_on("synflow", model.eval(), 0.3)
    assert all(torch.equal(in_training[name], in_eval[name]) for name in in_eval)


# ---- Complaints ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_weight_that_is_not_finite_is_refused_by_name(method: str, value: float):
    model = Net()
    with torch.no_grad():
        model.body[4].weight[1, 2, 0, 1] = value
    with pytest.raises(DivergenceError, match=r"body\.4\.weight holds NaN or infinite values"):
        chosen_on(method, model, 0.5)


@pytest.mark.parametrize("named", ["model", "parameters"])
def test_an_upload_of_a_nan_weight_is_refused_by_name_and_prunes_nothing(named: str):
    model = Net()
    with torch.no_grad():
        model.head.weight[0, 0] = math.nan
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    known: dict[str, Any] = {"model": model, "loss_fn": F.cross_entropy}
    optimizer = (
        QuantumSGD(model.parameters(), **known)
        if named == "model"
        else QuantumSGD(model.named_parameters())
    )
    with pytest.raises(DivergenceError, match=r"head\.weight holds NaN.*nothing pruned"):
        optimizer.upload()
    assert optimizer.phase == "upload"
    for name, p in model.named_parameters():
        assert torch.equal(p.nan_to_num(99), before[name].nan_to_num(99))


@pytest.mark.parametrize("method", ["snip", "synflow"])
def test_a_method_that_needs_a_batch_says_how_to_give_it_one(method: str):
    model = Net()
    optimizer = QuantumSGD(model.parameters(), pruning=method, model=model, loss_fn=F.cross_entropy)
    with pytest.raises(ValueError, match=rf"'{method}' needs a batch.*upload\(inputs, targets\)"):
        optimizer.upload()
    optimizer.upload(*images())
    assert active({str(i): m for i, m in enumerate(optimizer.masks.values())}) == round(
        0.1 * sum(p.numel() for p in prunable(model).values())
    )


def emptied(parameters: dict[str, Tensor], density: float, method: str) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        choose_masks(method, parameters, density, PruningContext(generator(0), {}))
    assert all(w.category is UserWarning for w in caught)
    return [str(w.message) for w in caught]


def test_layers_left_without_a_weight_are_warned_of_by_name_and_only_those():
    parameters = weights([(10, 10), (5, 5), (8, 8), (3, 3)], 0)
    parameters["layer1"].mul_(1e-6)
    parameters["layer3"].mul_(1e-6)
    (message,) = emptied(parameters, 0.2, "magnitude")
    assert "left no weight in layer1, layer3:" in message
    assert "density 0.2 by 'magnitude'" in message
    assert not emptied(parameters, 0.2, "magnitude-layerwise")
    assert not emptied(parameters, 0.2, "erk")


def test_the_warning_reaches_a_user_of_the_optimizer():
    model = linear_stack([20, 20, 20])
    with torch.no_grad():
        model[1].weight.mul_(1e-6)
    optimizer = QuantumSGD(model.named_parameters(), density=0.1)
    with pytest.warns(UserWarning, match=r"left no weight in 1\.weight:"):
        optimizer.upload()
