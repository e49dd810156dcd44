"""Recording and replaying a whole model's pieces, and what the held model has to do with jets."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

from tests.cases import classifier, image_batches, randn, regression, seeded
from torch_qsgd import QuantumSGD
from torch_qsgd.auditing.kinks import PiecesError, recording_pieces
from torch_qsgd.derivatives import higher_derivatives
from torch_qsgd.derivatives.graph import _nodes
from torch_qsgd.training import TrueSGD

LABELS = torch.tensor([0, 2, 1, 1])


def relu_network(width: int = 6) -> nn.Sequential:
    return seeded(
        lambda: nn.Sequential(
            nn.Linear(2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)
        )
    ).double()


class Attention(nn.Module):
    """A transformer layer, with dropout, pooling by the mean, and a smooth head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, 0.3, activation="gelu", batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layer(self.embedding(tokens)).mean(1))


SMOOTH: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "transformer": (Attention, torch.tensor([[1, 2], [3, 4], [5, 6], [0, 1]])),
    "batch": (lambda: classifier("batch"), randn(4, 1, 6, 6)),
    "layer": (lambda: classifier("layer", nn.GELU), randn(4, 1, 6, 6)),
    "group": (lambda: classifier("group", nn.Mish), randn(4, 1, 6, 6)),
    "instance": (lambda: classifier("instance", nn.Softplus), randn(4, 1, 6, 6)),
    "lstm": (
        lambda: nn.Sequential(nn.LSTM(3, 3, batch_first=True), Last(), nn.Dropout(0.5)),
        randn(4, 5, 3),
    ),
}


class Last(nn.Module):
    def forward(self, states: Any) -> Tensor:
        return states[0][:, -1]


