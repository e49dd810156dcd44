"""Hessian-vector products through every kind of layer, against networks of primitives.

The reference of each case is written without PyTorch's layers and without the package, and its
dense Hessian is made by plain reverse mode, row by row. See ``benchmarks/layer_cases.py``.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.layer_cases import CASES, Case, randn
from torch_qsgd.errors import GraphError
from torch_qsgd.hessian.operator import HessianOperator

TOLERANCE = 1e-10
MEAN = nn.CrossEntropyLoss()
modes = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
kinds = pytest.mark.parametrize("kind", ["hessian", "ggn"])


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])


def rows(values: Tensor, leaves: Sequence[Tensor]) -> Tensor:
    """The Jacobian of a vector, one reverse pass a row."""
    each = [torch.autograd.grad(v, leaves, retain_graph=True) for v in values]
    return torch.stack([flat(gradients) for gradients in each])


def hessian_of(loss: Tensor, leaves: Sequence[Tensor]) -> Tensor:
    return rows(flat(torch.autograd.grad(loss, leaves, create_graph=True)), leaves)


def reference_gradient(case: Case, model: nn.Module) -> Tensor:
    loss = case.reference_loss(case.reference_outputs(model))
    return flat(torch.autograd.grad(loss, list(model.parameters())))


def differs_by_mode(case: Case, training: bool) -> bool:
    """Whether the mode is eval, or train mode is another function: running statistics."""
    return not training or any("running" in name for name, _ in case.model(True).named_buffers())


@functools.cache
def reference(name: str, training: bool, kind: str) -> Tensor:
    """The dense matrix of a case; of the Gauss–Newton kind, Jᵀ H_L J."""
    case = CASES[name]
    if not differs_by_mode(case, training):
        return reference(name, False, kind)
    model = case.model(training)
    parameters, outputs = list(model.parameters()), case.reference_outputs(model)
    if kind == "hessian":
        return hessian_of(case.reference_loss(outputs), parameters)
    leaves = [y.detach().requires_grad_() for y in outputs]
    jacobian = rows(flat(outputs), parameters)
    return jacobian.T @ hessian_of(case.reference_loss(leaves), leaves) @ jacobian


def operator(case: Case, model: nn.Module, **options: Any) -> HessianOperator:
    data = case.batches[0] if len(case.batches) == 1 else case.batches
    return HessianOperator(model, case.loss, data, **options)


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


#: A case in eval mode, and in train mode where that is another function.
DISTINCT = [(k, t) for k, c in CASES.items() for t in (False, True) if differs_by_mode(c, t)]


@pytest.mark.parametrize(("name", "training"), DISTINCT)
def test_the_reference_is_the_network_and_agrees_with_central_differences(
    name: str, training: bool
) -> None:
    """Steps are too short to reach a kink of a network that has some."""
    case = CASES[name]
    model = case.model(training)
    native = sum(case.loss(model(x), y) * len(y) for x, y in case.batches)
    mean = native / sum(len(y) for _, y in case.batches)
    wanted = case.reference_loss(case.reference_outputs(model))
    torch.testing.assert_close(mean, wanted, rtol=1e-13, atol=0)
    directions = [randn(*p.shape, seed=i) for i, p in enumerate(model.parameters())]
    step, gradients = 1e-6, []
    for move in (step, -2 * step):
        with torch.no_grad():
            for p, direction in zip(model.parameters(), directions, strict=True):
                p += move * direction
        gradients.append(reference_gradient(case, model))
    differences = (gradients[0] - gradients[1]) / (2 * step)
    assert error(differences, reference(name, training, "hessian") @ flat(directions)) < 1e-7


@kinds
@modes
@pytest.mark.parametrize("name", CASES)
def test_products_equal_the_dense_reference(name: str, training: bool, kind: str) -> None:
    case, wanted = CASES[name], reference(name, training, kind)
    model = case.model(training)
    before = copy.deepcopy(model.state_dict())
    v = randn(len(wanted), 2, seed=2)
    for keep_graph in (True, False):
        H = operator(case, model, kind=kind, keep_graph=keep_graph)
        assert error(H @ v, wanted @ v) < TOLERANCE
        assert error(H @ v[:, 0], wanted @ v[:, 0]) < TOLERANCE
    assert all(m.training is training for m in model.modules())
    assert all(torch.equal(before[k], now) for k, now in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(("name", "training"), DISTINCT)
def test_the_whole_matrix_is_symmetric(name: str, training: bool) -> None:
    wanted = reference(name, training, "hessian")
    identity = torch.eye(len(wanted), dtype=torch.float64)
    dense = operator(CASES[name], CASES[name].model(training)) @ identity
    assert error(dense, wanted) < TOLERANCE
    assert error(dense.T, dense) < TOLERANCE


@kinds
@pytest.mark.parametrize("name", ["attention", "causal attention", "encoder layer"])
def test_flash_attention_chosen_around_the_operator_gives_way(name: str, kind: str) -> None:
    case, wanted = CASES[name], reference(name, False, kind)
    model, v = case.model(False), randn(len(wanted), seed=3)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        product = operator(case, model, kind=kind) @ v
    assert error(product, wanted @ v) < TOLERANCE


class Flash(nn.Module):
    """Insists on flash attention, within the model."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            y: Tensor = self.layer(x)
        return y


