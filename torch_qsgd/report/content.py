"""All that a report shows, as data: of an audit, or of a training run's log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from torch_qsgd.files import load_json, save_json
from torch_qsgd.hessian import MonitorHistory
from torch_qsgd.reading import WORDS, read_as
from torch_qsgd.report.findings import ASSUMPTIONS, Finding, Verdict, combined
from torch_qsgd.report.measurements import (
    Conditioning,
    DerivativeMode,
    Pruning,
    RowSparsity,
    Transfer,
    Truncation,
)
from torch_qsgd.resources import Ledger, ScalingCurve
from torch_qsgd.training import History

_FORMAT = "torch_qsgd.Report"
_VERSION = 1


@dataclass
class Report:
    """Measurements of a model, or of a training run; parts that were not measured are ``None``.

    Attributes:
        title: of model, data and weights.
        kind: ``"audit"`` or ``"training run"``.
        facts: about model, data and machine, by name: numbers and strings.
        settings: that the numbers depend on, by name.
        notes: what a reader must know beside the numbers, a sentence each.
        complete: whether all that was asked for is there.
        seconds: wall time.
        findings: one a measured quantity; empty for a training run.
        pruning, truncation, rows, conditioning, transfer: of the window that was measured.
        modes: ways to differentiate, tried on the model.
        runs: what training measured, the run of ``QuantumSGD`` first.
        monitor: Hessian spectra along the first run.
        ledger: what a quantum computer would cost.
        scaling: how that grows.
    """

    title: str
    kind: str
    facts: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    complete: bool = False
    seconds: float = 0.0
    findings: list[Finding] = field(default_factory=list)
    pruning: Pruning | None = None
    truncation: Truncation | None = None
    rows: RowSparsity | None = None
    conditioning: Conditioning | None = None
    transfer: Transfer | None = None
    modes: list[DerivativeMode] = field(default_factory=list)
    runs: list[History] = field(default_factory=list)
    monitor: MonitorHistory | None = None
    ledger: Ledger | None = None
    scaling: list[ScalingCurve] = field(default_factory=list)

    # ---- Verdicts --------------------------------------------------------------------------------

    def of(self, assumption: str) -> list[Finding]:
        """The findings of one assumption."""
        return [finding for finding in self.findings if finding.assumption == assumption]

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """The verdict of each assumption that has findings, in the order of ``ASSUMPTIONS``."""
        return {
            assumption: combined([finding.verdict for finding in self.of(assumption)])
            for assumption in ASSUMPTIONS
            if self.of(assumption)
        }

    # ---- Files -----------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, lists and strings, from which :meth:`from_json` makes the same again.

        Infinity and NaN become the words ``"Infinity"``, ``"-Infinity"`` and ``"NaN"``, but for
        those in spectra, which have their own format.
        """
        plain = {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.name != "monitor"}
        monitor = None if self.monitor is None else self.monitor.to_json()
        head = {"format": _FORMAT, "version": _VERSION, "verdicts": dict(self.verdicts)}
        return {**head, **plain, "monitor": monitor}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Report:
        """The inverse of :meth:`to_json`.

        Raises:
            ValueError: for what is no report, one of a newer version, or one with missing parts.
        """
        if not isinstance(plain, Mapping) or plain.get("format") != _FORMAT:
            raise ValueError("this is no report: Report.to_json and Report.save write one")
        if plain.get("version") != _VERSION:
            raise ValueError(
                f"this report has version {plain.get('version')!r} of the format, and this "
                f"torch_qsgd reads version {_VERSION}: use the torch_qsgd that wrote it, or newer"
            )
        names = [f.name for f in fields(cls)]
        parts = {key: v for key, v in plain.items() if key in names and key != "monitor"}
        try:
            if missing := [name for name in names if name not in plain]:
                raise TypeError(f"it lacks {', '.join(map(repr, missing))}")
            found: Report = read_as(cls, parts, "report")
            if plain["monitor"] is not None:
                found.monitor = MonitorHistory.from_json(plain["monitor"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"this report is incomplete or damaged: {error}") from error
        return found

    def save(self, path: str | Path) -> None:
        """Write :meth:`to_json` to a file, which is there whole or, after a failure, as before."""
        save_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """Read what :meth:`save` has written.

        Raises:
            ValueError: for a file that holds no report; the message names it.
            OSError: for one that cannot be read.
        """
        try:
            return cls.from_json(load_json(path))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def to_html(self) -> str:
        """One HTML page that needs no network: :func:`torch_qsgd.report.html.page`."""
        from torch_qsgd.report.html import page

        return page(self)

    def to_markdown(self) -> str:
        """Tables for a paper's appendix: :func:`torch_qsgd.report.markdown.document`."""
        from torch_qsgd.report.markdown import document

        return document(self)

    def write(self, folder: str | Path, name: str) -> list[Path]:
        """Write ``name``.json, .md and .html into a folder, which is made if need be.

        A form that fails keeps none of the others from being written: the numbers come first.

        Returns:
            The paths, in that order.

        Raises:
            OSError: where one cannot be written; for Markdown or HTML after the rest is written.
        """
        from torch_qsgd.files import replaced

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{name}.{ending}" for ending in ("json", "md", "html")]
        self.save(paths[0])
        try:
            with replaced(paths[1]) as partial:
                partial.write_text(self.to_markdown(), encoding="utf-8")
        finally:
            with replaced(paths[2]) as partial:
                partial.write_text(self.to_html(), encoding="utf-8")
        return paths


# ---- Plain numbers, lists and strings ----------------------------------------------------------


def _plain(value: Any) -> Any:
    """The same as JSON has it: words for numbers that are not finite, text for all else."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Integral):  # NumPy's too
        return int(value)
    if isinstance(value, Real):
        number = float(value)
        words = (word for word, other in WORDS.items() if repr(other) == repr(number))
        return next(words, number)
    return str(value)