@pytest.mark.parametrize("name", SMOOTH)
def test_a_smooth_network_records_nothing_and_replays_to_the_bit(name: str):
    build, inputs = SMOOTH[name]
    model = seeded(build).double()

    def gradients(network: nn.Module) -> list[Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            loss = F.cross_entropy(network(inputs), LABELS, label_smoothing=0.1)
        return [loss.detach(), *torch.autograd.grad(loss, list(network.parameters()))]

    plain = gradients(copy.deepcopy(model))
    with recording_pieces() as pieces:
        recorded = gradients(copy.deepcopy(model))
    assert (pieces.kinks, pieces.unfrozen) == ([], [])
    with pieces.replayed():
        replayed = gradients(copy.deepcopy(model))
    for a, b, c in zip(plain, recorded, replayed, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_recording_changes_nothing_and_names_each_kink_once_in_order():
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(3), nn.MaxPool2d(2), nn.ReLU6(),
        nn.Dropout(0.5), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3), nn.PReLU(),
    ).double()  # fmt: skip
    twin = copy.deepcopy(model)
    (inputs, labels) = image_batches(1)[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        plain = F.cross_entropy(twin(inputs), labels)
        torch.manual_seed(1)
        with recording_pieces() as pieces:
            recorded = F.cross_entropy(model(inputs), labels)
        torch.manual_seed(1)
        with pieces.replayed():
            replayed = F.cross_entropy(model(inputs), labels)
    assert pieces.kinks == ["relu", "max_pool2d", "hardtanh", "prelu"]
    assert torch.equal(plain, recorded)
    torch.testing.assert_close(replayed, plain, rtol=1e-14, atol=0)


def test_what_does_not_depend_on_the_weights_is_left_alone():
    x, weight = randn(5), randn(5, seed=1).requires_grad_()

    def loss(shift: float) -> Tensor:
        with torch.no_grad():
            scale = (weight + shift).abs().max()
        return (weight * (x + shift).relu().clamp(max=1.0) / scale).sum()

    with recording_pieces() as pieces:
        loss(0.0)
    assert pieces.kinks == []
    with pieces.replayed():
        assert torch.equal(loss(1.0), loss(1.0))
    assert loss(1.0) != loss(0.0)


def test_pieces_are_recorded_where_normalisations_are_composed_too():
    model, (inputs, labels) = classifier("batch", nn.ReLU), image_batches(1)[0]
    with recording_pieces() as plain:
        F.cross_entropy(model(inputs), labels)
    with higher_derivatives(), recording_pieces() as composed:
        F.cross_entropy(model(inputs), labels)
    assert composed.kinks == plain.kinks == ["relu"]
    for a, b in zip(composed._calls, plain._calls, strict=True):
        assert torch.equal(a.choices[0], b.choices[0])


# ---- What cannot be held, and what goes wrong ----------------------------------------------------

GRID = torch.linspace(-0.9, 0.9, 8).double().view(1, 2, 2, 2)
BAG = torch.tensor([[0, 1], [2, 0]])

UNHELD: dict[str, Callable[[Tensor], Any]] = {
    "rrelu": lambda x: F.rrelu(x, training=True),
    "topk": lambda x: x.topk(2),
    "sort": lambda x: torch.sort(x, 1),
    "median": lambda x: x.median(),
    "remainder": lambda x: x % 1,
    "norm": lambda x: x.norm(1),
    "vector_norm": lambda x: torch.linalg.vector_norm(x, ord=3),
    "pairwise_distance": lambda x: F.pairwise_distance(x, 0 * x, p=1.0),
    "lp_pool1d": lambda x: F.lp_pool1d(x[None], 3.0, 2),
    "embedding_bag": lambda x: F.embedding_bag(BAG, x, mode="max"),
    "scatter_reduce": lambda x: x.scatter_reduce(0, BAG, x, "amax"),
    "grid_sample": lambda x: F.grid_sample(randn(1, 1, 3, 3), GRID * x.sum(), align_corners=True),
    "triplet_margin_loss": lambda x: F.triplet_margin_loss(x, x, 2 * x),
    "rnn_relu": lambda x: nn.RNN(3, 2, nonlinearity="relu").double()(x[None]),
    "l1_loss": lambda x: F.l1_loss(x, 0 * x, reduce=False),
}


@pytest.mark.filterwarnings("ignore:size_average and reduce")
@pytest.mark.parametrize("name", UNHELD)
def test_kinks_that_cannot_be_held_are_named_and_refused_at_replay(name: str):
    x = randn(3, 3).requires_grad_()
    with recording_pieces() as pieces:
        UNHELD[name](x)
        UNHELD[name](x)
    assert (pieces.kinks, pieces.unfrozen) == ([name], [name])
    with pytest.raises(PiecesError, match=f"{name} cannot be held"), pieces.replayed():
        pass


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.norm(),
        lambda x: torch.linalg.norm(x, ord=2, dim=1),
        lambda x: x.norm(p=4),
        lambda x: F.normalize(x),
        lambda x: torch.cdist(x, 2 * x),
        lambda x: F.embedding_bag(BAG, x),
        lambda x: x.scatter_reduce(0, BAG, x, "sum"),
        lambda x: F.grid_sample(x[None, None], GRID, align_corners=True),
        lambda x: torch.fft.fft(x).abs(),
        lambda x: torch.logsumexp(x, 1),
        lambda x: x.softmax(1),
    ],
)
def test_what_is_smooth_for_its_arguments_is_no_kink(function: Callable[[Tensor], Tensor]):
    x = randn(3, 3).requires_grad_()
    with recording_pieces() as pieces:
        function(x)
    assert (pieces.kinks, pieces.unfrozen) == ([], [])
    plain = function(3 * x)
    with pieces.replayed():
        assert torch.equal(function(3 * x), plain)


def test_another_sequence_of_calls_is_refused():
    x = randn(4).requires_grad_()
    with recording_pieces() as pieces:
        torch.relu(x).abs()
    others: dict[str, Callable[[], Any]] = {
        r"1 of 2 recorded calls were not made again, .* abs": lambda: torch.relu(x),
        r"hardtanh of \(4,\) was called where abs of \(4,\)": lambda: F.hardtanh(torch.relu(x)),
        r"abs of \(2,\) was called where abs of \(4,\)": lambda: torch.relu(x)[:2].abs(),
        r"relu was called once more": lambda: torch.relu(torch.relu(x).abs()),
    }
    for message, other in others.items():
        with pytest.raises(PiecesError, match=message), pieces.replayed():
            other()
    with pieces.replayed():  # none of which has spoilt them
        torch.relu(x).abs()