@pytest.mark.parametrize("keep_graph", [True, False])
@pytest.mark.parametrize("check", [True, False])
@kinds
@pytest.mark.parametrize("name", ["attention", "causal attention"])
def test_flash_attention_within_the_model_is_refused(
    name: str, kind: str, check: bool, keep_graph: bool
) -> None:
    case = CASES[name]
    model = Flash(case.model(False))
    with pytest.raises(GraphError, match=r"attention has no second derivative.*SDPBackend\.MATH"):
        _ = operator(case, model, kind=kind, check=check, keep_graph=keep_graph) @ randn(95)


@modes
@kinds
def test_no_grad_around_the_operator_changes_nothing(kind: str, training: bool) -> None:
    """In eval mode under ``no_grad`` a Transformer's encoder takes a path without derivatives."""
    case, wanted = CASES["encoder layer"], reference("encoder layer", training, kind)
    v = randn(len(wanted), seed=4)
    with torch.no_grad():
        product = operator(case, case.model(training), kind=kind) @ v
    assert error(product, wanted @ v) < TOLERANCE


@kinds
def test_ignored_labels_in_batches_are_counted_as_the_user_says(kind: str) -> None:
    """A mean over labels that are not ignored has that many terms, not the batch's size."""
    case = CASES["ignored labels"]
    (x, y), wanted = case.batches[0], reference("ignored labels", False, kind)

    def labelled(inputs: Tensor, targets: Tensor) -> int:
        return int((targets != 1).sum())

    batches = [(x[:1], y[:1]), (x[1:], y[1:])]
    H = HessianOperator(case.model(False), case.loss, batches, kind=kind, count=labelled)
    v = randn(len(wanted), seed=5)
    assert error(H @ v, wanted @ v) < TOLERANCE


def worst(product: Callable[[Tensor], Tensor], wanted: Tensor) -> float:
    vectors = [randn(len(wanted), seed=seed) for seed in range(3)]
    return max(error(product(v), wanted @ v) for v in vectors)


@pytest.mark.parametrize("name", ["layer norm", "batch norm 2d"])
def test_reverse_over_forward_is_wrong_without_the_package(name: str) -> None:
    """Why references of primitives are needed: were PyTorch right one day, this would say so."""
    case, wanted = CASES[name], reference(name, True, "hessian")
    model, ((x, y),) = case.model(True), case.batches
    parameters = {k: p.detach() for k, p in model.named_parameters()}

    def loss(values: dict[str, Tensor]) -> Tensor:
        buffers = {k: b.clone() for k, b in model.named_buffers()}
        return case.loss(torch.func.functional_call(model, {**values, **buffers}, (x,)), y)

    def product(v: Tensor) -> Tensor:
        sizes = [p.numel() for p in parameters.values()]
        parts = zip(parameters.items(), v.split(sizes), strict=True)
        direction = {k: part.view_as(p) for (k, p), part in parts}
        slope = torch.func.grad(lambda p: torch.func.jvp(loss, (p,), (direction,))[1])
        return flat(list(slope(parameters).values()))

    assert worst(product, wanted) > 1e-3


class BetweenConvolutionAndNorm(nn.Module):
    """Changes something in place after a convolution, before its normalisation."""

    def __init__(self, changed: str) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3)
        self.linear, self.changed = nn.Linear(12, 3), changed

    def forward(self, x: Tensor) -> Tensor:
        x = x + 0
        y = self.convolution(x)
        if self.changed == "output":
            F.relu(y, inplace=True)
        elif self.changed == "input":
            x.mul_(2)
        return self.linear(torch.tanh(self.norm(y)).flatten(1))


@pytest.mark.parametrize("keep_graph", [True, False])
@modes
@kinds
def test_what_is_changed_in_place_before_a_norm_is_seen(
    kind: str, training: bool, keep_graph: bool
) -> None:
    """A ReLU in place between the two: folding the norm into the convolution would miss it."""
    case = Case(lambda: [BetweenConvolutionAndNorm("output")], CASES["batch norm 2d"].batches, MEAN)
    model, ((x, y),) = case.model(training), case.batches
    parameters = list(model.parameters())
    wanted = hessian_of(case.loss(model(x), y), parameters)
    if kind == "ggn":
        outputs = model(x)
        jacobian = rows(outputs.flatten(), parameters)
        leaf = outputs.detach().requires_grad_()
        wanted = jacobian.T @ hessian_of(case.loss(leaf, y), [leaf]) @ jacobian
    v = randn(len(wanted), seed=6)
    H = operator(case, model, kind=kind, keep_graph=keep_graph)
    assert error(H @ v, wanted @ v) < TOLERANCE


@modes
@kinds
def test_an_input_changed_in_place_after_its_convolution_is_refused(
    kind: str, training: bool
) -> None:
    """PyTorch refuses it too: the weight's gradient needs the input as it was."""
    case = Case(lambda: [BetweenConvolutionAndNorm("input")], CASES["batch norm 2d"].batches, MEAN)
    model = case.model(training)
    v = randn(sum(p.numel() for p in model.parameters()), seed=7)
    with pytest.raises((GraphError, RuntimeError), match=r"in place|inplace"):
        _ = operator(case, model, kind=kind) @ v
