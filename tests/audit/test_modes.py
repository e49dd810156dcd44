"""Which ways of differentiating are found to work: on models that are known to break each."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.cases import classifier, image_batches, randn, regression, seeded, tanh_network
from torch_qsgd.audit.modes import derivative_modes
from torch_qsgd.errors import DivergenceError
from torch_qsgd.report.measurements import DerivativeMode

DOUBLE, TRIPLE = "PyTorch's own double backward", "PyTorch's own triple backward"
FORWARD = "forward over reverse (torch.func)"
ROWS = randn(8, 4), torch.arange(8) % 3


def found(model: nn.Module, batch: Any = ROWS, loss_fn: Any = F.cross_entropy, **options: Any):
    modes = derivative_modes(model, loss_fn, batch, **options)
    return {mode.name: mode for mode in modes}


def supported(modes: dict[str, DerivativeMode]) -> set[str]:
    return {name for name, mode in modes.items() if mode.supported}


def network(*middle: nn.Module, width: int = 16) -> nn.Module:
    layers = [nn.Linear(4, width), *middle, nn.Linear(width, 3)]
    return seeded(lambda: nn.Sequential(*copy.deepcopy(layers))).double()


# ---- Operations whose derivatives are not what they look like ----------------------------------


class Detached(torch.autograd.Function):
    """A sine, the derivative of whose backward pass is cut off without a word."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * ctx.saved_tensors[0].detach().cos()


class Once(torch.autograd.Function):
    """A sine that says it can be differentiated once only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * ctx.saved_tensors[0].cos()


class Slope(torch.autograd.Function):
    """A cosine whose derivative is one in a hundred too large."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.cos()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return -1.01 * g * ctx.saved_tensors[0].sin()


class SlightlyWrong(torch.autograd.Function):
    """A sine whose second derivative is one in a hundred too large."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * Slope.apply(ctx.saved_tensors[0])


class HiddenKink(torch.autograd.Function):
    """A ReLU that is not seen to be one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * (ctx.saved_tensors[0] > 0)


