"""HHL and QSVT as circuits that Aer runs, exactly or by sampled shots.

Qiskit is imported when a circuit is built, not before.
"""

from __future__ import annotations

import importlib.util
import inspect
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from torch_qsgd.checks import require_integer, require_one_of
from torch_qsgd.errors import SizeError
from torch_qsgd.linear_system import LinearSystem, Vector, length
from torch_qsgd.solvers.base import (
    ConditionWarning,
    Solution,
    Solver,
    numpy_generator,
    solution_of,
)
from torch_qsgd.solvers.hhl import HHL
from torch_qsgd.solvers.qsvt import QSVT

if TYPE_CHECKING:
    from qiskit import QuantumCircuit

    from torch_qsgd.solvers.circuit_program import Program

#: The largest system register: padded to a power of two, and dilated for HHL where not symmetric.
MOST_SYSTEM_QUBITS = 7
#: The largest circuit: 2^20 amplitudes, which a few hundred dense gates pass over.
MOST_QUBITS = 20
#: The largest clock: its 2^t angles alone, all of them controlled, take seconds from here on.
MOST_CLOCK_QUBITS = 12
#: Aer keeps each shot: these take minutes.
MOST_SHOTS = 10**8


class Circuit(Solver):
    r"""A quantum linear solver run gate by gate.

    Without ``shots`` the statevector is read, and the solution agrees with the emulator of the
    same algorithm to rounding. With ``shots``, three circuits are run and measured so often each:

    1. On b. Of the shots that pass the post-selection, the share that shows i is
       :math:`x_i^2 / \|x\|^2`; the share that passes gives :math:`\|x\|`.
    2. On b + ℒr and on b − ℒr, with :math:`r_i = |x_i|` from the first run. The circuit acts
       linearly on its right-hand side, so their solutions are x ± r: where :math:`x_i` is
       positive it shows up in the first and cancels in the second, and the other way around.
       Each run's amplitudes are scaled by its own :math:`\|b ± ℒr\|` before they are compared.
       These right-hand sides may be κ times as long as b, so fewer shots pass: at worst
       :math:`C^2` of them with HHL, and perhaps none. An unknown that shows up as often in both,
       mostly in neither, is left at zero: a guessed sign is wrong by :math:`2|x_i|` half of the
       time.

    Args:
        algorithm: ``"hhl"`` or ``"qsvt"``.
        shots: how often each circuit is measured, 10⁸ times at most; ``None`` for the
            statevector.
        options: as in :class:`HHL` (``clock_qubits``, here 6 by default and 12 at most;
            ``window``, ``guard_band``, ``kappa``) or
            :class:`QSVT` (``epsilon``, ``kind``, ``kappa``, ...).

    Raises:
        ImportError: without Qiskit and Aer.
        ValueError: for an unknown algorithm, a number of shots or an option out of its range.
        TypeError: for an option that the algorithm does not have.
        SizeError: for more than 12 clock qubits; on solving a system of more than 7 qubits (HHL:
            128 unknowns, 64 where ℒ is not symmetric), or with more than 20 qubits in all.
        SingularSystemError: on solving a system without an inverse.
        RuntimeError: where no shot on b passes the post-selection.

    Warns:
        ConditionWarning: as the algorithm does, once a solve.

    Cost: the statevector of a circuit that ``gate_counts`` describes; with shots three of them.
    ``queries`` and ``success_probability`` are those of one run on b.

    Source: the algorithms', see :class:`HHL` and :class:`QSVT`; signs by interference with a
    reference, arXiv:1808.09266.

    Example:
        >>> system = LinearSystem([[2.0, 1.0], [1.0, 3.0]], [1.0, -1.0])
        >>> Circuit("hhl", clock_qubits=7).solve(system).vector.round(2)
        array([ 0.8, -0.6])
        >>> Circuit("hhl", shots=100_000).solve(system).vector.round(1)
        array([ 0.8, -0.6])
    """

    name = "circuit"

    def __init__(self, algorithm: str = "hhl", shots: int | None = None, **options: Any) -> None:
        require_one_of("algorithm", algorithm, ("hhl", "qsvt"))
        if shots is not None:
            shots = require_integer("shots", shots, 1, MOST_SHOTS)
        emulator: type[HHL | QSVT] = HHL if algorithm == "hhl" else QSVT
        known = list(inspect.signature(emulator).parameters)
        for option in options:
            if option not in known:
                raise TypeError(
                    f"{algorithm!r} has no option {option!r}; it has: {', '.join(known)}"
                )
        require_qiskit()
        if algorithm == "hhl":
            options = {"clock_qubits": 6, **options}
        self.algorithm = algorithm
        self.shots = shots
        self.emulator: HHL | QSVT = emulator(**options)
        if self._clock_qubits > MOST_CLOCK_QUBITS:
            raise SizeError(
                f"circuits are simulated up to {MOST_CLOCK_QUBITS} clock_qubits, got "
                f"{self._clock_qubits}: use fewer, or the emulator HHL(clock_qubits="
                f"{self._clock_qubits}), solver 'hhl', which gives the same solution"
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.emulator!r}, shots={self.shots})"

    @property
    def largest(self) -> int:
        """The most unknowns of a system without symmetry, which HHL dilates by a qubit.

        128 for QSVT, 64 for HHL, and fewer where the clock leaves fewer of all qubits.
        """
        return int(2 ** (self._most_qubits - (self.algorithm == "hhl")))

    @property
    def _clock_qubits(self) -> int:
        return self.emulator.clock.qubits if isinstance(self.emulator, HHL) else 0

    @property
    def _most_qubits(self) -> int:
        """Of the system register: beside it are the clock and one ancilla, or QSVT's two."""
        others = self._clock_qubits + 1 if self.algorithm == "hhl" else 2
        return min(MOST_SYSTEM_QUBITS, MOST_QUBITS - others)

    def program(self, system: LinearSystem) -> Program:
        """The circuit for a system, with which qubits to read and to post-select.

        Raises:
            SizeError: for a system too large to simulate, before anything is built.

        Example:
            >>> program = Circuit("hhl").program(LinearSystem([[2.0, 0.0], [0.0, 1.0]], [1.0, 1.0]))
            >>> program.system, program.postselect[7]
            ((0,), 1)
        """
        require_qiskit()
        self._check_size(system)
        if isinstance(self.emulator, HHL):
            from torch_qsgd.solvers.hhl_circuit import hhl_program

            return hhl_program(system, self.emulator)
        from torch_qsgd.solvers.qsvt_circuit import qsvt_program

        return qsvt_program(system, self.emulator)

    def to_qiskit(self, system: LinearSystem) -> QuantumCircuit:
        """The circuit for a system, without measurements; see :meth:`program` for its qubits.

        Example:
            >>> system = LinearSystem([[2.0, 0.0], [0.0, 1.0]], [1.0, 1.0])
            >>> Circuit("hhl", clock_qubits=4).to_qiskit(system).num_qubits
            6
        """
        return self.program(system).circuit

    def gate_counts(self, system: LinearSystem) -> dict[str, int]:
        """How many ``u`` and ``cx`` gates the circuit takes, its dense gates synthesised.

        The dense gates stand for block encodings or Hamiltonian simulation of a matrix without
        structure; a structured one would take fewer.

        Cost: synthesis, of about 4^n gates for each dense gate on n qubits.

        Example:
            >>> system = LinearSystem([[2.0, 0.0], [0.0, 1.0]], [1.0, 1.0])
            >>> sorted(Circuit("hhl", clock_qubits=2).gate_counts(system))
            ['cx', 'u']
        """
        circuit = self.to_qiskit(system)
        from qiskit import transpile

        counts = transpile(circuit, basis_gates=["u", "cx"], optimization_level=1).count_ops()
        return {str(name): int(count) for name, count in counts.items()}

    def _solve_linear(self, system: LinearSystem, generator: torch.Generator) -> Solution:
        self._check_size(system)
        _ = system.solution  # refused here where it over- or underflows
        program = self.program(system)
        if self.shots is None:
            from torch_qsgd.solvers.circuit_program import amplitudes

            state, success = amplitudes(program)
            read = state[program.offset : program.offset + program.size]
            vector = np.real(program.factor * read)
        else:
            random = numpy_generator(generator)
            vector, success = self._sample(program, random)
            if not vector.any():
                expected = length(system.solution / abs(program.factor)) ** 2
                raise RuntimeError(
                    f"none of the {self.shots:,} shots passed the post-selection, whose "
                    f"probability is about {expected:.1e}: use shots={100 / expected:.0e} or more, "
                    "or shots=None"
                )
            vector *= np.sign(self._interference(system, vector, random))
        return solution_of(system, vector, success, program.queries)

    def _interference(
        self, system: LinearSystem, reference: Vector, random: np.random.Generator
    ) -> Vector:
        """|x + r| − |x − r| by measurement, whose signs are those of x."""
        image = system.operator.matvec(reference)
        difference = np.zeros(system.size)
        for sign in (1, -1):
            rhs = system.rhs + sign * image
            if rhs.any():  # else r = ∓x exactly, and the other run shows it all
                shifted = LinearSystem(system.dense(), rhs)
                with warnings.catch_warnings():
                    # The run on b has warned already.
                    warnings.simplefilter("ignore", ConditionWarning)
                    program = self.program(shifted)
                difference += sign * self._sample(program, random)[0]
        return difference

    def _sample(self, program: Program, random: np.random.Generator) -> tuple[Vector, float]:
        """Measure the circuit; |x_i| and the share of shots that passed the post-selection.

        It may be that none does: x is then zero, as far as these shots can tell.
        """
        assert self.shots is not None
        counts, passed = _measured(program, self.shots, int(random.integers(2**31)))
        return abs(program.factor) * np.sqrt(counts / self.shots), passed / self.shots

    def _check_size(self, system: LinearSystem) -> None:
        qubits, most = max(1, (system.size - 1).bit_length()), self._most_qubits
        if self.algorithm == "hhl" and qubits <= most:
            qubits += not system.is_symmetric
        if qubits > most:
            clock = f" beside {self._clock_qubits} of the clock" if self._clock_qubits else ""
            raise SizeError(
                f"{system.size:,} unknowns need {qubits} system qubits, and circuits are simulated "
                f"up to {most}{clock}: use the emulators 'hhl' (up to 4,096 unknowns) or 'qsvt', "
                "which give the same solution"
            )


