"""The ledger of one window: what a quantum computer would need, line by line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch_qsgd.checks import require_equal_lengths


@dataclass(frozen=True)
class Entry:
    """One line of the ledger.

    Attributes:
        key: short and unique, for programs.
        group: ``"qubits"``, ``"queries"``, ``"block encoding"``, ``"repetitions"``, ``"readout"``,
            ``"T gates"``, ``"physical"``, ``"classical"`` or ``"ratio"``.
        quantity: in words.
        value: NaN where it is not known.
        unit: empty for pure numbers.
        formula: by which it was computed.
        source: of the formula.
        tag: ``"proven"``, ``"numerical"``, ``"assumes known norm"``, ``"our estimate"`` or
            ``"measured"``.
    """

    key: str
    group: str
    quantity: str
    value: float
    unit: str
    formula: str
    source: str
    tag: str


@dataclass(frozen=True)
class Ledger:
    """All lines, and what dominates them.

    Attributes:
        window: what it was computed from, by name.
        entries: in the order in which they are shown.
        dominant: key of the entry that contributes the most to the T gates, as a factor.
        sentence: that says so, and ends with ``assumptions``.
        assumptions: one sentence that lists what was assumed and not measured.
    """

    window: dict[str, Any]
    entries: list[Entry] = field(default_factory=list)
    dominant: str = ""
    sentence: str = ""
    assumptions: str = ""

    def __getitem__(self, key: str) -> float:
        """The value of an entry by its key."""
        for entry in self.entries:
            if entry.key == key:
                return entry.value
        raise KeyError(key)


@dataclass(frozen=True)
class ScalingCurve:
    """The ledger's totals over one of its sizes, all else held.

    Attributes:
        over: ``"active"`` (n), ``"steps"`` (T) or ``"density"``.
        values: of that size, ascending.
        t_gates: in all, with tables in QROAM.
        t_gates_qram: with QRAM.
        flops: of the same steps on a classical computer.
        dominant: key of the dominating entry at each value.

    Raises:
        ValueError: for lists of different lengths.
    """

    over: str
    values: list[float]
    t_gates: list[float]
    t_gates_qram: list[float]
    flops: list[float]
    dominant: list[str]

    def __post_init__(self) -> None:
        require_equal_lengths(self, "values", "t_gates", "t_gates_qram", "flops", "dominant")
