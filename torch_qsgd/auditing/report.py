"""What an audit returns."""

from __future__ import annotations

from torch_qsgd.report.content import Report
from torch_qsgd.report.numbers import ranged, threshold

_MARKS = {"holds": "+", "breaks": "x", "cannot tell": "?"}


class AuditReport(Report):
    """The findings of an audit, with all measurements behind them; printing shows the verdicts.

    Example:
        >>> AuditReport(title="nothing yet", kind="audit").verdicts
        {}
    """

    @property
    def holds(self) -> bool:
        """Whether every assumption was found to hold."""
        return bool(self.verdicts) and set(self.verdicts.values()) == {"holds"}

    def __str__(self) -> str:
        lines = [self.title or "audit"]
        for assumption, verdict in self.verdicts.items():
            lines.append(f"[{_MARKS[verdict]}] {assumption}: {verdict}")
            for finding in self.of(assumption):
                mark, value = _MARKS[finding.verdict], ranged(finding)
                lines.append(f"      {mark} {finding.quantity}: {value}, {threshold(finding)}")
        if self.ledger is not None and self.ledger.sentence:
            lines.append(self.ledger.sentence)
        return "\n".join(lines)

    __repr__ = __str__