def test_a_branch_on_the_weights_is_a_choice_and_stays_the_one_it_was():
    def loss(x: Tensor) -> Tensor:
        return torch.relu(x).sum() if x.sum() > 0 else x.sum()

    with recording_pieces() as pieces:
        loss(torch.ones(2, requires_grad=True))
    assert pieces.kinks == ["gt", "relu"]
    with pieces.replayed():
        assert loss(torch.tensor([-1.0, -2.0], requires_grad=True)) == -3


class Shown(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return 2 * slope


def test_custom_functions_and_reentrant_checkpoints_are_named_as_they_hide_kinks():
    x = randn(4).requires_grad_()
    with recording_pieces() as pieces:
        loss = (Shown.apply(Shown.apply(x)) + checkpoint(torch.relu, x, use_reentrant=True)).sum()
    pieces.name_unseen(loss)
    pieces.name_unseen(loss)
    assert sorted(pieces.unfrozen) == [
        "CheckpointFunction (an autograd.Function: kinks in it are not seen)",
        "Shown (an autograd.Function: kinks in it are not seen)",
    ]
    with pytest.raises(PiecesError, match="Shown"), pieces.replayed():
        pass


def test_the_packages_own_functions_hide_nothing():
    model, (inputs, labels) = classifier("batch"), image_batches(1)[0]
    with higher_derivatives(), recording_pieces() as pieces:
        loss = F.cross_entropy(model(inputs), labels)
    assert any(
        isinstance(node, torch.autograd.function.BackwardCFunction) for node in _nodes([loss])
    )
    pieces.name_unseen(loss)
    assert pieces.unfrozen == []


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_scripted_code_is_named_from_its_second_call_on():
    model, x = torch.jit.script(nn.Sequential(nn.Linear(2, 3), nn.ReLU())), randn(4, 2).float()
    for expected in ([], ["scripted code (kinks in it are not seen)"]):
        with recording_pieces() as pieces:
            loss = model(x).sum()
        pieces.name_unseen(loss)
        assert pieces.unfrozen == expected


def test_nothing_is_left_behind_by_an_error():
    with pytest.raises(ZeroDivisionError), recording_pieces():
        raise ZeroDivisionError
    with recording_pieces() as pieces:
        pass
    with pytest.raises(ZeroDivisionError), pieces.replayed():
        raise ZeroDivisionError
    assert _get_current_function_mode_stack() == []


# ---- The held network is what the full Taylor series describes -----------------------------------


def test_the_jets_converge_to_sgd_on_the_held_network_and_not_to_sgd_itself():
    model, data = relu_network(), regression(8, batch=16)
    optimizer = QuantumSGD(
        model.parameters(), lr=0.1, density=1.0, window=9, order=6, model=model, loss_fn=F.mse_loss
    )
    optimizer.upload()
    true, frozen = (TrueSGD(model, optimizer, F.mse_loss) for _ in range(2))
    anchor = copy.deepcopy(model)
    for inputs, targets in data:
        with recording_pieces() as pieces:
            F.mse_loss(anchor(inputs), targets)
        true.step(inputs, targets)
        with pieces.replayed():
            frozen.step(inputs, targets)
        optimizer.step(inputs, targets)
    params = list(model.parameters())

    def moved(network: nn.Module) -> Tensor:
        pairs = zip(network.parameters(), params, strict=True)
        return torch.cat([(p - a).detach().flatten() for p, a in pairs])

    plain, held = moved(true._model), moved(frozen._model)
    floor = float((held - plain).norm() / plain.norm())
    assert floor > 0.01
    orders = range(1, 7)
    u = torch.zeros_like(plain)
    to_held, to_true = [], []
    for k in orders:
        u = u + torch.cat([optimizer.state[p][f"jet_{k}"].flatten() for p in params])
        to_held.append(float((u - held).norm() / plain.norm()))
        to_true.append(float((u - plain).norm() / plain.norm()))
    assert all(b < 0.6 * a for a, b in itertools.pairwise(to_held)), to_held
    assert to_held[-1] < 0.02 * floor
    assert to_true[-1] == pytest.approx(floor, rel=0.02)
