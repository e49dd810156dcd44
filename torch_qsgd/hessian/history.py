"""What a monitor has seen: a record of each spectrum and each window, as files and pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch_qsgd.files import load_json, save_json
from torch_qsgd.hessian.dynamics import Dynamics
from torch_qsgd.hessian.spectrum import Spectrum
from torch_qsgd.reading import read_as

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FORMAT = "torch_qsgd.MonitorHistory"
_VERSION = 1


@dataclass(frozen=True)
class SpectrumRecord:
    """One spectrum and what followed from it.

    Attributes:
        step: steps the optimizer had taken, in all phases.
        window_step: of these, in the open window: t; the spectrum is that of θ* + u(t).
        taken: ``"upload"``, ``"window"`` or ``"download"``.
        spectrum: of the step's matrix, in the active coordinates; ``None`` where it failed.
        dynamics: learning rate and momentum that made the step.
        window: configured length of a window, in steps.
        best_window: t*, ``math.inf`` where the error proxy never rises.
        proxy: P(window), the error proxy at the end of a window of the configured length.
        negative_mass: share of negative eigenvalues.
        jet_ratio: ‖c_N‖/‖c_1‖ of the open window; 0 at its start, outside one, and
            at order 1.
        products, seconds: what it cost.
        error: why it failed; empty where it did not.
    """

    step: int
    window_step: int
    taken: str
    spectrum: Spectrum | None
    dynamics: Dynamics
    window: int
    best_window: int | float = math.inf
    proxy: float = math.nan
    negative_mass: float = math.nan
    jet_ratio: float = 0.0
    products: int = 0
    seconds: float = 0.0
    error: str = ""

    @property
    def window_start(self) -> int:
        """Steps taken before the upload of the open window; of ``step`` outside one."""
        return self.step - self.window_step

    def error_proxy(self, steps: float) -> float:
        """P(t) of this spectrum after t steps; NaN where it failed."""
        if self.spectrum is None:
            return math.nan
        return self.dynamics.error_proxy(self.spectrum, steps).total

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, lists and strings; ``None`` for what is infinite or not known."""
        plain: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in plain.items():
            if isinstance(value, float) and not math.isfinite(value):
                plain[name] = None
        spectrum = None if self.spectrum is None else self.spectrum.to_json()
        return {**plain, "dynamics": asdict(self.dynamics), "spectrum": spectrum}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> SpectrumRecord:
        """The inverse of :meth:`to_json`."""
        values = dict(plain)
        failed = values["spectrum"] is None
        values["spectrum"] = None if failed else Spectrum.from_json(values["spectrum"])
        values["dynamics"] = read_as(Dynamics, values["dynamics"], "dynamics")
        for name in ("step", "window_step", "window", "products"):
            values[name] = read_as(int, values[name], name)
        for name in ("best_window", "proxy", "negative_mass", "jet_ratio", "seconds"):
            unseen = failed and name in ("proxy", "negative_mass")
            unknown = math.nan if unseen else math.inf
            values[name] = unknown if values[name] is None else read_as(float, values[name], name)
        return cls(**values)


@dataclass
class WindowSpan:
    """One window, as the monitor saw it.

    Attributes:
        start: steps taken before its upload.
        stop: steps taken before its download; ``None`` while it is open, or where it was dropped.
        reason: why it ended, as in :class:`torch_qsgd.records.WindowRecord`.
        triggered: whether the monitor ended it.
    """

    start: int
    stop: int | None = None
    reason: str = ""
    triggered: bool = False


