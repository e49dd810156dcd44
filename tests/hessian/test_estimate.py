"""Spectra of real Hessians against dense ones; interrupts, checkpoints, arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.stats import wasserstein_distance
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.cases import classifier, image_batches, randn, seeded
from tests.hessian.test_quadrature import plain
from torch_qsgd.errors import DivergenceError, SizeError
from torch_qsgd.hessian.estimate import hessian_spectrum, layer_spectra, spectrum_of
from torch_qsgd.hessian.spectrum import Spectrum

Array = NDArray[np.float64]


def digits(count: int = 150) -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    return torch.from_numpy(images[:count] / 16), torch.from_numpy(labels[:count])


def mlp() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    return nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 10)), digits()


def cnn() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    images, labels = digits(100)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.SiLU(),
        nn.Conv2d(6, 8, 3, padding=1, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AvgPool2d(4),
        nn.Flatten(),
        nn.Linear(8, 10),
    ), (images.view(-1, 1, 8, 8), labels)


class Reader(nn.Module):
    """Eight rows of a digit as tokens, one layer of a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Linear(8, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
        self.out = nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor:
        hidden: Tensor = self.layer(self.embedding(images.view(-1, 8, 8)))
        output: Tensor = self.out(hidden.mean(1))
        return output


def transformer() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    return Reader(), digits(60)


def trained(build: Any) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    model, data = seeded(lambda: build()[0]).double(), build()[1]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(data[0]), data[1]).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model, data


def dense(model: nn.Module, data: tuple[Tensor, Tensor]) -> Array:
    """Eigenvalues of the Hessian, row by row by autograd, native layers in plain reverse mode."""
    parameters = list(model.parameters())
    with sdpa_kernel(SDPBackend.MATH):
        loss = F.cross_entropy(model(data[0]), data[1])
        gradients = torch.autograd.grad(loss, parameters, create_graph=True)
        gradient = torch.cat([g.flatten() for g in gradients])
        n = len(gradient)
        rows = torch.autograd.grad(
            gradient, parameters, torch.eye(n).double(), is_grads_batched=True
        )
    matrix = torch.cat([row.reshape(n, -1) for row in rows], 1)
    return np.asarray(torch.linalg.eigvalsh((matrix + matrix.T) / 2))


