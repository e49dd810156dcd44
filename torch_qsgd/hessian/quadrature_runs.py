r"""Runs of stochastic Lanczos quadrature that can be interrupted and taken up again."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from torch_qsgd.checks import checked_generator, require_integer
from torch_qsgd.errors import SizeError
from torch_qsgd.files import replaced
from torch_qsgd.hessian.curvature import free_memory
from torch_qsgd.hessian.lanczos import Lanczos
from torch_qsgd.hessian.quadrature import Run, combine, finished
from torch_qsgd.hessian.spectrum import Spectrum
from torch_qsgd.hessian.thick_restart import SymmetricOperator

_FORMAT = "torch_qsgd.QuadratureRuns"
_STORED = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class QuadratureRuns:
    """The runs of one spectrum, one product at a time.

    Args:
        operator, steps, probes, basis_size, basis_dtype, basis_device, generator: as for
            :func:`torch_qsgd.hessian.estimate.spectrum_of`.

    Attributes:
        n: the operator's dimension.
        most: products at most.
        size: vectors held at most.
        runs: those that are finished.
        whole: whether the state can be saved; it cannot while rows are rotated.
        settled: whether the last run saw one value alone, that of all of its complement.
        seconds: spent before the state was taken up.
    """

    def __init__(
        self,
        operator: SymmetricOperator,
        steps: int,
        probes: int,
        basis_size: int | None,
        basis_dtype: torch.dtype | None,
        basis_device: torch.device | str | None,
        generator: torch.Generator | None,
    ) -> None:
        self.operator, self.n = operator, operator.dimension
        steps = min(require_integer("steps", steps, 1), self.n)
        probes = require_integer("probes", probes, 1)
        self.most = steps * probes
        size = self.most if basis_size is None else require_integer("basis_size", basis_size, 2)
        self.size = min(size, self.most, self.n)
        # Where not all fit, a third of the rows is for what earlier runs have found.
        room = self.size if self.size in (self.most, self.n) else self.size - self.size // 3
        self.longest = math.ceil(self.most / math.ceil(self.most / min(steps, room)))
        self.generator = checked_generator(generator)
        if self.generator.device.type != "cpu":
            raise ValueError(
                "generator must be on the CPU, so that probes do not depend on devices"
            )
        self.first_state = self.generator.get_state()
        dtype = basis_dtype or operator.dtype
        if dtype not in _STORED:
            raise ValueError(f"basis_dtype must be one of {', '.join(map(str, _STORED))}")
        device = torch.device(basis_device or operator.device)
        _check_room(self.size, self.n, dtype, device)
        like = torch.empty(self.n, dtype=operator.dtype, device=operator.device)
        self.lanczos = Lanczos(self.size, like, dtype, device)
        self.given = {
            "dimension": self.n,
            "dtype": str(operator.dtype),
            "steps": steps,
            "probes": probes,
            "basis_size": self.size,
            "basis_dtype": str(dtype),
        }
        self.runs: list[Run] = []
        self.kept: NDArray[np.intp] = np.empty(0, dtype=np.intp)
        self.ends = ((math.nan, math.inf), (math.nan, math.inf))
        self.fingerprint: list[float] = []
        self.settled = False
        self.seconds = 0.0
        self.whole = True  # the basis; it is not while its rows are rotated

    # ---- Products ------------------------------------------------------------------------------

    @property
    def products(self) -> int:
        """Spent so far."""
        return sum(len(run.values) for run in self.runs) + self.lanczos.steps

    @property
    def _length(self) -> int:
        """Steps planned for the run that comes next, or is being made."""
        return min(self.longest, self.most - sum(len(run.values) for run in self.runs))

    def advance(self) -> bool:
        """Spend a product. False where there is nothing more to do."""
        lanczos = self.lanczos
        if not lanczos.running:
            if self._length <= 0 or len(lanczos.kept) == self.n or self.settled:
                return False
            self.whole = False
            lanczos.start(_probe(self.operator, self.generator))
            self.whole = True
        if not self._ended:  # an interrupt may have come before the run was recorded
            lanczos.advance(self.operator)
        if not self.runs:
            alpha, beta = float(lanczos.alpha[0]), float(lanczos.beta[0])
            self.fingerprint = [alpha, math.hypot(alpha, beta)]
        if self._ended:
            self._finish()
        return True

    @property
    def _ended(self) -> bool:
        return self.lanczos.exhausted or self.lanczos.steps >= self._length

    def _finish(self) -> None:
        """Record a run, and make room for the next."""
        lanczos = self.lanczos
        self.whole = False
        least, largest = lanczos.extremes()
        if self.runs:  # short of memory, what an earlier run has found may not have been kept
            least = min(least, self.ends[0], key=lambda end: end[0])
            largest = max(largest, self.ends[1], key=lambda end: end[0])
        self.ends = least, largest
        self.settled = lanczos.exhausted and lanczos.steps == 1
        dimension = self.n - len(lanczos.kept)
        before = sum(len(run.values) for run in self.runs)
        indices = np.concatenate([self.kept, before + np.arange(lanczos.steps)])
        self.runs.append(
            finished(
                lanczos.ritz(),
                dimension,
                self.kept,
                spread=float(lanczos.beta[0]),
                rounding=lanczos.resolution,
                scale=lanczos.scale,
            )
        )
        if self._length <= 0:
            room = 0
        else:
            room = self.n if self.size == self.n else self.size - self._length
        self.kept = indices[lanczos.keep(room)]
        self.whole = True

    def spectrum(self, seconds: float) -> Spectrum:
        """What all runs show."""
        found = combine(self.runs, self.n)
        (least, least_bound), (largest, largest_bound) = self.ends
        return Spectrum(
            nodes=found.nodes,
            weights=found.weights,
            exact=found.exact,
            dimension=self.n,
            lambda_min=least,
            lambda_min_bound=least_bound,
            lambda_max=largest,
            lambda_max_bound=largest_bound,
            trace=found.trace,
            trace_error=found.trace_error,
            resolution=self.lanczos.resolution,
            products=self.products,
            steps=max(len(run.values) for run in self.runs),
            probes=len(self.runs),
            seconds=self.seconds + seconds,
            kind=getattr(self.operator, "kind", "hessian"),
        )

    # ---- Checkpoints ---------------------------------------------------------------------------

    def save(self, path: Path, seconds: float) -> None:
        """Write the state, as a whole or not at all; of several ranks, the first one writes."""
        if not _first_rank():
            return
        state = {
            "format": _FORMAT,
            "given": self.given,
            "first_state": self.first_state,
            "generator": self.generator.get_state(),
            "fingerprint": self.fingerprint,
            "operator": self._operator_fingerprint,
            "lanczos": self.lanczos.state_dict(),
            "kept": torch.from_numpy(self.kept),
            "ends": self.ends,
            "settled": self.settled,
            "runs": [_tensors(run) for run in self.runs],
            "seconds": self.seconds + seconds,
        }
        with replaced(path) as partial:
            torch.save(state, partial)

    def resume(self, path: Path) -> None:
        """Go on from a file that :meth:`save` wrote.

        Raises:
            ValueError: where it is no such file, or one of another call.
        """
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            known = state["format"] == _FORMAT
        except Exception as error:
            raise ValueError(f"{path} is no checkpoint of a spectrum: {error}") from error
        if not known:
            raise ValueError(f"{path} is no checkpoint of a spectrum")
        for name, here in self.given.items():
            if (there := state["given"].get(name)) != here:
                raise ValueError(_refused(path, f"{name} was {there}, and is {here} now"))
        if not torch.equal(state["first_state"], self.first_state):
            raise ValueError(_refused(path, "the generator was in another state"))
        if state["operator"] != self._operator_fingerprint:
            raise ValueError(_refused(path, "the operator is another one: other weights"))
        if state["fingerprint"]:
            self._compare(path, state["fingerprint"])
        self.generator.set_state(state["generator"])
        self.fingerprint, self.seconds = state["fingerprint"], state["seconds"]
        self.lanczos.load_state_dict(state["lanczos"])
        self.kept, self.ends = state["kept"].numpy(), state["ends"]
        self.settled = state["settled"]
        self.runs = [_run(tensors) for tensors in state["runs"]]

    @functools.cached_property
    def _operator_fingerprint(self) -> str:
        """What the operator says of itself: of a model, a checksum of its parameters."""
        return str(getattr(self.operator, "fingerprint", ""))

    def _compare(self, path: Path, fingerprint: list[float]) -> None:
        """See that the operator gives the first product that it gave."""
        first = torch.Generator()
        first.set_state(self.first_state)
        vector = _probe(self.operator, first)
        product = self.operator @ vector
        found = [
            float(vector.double() @ product.double()),
            float(torch.linalg.vector_norm(product, dtype=torch.float64)),
        ]
        allowed = math.sqrt(torch.finfo(vector.dtype).eps) * max(fingerprint[1], found[1])
        if not np.allclose(found, fingerprint, rtol=0, atol=allowed):
            raise ValueError(
                _refused(path, "the operator gives another product: other weights, data or mode")
            )


def _probe(operator: SymmetricOperator, generator: torch.Generator) -> Tensor:
    """A vector uniform on the unit sphere, the same on every device and rank."""
    vector = torch.randn(operator.dimension, generator=generator, dtype=torch.float64)
    vector = (vector / vector.norm()).to(operator.dtype).to(operator.device)
    broadcast: Callable[[Tensor], Tensor] | None = getattr(operator, "broadcast", None)
    return broadcast(vector) if broadcast is not None else vector


def _check_room(size: int, n: int, dtype: torch.dtype, device: torch.device) -> None:
    needed, free = size * n * torch.finfo(dtype).bits / 8, free_memory(device)
    if needed > free:
        raise SizeError(
            f"{size} vectors of {n:,} coordinates in {dtype} take {needed / 1e9:.3g} GB, and "
            f"{free / 1e9:.3g} GB are free on {device}: lower steps, probes or basis_size, store "
            'them in basis_dtype=torch.bfloat16, or elsewhere, as with basis_device="cpu"'
        )


def _first_rank() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def remove(path: Path) -> None:
    """Remove a checkpoint; of several ranks, the first one does."""
    if _first_rank():
        path.unlink(missing_ok=True)


def _tensors(run: Run) -> dict[str, Any]:
    return {
        name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for name, value in vars(run).items()
    }


def _run(state: dict[str, Any]) -> Run:
    arrays = {n: value.numpy() for n, value in state.items() if isinstance(value, Tensor)}
    return Run(**{**state, **arrays})


def _refused(path: Path, reason: str) -> str:
    return (
        f"the checkpoint {path} is of another call: {reason}. Remove the file to begin anew, or "
        "give another path"
    )
