"""Layers as small networks, each with the same network of primitives beside it.

The reference walks a network module by module and computes what each computes by sums, products,
exponentials, comparisons and windows only, on which plain reverse mode is right to every order.
It takes nothing from the package. All is in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

Weights = Mapping[str, Tensor]
#: Stride, padding and dilation.
Geometry = tuple[Sequence[int], Sequence[int], Sequence[int]]


def randn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


class Mean(nn.Module):
    """Over the tokens of (N, T, C), or over what a layer of several inputs makes of them."""

    def __init__(self, layer: nn.Module | None = None, inputs: int = 1) -> None:
        super().__init__()
        self.layer, self.inputs = layer, inputs

    def forward(self, x: Tensor) -> Tensor:
        return (x if self.layer is None else self.layer(*[x] * self.inputs)[0]).mean(1)


class Attention(nn.Module):
    """``F.scaled_dot_product_attention`` with two heads."""

    def __init__(self, width: int, causal: bool) -> None:
        super().__init__()
        self.project, self.causal = nn.Linear(width, 3 * width), causal

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(part, 2) for part in self.project(x).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return y.transpose(1, 2).flatten(2)


class ResidualBlock(nn.Module):
    """As in a ResNet: two convolutions with batch normalisation, and a strided short cut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, channels, 3, 2, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(channels)
        self.short = nn.Sequential(nn.Conv2d(2, channels, 1, 2), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(F.relu(self.first_norm(self.first(x))))
        return F.relu(self.second_norm(y) + self.short(x))


def by_primitives(module: nn.Module, weights: Weights, x: Tensor, path: str = "") -> Tensor:
    """What the submodule at ``path`` computes, with these weights and buffers by name."""
    if not path:
        kind = next(kind for kind in type(module).__mro__ if kind in RULES)
        return RULES[kind](module, weights, x)
    inside = {k[len(path) + 1 :]: v for k, v in weights.items() if k.startswith(path + ".")}
    return by_primitives(module.get_submodule(path), inside, x)


def in_turn(module: Any, weights: Weights, x: Tensor) -> Tensor:
    for name, _ in module.named_children():
        x = by_primitives(module, weights, x, name)
    return x


def affine(x: Tensor, weights: Weights, shape: Sequence[int] = ()) -> Tensor:
    """Along the channels, unless a shape is given."""
    shape = shape or [-1] + [1] * (x.dim() - 2)
    x = x * weights["weight"].reshape(shape) if "weight" in weights else x
    return x + weights["bias"].reshape(shape) if "bias" in weights else x


def windows(x: Tensor, kernel: Sequence[int], geometry: Geometry) -> Tensor:
    """What a sliding kernel sees: (N, C, …) to (N, C, *places, entries of the kernel)."""
    stride, padding, dilation = geometry
    x = F.pad(x, [p for p in reversed(padding) for _ in range(2)])
    for d, size in enumerate(kernel):
        x = x.unfold(2 + d, dilation[d] * (size - 1) + 1, stride[d])[..., :: dilation[d]]
    return x.flatten(2 + len(kernel))


def correlated(x: Tensor, w: Tensor, geometry: Geometry, groups: int, weights: Weights) -> Tensor:
    seen = windows(x, w.shape[2:], geometry)
    places = seen.shape[2:-1]
    seen = seen.reshape(len(x), groups, x.shape[1] // groups, places.numel(), -1)
    y = torch.einsum("ngcpk,gock->ngop", seen, w.reshape(groups, -1, *seen.shape[2::2]))
    return affine(y.reshape(len(x), -1, *places), {k: v for k, v in weights.items() if k == "bias"})


def convolution(module: Any, weights: Weights, x: Tensor) -> Tensor:
    reach = zip(module.kernel_size, module.dilation, strict=True)
    same = [d * (k - 1) // 2 for k, d in reach]  # for odd kernels
    padding = same if module.padding == "same" else module.padding
    geometry = (module.stride, padding, module.dilation)
    if "weight" not in weights:  # but lengths and directions
        length, w = (weights[f"parametrizations.weight.original{i}"] for i in range(2))
        weights = {**weights, "weight": w * length / (w**2).sum((1, 2, 3), keepdim=True) ** 0.5}
    return correlated(x, weights["weight"], geometry, module.groups, weights)


def transposed_convolution(module: Any, weights: Weights, x: Tensor) -> Tensor:
    """Zeros between the input's entries, then a convolution with the mirrored kernel."""
    w, stride, spatial = weights["weight"], module.stride, x.shape[2:]
    ends = [s * (n - 1) + 1 for s, n in zip(stride, spatial, strict=True)]
    sizes = [e + more for e, more in zip(ends, module.output_padding, strict=True)]
    stretched = x.new_zeros(*x.shape[:2], *sizes)
    places = tuple(slice(0, e, s) for e, s in zip(ends, stride, strict=True))
    stretched[:, :, *places] = x
    kernel = w.reshape(module.groups, -1, *w.shape[1:]).transpose(1, 2).flatten(0, 1)
    kernel = kernel.flip(list(range(2, w.dim())))
    reach = zip(module.kernel_size, module.dilation, module.padding, strict=True)
    geometry = ([1] * len(sizes), [d * (k - 1) - p for k, d, p in reach], module.dilation)
    return correlated(stretched, kernel, geometry, module.groups, weights)


def standardised(x: Tensor, dims: Sequence[int], eps: float, centre: bool = True) -> Tensor:
    x = x - x.mean(list(dims), keepdim=True) if centre else x
    return x / ((x**2).mean(list(dims), keepdim=True) + eps) ** 0.5


def batch_norm(module: Any, weights: Weights, x: Tensor) -> Tensor:
    """Of batches or of instances."""
    if module.training or "running_mean" not in weights:
        batch = [] if isinstance(module, nn.InstanceNorm2d) else [0]
        return affine(standardised(x, [*batch, *range(2, x.dim())], module.eps), weights)
    shape = [-1] + [1] * (x.dim() - 2)
    mean, var = (weights[k].reshape(shape) for k in ("running_mean", "running_var"))
    return affine((x - mean) / (var + module.eps) ** 0.5, weights)


def layer_norm(module: Any, weights: Weights, x: Tensor) -> Tensor:
    """Layer normalisation or, without a mean, root-mean-square normalisation."""
    shape, centre = module.normalized_shape, isinstance(module, nn.LayerNorm)
    eps = torch.finfo(x.dtype).eps if module.eps is None else module.eps
    return affine(standardised(x, range(-len(shape), 0), eps, centre), weights, shape)


def group_norm(module: Any, weights: Weights, x: Tensor) -> Tensor:
    y = standardised(x.reshape(len(x), module.num_groups, -1), [2], module.eps)
    return affine(y.reshape(x.shape), weights)


def pooling(module: Any, weights: Weights, x: Tensor) -> Tensor:
    kernel, stride, padding, one = ((v, v) for v in (module.kernel_size, module.stride, 0, 1))
    seen = windows(x, kernel, (stride, padding, one))
    largest = seen.argmax(-1, keepdim=True)
    return seen.gather(-1, largest)[..., 0] if isinstance(module, nn.MaxPool2d) else seen.mean(-1)


def adaptive_pooling(module: Any, weights: Weights, x: Tensor) -> Tensor:
    """Averages over cells of an image, which overlap where the sizes do not divide."""
    count = module.output_size
    both = [[slice(i * n // count, -(-(i + 1) * n // count)) for i in range(count)] for n in x.shape[2:]]  # fmt: skip # noqa: E501
    pooled = [[x[:, :, r, c].flatten(2).mean(-1) for c in both[1]] for r in both[0]]
    return torch.stack([torch.stack(row, -1) for row in pooled], -2)


def recurrent(module: Any, weights: Weights, x: Tensor) -> Tensor:
    """The outputs of one layer of LSTM or GRU cells, batch first, from zero states."""
    directions = []
    for end in ["l0", "l0_reverse"][: 1 + module.bidirectional]:
        wx, bx, wh, bh = (weights[f"{k}_{g}_{end}"] for g in ("ih", "hh") for k in ("weight", "bias"))  # fmt: skip # noqa: E501
        h = c = x.new_zeros(len(x), module.hidden_size)
        order = -1 if end.endswith("reverse") else 1
        outputs = []
        for step in x.unbind(1)[::order]:
            from_x, from_h = step @ wx.T + bx, h @ wh.T + bh
            if isinstance(module, nn.LSTM):
                i, f, g, o = (from_x + from_h).chunk(4, 1)
                c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
                h = torch.sigmoid(o) * torch.tanh(c)
            else:
                (rx, zx, nx), (rh, zh, nh) = from_x.chunk(3, 1), from_h.chunk(3, 1)
                z = torch.sigmoid(zx + zh)
                h = (1 - z) * torch.tanh(nx + torch.sigmoid(rx + rh) * nh) + z * h
            outputs.append(h)
        directions.append(torch.stack(outputs[::order], 1))
    return torch.cat(directions, -1)


def split_heads(x: Tensor, heads: int) -> Tensor:
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def attended(projected: Tensor, heads: int, causal: bool = False) -> Tensor:
    """Queries, keys and values side by side to (N, T, heads × C)."""
    q, k, v = (split_heads(part, heads) for part in projected.chunk(3, -1))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if causal:
        scores = torch.where(torch.ones(scores.shape[-2:]).tril().bool(), scores, -1e30)
    weights = torch.exp(scores - scores.detach().amax(-1, keepdim=True))
    return (weights / weights.sum(-1, keepdim=True) @ v).transpose(1, 2).flatten(2)


def multihead(module: Any, weights: Weights, x: Tensor) -> Tensor:
    projected = x @ weights["in_proj_weight"].T + weights["in_proj_bias"]
    return by_primitives(module, weights, attended(projected, module.num_heads), "out_proj")


def encoder_layer(module: Any, weights: Weights, x: Tensor) -> Tensor:
    run = partial(by_primitives, module, weights)
    for part, norm in (("self_attn", "norm1"), ("feed", "norm2")):
        y = run(x, norm) if module.norm_first else x
        y = run(relu(run(y, "linear1")), "linear2") if part == "feed" else run(y, part)
        x = x + y if module.norm_first else run(x + y, norm)
    return x


def residual_block(module: Any, weights: Weights, x: Tensor) -> Tensor:
    run = partial(by_primitives, module, weights)
    y = run(relu(run(run(x, "first"), "first_norm")), "second")
    return relu(run(y, "second_norm") + run(x, "short"))


def relu(x: Tensor) -> Tensor:
    return x * (x > 0)


RULES: dict[type[nn.Module], Callable[[Any, Weights, Tensor], Tensor]] = {
    nn.Sequential: in_turn,
    **dict.fromkeys(
        (nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear),
        lambda module, weights, x: x @ weights["weight"].T + weights["bias"],
    ),
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), convolution),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d), transposed_convolution),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.InstanceNorm2d), batch_norm),
    **dict.fromkeys((nn.LayerNorm, nn.RMSNorm), layer_norm),
    nn.GroupNorm: group_norm,
    **dict.fromkeys((nn.MaxPool2d, nn.AvgPool2d), pooling),
    nn.AdaptiveAvgPool2d: adaptive_pooling,
    nn.Embedding: lambda module, weights, x: (
        (x.unsqueeze(-1) == torch.arange(module.num_embeddings)).double() @ weights["weight"]
    ),
    **dict.fromkeys((nn.LSTM, nn.GRU), recurrent),
    Mean: lambda module, weights, x: (
        x if module.layer is None else by_primitives(module, weights, x, "layer")
    ).mean(1),
    Attention: lambda module, weights, x: attended(
        by_primitives(module, weights, x, "project"), 2, module.causal
    ),
    nn.MultiheadAttention: multihead,
    nn.TransformerEncoderLayer: encoder_layer,
    ResidualBlock: residual_block,
    nn.Flatten: lambda module, weights, x: x.reshape(len(x), -1),
    nn.Tanh: lambda module, weights, x: torch.tanh(x),
    nn.ReLU: lambda module, weights, x: relu(x),
    nn.SiLU: lambda module, weights, x: x * torch.sigmoid(x),
    nn.GELU: lambda module, weights, x: x / 2 * (1 + torch.erf(x / math.sqrt(2))),
    nn.Softplus: lambda module, weights, x: torch.log(1 + torch.exp(x)),
}


