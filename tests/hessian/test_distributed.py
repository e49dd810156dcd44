"""Two processes with a part of the data each make the operator, and the spectrum, of one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from tests.cases import classifier, image_batches, randn
from torch_qsgd.hessian.estimate import hessian_spectrum
from torch_qsgd.hessian.operator import HessianOperator

#: Unequal parts, in unequal numbers of batches.
PARTS = ([0, 1, 2, 3, 4], [5, 6, 7])


def model_and_data() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    return classifier().eval(), image_batches(1)[0]


def part(rank: int) -> list[tuple[Tensor, Tensor]]:
    _, (x, y) = model_and_data()
    mine = torch.tensor(PARTS[rank])
    return [(x[i], y[i]) for i in mine.split(3)]


def work(rank: int, folder: str) -> None:
    """What one process does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        model, _ = model_and_data()
        operator = HessianOperator(
            model, F.cross_entropy, part(rank), process_group=dist.group.WORLD
        )
        spectrum = hessian_spectrum(
            model,
            F.cross_entropy,
            part(rank),
            steps=12,
            # Each rank draws its own start; the first rank's counts.
            generator=torch.Generator().manual_seed(rank),
            process_group=dist.group.WORLD,
            progress=False,
        )
        product = operator @ randn(operator.dimension)
        found = {"product": product, "nodes": torch.tensor(spectrum.nodes)}
        torch.save(found, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="PyTorch was built without torch.distributed")
def test_two_processes_are_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call]
    model, batch = model_and_data()
    operator = HessianOperator(model, F.cross_entropy, batch)
    spectrum = hessian_spectrum(model, F.cross_entropy, batch, steps=12, progress=False)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(found["product"], operator @ randn(operator.dimension))
        torch.testing.assert_close(
            found["nodes"], torch.tensor(spectrum.nodes), rtol=1e-8, atol=1e-12
        )
