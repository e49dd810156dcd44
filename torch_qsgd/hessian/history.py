"""What a monitor has seen: a record of each spectrum and each window, as files and pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from torch_qsgd.files import load_json, save_json
from torch_qsgd.hessian.dynamics import Dynamics
from torch_qsgd.hessian.spectrum import Spectrum

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
        jet_ratio: ‖c_N‖/‖c_1‖ of the open window; 0 at its start and outside one.
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
        values["dynamics"] = Dynamics(**values["dynamics"])
        for name in ("best_window", "proxy", "negative_mass"):
            unknown = math.nan if failed and name != "best_window" else math.inf
            values[name] = unknown if values[name] is None else values[name]
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
        """Each spectrum by which a window was judged, with the t at which it stopped to be."""
        for number, span in enumerate(self.windows):
            following = self.windows[number + 1].start if number + 1 < len(self.windows) else None
            mine = [
                r
                for r in self.records
                if r.taken != "download" and r.step - r.window_step == span.start
            ]
            last = max([span.start, *(r.step for r in mine)])
            stop = span.stop if span.stop is not None else following or last
            ends = [*(r.window_step for r in mine[1:]), max(stop, last) - span.start]
            yield from ((span, r, t) for r, t in zip(mine, ends, strict=True))

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
            [WindowSpan(**span) for span in plain["windows"]],
            plain["seconds"],
            plain["elapsed"],
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
        orange below zero and blue above. Lines mark both ends and the bound above which a step
        amplifies. Below, P(t) by the window's latest spectrum, solid as far as the window went and
        dotted beyond; dashed, what it would be if the positive modes stood still. Marks show
        uploads above, and downloads with their reasons below.

        Args:
            path: of a PNG, PDF or SVG file; ``None`` writes none.
            title: above the panels.

        Raises:
            ValueError: where there is no spectrum.
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        if not any(record.spectrum is not None for record in self.records):
            raise ValueError("no spectrum was taken yet: there is nothing to draw")
        figure = Figure(figsize=(10, 8), layout="constrained")
        FigureCanvasAgg(figure)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
        _draw_spectra(self, figure, upper)
        _draw_proxy(self, lower)
        for axes in (upper, lower):
            axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=9)
        figure.suptitle(title)
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure


# ---- Panels --------------------------------------------------------------------------------------

#: Okabe and Ito's colours, told apart by colour-blind readers too.
_BLUE, _ORANGE, _GREEN, _PURPLE, _SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"
_BINS = 70  # on each side of zero
_FAINTEST = 1e-4  # share of eigenvalues, drawn nearly white


def _last_step(history: MonitorHistory) -> int:
    stops = [span.stop for span in history.windows if span.stop is not None]
    return max([*stops, *(record.step for record in history.records)])


def _draw_spectra(history: MonitorHistory, figure: Figure, axes: Any) -> None:
    from matplotlib.colors import LinearSegmentedColormap, LogNorm

    last = _last_step(history)
    begins = [record.step for record in history.records]
    ends = [*begins[1:], max(last, begins[-1] + 1)]
    columns = [
        (begin, end, record)
        for begin, end, record in zip(begins, ends, history.records, strict=True)
        if end > begin
    ]
    drawn = [(begin, end, r, r.spectrum) for begin, end, r in columns if r.spectrum is not None]
    largest = max((float(np.abs(s.nodes).max()) for *_, s in drawn), default=0.0) or 1.0
    linear = largest / 1e4
    top = 1 + math.log10(largest / linear) + 0.1
    edges = np.linspace(0, top, _BINS + 1)
    values = linear * np.where(edges <= 1, edges, 10 ** (edges - 1))
    norm = LogNorm(_FAINTEST, 1)
    for place, sign, colour, dark, name in (
        (1.05, -1, _ORANGE, "#4A2000", "negative"),
        (1.2, 1, _BLUE, "#002038", "positive"),
    ):
        colours = LinearSegmentedColormap.from_list(name, ["#FFFFFF", colour, dark])
        mesh = None
        for begin, end, _, spectrum in drawn:
            shares = _shares(spectrum, sign, linear, edges)
            mesh = axes.pcolormesh(
                [begin, end],
                sign * values,
                np.maximum(shares, _FAINTEST / 10)[:, None],
                norm=norm,
                cmap=colours,
                rasterized=True,
            )
        if mesh is not None:
            bar = figure.colorbar(mesh, cax=axes.inset_axes((place, 0.0, 0.025, 0.55)))
            bar.set_label(f"share of eigenvalues, {name}", fontsize=9)
    named: set[str] = set()

    def once(label: str) -> str | None:
        fresh = label not in named
        named.add(label)
        return label if fresh else None

    for begin, end, record, spectrum in drawn:
        largest_stable = record.dynamics.largest_stable
        lines = [
            (spectrum.lambda_max, "black", "-", "largest eigenvalue"),
            (spectrum.lambda_min, "black", "--", "least eigenvalue"),
            (largest_stable, _PURPLE, ":", "a step amplifies above"),
        ]
        for level, colour, dash, label in lines:
            if level <= 10 * largest:
                width = 2.5 if dash == ":" else 1.5
                axes.plot(
                    [begin, end], [level] * 2, color=colour, ls=dash, lw=width, label=once(label)
                )
    for begin, end, record in columns:
        if record.spectrum is None:
            axes.axvspan(
                begin, end, color="0.7", hatch="//", fill=False, label=once("spectrum failed")
            )
    axes.axhline(0, color="0.5", linewidth=0.8)
    axes.set_yscale("symlog", linthresh=linear, linscale=0.9)
    decades = 10.0 ** np.arange(
        math.floor(math.log10(linear)) + 2, math.floor(math.log10(largest)) + 1
    )
    axes.set_yticks([*-decades[::-1], 0.0, *decades])
    axes.set_ylabel("eigenvalue (loss / weight²)")


def _shares(spectrum: Spectrum, sign: int, linear: float, edges: Any) -> Any:
    """Share of eigenvalues of one sign by bin, each node spread a little over its neighbours.

    Half of what cannot be told from zero counts to either side.
    """
    from scipy.special import ndtr

    nodes, weights = sign * spectrum.nodes, spectrum.weights
    zero = np.abs(nodes) <= spectrum.resolution
    mass = np.where(zero, weights / 2, np.where(nodes > 0, weights, 0.0))
    size = np.where(zero, 0.0, np.maximum(nodes, 0.0)) / linear
    centre = np.where(size <= 1, size, 1 + np.log10(np.maximum(size, 1)))
    width = 0.7 * (edges[1] - edges[0])
    below = ndtr((edges[:, None] - centre) / width)
    inside = below[-1] - below[0]  # what would spill over zero stays on its side
    return np.diff(below, axis=0) @ (mass / inside)


def _draw_proxy(history: MonitorHistory, axes: Any) -> None:
    kinds = {
        "P(t) of the latest spectrum": (_BLUE, "-"),
        "if only its negative modes moved": (_ORANGE, "--"),
        "P(t) beyond the window": (_BLUE, ":"),
    }
    solid, negative, dotted = kinds
    lines: list[tuple[str, Any, Any]] = []
    nexts = [*(span.start for span in history.windows[1:]), math.inf]
    following = {id(span): start for span, start in zip(history.windows, nexts, strict=True)}
    for span, record, stop in history.segments():
        if record.spectrum is None:
            continue
        times = np.linspace(record.window_step, stop, 60)
        parts = [record.dynamics.error_proxy(record.spectrum, t) for t in times]
        still = record.dynamics.error_proxy(record.spectrum, 0).positive
        lines.append((solid, span.start + times, [part.total for part in parts]))
        lines.append((negative, span.start + times, [still + part.negative for part in parts]))
        if span.stop == span.start + stop:
            end = min(2 * stop, record.window, following[id(span)] - span.start)
            times = np.linspace(stop, max(stop, end), 60)
            lines.append((dotted, span.start + times, [record.error_proxy(t) for t in times]))
    drawn: set[str] = set()
    for kind, times, heights in lines:
        label = None if kind in drawn else kind
        drawn.add(kind)
        axes.plot(times, heights, color=kinds[kind][0], linestyle=kinds[kind][1], label=label)
    reached = np.concatenate([[1.0], *(heights for kind, _, heights in lines if kind == solid)])
    known = reached[np.isfinite(reached) & (reached > 0)]
    logarithmic = known.max() > 5 * known.min()
    axes.set_yscale("log" if logarithmic else "linear")
    margin = max(0.15 * float(np.ptp(known)), 1e-3)
    low, high = known.min() - margin, known.max() + margin
    if logarithmic:
        low, high = known.min() / 1.5, known.max() * 1.5
    axes.set_ylim(low, high)
    starts = [span.start for span in history.windows]
    axes.plot(starts, [high] * len(starts), "v", color="black", clip_on=False, label="upload")
    finished = [span for span in history.windows if span.stop is not None]
    colours, marks = (_GREEN, _PURPLE, _SKY, _ORANGE, _BLUE), "^sDPX"
    for number, reason in enumerate(sorted({span.reason for span in finished})):
        chosen = [span for span in finished if span.reason == reason]
        axes.plot(
            [span.stop for span in chosen],
            [low] * len(chosen),
            marks[number % 5],
            color=colours[number % 5],
            clip_on=False,
            label=f"download: {reason}" + (" (trigger)" if chosen[0].triggered else ""),
        )
    axes.set_xlabel("SGD steps")
    axes.set_ylabel("error proxy P")
    axes.grid(True, alpha=0.3)