def loss_by_primitives(loss: Any, outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error, or cross entropy of (N, C) outputs."""
    if isinstance(loss, nn.MSELoss):
        return ((outputs - targets) ** 2).mean()
    smooth, classes = loss.label_smoothing, outputs.shape[1]
    wanted = (targets.unsqueeze(1) == torch.arange(classes)).double()
    wanted = wanted * (1 - smooth) + smooth / classes
    minus_log = torch.log(torch.exp(outputs).sum(1, keepdim=True)) - outputs
    each: Tensor = (minus_log * wanted).sum(1)
    return each[targets != loss.ignore_index].mean()


@dataclass(frozen=True)
class Case:
    """One network, its batches and its loss."""

    layers: Callable[[], Sequence[nn.Module]]
    batches: Sequence[tuple[Tensor, Tensor]]
    loss: nn.Module

    def model(self, training: bool) -> nn.Module:
        """A fresh copy, with no weight or running statistic at a special value."""
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            model = nn.Sequential(*self.layers()).double().train(training)
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
                if tensor.is_floating_point():
                    tensor += torch.rand_like(tensor) * (1.0 if "running" in name else 0.3)
        return model

    def reference_outputs(self, model: nn.Module) -> list[Tensor]:
        """Of each batch."""
        weights = {**dict(model.named_buffers()), **dict(model.named_parameters())}
        return [by_primitives(model, weights, x) for x, _ in self.batches]

    def reference_loss(self, outputs: Sequence[Tensor]) -> Tensor:
        """Mean over the samples of all batches."""
        both = zip(outputs, [targets for _, targets in self.batches], strict=True)
        terms = [loss_by_primitives(self.loss, y, t) * len(t) for y, t in both]
        return torch.stack(terms).sum() / sum(len(y) for y in outputs)


ROWS, TOKENS, IMAGES = randn(6, 4, seed=1), randn(3, 5, 4, seed=2), randn(4, 2, 3, 3, seed=3)
WORDS = torch.tensor([[0, 2, 2, 4, 5], [1, 3, 0, 0, 2], [5, 5, 1, 4, 3]])


def classified(x: Tensor, layers: Callable[[], Sequence[nn.Module]], **loss: Any) -> Case:
    return Case(layers, [(x, torch.arange(len(x)) % 3)], nn.CrossEntropyLoss(**loss))


def of_rows(layer: Callable[[], nn.Module], **loss: Any) -> Case:
    return classified(ROWS, lambda: [nn.Linear(4, 5), layer(), nn.Linear(5, 3)], **loss)


def of_tokens(layer: Callable[[], nn.Module]) -> Case:
    return classified(TOKENS, lambda: [nn.Linear(4, 4), layer(), nn.Linear(4, 3)])


def of_images(layer: Callable[[], nn.Module], features: int = 36) -> Case:
    """Channels mixed by parameters, the layer, something curved, and a classifier."""
    ends = partial(nn.Conv2d, 2, 4, 1), partial(classifier, features)
    return classified(IMAGES, lambda: [ends[0](), layer(), *ends[1]()])


def classifier(features: int) -> list[nn.Module]:
    return [nn.Tanh(), nn.Flatten(), nn.Linear(features, 3)]


def convolved(sizes: Sequence[int], layer: Callable[[], nn.Module], features: int) -> Case:
    return classified(randn(4, 2, *sizes, seed=4), lambda: [layer(), *classifier(features)])


UNEQUAL = [(randn(size, 4, seed=size), torch.arange(size) % 3) for size in (64, 16)]
TANH = of_rows(nn.Tanh)
ENCODER = partial(nn.TransformerEncoderLayer, 4, 2, 2, 0.0, batch_first=True)

CASES: dict[str, Case] = {
    "linear, tanh": TANH,
    "ReLU": of_rows(nn.ReLU),
    "SiLU": of_rows(nn.SiLU),
    "GELU": of_rows(nn.GELU),
    "softplus": of_rows(nn.Softplus),
    "mean squared error": Case(TANH.layers, [(ROWS, torch.sin(ROWS[:, :3]))], nn.MSELoss()),
    "label smoothing": of_rows(nn.Tanh, label_smoothing=0.2),
    "ignored labels": of_rows(nn.Tanh, ignore_index=1),
    "batches of 64 and 16": Case(TANH.layers, UNEQUAL, nn.CrossEntropyLoss()),
    "conv1d": convolved([9], lambda: nn.Conv1d(2, 3, 3, 2, 1), 15),
    "conv2d": of_images(lambda: nn.Conv2d(4, 2, 3, padding="same"), 18),
    "conv2d, stride, dilation": convolved([8, 7], lambda: nn.Conv2d(2, 3, 3, 2, (2, 1), 2), 36),
    "conv2d, groups": of_images(lambda: nn.Conv2d(4, 2, 3, 1, 1, groups=2), 18),
    "conv2d, depthwise": of_images(lambda: nn.Conv2d(4, 4, 3, 1, 1, groups=4, bias=False)),
    "conv3d": convolved([4, 3, 4], lambda: nn.Conv3d(2, 2, 2, (2, 1, 1)), 24),
    "transposed conv1d": convolved([4], lambda: nn.ConvTranspose1d(2, 3, 3, 2, 1), 21),
    "transposed conv2d": convolved([2, 3], lambda: nn.ConvTranspose2d(2, 2, 3, 2, 1, 1, 2), 48),
    "batch norm 1d": of_rows(lambda: nn.Sequential(nn.BatchNorm1d(5), nn.Tanh())),
    "batch norm 2d": of_images(lambda: nn.BatchNorm2d(4)),
    "batch norm, no statistics": of_images(lambda: nn.BatchNorm2d(4, track_running_stats=False)),
    "layer norm": of_images(lambda: nn.LayerNorm([4, 3, 3])),
    "group norm": of_images(lambda: nn.GroupNorm(2, 4)),
    "instance norm": of_images(lambda: nn.InstanceNorm2d(4, affine=True)),
    "instance norm, statistics": of_images(lambda: nn.InstanceNorm2d(4, track_running_stats=True)),
    "RMS norm": of_images(lambda: nn.RMSNorm([3, 3])),
    "weight norm": of_images(lambda: weight_norm(nn.Conv2d(4, 2, 2)), 8),
    "max pooling": of_images(lambda: nn.MaxPool2d(2, 1), 16),
    "average pooling": of_images(lambda: nn.AvgPool2d(2, 1), 16),
    "adaptive pooling": of_images(lambda: nn.AdaptiveAvgPool2d(2), 16),
    "embedding": classified(WORDS, lambda: [nn.Embedding(6, 4), Mean(), *classifier(4)]),
    "LSTM": of_tokens(lambda: Mean(nn.LSTM(4, 2, batch_first=True, bidirectional=True))),
    "GRU": of_tokens(lambda: Mean(nn.GRU(4, 4, batch_first=True))),
    "attention": of_tokens(lambda: nn.Sequential(Attention(4, False), Mean())),
    "causal attention": of_tokens(lambda: nn.Sequential(Attention(4, True), Mean())),
    "multi-head attention": of_tokens(
        lambda: Mean(nn.MultiheadAttention(4, 2, batch_first=True), inputs=3)
    ),
    "encoder layer": of_tokens(lambda: nn.Sequential(ENCODER(), Mean())),
    "encoder layer, norm first": of_tokens(lambda: nn.Sequential(ENCODER(norm_first=True), Mean())),
    "small transformer": classified(
        WORDS, lambda: [nn.Embedding(6, 4), ENCODER(), ENCODER(), Mean(), nn.Linear(4, 3)]
    ),
    "residual block": classified(IMAGES, lambda: [ResidualBlock(3), *classifier(12)]),
    "residual block, channels last": classified(
        IMAGES.to(memory_format=torch.channels_last),
        lambda: [ResidualBlock(3).to(memory_format=torch.channels_last), *classifier(12)],
    ),
}