class Layer(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        return self.function(*args, **kwargs)


# ---- Models ------------------------------------------------------------------------------------


def test_a_smooth_network_supports_all() -> None:
    modes = found(network(nn.Tanh()))
    assert [(m.name, m.order) for m in modes.values()] == [
        ("jets of order 1", 1),
        ("jets of order 2", 2),
        ("jets of order 3", 3),
        (DOUBLE, 1),
        (TRIPLE, 2),
        (FORWARD, 1),
    ]
    assert supported(modes) == set(modes)
    assert all(m.reason == "" and m.error < 1e-5 for m in modes.values())


def test_higher_orders() -> None:
    modes = found(network(nn.Tanh()), order=3)
    assert supported(modes) == set(modes)
    assert modes["jets of order 4"].order == 4
    assert modes["PyTorch's own 4-fold backward"].order == 3


def test_layer_norm_is_wrong_beyond_the_first_order() -> None:
    modes = found(network(nn.LayerNorm(16), nn.Tanh()))
    assert supported(modes) == set(modes) - {TRIPLE}
    assert modes[TRIPLE].error > 1e-2
    assert modes[TRIPLE].reason == "it runs, and its numbers are wrong"


def test_batch_norm_refuses_the_third_derivative() -> None:
    modes = found(classifier("batch"), image_batches(1)[0])
    assert supported(modes) == set(modes) - {TRIPLE}
    assert math.isnan(modes[TRIPLE].error)
    assert "3rd" in modes[TRIPLE].reason
    inference = found(classifier("batch").eval(), image_batches(1)[0])
    assert supported(inference) == set(inference)


@pytest.mark.parametrize("width", [4, 64])
def test_relu_is_compared_on_its_pieces(width: int) -> None:
    modes = found(network(nn.ReLU(), nn.Linear(width, width), nn.ReLU(), width=width))
    assert supported(modes) == set(modes)
    for k in (1, 2, 3):
        assert modes[f"jets of order {k}"].reason == "compared on the present pieces of relu"
        assert modes[f"jets of order {k}"].error < 1e-5


def test_kinks_that_cannot_be_held_are_compared_by_symmetry() -> None:
    modes = found(network(Layer(lambda x: x.sort(dim=1).values), nn.Tanh()))
    assert supported(modes) == set(modes)
    assert "by symmetry, for sort cannot be held on a piece" in modes["jets of order 3"].reason
    assert all(m.error < 1e-7 for m in modes.values())


def test_kinks_that_are_not_seen_are_compared_by_symmetry() -> None:
    kinks = [Layer(HiddenKink.apply), nn.Linear(64, 64), Layer(HiddenKink.apply)]
    modes = found(network(*kinks, width=64))
    assert supported(modes) == set(modes) - {FORWARD}  # it knows no such function
    assert "finite differences do not converge" in modes["jets of order 1"].reason
    assert "setup_context" in modes[FORWARD].reason


@pytest.mark.parametrize("kinked", [False, True])
@pytest.mark.parametrize("function", [Detached, Once])
def test_functions_without_a_second_derivative(function: Any, kinked: bool) -> None:
    middle = [Layer(lambda x: x.sort(dim=1).values)] if kinked else []
    modes = found(network(Layer(function.apply), *middle))
    assert supported(modes) == set()
    assert modes["jets of order 1"].error > 1e-2
    word = "it is not symmetric" if kinked else "differs from finite differences"
    assert word in modes["jets of order 1"].reason
    assert all(mode.reason for mode in modes.values())


def test_the_error_is_that_of_the_derivatives() -> None:
    """L = Σ sin θ has H = −diag(sin θ), and it is given as 1.01 times that."""

    class Sines(nn.Module):
        def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.theta = nn.Parameter(randn(5))
            self.function = function

        def forward(self, x: Tensor) -> Tensor:
            return self.function(self.theta).sum() * x.mean()

    batch = torch.ones(2, dtype=torch.float64), torch.zeros(2)
    options = {"loss_fn": lambda outputs, targets: outputs, "order": 1}
    wrong = found(Sines(SlightlyWrong.apply), batch, **options)
    assert wrong["jets of order 1"].error == pytest.approx(0.01, rel=1e-3)
    assert wrong[DOUBLE].error == pytest.approx(0.01, rel=1e-3)
    right = found(Sines(torch.sin), batch, **options)
    assert supported(right) == set(right)


class Block(nn.Module):
    """Embeds words, attends, and predicts the next."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.embed, self.read = nn.Embedding(11, 8), nn.Linear(8, 11)
        self.block = nn.TransformerEncoderLayer(
            8, 2, 16, dropout=dropout, batch_first=True, activation="gelu"
        )

    def forward(self, words: Tensor) -> Tensor:
        return self.read(self.block(self.embed(words))).transpose(1, 2)


WORDS = torch.arange(40).view(5, 8) % 11


def test_fused_attention_has_no_second_derivative_of_its_own() -> None:
    modes = found(seeded(lambda: Block(0.0)), (WORDS, WORDS.roll(-1, 1)))
    assert {"jets of order 1", "jets of order 2", "jets of order 3"} == supported(modes)
    assert all("attention" in modes[name].reason for name in (DOUBLE, TRIPLE, FORWARD))


def test_dropout_draws_the_same_numbers_each_time() -> None:
    modes = found(seeded(lambda: Block(0.2)), (WORDS, WORDS.roll(-1, 1)))
    assert {"jets of order 1", "jets of order 2", "jets of order 3", DOUBLE} <= supported(modes)
    assert modes[FORWARD].supported
    assert "other random numbers" in modes[FORWARD].reason


def test_compiled_models_are_refused_with_the_reason() -> None:
    compiled: Any = torch.compile(network(nn.Tanh()), backend="aot_eager")
    modes = found(compiled)
    assert not {"jets of order 1", DOUBLE} & supported(modes)
    assert "train the uncompiled model" in modes["jets of order 1"].reason


def test_vanishing_derivatives_agree() -> None:
    """The squared error of a linear model has no third derivative."""
    modes = found(nn.Linear(2, 1).double(), regression(1)[0], F.mse_loss)
    assert {"jets of order 1", "jets of order 2", "jets of order 3", DOUBLE, TRIPLE} <= supported(
        modes
    )


def test_models_that_run_in_float32_only() -> None:
    narrow = nn.Sequential(Layer(lambda x: x.float()), network(nn.Tanh()).float())
    modes = found(narrow)
    assert supported(modes) == set(modes)
    assert "does not run in float64" in modes["jets of order 2"].reason
    narrow = nn.Sequential(Layer(lambda x: x.float()), network(Layer(Detached.apply)).float())
    assert not any(name.startswith("jets") for name in supported(found(narrow)))


# ---- Inputs, coordinates, state ----------------------------------------------------------------


@pytest.mark.parametrize(
    "inputs", [(randn(6, 2), randn(6, 2)), {"x": randn(6, 2), "y": randn(6, 2)}]
)
def test_inputs_of_several_tensors(inputs: Any) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(2, 3), nn.Tanh()).double()

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.inner(x) - self.inner(y)

    modes = found(seeded(Two), (inputs, torch.arange(6) % 3), order=1)
    assert supported(modes) == set(modes)


@pytest.mark.parametrize("by_name", [False, True])
def test_only_active_coordinates_are_looked_at(by_name: bool) -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.right, self.wrong = (nn.Linear(4, 3).double() for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return self.right(x).tanh() + Detached.apply(self.wrong(x))

    model = seeded(Sum)
    masks: dict[Any, Tensor] = {
        name if by_name else p: torch.zeros_like(p, dtype=torch.bool)
        for name, p in model.named_parameters()
        if name.startswith("wrong")
    }
    assert "jets of order 1" not in supported(found(model))
    assert {"jets of order 1", "jets of order 2"} <= supported(found(model, masks=masks))
    model.wrong.requires_grad_(False)
    assert {"jets of order 1", "jets of order 2"} <= supported(found(model))


def test_few_samples_are_enough() -> None:
    seen: set[int] = set()
    model = network(nn.Tanh(), Layer(lambda x: seen.add(len(x)) or x))  # type: ignore[func-returns-value]
    found(model, order=1)
    assert seen == {4}
    seen.clear()
    found(model, order=1, most=None)
    assert seen == {8}
    seen.clear()
    grouped = ROWS[0].view(4, 2, 4), ROWS[1]  # not as many inputs as targets: left whole
    found(nn.Sequential(nn.Flatten(0, 1), model), grouped, order=1, most=2)
    assert seen == {8}


def test_the_model_is_left_as_it_was() -> None:
    model = seeded(
        lambda: nn.Sequential(
            classifier("batch"), nn.Dropout(0.5), nn.BatchNorm1d(3, dtype=torch.float64)
        )
    )
    model[0].eval()  # type: ignore[index]
    x, y = image_batches(1)[0]
    F.cross_entropy(model(x), y).backward()
    before = copy.deepcopy(model.state_dict())
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    versions = [p._version for p in model.parameters()]
    flags = [m.training for m in model.modules()]
    state, inputs = torch.get_rng_state(), x.clone()
    found(model, (x, y))
    assert all(torch.equal(model.state_dict()[name], t) for name, t in before.items())
    assert [p._version for p in model.parameters()] == versions
    assert [m.training for m in model.modules()] == flags
    for p, g in zip(model.parameters(), gradients, strict=True):
        assert (p.grad is None and g is None) or torch.equal(p.grad, g)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, inputs)


def test_the_generator_decides() -> None:
    def errors(seed: int) -> list[float]:
        generator = torch.Generator().manual_seed(seed)
        return [
            m.error
            for m in found(
                tanh_network(), regression(1)[0], F.mse_loss, generator=generator
            ).values()
            if m.supported
        ]

    assert errors(3) == errors(3) != errors(4)


# ---- Refusals ----------------------------------------------------------------------------------


def test_bad_arguments_are_refused() -> None:
    model = network(nn.Tanh())
    with pytest.raises(ValueError, match="order must be an integer of at least 1"):
        found(model, order=0)
    with pytest.raises(ValueError, match="most must be an integer of at least 1"):
        found(model, most=0)
    with pytest.raises(TypeError, match="generator must be"):
        found(model, generator=1)
    with pytest.raises(ValueError, match=r"masks must map .* got 'weight' with torch\.bool"):
        found(model, masks={"weight": torch.ones(2) > 0})
    with pytest.raises(ValueError, match="no coordinate is active"):
        found(model, masks={p: torch.zeros_like(p) > 0 for p in model.parameters()})
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        found(copy.deepcopy(model).requires_grad_(False))


def test_gradients_that_are_no_numbers_are_refused() -> None:
    model = network(nn.Tanh())
    with torch.no_grad():
        model[0].weight[0, 0] = math.nan  # type: ignore[index]
    with pytest.raises(DivergenceError, match="gradient on the batch is NaN"):
        found(model)


def test_derivatives_that_are_no_numbers_are_unsupported() -> None:
    """|θ|^1.5 at zero has a gradient and no Hessian."""

    class Power(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.theta = nn.Parameter(torch.zeros(3, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return (self.theta**1.5).sum() * x.mean()

    batch = torch.ones(2, dtype=torch.float64), torch.zeros(2)
    modes = found(Power(), batch, lambda outputs, targets: outputs)
    assert supported(modes) == set()
    assert "NaN or infinite" in modes["jets of order 1"].reason
