"""What an audit measures, as plain numbers that a report can show; all of it our definition."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch_qsgd.checks import require_equal_lengths


@dataclass(frozen=True)
class LayerPruning:
    """What pruning does to one tensor of weights.

    Attributes:
        name: of the parameter.
        weights, active: how many it has, and how many stay.
        norm_removed: share of its squared Euclidean length that pruning takes away.
        loss, accuracy: of the model in which this tensor alone is pruned, on held-out batches;
            accuracy is NaN where there are no classes.
    """

    name: str
    weights: int
    active: int
    norm_removed: float
    loss: float
    accuracy: float


@dataclass(frozen=True)
class Pruning:
    """What pruning does to the model.

    Attributes:
        parameters, prunable, active: all trainable weights; those that pruning may take; those
            that stay of all.
        loss_dense, accuracy_dense, loss, accuracy: on held-out batches, before and after.
        layers: one a prunable tensor.
    """

    parameters: int
    prunable: int
    active: int
    loss_dense: float
    accuracy_dense: float
    loss: float
    accuracy: float
    layers: list[LayerPruning] = field(default_factory=list)

    @property
    def density(self) -> float:
        """Share of all trainable weights that stay."""
        return self.active / self.parameters


@dataclass(frozen=True)
class OrderError:
    """The window error of one truncation order.

    Attributes:
        order: N.
        errors: ‖u_N(t) − u(t)‖/‖u(t)‖ for t = 1 … T, u of true SGD on the same batches.
        loss: at θ* + u_N(T) on held-out batches.
    """

    order: int
    errors: list[float]
    loss: float


@dataclass(frozen=True)
class Truncation:
    """The window against true SGD, step by step.

    Attributes:
        steps: T that were taken; fewer than asked for where a series or SGD overflowed.
        orders: one for each order 1 … N.
        floor: the kink floor for t = 1 … T: ‖ũ(t) − u(t)‖/‖u(t)‖, where ũ is SGD on the network
            whose kinked operations keep the pieces they have at the anchor, which is what the
            full Taylor series describes. Zero on a smooth network; ``None`` where it could not be
            measured.
        kinks: kinked operations met, by name.
        unfrozen: why ``floor`` is ``None``, in words: kinked operations that cannot be held on
            their piece, code in which kinks cannot be seen, or what else stood in the way.
        loss_anchor, loss_true: on held-out batches, at θ* and at θ* + u(T).
        grams: Gram matrices of the jets after 0 … T steps, of shape (T+1, N, N).
        forcing: max_t ‖G_0‖ = max_t η‖g_t + λθ*‖ on the active coordinates, with the gradient
            g_t at the anchor and weight decay λ.
        cubic: lower bound of ‖G_2‖ = (η/2)‖∇³L‖, found by power iteration; NaN if not measured.
        smooth_degree: 2 where third derivatives vanish along all probes, 3 where fourth ones do,
            else 0: the degree of the loss as a polynomial in the weights.
        rounding: relative error of u(T) that comes of the weights' precision alone, an estimate
            and not a bound. Errors and floors of no more than a few times it tell nothing of the
            series; infinite where u(T) is zero.
    """

    steps: int
    orders: list[OrderError]
    floor: list[float] | None
    kinks: list[str]
    unfrozen: list[str]
    loss_anchor: float
    loss_true: float
    grams: list[list[list[float]]]
    forcing: float
    cubic: float
    smooth_degree: int
    rounding: float


@dataclass(frozen=True)
class RowSparsity:
    """Non-zeros of random rows of the Hessian, restricted to active coordinates.

    Attributes:
        dimension: n, the length of a row.
        rows: how many were probed.
        nonzeros: of each row, entries above rounding: ``cutoff`` times the row's largest; 0 for a
            row of zeros, and for one that is rounding as a whole.
        effective: of each row, the fewest entries that hold 99 % of its squared length.
        cutoff: relative size below which an entry counts as rounding.
        largest: the largest |H_ij| met, a lower bound of that of all rows.
        unresolved: of each row, entries that are not zero yet no larger than the cutoff, which may
            be rounding or true: the row has at least ``nonzeros`` entries, and at most as many
            more as these, but for those too small for the data type to hold.
    """

    dimension: int
    rows: int
    nonzeros: list[int]
    effective: list[int]
    cutoff: float
    largest: float
    unresolved: list[int]


@dataclass(frozen=True)
class Conditioning:
    """Singular values of a window's linear system ℒ, over the number of its steps.

    ``largest`` to ``kappa_order`` are of the standard form's diagonal blocks, which know the
    multipliers of the Hessian's modes and nothing else. They miss the gradient, which couples the
    blocks, and, of the homogeneous form that the ledger counts, the constant's multiplier 1:
    there, κ grows at least as T even where every mode is damped. ``kappa_homogeneous`` has both.

    Attributes:
        steps: numbers T of steps, ascending.
        largest, smallest: σ_max and σ_min of ℒ at order 1, from the Lanczos spectrum.
        kappa: their ratio.
        kappa_order: κ of the diagonal blocks at truncation order ``order``.
        order: N.
        exponent, exponent_error: slope of log ``kappa`` against log T over the upper half of
            ``steps``, and its standard error.
        regime: of ``kappa`` times T: ``"T"`` (κ saturates), ``"T²"`` (κ grows as T) or
            ``"exponential"``. It tells damped modes from growing ones; the homogeneous form's κT
            grows as T² at least.
        largest_homogeneous, kappa_homogeneous: σ_max and κ of the homogeneous form at order
            ``order``, estimated; both empty where they were not.

    Raises:
        ValueError: for lists of different lengths.
    """

    steps: list[int]
    largest: list[float]
    smallest: list[float]
    kappa: list[float]
    kappa_order: list[float]
    order: int
    exponent: float
    exponent_error: float
    regime: str
    largest_homogeneous: list[float] = field(default_factory=list)
    kappa_homogeneous: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        require_equal_lengths(self, "steps", "largest", "smallest", "kappa", "kappa_order")
        require_equal_lengths(self, "largest_homogeneous", "kappa_homogeneous")
        if self.kappa_homogeneous:
            require_equal_lengths(self, "steps", "kappa_homogeneous")


@dataclass(frozen=True)
class ReadoutTrial:
    """What reading the displacement to a precision does to the loss, by real tomography noise.

    Attributes:
        precision: ε asked for, relative to ‖u‖.
        copies, guaranteed: used, and what the theorem asks for.
        errors: relative ℓ2 errors made, one a repetition.
        losses: at θ* + the displacement read, on held-out batches.
    """

    precision: float
    copies: int
    guaranteed: int
    errors: list[float]
    losses: list[float]


@dataclass(frozen=True)
class Transfer:
    """Upload and download of one window.

    Attributes:
        active: s, coordinates to load and read.
        qubits: of the register that holds them.
        cx, t_gates, rotations: of one sparse state preparation without QRAM, an upper bound.
        qram_calls: of one preparation with QRAM: a rotation's angle is fetched at each level.
        final, level_one: post-selection probabilities, of the final time and of the displacement.
        rescaling: γ.
        loss_before, loss_after: on held-out batches, at the anchor and after an exact download.
        trials: of the readout.
    """

    active: int
    qubits: int
    cx: int
    t_gates: int
    rotations: int
    qram_calls: int
    final: float
    level_one: float
    rescaling: float
    loss_before: float
    loss_after: float
    trials: list[ReadoutTrial] = field(default_factory=list)

    @property
    def probability(self) -> float:
        """Of one run's success."""
        return self.final * self.level_one


@dataclass(frozen=True)
class DerivativeMode:
    """One way to differentiate, tried on the model.

    Attributes:
        name: of the mode.
        order: of the jets it serves: 1 for Hessian-vector products, 2 for third derivatives …
        supported: whether it ran, and agreed.
        error: relative difference from its reference; NaN where it did not run.
        reason: why not, or what to know; may be empty.
    """

    name: str
    order: int
    supported: bool
    error: float
    reason: str