def require_qiskit() -> None:
    """Say how to install Qiskit and Aer where they are missing.

    Raises:
        ImportError: where one of them is.
    """
    for package in ("qiskit", "qiskit_aer"):
        if importlib.util.find_spec(package) is None:
            raise ImportError(
                f"circuits need {package}, which is not installed: "
                'pip install "torch_qsgd[quantum]"'
            )


def _measured(program: Program, shots: int, seed: int) -> tuple[Vector, int]:
    """How often each unknown's basis state was found, and how many shots passed."""
    from qiskit import ClassicalRegister, transpile
    from qiskit_aer import AerSimulator

    measured = [*program.system, *program.postselect]
    circuit = program.circuit.copy()
    register = ClassicalRegister(len(measured))
    circuit.add_register(register)
    circuit.measure(measured, register)
    simulator = AerSimulator(method="statevector")
    circuit = transpile(circuit, simulator, optimization_level=0)
    result = simulator.run(circuit, shots=shots, seed_simulator=seed).result()
    if not result.success:
        raise RuntimeError(f"Aer could not run the circuit: {result.status}")

    width = len(program.system)
    wanted = sum(value << bit for bit, value in enumerate(program.postselect.values()))
    counts = np.zeros(2**width)
    for outcome, count in result.get_counts().items():
        value = int(outcome, 2)
        if value >> width == wanted:
            counts[value & (2**width - 1)] += count
    return counts[program.offset : program.offset + program.size], int(counts.sum())
