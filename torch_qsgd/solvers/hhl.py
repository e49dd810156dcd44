r"""HHL, emulated exactly: phase estimation is a filter of the spectrum.

References:
    .. [Harrow2009hhl] A. W. Harrow, A. Hassidim and S. Lloyd. Quantum algorithm for linear systems
       of equations. Physical Review Letters 103, 150502, 2009. arXiv:0811.3171.
    .. [Buzek1999clocks] V. Bužek, R. Derka and S. Massar. Optimal quantum clocks. Physical Review
       Letters 82, 2207, 1999. The sine window.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.fft
import torch

from torch_qsgd.checks import require_flag, require_integer, require_number, require_one_of
from torch_qsgd.linear_system import LinearSystem, Vector, check_invertible, length, normalized
from torch_qsgd.solvers.base import Solution, Solver, solution_of, warn_of_kappa

#: Clock windows by name.
WINDOWS = ("sine", "uniform")
#: C = ROTATION/κ. With 1, the estimates of the smallest eigenvalue that fall below it, half of
#: them, are clipped, and the sine window's error falls by two a clock qubit, not by four. Of 1/2
#: and 3/4 the errors agree within a tenth once 0.45·2^t is eight times κ, and 3/4 succeeds more
#: often. What happens below C matters little then: the window's tails reach it too rarely.
ROTATION = 0.75
#: One eigenvalue's 2^20 amplitudes are 16 MiB.
MOST_CLOCK_QUBITS = 20
#: Unknowns of the largest dense eigenbasis.
MOST_UNKNOWNS = 4096
#: Complex amplitudes held at a time: 16 MiB, and as much again for their squares.
CHUNK = 2**20


@dataclass(frozen=True)
class Clock:
    r"""The clock register of HHL, and what its values mean.

    An eigenvalue λ ∈ [−1, 1] of the scaled matrix turns by the phase 2πλ·span each time
    :math:`U = e^{2\pi i\,span\,M}` is applied; the register's value, read as a two's complement
    integer k, stands for :math:`λ_k = k / (span · 2^t)`.

    Attributes:
        qubits: t.
        window: the register's initial state, ``"sine"`` or ``"uniform"``.
        span: the phase, in turns, of the eigenvalue 1: 0.45 with a guard band, 0.5 without.

    Example:
        >>> Clock(qubits=2, window="uniform", span=0.5).eigenvalues()
        array([ 0. ,  0.5, -1. , -0.5])
    """

    qubits: int
    window: str
    span: float

    @property
    def size(self) -> int:
        """2^t."""
        return int(2**self.qubits)

    def amplitudes(self) -> Vector:
        r"""The initial state, of shape (2^t,).

        :math:`2^{-t/2}`, or :math:`\sqrt{2/2^t} \sin(π(τ+½)/2^t)`.
        """
        if self.window == "uniform":
            return np.full(self.size, 1 / math.sqrt(self.size))
        sines: Vector = np.sin(np.pi * (np.arange(self.size) + 0.5) / self.size)
        return sines * math.sqrt(2 / self.size)

    def eigenvalues(self) -> Vector:
        """λ_k by the register's value, of shape (2^t,)."""
        return np.asarray(np.fft.fftfreq(self.size), dtype=np.float64) / self.span

    def sines(self, constant: float) -> Vector:
        """Amplitude of the ancilla's 1 by the register's value, of shape (2^t,).

        C/λ_k; its sign alone where |λ_k| < C, and 0 at k = 0, which has no sign.
        """
        eigenvalues = self.eigenvalues()
        sines = np.sign(eigenvalues)
        outside = np.abs(eigenvalues) >= constant
        sines[outside] = constant / eigenvalues[outside]
        return sines

    def filter(self, eigenvalues: Vector, constant: float) -> Vector:
        r"""What the whole circuit multiplies eigenvectors by.

        :math:`f(λ) = \sum_k |α_{k|λ}|^2 \sin θ_k` with :math:`α_{k|λ} = 2^{-t/2} \sum_τ w_τ
        e^{2πiτ(λ·span − k/2^t)}`, a Fourier transform of the window w.

        Args:
            eigenvalues: λ of the scaled matrix, of shape (D,).
            constant: C.

        Returns:
            f(λ), of shape (D,).

        Cost: D fast Fourier transforms of length 2^t, a few at a time.
        """
        window, sines = self.amplitudes() / math.sqrt(self.size), self.sines(constant)
        turns = 2j * np.pi * self.span * np.arange(self.size)
        filtered = np.empty(eigenvalues.size)
        rows = max(1, CHUNK // self.size)
        for start in range(0, eigenvalues.size, rows):
            part = slice(start, start + rows)
            alpha = np.multiply.outer(eigenvalues[part], turns)
            np.exp(alpha, out=alpha)
            alpha *= window
            alpha = scipy.fft.fft(alpha, overwrite_x=True)
            # Re² + Im², by rows of pairs, in place.
            pairs = alpha.view(np.float64)
            np.square(pairs, out=pairs)
            filtered[part] = pairs.reshape(-1, self.size, 2).sum(axis=-1) @ sines
        return filtered


class HHL(Solver):
    r"""Phase estimation, inverse eigenvalues as a rotation, and all of it undone.

    The matrix is scaled by its norm, M = ℒ/‖ℒ‖, or M = [[0, ℒ], [ℒᵀ, 0]]/‖ℒ‖ where ℒ is not
    symmetric. Post-selected on the ancilla's 1 and the clock's initial state, the circuit
    multiplies each eigenvector of M by

    .. math:: f(λ) = \sum_k |α_{k|λ}|^2 \frac{C}{λ_k} ≈ \frac{C}{λ},

    so :math:`x ≈ f(M) b / (C ‖ℒ‖)`. This is computed in the eigenbasis, without a circuit, and
    agrees with ``Circuit("hhl")`` to rounding. C = 3/(4κ).

    With K = 0.45·2^t/κ above 4, the sine window's relative error is about 0.25/K² where the
    solution is the smallest eigenvector (1/4 is the variance of the estimate k), usually 0.17/K²:
    a quarter a clock qubit. The uniform window's error halves. Without a guard band eigenvalues
    near 1 and −1 share their phases, and where both are there the error stalls.

    Args:
        clock_qubits: t, from 1 to 20.
        window: ``"sine"`` or ``"uniform"``.
        guard_band: keep phases within ±0.45 of a turn instead of ±0.5.
        kappa: the condition number that C = 0.75/kappa is set by; measured on each system by
            default. Smaller than the true one, it damps the eigenvectors below C; larger, it only
            lowers the success probability.

    Raises:
        ValueError: for no clock qubits or too many, an unknown window, κ ≤ 1, and what is no
            number where one is asked for.
        SingularSystemError: on solving a system without an inverse.
        SizeError: on solving more than 4096 unknowns; ``"qsvt"`` needs products only.

    Warns:
        ConditionWarning: on solving a system whose condition number is above ``kappa``.

    Cost: 2(2^t − 1) queries of :math:`e^{iMt_0/2^t}` or its inverse. Emulated: one
    eigendecomposition or singular value decomposition, and D transforms of length 2^t (or 2D).

    Source: [Harrow2009hhl]_; the window, [Buzek1999clocks]_.

    Example:
        >>> system = LinearSystem([[2.0, 1.0], [1.0, 3.0]], [1.0, -1.0])
        >>> solution = HHL(clock_qubits=8).solve(system)
        >>> solution.vector.round(3), solution.queries
        (array([ 0.8, -0.6]), 510)
    """

    name = "hhl"

    def __init__(
        self,
        clock_qubits: int = 10,
        window: str = "sine",
        guard_band: bool = True,
        kappa: float | None = None,
    ) -> None:
        clock_qubits = require_integer("clock_qubits", clock_qubits, 1, MOST_CLOCK_QUBITS)
        require_one_of("window", window, WINDOWS)
        guard_band = require_flag("guard_band", guard_band)
        if kappa is not None:
            kappa = require_number("kappa", kappa, 1, otherwise=", or None to measure it")
        self.clock = Clock(clock_qubits, window, 0.45 if guard_band else 0.5)
        self.kappa = kappa

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.clock}, kappa={self.kappa})"

    @property
    def largest(self) -> int:
        """4096: the eigenbasis is dense."""
        return MOST_UNKNOWNS

    @property
    def queries(self) -> int:
        """2(2^t − 1): phase estimation and its inverse."""
        return 2 * (self.clock.size - 1)

    def constant(self, condition_number: float) -> float:
        """C, given the system's own condition number, which a given κ overrides.

        Warns:
            ConditionWarning: where the given κ is the smaller one.
        """
        warn_of_kappa(
            self.kappa, condition_number, "eigenvectors below 0.75/kappa of the norm are damped"
        )
        return ROTATION / (condition_number if self.kappa is None else self.kappa)

    def _solve_linear(self, system: LinearSystem, generator: torch.Generator) -> Solution:
        matrix = system.dense(MOST_UNKNOWNS)
        _ = system.solution  # refused here where it over- or underflows
        state, scale = normalized(system.rhs)
        # Of M's eigenvalues only those of ℒ, or the positive half of ±σ: the sign is put back.
        if system.is_symmetric:
            values, right = np.linalg.eigh(matrix)
            left = right
        else:
            left, values, right_transposed = np.linalg.svd(matrix)
            right = right_transposed.T
        norm, smallest = float(np.abs(values).max()), float(np.abs(values).min())
        check_invertible(smallest, norm)
        constant = self.constant(norm / smallest)
        components = left.T @ state
        solved = self.clock.filter(values / norm, constant) * components
        kept = 0.0
        if not system.is_symmetric:
            # (u, ±v)/√2 are M's eigenvectors: v gets the odd part of f. The even part, which two's
            # complement's one unpaired value makes, stays with u, in the half that is not read.
            mirrored = self.clock.filter(-values / norm, constant) * components
            solved, kept = (
                (solved - mirrored) / 2,
                length(solved + mirrored) / 2,
            )
        vector = right @ solved
        return solution_of(
            system,
            vector / constant * (scale / norm),
            success_probability=float(vector @ vector) + kept**2,
            queries=self.queries,
        )
