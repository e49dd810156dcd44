r"""How many entries a row of the Hessian has: measured on random rows, for nobody knows it.

Row i is the product with the i-th unit vector. Entries that are zero in exact arithmetic mostly
come out as zeros; some come out as rounding. On convolutional, residual and attention networks in
float32 a product's error was at most 1e-6 to 6e-6 of its largest entry, 10 to 50 units of rounding,
and 4e-7 where the entry is zero in exact arithmetic; so an entry counts above 32 units of rounding
of its row's largest. Smaller ones that are true are lost: at most one in a thousand there, but
nearly all of a row of ones beside a diagonal of 1e6. ``unresolved`` counts what lies between zero
and the cutoff, rounding or not; in float64 there is less of it.

A row may be rounding as a whole, as that of a bias before a batch normalisation. It lies far below
the other rows, but a true row may, too. They are told apart by symmetry: with a random vector r,
:math:`\langle H e_i, r\rangle` is :math:`(Hr)_i`, which rounding is not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from torch_qsgd.auditing.run import Tick
from torch_qsgd.checks import checked_generator, require_integer
from torch_qsgd.hessian.thick_restart import SymmetricOperator
from torch_qsgd.report.measurements import RowSparsity

#: Units of rounding, relative to the largest entry, up to which an entry counts as rounding.
_UNITS = 32.0
#: Share of a row's squared length that its effective entries hold.
_HELD = 0.99
#: Relative gap up to which a small row agrees with the product with a random vector.
_AGREES = 0.1
#: Numbers that the unit vectors of one product may take.
_BLOCK = 1 << 25


def probe_rows(
    operator: SymmetricOperator,
    *,
    rows: int = 16,
    generator: torch.Generator | None = None,
    tick: Tick = lambda done, total: None,
) -> RowSparsity:
    """Count the non-zeros of random rows of a symmetric matrix.

    Args:
        operator: a :class:`~torch_qsgd.hessian.HessianOperator`, restricted to active coordinates
            by its masks, in float32 or float64; or any symmetric matrix with ``dimension``,
            ``dtype``, ``device`` and a product with matrices of shape (n, k). The cutoff is that
            of ``dtype``: a model that computes in half precision has more rounding than that.
        rows: how many different ones, at least 1; all n where there are fewer.
        generator: of the choice, on the CPU; by default one with seed 0.
        tick: told how many rows are done, of how many.

    Returns:
        Non-zeros of each row, the fewest entries that hold 99 % of its squared length, and the
        largest entry met. Rows of zeros, as of dead units, have none; all entries of a row that is
        rounding as a whole are unresolved. Rows that were not probed may be longer: see
        :func:`largest_row` and :func:`unseen_share`.

    Raises:
        ValueError: for ``rows`` below 1.
        TypeError: for a generator that is none.
        DivergenceError: where a product is NaN or infinite.

    Cost: ``rows`` products, and one more where a row may be rounding; memory for a few vectors,
    and for 2²⁵ numbers or one vector, twice.

    Source: ours.

    Example:
        >>> from torch_qsgd.hessian import HessianOperator
        >>> model = torch.nn.Linear(3, 1, bias=False)
        >>> data = torch.eye(3), torch.zeros(3, 1)  # a diagonal Hessian
        >>> found = probe_rows(HessianOperator(model, torch.nn.functional.mse_loss, data))
        >>> found.dimension, found.nonzeros, found.effective
        (3, [1, 1, 1], [1, 1, 1])
    """
    generator = checked_generator(generator)
    n = operator.dimension
    count = min(require_integer("rows", rows, 1), n)
    cutoff = _UNITS * torch.finfo(operator.dtype).eps
    chosen = torch.randperm(n, generator=generator)[:count].to(operator.device)
    drawn = torch.randn(n, generator=generator, dtype=operator.dtype).to(operator.device)
    nonzeros, effective, unresolved, largest, along = [], [], [], [], []
    width = max(1, _BLOCK // n)
    for part in chosen.split(width):
        units = torch.zeros(n, len(part), dtype=operator.dtype, device=operator.device)
        units[part, torch.arange(len(part), device=operator.device)] = 1
        products = operator @ units
        del units
        for row in products.unbind(1):
            top = float(row.abs().max())
            nonzeros.append(int((row.abs() > cutoff * top).sum()))
            effective.append(_effective(row, top))
            unresolved.append(int((row != 0).sum()) - nonzeros[-1])
            largest.append(top)
            along.append(float(torch.dot(row, drawn)))
            tick(len(nonzeros), count)
    small = [i for i, top in enumerate(largest) if 0 < top < cutoff * max(largest)]
    if small:
        product = operator @ drawn
        for i in small:
            if abs(float(product[chosen[i]]) - along[i]) > _AGREES * abs(along[i]):
                unresolved[i] += nonzeros[i]
                nonzeros[i] = effective[i] = 0
    return RowSparsity(n, count, nonzeros, effective, cutoff, max(largest), unresolved)


def _effective(row: Tensor, top: float) -> int:
    """The fewest entries that hold 99 % of the squared length."""
    if top == 0:
        return 0
    squares = (row.double() / top).square().sort(descending=True).values
    held = squares.cumsum(0)
    return int((held < _HELD * held[-1]).sum()) + 1


def mean_nonzeros(found: RowSparsity) -> tuple[float, float]:
    """Mean number of non-zeros of all n rows, and its standard error.

    Args:
        found: by :func:`probe_rows`.

    Returns:
        See :func:`mean_of_sample`.

    Example:
        >>> mean_nonzeros(RowSparsity(3, 3, [1, 2, 3], [1, 1, 1], 1e-12, 5.0, [0, 0, 0]))
        (2.0, 0.0)
    """
    return mean_of_sample(found.nonzeros, found.dimension)


def largest_row(found: RowSparsity) -> int:
    """The most non-zeros of a row met, which access to a sparse matrix is built for.

    A lower bound of the most of all n rows: a single full row is likely to be missed, and
    :func:`unseen_share` says how many longer ones there may be.

    Args:
        found: by :func:`probe_rows`.

    Returns:
        d ≥ 0.

    Example:
        >>> largest_row(RowSparsity(9, 3, [1, 4, 3], [1, 1, 1], 1e-12, 5.0, [0, 2, 4]))
        4
    """
    return max(found.nonzeros)


def unseen_share(found: RowSparsity) -> float:
    r"""The share of rows that may be longer than the longest met, with 95 % confidence.

    .. math:: p = 1 - 0.05^{1/m}

    about 3/m for m rows probed of n: if more were longer, m random rows would miss them all with
    less than 5 % probability. 0 where all rows were probed.

    Args:
        found: by :func:`probe_rows`.

    Returns:
        0 ≤ p < 1. Of how long those rows are, nothing is known but n.

    Source: S. S. Wilks, Annals of Mathematical Statistics 12, 91 (1941), one-sided tolerance
    limits by order statistics; drawing without replacement makes p smaller still.

    Example:
        >>> round(unseen_share(RowSparsity(99, 3, [1, 4, 3], [1] * 3, 1e-12, 5.0, [0] * 3)), 3)
        0.632
    """
    return 0.0 if found.rows == found.dimension else 1 - 0.05 ** (1 / found.rows)


def mean_of_sample(values: Sequence[float], population: int) -> tuple[float, float]:
    r"""Mean of a population, from a sample without replacement, and its standard error.

    .. math::
        \bar x = \frac1m \sum_i x_i, \qquad
        \sqrt{\frac{1}{m (m - 1)} \sum_i (x_i - \bar x)^2 \Bigl(1 - \frac mn\Bigr)}

    Args:
        values: x, m of them, at least 1.
        population: n, at least m.

    Returns:
        Both; the error is 0 where the sample is the population, else infinite for m = 1.

    Raises:
        ValueError: for no value, or a population smaller than the sample.

    Source: W. G. Cochran, Sampling Techniques, 3rd edition, Wiley 1977, chapter 2.

    Example:
        >>> mean_of_sample([1.0, 3.0], 4)
        (2.0, 0.7071067811865476)
    """
    m = len(values)
    n = require_integer("population", population, max(m, 1))
    if m == 0:
        raise ValueError("values is empty: a mean needs at least one")
    mean = math.fsum(values) / m
    if m == n:
        return mean, 0.0
    if m == 1:
        return mean, math.inf
    variance = math.fsum((x - mean) ** 2 for x in values) / (m - 1)
    return mean, math.sqrt(variance / m * (1 - m / n))