@dataclass
class MonitorHistory:
    """All that a monitor has seen, oldest first.

    Attributes:
        records: one a spectrum, failed ones too.
        windows: one an upload.
        seconds: of ``elapsed``, those that the monitor took.
        elapsed: seconds during which it was attached.
    """

    records: list[SpectrumRecord] = field(default_factory=list)
    windows: list[WindowSpan] = field(default_factory=list)
    seconds: float = 0.0
    elapsed: float = 0.0

    @property
    def products(self) -> int:
        """Hessian-vector products over the data, of all spectra."""
        return sum(record.products for record in self.records)

    @property
    def share(self) -> float:
        """The monitor's share of the time; 0 before any has passed."""
        return self.seconds / self.elapsed if self.elapsed > 0 else 0.0

    def segments(self) -> Iterator[tuple[WindowSpan, SpectrumRecord, int]]:
        """Each spectrum by which a window was judged, with the t at which it stopped to be.

        A window has none where its first spectrum was interrupted.
        """
        for number, span in enumerate(self.windows):
            following = self.windows[number + 1].start if number + 1 < len(self.windows) else None
            mine = [
                r for r in self.records if r.taken != "download" and r.window_start == span.start
            ]
            if not mine:
                continue
            last = max(r.step for r in mine)
            stop = span.stop if span.stop is not None else following or last
            ends = [*(r.window_step for r in mine[1:]), max(stop, last) - span.start]
            yield from ((span, r, t) for r, t in zip(mine, ends, strict=True))

    @property
    def last_step(self) -> int:
        """The latest step that is known of; 0 of an empty history."""
        spans = [span.start if span.stop is None else span.stop for span in self.windows]
        return max([0, *spans, *(record.step for record in self.records)])

    def cut(self, step: int) -> None:
        """Forget what came after a step, and the upload at it; the time spent stays.

        Spectra at a download, or inside a window, at the step itself stay. A window that was open
        then has no end.

        Args:
            step: steps that the optimizer has taken.
        """
        self.records = [
            record
            for record in self.records
            if record.step < step or (record.step == step and record.taken != "upload")
        ]
        self.windows = [
            span if span.stop is None or span.stop <= step else WindowSpan(span.start)
            for span in self.windows
            if span.start < step
        ]

    # ---- Files -----------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, lists and strings, from which :meth:`from_json` makes the same again."""
        return {
            "format": _FORMAT,
            "version": _VERSION,
            "records": [record.to_json() for record in self.records],
            "windows": [asdict(span) for span in self.windows],
            "seconds": self.seconds,
            "elapsed": self.elapsed,
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> MonitorHistory:
        """The inverse of :meth:`to_json`.

        Raises:
            ValueError: for what is no history, or one of a newer version.
        """
        if not isinstance(plain, Mapping) or plain.get("format") != _FORMAT:
            raise ValueError(
                "this is no monitor's history: MonitorHistory.to_json and .save write one"
            )
        if plain.get("version") != _VERSION:
            raise ValueError(
                f"this history has version {plain.get('version')!r} of the format, and this "
                f"torch_qsgd reads version {_VERSION}: use the torch_qsgd that wrote it, or newer"
            )
        return cls(
            [SpectrumRecord.from_json(record) for record in plain["records"]],
            read_as(list[WindowSpan], plain["windows"], "windows"),
            read_as(float, plain["seconds"], "seconds"),
            read_as(float, plain["elapsed"], "elapsed"),
        )

    def save(self, path: str | Path) -> None:
        """Write :meth:`to_json` to a file, which is there whole or, after a failure, as before."""
        save_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> MonitorHistory:
        """Read what :meth:`save` has written.

        Raises:
            ValueError: for a file that holds no history; the message names it.
            OSError: for one that cannot be read.
        """
        try:
            return cls.from_json(load_json(path))
        except KeyError as error:
            raise ValueError(f"{path}: this history is incomplete, it lacks {error}") from error
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: {error}") from error

    # ---- Pictures --------------------------------------------------------------------------------

    def plot(self, path: str | Path | None = None, *, title: str = "") -> Figure:
        """Draw the spectra and the error proxy over the steps.

        Above, a column for each spectrum, from its step to the next one's: the share of
        eigenvalues in each bin of a scale that is linear around zero and logarithmic beyond,
        orange below zero and blue above. Quadrature nodes that are no converged eigenvalues are
        spread to their neighbours. Lines mark both ends and the bound above which a step
        amplifies. In the middle, P(t) by the window's latest spectrum, solid as far as the window
        went and dotted beyond, with uploads marked above, and downloads and their reasons below.
        At the bottom, how far its positive and its negative modes have moved P since the upload:
        P is least where the one's fall is as steep as the other's rise. Grey: classical steps.

        Args:
            path: of a PNG, PDF or SVG file; ``None`` writes none.
            title: above the panels.

        Raises:
            ValueError: where there is no spectrum.
        """
        from torch_qsgd.hessian.history_plot import plot_history

        return plot_history(self, path, title=title)
