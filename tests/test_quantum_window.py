"""A window of a real network on real images, solved by a circuit and read by tomography."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.cases import seeded, vector
from torch_qsgd import QuantumSGD
from torch_qsgd.data import load_data
from torch_qsgd.models import ResNet, ResNetConfig
from torch_qsgd.readout import Tomography
from torch_qsgd.representations import Krylov
from torch_qsgd.solvers import HHL, Circuit, Solver

STEPS, RATE = 7, 0.05


@pytest.fixture(scope="module")
def case() -> tuple[nn.Module, Tensor, Tensor]:
    """A residual network, 60 dense steps on digits, and one batch of them."""
    data = load_data("digits", batch_size=64, seed=0)
    model = seeded(
        lambda: ResNet(
            data.classes, ResNetConfig(depth=8, width=4, activation="silu", channels=data.channels)
        )
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    batches = [batch for _ in range(3) for batch in data.train][:60]
    for images, labels in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model, *batches[0]


def windowed(
    case: tuple[nn.Module, Tensor, Tensor], solver: str | Solver, readout: Tomography | None
) -> tuple[float, Tensor, QuantumSGD]:
    """Loss and displacement after one window from the fixture's weights, which are put back."""
    model, images, labels = case
    saved = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    opt = QuantumSGD(
        model.parameters(),
        lr=RATE,
        density=0.5,
        pruning="erk",
        window=STEPS,
        order=1,
        representation=Krylov(dimension=3),
        solver=solver,
        readout=readout,
    )
    opt.upload()
    before = vector(model.parameters())
    with torch.no_grad():
        start = float(F.cross_entropy(model(images), labels))
    for _ in range(STEPS):
        opt.zero_grad()
        with opt.recording():
            F.cross_entropy(model(images), labels).backward()
        opt.step()
    with torch.no_grad():
        change = float(F.cross_entropy(model(images), labels)) - start
    displacement = vector(model.parameters()) - before
    model.load_state_dict(saved)
    return change, displacement, opt


def test_a_circuit_and_tomography_lower_the_loss_of_a_real_network(
    case: tuple[nn.Module, Tensor, Tensor],
) -> None:
    change, u, opt = windowed(case, Circuit("hhl", clock_qubits=8), Tomography(precision=0.02))
    (record,) = opt.windows
    assert change < -0.02
    assert record.solver_error < 0.05
    assert 0 < record.readout_error < 0.06
    assert record.copies > 0
    assert record.queries == 2 * (2**8 - 1)
    exact_change, exact, _ = windowed(case, "exact", None)
    # What solver and readout add is small beside what the window does.
    assert float((u - exact).norm() / exact.norm()) < 0.1
    assert change == pytest.approx(exact_change, rel=0.2)
    # The emulator without tomography goes where the circuit goes.
    _, emulated, _ = windowed(case, HHL(clock_qubits=8), None)
    _, run, _ = windowed(case, Circuit("hhl", clock_qubits=8), None)
    torch.testing.assert_close(run, emulated, rtol=0, atol=1e-6 * float(emulated.norm()))


def test_the_example_runs(tmp_path: Path) -> None:
    script = Path(__file__).parent.parent / "examples" / "hhl_window.py"
    done = subprocess.run(
        [sys.executable, str(script), "--output", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=600,
        env={
            "PATH": "/usr/bin:/bin",
            "COLUMNS": "120",
            "OMP_NUM_THREADS": "1",
            "HOME": str(tmp_path),
        },
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert "circuit hhl, t = 8" in done.stdout
    assert (tmp_path / "hhl_window.png").stat().st_size > 10_000
