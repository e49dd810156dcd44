"""The spectrum of a Hessian: where its eigenvalues lie, how sure that is, what follows from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from torch_qsgd.checks import require_integer, require_number
from torch_qsgd.files import load_json, save_json
from torch_qsgd.hessian import dissipativity, masses
from torch_qsgd.hessian.dissipativity import ErrorProxy
from torch_qsgd.hessian.masses import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

_FORMAT = "torch_qsgd.Spectrum"
_VERSION = 1
_ROUNDING = 1e-8  # of the weights' sum
_CHUNK = 1 << 20  # numbers held at once while a density is evaluated
_NAMES = {"hessian": "Hessian", "ggn": "Gauss–Newton matrix"}
_ARRAYS = ("nodes", "weights", "exact")
_COUNTS = {"dimension": 1, "products": 0, "steps": 0, "probes": 0}
_ERRORS = ("lambda_min_bound", "lambda_max_bound", "trace_error")


@dataclass(frozen=True, eq=False, repr=False)
class Spectrum:
    r"""Eigenvalues of a symmetric matrix of dimension n, as a weighted list of numbers.

    .. math:: \frac1n \sum_{j=1}^n f(λ_j) \approx \sum_{i=1}^k w_i \, f(x_i)

    Eigenvalues have the unit of loss per squared weight. Attributes cannot be changed; arrays are
    read-only.

    Attributes:
        nodes: x, of shape (k,), float64, ascending.
        weights: w, of shape (k,), float64, at least 0, with sum 1: the node's share of the n
            eigenvalues.
        exact: bool, of shape (k,); True for a node that has converged: an eigenvalue, with its
            exact mass 1/n. "Exact" and "converged" mean the same.
        dimension: n, the active coordinates.
        lambda_min, lambda_min_bound: the least eigenvalue found; one lies within ± the bound.
        lambda_max, lambda_max_bound: the largest one found, likewise.
        trace, trace_error: estimate of the sum of all eigenvalues, and its standard error. Bounds
            and errors are ``math.inf`` where they are not known.
        resolution: an eigenvalue of this size or less cannot be told from zero.
        products: matrix–vector products spent.
        steps, probes: of the Lanczos runs, and how many runs.
        seconds: wall time.
        kind: ``"hessian"`` or ``"ggn"``.

    Raises:
        ValueError: for arrays of different lengths, NaN or infinity, nodes out of order, weights
            that do not sum to 1, and numbers outside what is allowed.

    Example:
        >>> spectrum = Spectrum(
        ...     nodes=[-1.0, 0.0, 8.0], weights=[0.25, 0.5, 0.25], exact=[True, False, True],
        ...     dimension=4, lambda_min=-1.0, lambda_min_bound=1e-6, lambda_max=8.0,
        ...     lambda_max_bound=1e-5, trace=7.0, trace_error=0.5, resolution=1e-7,
        ...     products=12, steps=4, probes=3, seconds=0.25, kind="hessian",
        ... )
        >>> spectrum
        Spectrum of a Hessian, dimension 4
          eigenvalues     -1 ± 1e-06  to  8 ± 1e-05
          trace           7 ± 0.5
          negative mass   25 % (25 to 75 %), below -1e-07
          effective rank  1.417
          nodes           3, of them 2 converged eigenvalues
          cost            12 products (3 probes of 4 steps), 0.25 s
        >>> spectrum.best_window(lr=0.1)
        2
        >>> spectrum.cdf([-2.0, 0.0, 9.0])
        array([0.  , 0.75, 1.  ])
    """

    nodes: Array
    weights: Array
    exact: NDArray[np.bool_]
    dimension: int
    lambda_min: float
    lambda_min_bound: float
    lambda_max: float
    lambda_max_bound: float
    trace: float
    trace_error: float
    resolution: float
    products: int
    steps: int
    probes: int
    seconds: float
    kind: str

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {
            "nodes": _array("nodes", self.nodes),
            "weights": _array("weights", self.weights),
            "exact": _flags(self.exact),
        }
        lengths = {len(array) for array in checked.values()}
        if len(lengths) != 1 or 0 in lengths:
            given = ", ".join(f"{len(array)} {name}" for name, array in checked.items())
            raise ValueError(
                f"nodes, weights and exact must have one length, at least 1: got {given}"
            )
        nodes, weights = checked["nodes"], checked["weights"]
        if (np.diff(nodes) < 0).any():
            raise ValueError("nodes must ascend: sort them, and weights and exact with them")
        if (weights < 0).any() or abs(weights.sum() - 1) > _ROUNDING:
            raise ValueError(
                "weights must be at least 0 and sum to 1: the least is "
                f"{weights.min():g}, the sum {weights.sum():.12g}"
            )
        for array in checked.values():
            array.setflags(write=False)
        for name, least in _COUNTS.items():
            checked[name] = require_integer(name, getattr(self, name), least)
        for name in ("lambda_min", "lambda_max", "trace"):
            checked[name] = require_number(name, getattr(self, name), -math.inf)
        for name in (*_ERRORS, "resolution", "seconds"):
            checked[name] = _size(name, getattr(self, name), unknown=name in _ERRORS)
        if checked["lambda_min"] > checked["lambda_max"]:
            raise ValueError(
                f"lambda_min = {self.lambda_min:g} lies above lambda_max = {self.lambda_max:g}"
            )
        if not isinstance(self.kind, str):
            raise ValueError(f"kind must be a name, got {self.kind!r}")
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    # ---- Where the eigenvalues lie -------------------------------------------------------------

    @property
    def default_width(self) -> float:
        """The width that :meth:`density` takes by default.

        A fortieth of the range that holds the middle nine tenths of the mass, so that outliers
        do not widen it; where that is a point, a hundredth of the largest |λ|, and 1 where all
        eigenvalues are zero.
        """
        mass = np.cumsum(self.weights)
        low, high = np.searchsorted(mass, [0.05 * mass[-1], 0.95 * mass[-1]])
        spread = float(self.nodes[high] - self.nodes[low])
        largest = float(np.abs(self.nodes).max())
        if spread > 40 * self.resolution and math.isfinite(spread):
            return spread / 40
        return largest / 100 or 1.0

    def density(self, grid: ArrayLike, width: float | None = None) -> Array:
        r"""Share of eigenvalues per unit of λ, each node broadened to a Gaussian.

        .. math:: ρ(λ) = \sum_i \frac{w_i}{\sqrt{2π}\,σ} e^{-(λ - x_i)^2/2σ^2},
           \qquad \int ρ\,dλ = 1

        Args:
            grid: λ, an array of any shape.
            width: σ, in units of λ, above 0; by default :attr:`default_width`.

        Returns:
            In the shape of ``grid``, per unit of λ.

        Raises:
            ValueError: for a grid or width outside what is allowed.

        Cost: k operations a grid point.
        """
        width = require_number("width", self.default_width if width is None else width, 0)
        return broadened(_finite("grid", grid), self.nodes, self.weights, np.array(width))

    @overload
    def cdf(self, x: float) -> float: ...
    @overload
    def cdf(self, x: ArrayLike) -> Array: ...
    def cdf(self, x: ArrayLike) -> Any:
        """Share of eigenvalues at or below x: a number for a number, else of the shape of x."""
        points = np.asarray(x, dtype=np.float64)
        if np.isnan(points).any():
            raise ValueError(f"x must hold numbers, got {x!r}")
        mass = np.concatenate([[0.0], np.minimum(np.cumsum(self.weights), 1.0)])
        mass[-1] = 1.0
        found = mass[np.searchsorted(self.nodes, points, side="right")]
        return float(found) if points.ndim == 0 else found

    @property
    def negative_mass(self) -> float:
        """Share of eigenvalues below minus the resolution; see :attr:`negative_mass_range`."""
        return float(self.weights[self.nodes < -self.resolution].sum())

    @property
    def negative_mass_range(self) -> tuple[float, float]:
        """Limits of the negative mass, without the probes' noise: :mod:`.masses`."""
        return masses.negative_mass_range(
            self.nodes, self.weights, self.exact, self.probes, self.resolution
        )

    def moments(self, order: int) -> Array:
        """Means of λ, λ² … over all eigenvalues.

        Args:
            order: the highest power, at least 1.

        Returns:
            Shape (order,); entry p − 1 is Σ w λ^p. Infinite beyond float64's range.
        """
        order = require_integer("order", order, 1)
        powers = np.ones_like(self.nodes)
        found = np.empty(order)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            for p in range(order):
                powers = powers * self.nodes
                found[p] = np.sum(self.weights * powers, where=self.weights > 0)
        return np.nan_to_num(found, nan=np.inf, posinf=np.inf, neginf=-np.inf)

    @property
    def effective_rank(self) -> float:
        r"""How many eigenvalues carry the spectrum: the exponential of their entropy.

        .. math:: \exp\Bigl(-\sum_{j=1}^n p_j \log p_j\Bigr), \qquad
           p_j = |λ_j| \big/ \textstyle\sum_i |λ_i|

        A node of weight w counts as n·w eigenvalues. From 1, for a single one that differs from
        zero, to n, where all have the same size; 0 where all are zero to the resolution.

        Source: O. Roy and M. Vetterli, The effective rank, EUSIPCO 2007; there of singular values.
        """
        sizes = np.abs(self.nodes)
        there = (sizes > self.resolution) & (self.weights > 0)
        if not there.any():
            return 0.0
        weights, sizes = self.weights[there], sizes[there]
        shares = weights * (sizes / sizes.max())
        shares /= shares.sum()
        held = shares > 0
        entropy = -np.sum(shares[held] * np.log(shares[held] / (self.dimension * weights[held])))
        # Weights that are estimates may be below 1/n, and a rank below 1 is none.
        return float(np.clip(np.exp(entropy), 1.0, self.dimension))

    # ---- What gradient descent makes of them ---------------------------------------------------

    def multipliers(self, lr: float) -> Array:
        """|1 − ηλ| of each node, shape (k,): :func:`.dissipativity.multipliers`."""
        return dissipativity.multipliers(self.nodes, lr)

    @overload
    def error_proxy(self, lr: float, steps: float) -> ErrorProxy[float]: ...
    @overload
    def error_proxy(self, lr: float, steps: ArrayLike) -> ErrorProxy[Array]: ...
    def error_proxy(self, lr: float, steps: ArrayLike) -> ErrorProxy[Any]:
        """P(t) after t steps at learning rate η, and its parts: :func:`.dissipativity.error_proxy`.

        Modes within the resolution are taken as zero.
        """
        return dissipativity.error_proxy(
            self.nodes, self.weights, lr, steps, resolution=self.resolution
        )

    def best_window(self, lr: float) -> int | float:
        """The t at which P(t) is least, or ``math.inf``: :func:`.dissipativity.best_window`."""
        return dissipativity.best_window(self.nodes, self.weights, lr, resolution=self.resolution)

    def plot(
        self, path: str | Path | None = None, *, lr: float | None = None, title: str = ""
    ) -> Figure:
        """Draw the density and the outliers: :func:`torch_qsgd.hessian.plots.plot_spectrum`."""
        from torch_qsgd.hessian.plots import plot_spectrum

        return plot_spectrum(self, path, lr=lr, title=title)

    def __repr__(self) -> str:
        least = f"{self.lambda_min:.6g} {_within(self.lambda_min_bound)}"
        largest = f"{self.lambda_max:.6g} {_within(self.lambda_max_bound)}"
        rank = self.effective_rank
        rows = {
            "eigenvalues": f"{least}  to  {largest}",
            "trace": f"{self.trace:.6g} {_within(self.trace_error)}",
            "negative mass": f"{masses.with_range(self.negative_mass, self.negative_mass_range)}, "
            f"below {0 - self.resolution:.2g}",
            "effective rank": f"{rank:,.0f}" if rank >= 1000 else f"{rank:.4g}",
            "nodes": f"{len(self.nodes):,}, of them {self.exact.sum():,} converged eigenvalues",
            "cost": f"{counted(self.products, 'product')} ({counted(self.probes, 'probe')} of "
            f"{counted(self.steps, 'step')}), {self.seconds:.3g} s",
        }
        head = f"Spectrum of a {_NAMES.get(self.kind, self.kind)}, dimension {self.dimension:,}"
        return "\n".join([head, *(f"  {name:<15} {text}" for name, text in rows.items())])

    # ---- Files -----------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, lists and strings, from which :meth:`from_json` makes the same again.

        Infinite bounds and errors become ``None``, which JSON has.
        """
        plain: dict[str, Any] = {"format": _FORMAT, "version": _VERSION}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in _ARRAYS:
                value = value.tolist()
            elif field.name in _ERRORS and math.isinf(value):
                value = None
            plain[field.name] = value
        return plain

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Spectrum:
        """The inverse of :meth:`to_json`, to the bit.

        Raises:
            ValueError: for what is no spectrum, one of a newer version, or one with missing parts.
        """
        if not isinstance(plain, Mapping) or plain.get("format") != _FORMAT:
            raise ValueError("this is no spectrum: Spectrum.to_json and Spectrum.save write one")
        if plain.get("version") != _VERSION:
            raise ValueError(
                f"this spectrum has version {plain.get('version')!r} of the format, and this "
                f"torch_qsgd reads version {_VERSION}: use the torch_qsgd that wrote it, or newer"
            )
        names = [field.name for field in fields(cls)]
        if missing := [name for name in names if name not in plain]:
            raise ValueError(f"this spectrum is incomplete, it lacks: {', '.join(missing)}")
        values = {name: plain[name] for name in names}
        for name in _ERRORS:
            values[name] = math.inf if values[name] is None else values[name]
        return cls(**values)

    def save(self, path: str | Path) -> None:
        """Write :meth:`to_json` to a file, which is there whole or, after a failure, as before."""
        save_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Spectrum:
        """Read what :meth:`save` has written.

        Raises:
            ValueError: for a file that holds no spectrum; the message names it.
            OSError: for one that cannot be read.
        """
        try:
            return cls.from_json(load_json(path))
        except ValueError as error:  # JSON's and Unicode's errors are such, too
            raise ValueError(f"{path}: {error}") from error


def broadened(grid: Array, nodes: Array, weights: Array, widths: Array) -> Array:
    """The density at points of any shape of Gaussians with one width, or one for each node."""
    flat, found = grid.reshape(-1), np.empty(grid.size)
    length = max(1, _CHUNK // len(nodes))
    with np.errstate(over="ignore", under="ignore"):
        heights = weights / (math.sqrt(2 * math.pi) * widths)
        for start in range(0, flat.size, length):
            part = slice(start, start + length)
            distance = (flat[part, None] - nodes) / widths
            found[part] = np.exp(-0.5 * distance * distance) @ heights
    return found.reshape(grid.shape)


# ---- Arguments -----------------------------------------------------------------------------------


def _finite(name: str, given: Any) -> Array:
    values = np.asarray(given)
    if values.dtype.kind not in "iuf" or not np.isfinite(values).all():
        raise ValueError(f"{name} must hold finite numbers, got {given!r}")
    return values.astype(np.float64)


def _array(name: str, given: Any) -> Array:
    values = _finite(name, given)
    if values.ndim != 1:
        raise ValueError(f"{name} must be a list of numbers, got shape {values.shape}")
    return values


def _flags(given: Any) -> NDArray[np.bool_]:
    values = np.asarray(given)
    if values.ndim != 1 or values.dtype.kind != "b":
        raise ValueError(f"exact must be a list of True and False, got {given!r}")
    return values.copy()


def _size(name: str, given: Any, unknown: bool) -> float:
    """A number of at least 0; ``math.inf`` too where it may be unknown."""
    if unknown and isinstance(given, float) and given == math.inf:
        return math.inf
    if given == 0 and not isinstance(given, bool):
        return 0.0
    return require_number(name, given, 0, otherwise=", or 0" + ", or math.inf" * unknown)


def _within(error: float) -> str:
    return "(error unknown)" if math.isinf(error) else f"± {error:.2g}"
