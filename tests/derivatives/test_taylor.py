"""Taylor coefficients of every operation against references written in primitives.

Each case computes one loss twice: by PyTorch's functions, run under the package's mode, and by
sums, products, exponentials and comparisons only. The reference's coefficients come from nested
forward-mode derivatives of its gradient, the package's from repeated reverse mode.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_qsgd.derivatives import higher_derivatives, loss_along_path, taylor_coefficients
from torch_qsgd.errors import GraphError

Parameters = list[Tensor]


def randn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def standardised(x: Tensor, dims: tuple[int, ...], eps: float = 1e-5) -> Tensor:
    centred = x - x.mean(dims, keepdim=True)
    return centred / ((centred**2).mean(dims, keepdim=True) + eps) ** 0.5


def convolved(x: Tensor, w: Tensor, stride: int, padding: int, dilation: int, groups: int):
    """2-d convolution by shifted products, one kernel entry at a time."""
    n, c, _, _ = x.shape
    padded = torch.zeros(n, c, x.shape[2] + 2 * padding, x.shape[3] + 2 * padding, dtype=x.dtype)
    padded = F.pad(x, (padding,) * 4)
    kh, kw = w.shape[2:]
    height = (padded.shape[2] - dilation * (kh - 1) - 1) // stride + 1
    width = (padded.shape[3] - dilation * (kw - 1) - 1) // stride + 1
    total = 0
    for i, j in itertools.product(range(kh), range(kw)):
        rows = slice(i * dilation, i * dilation + stride * (height - 1) + 1, stride)
        columns = slice(j * dilation, j * dilation + stride * (width - 1) + 1, stride)
        patch = padded[:, :, rows, columns].reshape(n, groups, c // groups, height, width)
        kernel = w[:, :, i, j].reshape(groups, -1, c // groups)
        total = total + torch.einsum("ngchw,goc->ngohw", patch, kernel).reshape(
            n, -1, height, width
        )
    return total


IMAGES = randn(4, 3, 5, 5, seed=1)
ROWS = randn(6, 4, seed=2)
CHANNEL = (1, -1, 1, 1)


def mixed(images: Tensor, w: Tensor) -> Tensor:
    """Channels mixed by a parameter, so that what follows depends on one."""
    return torch.einsum("nchw,cd->ndhw", images, w)


def normalisation(native: Callable[..., Tensor], reference: Callable[..., Tensor]):
    shapes = [(3, 4), (4,), (4,)]

    def by_native(p: Parameters) -> Tensor:
        return (torch.tanh(native(mixed(IMAGES, p[0]), p[1], p[2])) ** 2).sum()

    def by_reference(p: Parameters) -> Tensor:
        return (torch.tanh(reference(mixed(IMAGES, p[0]), p[1], p[2])) ** 2).sum()

    return shapes, by_native, by_reference


def affine(z: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return z * w.view(CHANNEL) + b.view(CHANNEL)


RUNNING = (torch.linspace(-0.5, 0.5, 4).double(), torch.linspace(0.5, 2, 4).double())


def eval_batch_norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    mean, var = (r.view(CHANNEL) for r in RUNNING)
    return affine((x - mean) / (var + 1e-5) ** 0.5, w, b)


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if causal:
        keep = torch.ones(scores.shape[-2:]).tril().bool()
        scores = torch.where(keep, scores, -1e30)
    weights = torch.exp(scores - scores.detach().amax(-1, keepdim=True))
    return weights / weights.sum(-1, keepdim=True) @ v


def attention_case(causal: bool):
    tokens = randn(2, 5, 4, seed=3)

    def heads(p: Parameters) -> list[Tensor]:
        return [(tokens @ w).view(2, 5, 2, 2).transpose(1, 2) for w in p]

    def native(p: Parameters) -> Tensor:
        return (F.scaled_dot_product_attention(*heads(p), is_causal=causal) ** 2).sum()

    def reference(p: Parameters) -> Tensor:
        return (attention(*heads(p), causal) ** 2).sum()

    return [(4, 4)] * 3, native, reference


def module_attention_case():
    tokens = randn(2, 5, 4, seed=4)
    module = nn.MultiheadAttention(4, 2, batch_first=True, bias=False).double()

    def native(p: Parameters) -> Tensor:
        values = {"in_proj_weight": p[0], "out_proj.weight": p[1]}
        out, _ = torch.func.functional_call(
            module, values, (tokens, tokens, tokens), {"need_weights": False}
        )
        return (out**2).sum()

    def reference(p: Parameters) -> Tensor:
        q, k, v = ((tokens @ w.T).view(2, 5, 2, 2).transpose(1, 2) for w in p[0].chunk(3))
        joined = attention(q, k, v, False).transpose(1, 2).reshape(2, 5, 4)
        return ((joined @ p[1].T) ** 2).sum()

    return [(12, 4), (4, 4)], native, reference


def activation_case(native: Callable[[Tensor], Tensor], reference: Callable[[Tensor], Tensor]):
    def by_native(p: Parameters) -> Tensor:
        return torch.tanh(native(ROWS @ p[0] + p[1]) @ p[2]).sum()

    def by_reference(p: Parameters) -> Tensor:
        return torch.tanh(reference(ROWS @ p[0] + p[1]) @ p[2]).sum()

    return [(4, 5), (5,), (5, 2)], by_native, by_reference


def convolution_case(stride: int, padding: int, dilation: int, groups: int):
    shapes = [(4, 4 // groups, 3, 3), (4,), (3, 4)]
    images = randn(2, 3, 7, 7, seed=5)

    def native(p: Parameters) -> Tensor:
        x = torch.tanh(mixed(images, p[2]))
        y = F.conv2d(x, p[0], p[1], stride, padding, dilation, groups)
        return (torch.tanh(y) ** 2).sum()

    def reference(p: Parameters) -> Tensor:
        x = torch.tanh(mixed(images, p[2]))
        y = convolved(x, p[0], stride, padding, dilation, groups) + p[1].view(CHANNEL)
        return (torch.tanh(y) ** 2).sum()

    return shapes, native, reference


def embedding_case():
    tokens = torch.tensor([[0, 2, 2], [1, 3, 0]])
    labels = torch.tensor([1, 0])

    def native(p: Parameters) -> Tensor:
        return F.cross_entropy(torch.tanh(F.embedding(tokens, p[0])).sum(1) @ p[1], labels)

    def reference(p: Parameters) -> Tensor:
        chosen = (tokens.unsqueeze(-1) == torch.arange(4)).double() @ p[0]
        logits = torch.tanh(chosen).sum(1) @ p[1]
        return (torch.log(torch.exp(logits).sum(1)) - logits[[0, 1], labels]).mean()

    return [(4, 3), (3, 2)], native, reference


CASES: dict[str, Any] = {
    "batch norm, train": normalisation(
        lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True),
        lambda x, w, b: affine(standardised(x, (0, 2, 3)), w, b),
    ),
    "batch norm, eval": normalisation(
        lambda x, w, b: F.batch_norm(x, *RUNNING, w, b, training=False), eval_batch_norm
    ),
    "group norm": normalisation(
        lambda x, w, b: F.group_norm(x, 2, w, b),
        lambda x, w, b: affine(
            standardised(x.reshape(4, 2, 2, 5, 5), (2, 3, 4)).reshape(4, 4, 5, 5), w, b
        ),
    ),
    "instance norm": normalisation(
        lambda x, w, b: F.instance_norm(x, weight=w, bias=b),
        lambda x, w, b: affine(standardised(x, (2, 3)), w, b),
    ),
    "layer norm": normalisation(
        lambda x, w, b: F.layer_norm(x.movedim(1, -1), (4,), w, b).movedim(-1, 1),
        lambda x, w, b: affine(standardised(x, (1,)), w, b),
    ),
    "rms norm": normalisation(
        lambda x, w, b: (
            F.rms_norm(x.movedim(1, -1), (4,), w, 1e-5).movedim(-1, 1) + b.view(CHANNEL)
        ),
        lambda x, w, b: affine(x / ((x**2).mean(1, keepdim=True) + 1e-5) ** 0.5, w, b),
    ),
    "attention": attention_case(causal=False),
    "causal attention": attention_case(causal=True),
    "multi-head attention": module_attention_case(),
    "relu": activation_case(F.relu, lambda x: x * (x > 0)),
    "silu": activation_case(F.silu, lambda x: x / (1 + torch.exp(-x))),
    "gelu": activation_case(F.gelu, lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2),
    "gelu, tanh": activation_case(
        lambda x: F.gelu(x, approximate="tanh"),
        lambda x: x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))),
    ),
    "softplus": activation_case(F.softplus, lambda x: torch.log(1 + torch.exp(x))),
    "elu": activation_case(F.elu, lambda x: torch.where(x > 0, x, torch.exp(x) - 1)),
    "convolution": convolution_case(1, 1, 1, 1),
    "strided convolution": convolution_case(2, 1, 1, 1),
    "dilated convolution": convolution_case(1, 2, 2, 1),
    "grouped convolution": convolution_case(1, 0, 1, 2),
    "depthwise strided convolution": convolution_case(2, 1, 1, 4),
    "embedding and cross entropy": embedding_case(),
}


def nested_forward(
    loss: Callable[[Parameters], Tensor], theta: Parameters, jets: list[Parameters]
) -> list[Parameters]:
    """[ε^k] of the gradient along θ + Σ ε^j c_j, by k nested forward-mode derivatives in ε."""

    def gradient(epsilon: Tensor) -> Parameters:
        path = [
            p + sum(c[i] * epsilon ** (j + 1) for j, c in enumerate(jets))
            for i, p in enumerate(theta)
        ]
        return torch.func.grad(loss)(path)

    found = []
    derivative: Callable[[Tensor], Any] = gradient
    for k in range(1, len(jets) + 1):
        derivative = (lambda d: lambda e: torch.func.jvp(d, (e,), (torch.ones_like(e),))[1])(
            derivative
        )
        values = derivative(torch.zeros((), dtype=torch.float64))
        found.append([v / math.factorial(k) for v in values])
    return found


@pytest.mark.parametrize("name", CASES)
def test_coefficients_equal_a_reference_of_primitives(name: str) -> None:
    shapes, native, reference = CASES[name]
    theta = [randn(*s, seed=10 + i) * 0.7 for i, s in enumerate(shapes)]
    jets = [[randn(*s, seed=100 * k + i) for i, s in enumerate(shapes)] for k in (1, 2, 3)]
    expected = nested_forward(reference, theta, jets)
    for order in (1, 2, 3):
        leaves = [p.clone().requires_grad_() for p in theta]
        with higher_derivatives():
            loss = native(leaves)
            gradients = torch.autograd.grad(loss, leaves, create_graph=True)
            found = taylor_coefficients(gradients, leaves, jets[:order])
        # With fewer jets the path is shorter; the reference must follow the same one.
        wanted = expected if order == 3 else nested_forward(reference, theta, jets[:order])
        assert loss.item() == pytest.approx(reference(theta).item(), rel=1e-12)
        for k in range(order):
            scale = max(float(w.abs().max()) for w in wanted[k])
            gap = max(float((f - w).abs().max()) for f, w in zip(found[k], wanted[k], strict=True))
            assert gap <= 1e-10 * scale, (name, order, k + 1, gap / scale)


def test_the_native_layer_norm_is_wrong_at_second_order_and_refused() -> None:
    """The reason for the mode: were PyTorch right one day, this would say so."""
    shapes, native, reference = CASES["layer norm"]
    theta = [randn(*s, seed=10 + i) for i, s in enumerate(shapes)]
    jets = [[randn(*s, seed=100 * k + i) for i, s in enumerate(shapes)] for k in (1, 2)]
    leaves = [p.clone().requires_grad_() for p in theta]
    gradients = torch.autograd.grad(native(leaves), leaves, create_graph=True)
    first = nested_forward(reference, theta, jets[:1])
    (found,) = taylor_coefficients(gradients, leaves, jets[:1])
    for f, w in zip(found, first[0], strict=True):
        torch.testing.assert_close(f, w, rtol=1e-9, atol=1e-9)
    gradients = torch.autograd.grad(native(leaves), leaves, create_graph=True)
    with pytest.raises(GraphError, match=r"NativeLayerNorm.*recording"):
        taylor_coefficients(gradients, leaves, jets)


@pytest.mark.parametrize("training", [True, False])
def test_a_bare_graph_with_native_batch_norm_is_refused_only_in_train_mode(training: bool) -> None:
    layer = nn.BatchNorm2d(3).double().train(training)
    weight = randn(3, 3, seed=6).requires_grad_()
    loss = (layer(mixed(IMAGES, weight)) ** 3).sum()
    gradients = torch.autograd.grad(loss, [weight], create_graph=True)
    jets = [[randn(3, 3, seed=7)], [randn(3, 3, seed=8)]]
    if training:
        with pytest.raises(GraphError, match="NativeBatchNorm"):
            taylor_coefficients(gradients, [weight], jets)
    else:
        found = taylor_coefficients(gradients, [weight], jets)
        scale = (layer.running_var + layer.eps).rsqrt()

        def reference(p: Parameters) -> Tensor:
            return ((mixed(IMAGES, p[0]) * scale.view(CHANNEL)) ** 3).sum()

        wanted = nested_forward(reference, [weight.detach()], jets)
        for k in range(2):
            torch.testing.assert_close(found[k][0], wanted[k][0], rtol=1e-10, atol=1e-10)


def test_a_loss_linear_in_the_parameters_has_zero_coefficients() -> None:
    theta = randn(3, seed=1).requires_grad_()
    (gradient,) = torch.autograd.grad((theta * 2).sum(), theta, create_graph=True)
    found = taylor_coefficients([gradient], [theta], [[randn(3, seed=2)]] * 3)
    assert all(torch.equal(row[0], torch.zeros(3, dtype=torch.float64)) for row in found)


def test_a_parameter_without_gradient_gets_zeros() -> None:
    used, unused = randn(2, seed=1).requires_grad_(), randn(2, seed=2).requires_grad_()
    (gradient,) = torch.autograd.grad((used**4).sum(), used, create_graph=True)
    jets = [[randn(2, seed=3), randn(2, seed=4)]]
    (found,) = taylor_coefficients([gradient, None], [used, unused], jets)
    torch.testing.assert_close(found[0], 12 * used.detach() ** 2 * jets[0][0])
    assert not found[1].any()


def test_a_freed_graph_is_an_error_that_says_so() -> None:
    theta = randn(3, seed=1).requires_grad_()
    loss = (theta**4).sum()
    (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
    torch.autograd.grad(gradient.sum(), theta)
    with pytest.raises(GraphError, match="cannot be differentiated again"):
        taylor_coefficients([gradient], [theta], [[randn(3, seed=2)]])


def test_the_loss_along_the_path_is_its_taylor_polynomial() -> None:
    theta = randn(4, seed=1)
    jets = [[randn(4, seed=k)] for k in (2, 3)]
    leaf = theta.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((leaf**3).sum(), leaf, create_graph=True)
    series = [[gradient.detach()]]
    # A cubic: S_1 and S_2 by hand.
    c1, c2 = jets[0][0], jets[1][0]
    by_hand = (3 * theta**2 * c1).sum() + (3 * theta**2 * c2 + 3 * theta * c1**2).sum()
    series += taylor_coefficients([gradient], [leaf], jets)
    torch.testing.assert_close(loss_along_path(series, jets), by_hand)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_convolution_modules_keep_their_values_and_gradients(dimensions: int, bias: bool) -> None:
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1]
    layer = kind(2, 4, 3, stride=2, padding=1, bias=bias).double()
    x = randn(2, 2, *[6] * dimensions, seed=1).requires_grad_()

    def values() -> list[Tensor]:
        y = layer(x)
        return [y, *torch.autograd.grad((y**2).sum(), [x, *layer.parameters()])]

    native = values()
    with higher_derivatives():
        ours = values()
    for a, b in zip(ours, native, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_what_convolution_leaves_to_pytorch_still_works() -> None:
    same = nn.Conv2d(2, 2, 3, padding="same").double()
    reflected = nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect").double()
    x = randn(2, 2, 6, 6, seed=1)
    for layer, given in ((same, x), (same, x[0]), (reflected, x)):
        native = layer(given)
        with higher_derivatives():
            torch.testing.assert_close(layer(given), native)


def test_half_precision_and_autocast_run_with_composed_operations() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.GroupNorm(2, 4))
    x = IMAGES.float()
    net.eval()
    expected = net(x)
    with higher_derivatives():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed_precision = net(x)
        half = net.bfloat16()(x.bfloat16())
    torch.testing.assert_close(mixed_precision.float(), expected, rtol=0.05, atol=0.05)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, rtol=0.05, atol=0.05)


def test_convolutions_run_under_vmap() -> None:
    images, weight = randn(3, 2, 1, 5, 5, seed=1), randn(4, 1, 3, 3, seed=2).requires_grad_()

    def second_derivatives() -> Tensor:
        y = torch.func.vmap(lambda x: F.conv2d(x, weight))(images)
        (g,) = torch.autograd.grad((y**3).sum(), weight, create_graph=True)
        return torch.autograd.grad((g**2).sum(), weight)[0]

    expected = second_derivatives()
    with higher_derivatives():
        torch.testing.assert_close(second_derivatives(), expected, rtol=1e-12, atol=1e-9)
