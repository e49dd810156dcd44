r"""Phases of quantum signal processing, found directly, without iteration.

Convention: with :math:`W(x) = e^{i \arccos(x) X}` and phases :math:`\psi_0 … \psi_d`,

.. math:: U(x) = e^{i\psi_0 Z} W(x) e^{i\psi_1 Z} W(x) … W(x) e^{i\psi_d Z},
   \qquad f(x) = \operatorname{Im} \langle 0 | U(x) | 0 \rangle,

and the phases are symmetric, :math:`\psi_k = \psi_{d-k}`.

In the Hadamard basis, and with z = e^{2iθ}, x = cos θ, U is a product of rotations with entries
i tan(ψ_k) z^k: a nonlinear Fourier transform, as [Alexis2023]_ noticed. Its off-diagonal entry b is
i times the polynomial β(z) = Σ β_k z^k with f(cos θ) = Σ β_k cos((d − 2k)θ). Its diagonal entry is
the α(z) with |α|² + |β|² = 1 on the circle and no zero inside, which one logarithm and three
Fourier transforms give [Alexis2024]_. Then α(0) and β(0) tell the first phase, whose rotation is
undone; and so on ("layer stripping", stable for this α [Ni2025]_). Symmetry spares half of the
phases, and causality, since the first m + 1 phases depend on the first m + 1 coefficients only,
half of the coefficients.

.. [Alexis2023] M. Alexis, G. Mnatsakanyan and C. Thiele, Quantum signal processing and nonlinear
   Fourier analysis, Revista Matemática Complutense (2024), doi:10.1007/s13163-024-00494-5.
.. [Alexis2024] M. Alexis, L. Lin, G. Mnatsakanyan, C. Thiele and J. Wang, Infinite quantum signal
   processing for arbitrary Szegő functions, arXiv:2407.05634.
.. [Ni2025] H. Ni, R. Sarkar, L. Ying and L. Lin, Inverse nonlinear fast Fourier transform on SU(2)
   with applications to quantum signal processing, arXiv:2505.12615.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.fft
from numpy.typing import ArrayLike, NDArray

from torch_qsgd.checks import require_integer
from torch_qsgd.linear_system import real_array

Values = NDArray[np.float64]

#: The longest Fourier transform tried.
LONGEST = 2**23

#: How far α may be from a polynomial of degree d, and the phases from two identities of theirs.
TOLERANCE = 1e-11


class PhaseError(ArithmeticError):
    """Phases could not be found in double precision; the message says what to change."""


def symmetric_phases(coefficients: ArrayLike, parity: int) -> Values:
    r"""Symmetric phases with :math:`\operatorname{Im}\langle 0|U(x)|0\rangle = f(x)`.

    Here :math:`f(x) = \sum_j c_j T_{2j + parity}(x)`, and U is that of the module's text.

    Args:
        coefficients: c, real, of shape (m,), m ≥ 1; the degree is d = 2(m − 1) + parity.
        parity: 0 for an even f, 1 for an odd f.

    Returns:
        Phases in (−π/2, π/2), of shape (d + 1,).

    Raises:
        ValueError: where |f| reaches 1 on [−1, 1]; for an empty or infinite c; for another
            parity.
        TypeError: for a c that is not real.
        PhaseError: where |f| comes so close to 1 that the transforms grow too long.

    Cost: d²/2 multiplications in d/2 vectorised steps, and Fourier transforms of a length of about
    35/δ, where δ is the distance of the zeros of 1 − f² from the circle |z| = 1.

    Source: the module's references.

    Example:
        >>> phases = symmetric_phases([0.5, 0.2], parity=1)  # f = 0.5 T_1 + 0.2 T_3
        >>> phases.shape, round(float(qsp_value(phases, 0.3).imag), 12)
        ((4,), -0.0084)
    """
    c = real_array("the vector of coefficients", coefficients)
    if c.ndim != 1 or not c.size:
        raise ValueError(f"coefficients must be a vector, and not empty: got shape {c.shape}")
    parity = require_integer("parity", parity, 0, 1)
    degree = 2 * (c.size - 1) + parity
    half = c / 2
    if parity:
        beta = np.concatenate([half[::-1], half])
    else:
        beta = np.concatenate([half[:0:-1], [c[0]], half[1:]])
    alpha = _complement(beta)
    kept = degree // 2 + 1
    first = _strip(alpha[:kept].copy(), beta[:kept].copy())
    phases = np.concatenate([first, first[kept - 2 + parity :: -1]]) if degree else first
    # W(1) = 1 makes U(1) = exp(iZ Σψ); and α(0) is the product of all cosines.
    misfit = abs(math.sin(phases.sum()) - c.sum()), abs(np.cos(phases).prod() - alpha[0])
    if not max(misfit) <= TOLERANCE * math.sqrt(degree + 1):
        raise PhaseError(
            f"the phases miss their polynomial by {max(misfit):.1e}: {_ADVICE}, or lower its degree"
        )
    return phases


def qsp_value(phases: ArrayLike, x: ArrayLike) -> NDArray[np.complex128]:
    r""":math:`\langle 0|U(x)|0\rangle` by multiplying out the 2×2 matrices.

    Args:
        phases: ψ, of shape (d + 1,).
        x: in [−1, 1], of any shape.

    Returns:
        Complex values of x's shape.

    Raises:
        ValueError: for x outside [−1, 1], or no phases.
        TypeError: for what is not real.

    Cost: d products of a 2×2 matrix with a vector for each x.

    Example:
        >>> complex(qsp_value([0.0, 0.0, 0.0], 0.0))  # T_2
        (-1+0j)
    """
    x = real_array("x", x)
    psi = real_array("the vector of phases", phases)
    if psi.ndim != 1 or not psi.size:
        raise ValueError(f"phases must be a vector, and not empty: got shape {psi.shape}")
    if not (np.abs(x) <= 1).all():
        raise ValueError("x must lie in [-1, 1]")
    off = 1j * np.sqrt((1 - x) * (1 + x))
    turns = np.exp(1j * psi)
    # The row ⟨0|U, built from the left.
    left = np.full(x.shape, turns[0])
    right = np.zeros(x.shape, dtype=np.complex128)
    for turn in turns[1:]:
        left, right = (left * x + right * off) * turn, (left * off + right * x) / turn
    return np.asarray(left)


_ADVICE = "scale the polynomial down, so that its absolute value stays further below 1"


def _complement(beta: Values) -> Values:
    """The coefficients of α, of β's shape: |α|² + |β|² = 1 on |z| = 1, no zero in |z| ≤ 1.

    log α is analytic in the disc and has the real part log(1 − |β|²)/2 on the circle: its Taylor
    coefficients are that function's Fourier coefficients, twice those from 1 on.
    """
    length = 8 * scipy.fft.next_fast_len(beta.size, real=True)
    while length <= LONGEST:
        square = np.abs(scipy.fft.rfft(beta, length)) ** 2
        if not square.max() < 1:
            raise ValueError(
                f"the polynomial reaches {math.sqrt(square.max()):.6g} on [-1, 1], and no phases "
                f"exist from 1 on: {_ADVICE}"
            )
        fourier = scipy.fft.irfft(np.log1p(-square) / 2, length)
        fourier[1 : length // 2] *= 2
        fourier[length // 2 + 1 :] = 0
        alpha = scipy.fft.irfft(np.exp(scipy.fft.rfft(fourier)), length)
        # Aliasing shows where the polynomial α has no coefficients.
        if np.abs(alpha[beta.size :]).max() <= TOLERANCE / 100:
            return np.asarray(alpha[: beta.size])
        length *= 2
    raise PhaseError(f"the polynomial comes too close to 1 on [-1, 1]: {_ADVICE}")


def _strip(alpha: Values, beta: Values) -> Values:
    """As many phases as coefficients are given, which are used up."""
    phases = np.empty(beta.size)
    spare = np.empty_like(beta)
    for k in range(beta.size):
        size = beta.size - 1
        tangent = beta[0] / alpha[0]
        phases[k] = math.atan(tangent)
        cosine = 1 / math.hypot(1, tangent)
        sine = tangent * cosine
        # (α, β) ← (cα + sβ, (cβ − sα)/z), in place: the arrays only move on by one.
        rotated = np.multiply(alpha[1 : size + 1], sine, out=spare[:size])
        alpha[:size] *= cosine
        alpha[:size] += sine * beta[:size]
        beta[1:] *= cosine
        beta[1:] -= rotated
        beta = beta[1:]
    return phases
