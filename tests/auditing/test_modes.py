"""Which ways of differentiating are found to work: on models that are known to break each."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.auditing.differentiated import (
    DOUBLE,
    FORWARD,
    TRIPLE,
    Detached,
    HalfDetached,
    Layer,
    Once,
    SlightlyWrong,
    Zigzag,
    found,
    network,
    supported,
)
from tests.cases import classifier, image_batches, randn, regression, seeded

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


def test_kinks_that_cannot_be_held_are_avoided() -> None:
    modes = found(network(Layer(lambda x: x.sort(dim=1).values), nn.Tanh()))
    assert supported(modes) == set(modes)
    assert all(m.error < 1e-3 for m in modes.values())


def test_kinks_everywhere_are_compared_by_symmetry() -> None:
    modes = found(network(nn.Tanh(), Layer(Zigzag.apply)))
    assert supported(modes) == set(modes) - {FORWARD}  # it knows no such function
    for k in (1, 2, 3):
        assert "by symmetry only" in modes[f"jets of order {k}"].reason
        assert modes[f"jets of order {k}"].error < 1e-12
    assert "setup_context" in modes[FORWARD].reason


def test_derivatives_that_are_not_symmetric() -> None:
    product = Layer(lambda x: HalfDetached.apply(x.tanh(), x.roll(1, 1)))
    modes = found(network(product, Layer(Zigzag.apply)))
    assert supported(modes) == set()
    assert modes["jets of order 1"].reason == "it is not symmetric, as derivatives are"
    assert modes["jets of order 1"].error > 1e-2


@pytest.mark.parametrize("kinked", [False, True])
def test_functions_that_lose_their_second_derivative(kinked: bool) -> None:
    middle = [Layer(lambda x: x.sort(dim=1).values)] if kinked else []
    modes = found(network(Layer(Detached.apply), *middle))
    assert supported(modes) == set()
    for name in ("jets of order 1", DOUBLE):
        assert modes[name].error > 1e-2
    assert "differs from finite differences" in modes["jets of order 1"].reason
    assert modes[DOUBLE].reason == "it runs, and its numbers are wrong"


def test_functions_that_say_they_have_none() -> None:
    modes = found(network(Layer(Once.apply)))
    assert supported(modes) == set()
    assert "once_differentiable" in modes["jets of order 1"].reason
    assert modes[DOUBLE].reason == "it runs, and there is nothing to compare it with"


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
    assert 1e-9 < modes["jets of order 1"].error < 1e-3
    narrow = nn.Sequential(Layer(lambda x: x.float()), network(Layer(Detached.apply)).float())
    assert not any(name.startswith("jets") for name in supported(found(narrow)))