@pytest.mark.parametrize("build", [mlp, cnn, transformer])
def test_spectra_of_trained_networks(build: Any) -> None:
    model, data = trained(build)
    eigenvalues = dense(model, data)
    spectrum = hessian_spectrum(model, F.cross_entropy, data, steps=80, progress=False)
    assert spectrum.dimension == len(eigenvalues)
    assert spectrum.products == 160
    assert spectrum.lambda_max == pytest.approx(eigenvalues[-1], rel=1e-5)
    assert spectrum.lambda_min == pytest.approx(eigenvalues[0], rel=1e-5)
    assert abs(spectrum.lambda_max - eigenvalues[-1]) <= spectrum.lambda_max_bound
    assert abs(spectrum.lambda_min - eigenvalues[0]) <= spectrum.lambda_min_bound
    assert abs(spectrum.trace - eigenvalues.sum()) < 4 * spectrum.trace_error

    def distance(nodes: Array, weights: Array) -> float:
        return float(wasserstein_distance(eigenvalues, nodes, None, weights))

    best = min(
        np.mean([distance(*plain(eigenvalues, steps, 160 // steps, seed)) for seed in range(3)])
        for steps in (160, 80, 40)
    )
    assert distance(spectrum.nodes, spectrum.weights) < best / 2


def test_layers_and_masks_are_blocks_of_the_dense_hessian() -> None:
    model, data = classifier("group"), image_batches(1)[0]
    masks = {"0.weight": randn(4, 1, 3, 3) > 0}
    whole = hessian_spectrum(model, F.cross_entropy, data, masks=masks)
    layer = hessian_spectrum(model, F.cross_entropy, data, layers="6")
    assert layer.dimension == sum(p.numel() for p in model[6].parameters())
    inactive = int((~masks["0.weight"]).sum())
    assert whole.dimension == sum(p.numel() for p in model.parameters()) - inactive
    assert layer.lambda_max < whole.lambda_max


def test_layer_spectra_are_those_of_each_layer_alone() -> None:
    model, data = classifier("group"), image_batches(2)
    spectra = layer_spectra(model, F.cross_entropy, data, steps=20, progress=False)
    assert list(spectra) == ["0", "1", "3", "6"]
    alone = hessian_spectrum(model, F.cross_entropy, data, layers="3", steps=20, progress=False)
    np.testing.assert_allclose(spectra["3"].nodes, alone.nodes, atol=1e-10)
    chosen = layer_spectra(model, F.cross_entropy, data, layers=["[13]"], steps=20)
    assert chosen["[13]"].dimension == spectra["1"].dimension + spectra["3"].dimension


def test_the_model_is_left_as_it_was() -> None:
    model, data = classifier("batch"), image_batches(1)[0]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    hessian_spectrum(model, F.cross_entropy, data, steps=5)
    assert torch.equal(state, torch.get_rng_state())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


# ---- Interrupts --------------------------------------------------------------------------------


class Operator:
    """A diagonal matrix that is interrupted at one product."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, interrupted_at: int | None = None, error: Any = KeyboardInterrupt) -> None:
        self.eigenvalues = torch.cat([torch.tensor([-3.0, 8.0, 20.0]), randn(297).float()])
        self.dimension = 300
        self.interrupted_at, self.error = interrupted_at, error
        self.products = 0

    def __matmul__(self, vectors: Tensor) -> Tensor:
        self.products += 1
        if self.products == self.interrupted_at:
            raise self.error
        return self.eigenvalues * vectors


def same(first: Spectrum, second: Spectrum) -> bool:
    one, other = first.to_json(), second.to_json()
    del one["seconds"], other["seconds"]
    return bool(one == other)


@pytest.mark.parametrize("at", [1, 2, 17, 20, 21, 22, 40, 60])
@pytest.mark.parametrize("options", [{}, {"basis_size": 30}, {"basis_dtype": torch.bfloat16}])
def test_an_interrupted_call_goes_on_to_the_same_result(
    tmp_path: Path, at: int, options: dict[str, Any]
) -> None:
    options = {"steps": 20, "probes": 3, **options}
    path = tmp_path / "spectrum.checkpoint"
    expected = spectrum_of(Operator(), **options)
    with pytest.raises(KeyboardInterrupt):
        spectrum_of(Operator(at), checkpoint=path, **options)
    assert path.exists()
    operator = Operator()
    found = spectrum_of(operator, checkpoint=path, **options)
    assert same(found, expected)
    assert operator.products == 60 - (at - 1) + (at > 1)  # one compares the operator
    assert list(tmp_path.iterdir()) == []


def test_a_generator_is_left_as_without_the_interrupt(tmp_path: Path) -> None:
    whole, halves = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    spectrum_of(Operator(), steps=10, generator=whole)
    options: dict[str, Any] = {"steps": 10, "checkpoint": tmp_path / "c"}
    with pytest.raises(RuntimeError, match="stop") as caught:
        spectrum_of(Operator(15, RuntimeError("stop")), generator=halves, **options)
    assert any("goes on from there" in note for note in caught.value.__notes__)
    again = torch.Generator().manual_seed(5)
    spectrum_of(Operator(), generator=again, **options)
    assert torch.equal(again.get_state(), whole.get_state())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 30}, "steps was 20, and is 30 now"),
        ({"probes": 2}, "probes was 3, and is 2 now"),
        ({"basis_dtype": torch.bfloat16}, r"basis_dtype was torch.float32, and is torch.bfloat16"),
        ({"generator": torch.Generator().manual_seed(9)}, "generator was in another state"),
    ],
)
def test_a_checkpoint_of_another_call_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    options: dict[str, Any] = {"steps": 20, "probes": 3, "checkpoint": tmp_path / "c"}
    with pytest.raises(KeyboardInterrupt):
        spectrum_of(Operator(17), **options)
    with pytest.raises(ValueError, match=f"{message}.*Remove the file to begin anew"):
        spectrum_of(Operator(), **{**options, **change})
    other = Operator()
    other.eigenvalues = other.eigenvalues * 1.01
    with pytest.raises(ValueError, match="another product: other weights, data or mode"):
        spectrum_of(other, **options)
    assert (tmp_path / "c").exists()


def test_a_checkpoint_of_other_weights_is_refused(tmp_path: Path) -> None:
    """By the operator's fingerprint, however near its products are."""

    class Named(Operator):
        fingerprint = "one"

    options: dict[str, Any] = {"steps": 20, "probes": 2, "checkpoint": tmp_path / "c"}
    with pytest.raises(KeyboardInterrupt):
        spectrum_of(Named(17), **options)
    other = Named()
    other.fingerprint = "other"
    with pytest.raises(ValueError, match="other weights"):
        spectrum_of(other, **options)
    assert spectrum_of(Named(), **options).products == 40


def test_layers_go_on_from_a_folder(tmp_path: Path) -> None:
    model, data = classifier("group"), image_batches(1)[0]
    options: dict[str, Any] = {"steps": 10, "checkpoint": tmp_path}
    expected = layer_spectra(model, F.cross_entropy, data, steps=10)
    told = 0

    def stop(done: int, most: int) -> None:
        nonlocal told
        told += done > 0
        if told == 27:  # in the second layer
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        layer_spectra(model, F.cross_entropy, data, progress=stop, **options)
    assert len(list(tmp_path.iterdir())) == 2
    counted: list[int] = []
    resumed = layer_spectra(
        model, F.cross_entropy, data, progress=lambda done, _: counted.append(done), **options
    )
    assert counted[0] == 20  # the first layer was done
    assert all(same(resumed[name], expected[name]) for name in expected)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="must be a folder"):
        layer_spectra(model, F.cross_entropy, data, checkpoint=tmp_path / "missing")


def test_linear_regression_has_each_eigenvalue_once_an_output() -> None:
    inputs = randn(200, 20) * torch.logspace(0, -2, 20).double()
    model = seeded(lambda: nn.Linear(20, 5, bias=False)).double()
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        data = inputs, randn(200, 5, seed=seed)
        spectrum = hessian_spectrum(model, F.mse_loss, data, generator=generator)
        expected = 2 / 200 * float(inputs.square().sum())
        assert spectrum.trace == pytest.approx(expected, rel=1e-9)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a checkpoint")
    with pytest.raises(ValueError, match="no checkpoint of a spectrum"):
        spectrum_of(Operator(), checkpoint=path)
    with pytest.raises(ValueError, match="file in a folder that is there"):
        spectrum_of(Operator(), checkpoint=tmp_path / "missing" / "c")


# ---- Arguments ---------------------------------------------------------------------------------


def test_progress_is_told_to_a_function() -> None:
    told: list[tuple[int, int]] = []
    spectrum_of(Operator(), steps=3, progress=lambda done, most: told.append((done, most)))
    assert told == [(done, 6) for done in range(7)]


def test_probes_come_from_the_generator_alone() -> None:
    state = torch.get_rng_state()
    first, second = spectrum_of(Operator(), steps=10), spectrum_of(Operator(), steps=10)
    other = spectrum_of(Operator(), steps=10, generator=torch.Generator().manual_seed(1))
    assert same(first, second)
    assert not same(first, other)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"steps": 0}, "steps must be an integer of at least 1"),
        ({"probes": 1.5}, "probes must be an integer"),
        ({"basis_size": 1}, "basis_size must be an integer of at least 2"),
        ({"basis_dtype": torch.int8}, "basis_dtype must be one of"),
        ({"progress": "yes"}, "progress must be True or False"),
    ],
)
def test_arguments_outside_what_is_allowed(argument: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spectrum_of(Operator(), **argument)


def test_a_basis_that_does_not_fit_says_how_large_it_is() -> None:
    class Huge(Operator):
        def __init__(self) -> None:
            self.dimension = 10**12

    with pytest.raises(SizeError, match=r"160 vectors .* take 6.4e\+05 GB.*basis_size.*bfloat16"):
        spectrum_of(Huge())


def test_a_loss_that_is_not_finite_says_so() -> None:
    model, data = classifier("group"), image_batches(1)[0]
    with torch.no_grad():
        model[0].weight[0] = torch.nan
    with pytest.raises(DivergenceError, match=r"nan.*Look at the weights"):
        hessian_spectrum(model, F.cross_entropy, data)
