"""How sure the share of negative eigenvalues is; shares and numbers of things in words."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]


def negative_mass_range(
    nodes: Array, weights: Array, exact: Flags, probes: int, resolution: float
) -> tuple[float, float]:
    r"""Between which shares of eigenvalues the negative mass lies.

    A Gauss quadrature with nodes :math:`θ_1 < θ_2 < …` bounds the distribution of the measure that
    it is of, by the inequalities of Chebyshev, Markov and Stieltjes:

    .. math:: \sum_{j<i} w_j \le F(x) \le \sum_{j \le i+1} w_j, \qquad θ_i < x < θ_{i+1}.

    At x = −resolution, the lower limit leaves out the nearest inexact node below x, and the upper
    one adds the nearest at or above it, and all that cannot be told from zero. Several runs have
    one such pair each. As their nodes lie in one list, the nearest ``probes`` inexact nodes on
    either side are taken: our definition, no theorem. Exact nodes are eigenvalues and stay on
    their side.

    The measure is the one that the random probes see. How far that differs from the eigenvalues'
    is not included: about :math:`\sqrt{2F(1-F)/n}` for one probe.

    Args:
        nodes, weights, exact: of shape (k,), as in :class:`.Spectrum`.
        probes: how many runs.
        resolution: an eigenvalue of this size or less cannot be told from zero.

    Returns:
        The lower and the upper limit, in [0, 1].

    Source: G. Szegő, Orthogonal Polynomials, AMS 1939, section 3.41; for several runs, ours.

    Example:
        >>> nodes, weights = np.array([-5.0, -1.0, 0.5, 3.0]), np.array([1, 2, 4, 1]) / 8
        >>> exact = np.array([True, False, False, False])
        >>> negative_mass_range(nodes, weights, exact, probes=1, resolution=0.0)
        (0.125, 0.875)
    """
    negative = nodes < -resolution
    below = np.flatnonzero(negative & ~exact)[-probes:]
    above = np.flatnonzero(~negative & ~exact)[:probes]
    sure, possible = negative.copy(), nodes <= resolution
    sure[below] = False
    possible[above] = True
    low, high = (float(min(weights[part].sum(), 1.0)) for part in (sure, possible))
    return low, high


def percent(share: float) -> str:
    """A share in per cent, without its sign, to two significant digits.

    Example:
        >>> percent(0.3402), percent(0.999), percent(0.000123)
        ('34', '100', '0.012')
    """
    return f"{100 * share:.2g}" if share < 0.995 else f"{100 * share:.0f}"


def with_range(share: float, limits: tuple[float, float]) -> str:
    """A share and its limits in per cent; one number where all print the same.

    Example:
        >>> with_range(0.26, (0.12, 0.41)), with_range(0.25, (0.25, 0.25))
        ('26 % (12 to 41 %)', '25 %')
    """
    one, both = f"{percent(share)} %", percent_range(limits)
    return one if one == both else f"{one} ({both})"


def counted(number: int, thing: str, things: str = "") -> str:
    """So many things.

    Example:
        >>> counted(1, "step"), counted(1200, "step"), counted(0, "batch", "batches")
        ('1 step', '1,200 steps', '0 batches')
    """
    return f"{number:,} {thing if number == 1 else things or thing + 's'}"


def percent_range(limits: tuple[float, float]) -> str:
    """Two shares in per cent; one number where they print the same.

    Example:
        >>> percent_range((0.12, 0.41)), percent_range((0.25, 0.25))
        ('12 to 41 %', '25 %')
    """
    low, high = map(percent, limits)
    return f"{low} %" if low == high else f"{low} to {high} %"
