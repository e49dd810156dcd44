"""The page as text: what it says, what it leaves out, and that nothing in it can be run."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from plotly.offline import get_plotlyjs

from tests.report.sample import NASTY, nasty, sample, trained
from torch_qsgd.hessian.history import WindowSpan
from torch_qsgd.report.content import Report
from torch_qsgd.report.html import page
from torch_qsgd.report.numbers import number
from torch_qsgd.training import Evaluation


class Parsed(HTMLParser):
    """The page's text by element, tables by their address, and all that could be loaded."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.values: list[float] = []
        self.loads: list[tuple[str, str]] = []
        self.scripts: list[tuple[str, str]] = []
        self.tags: list[str] = []
        self.text = ""
        self._table = self._kind = ""
        self._cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.tags.append(tag)
        if given.get("class", "").startswith("table"):
            self._table = given["id"]
            self.tables[self._table] = []
        if tag == "tr":
            self.tables[self._table].append([])
        if tag in ("td", "th"):
            self._cell = True
            self.tables[self._table][-1].append("")
        if tag == "data":
            self.values.append(float(given["value"]) if _is_number(given["value"]) else math.nan)
        if tag in ("script", "style"):
            self._kind = tag
            self.scripts.append((given.get("type", tag), ""))
        for name in ("src", "href", "srcset", "data", "poster", "action"):
            if name in given and not given[name].startswith("#"):
                self.loads.append((tag, given[name]))

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._cell = False
        if tag in ("script", "style"):
            self._kind = ""

    def handle_data(self, data: str) -> None:
        if self._kind:
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        else:
            self.text += data
            if self._cell:
                self.tables[self._table][-1][-1] += data

    @property
    def plots(self) -> dict[str, Any]:
        (text,) = (text for kind, text in self.scripts if kind == "application/json")
        found: dict[str, Any] = json.loads(text, parse_constant=pytest.fail)
        return found


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@pytest.fixture(scope="module")
def parsed() -> Parsed:
    return Parsed(page(sample()))


def own_size(text: str) -> int:
    return len(text.encode()) - len(get_plotlyjs().encode())


def test_nothing_is_loaded_and_the_browser_is_told_so(parsed: Parsed) -> None:
    assert parsed.loads == [("link", "data:,")]
    (style,) = (text for kind, text in parsed.scripts if kind == "style")
    assert "url(" not in style
    assert "@import" not in style
    assert "default-src 'none'" in page(Report("", "audit"))
    kinds = [kind for kind, _ in parsed.scripts]
    assert kinds == ["style", "script", "application/json", "script"]
    assert parsed.scripts[1][1].count("plotly.js v") == 1


def test_it_claims_no_advantage(parsed: Parsed) -> None:
    assert "claims no quantum advantage" in parsed.text
    assert "our definition" in parsed.text
    assert "Incomplete" not in parsed.text
    assert "Measured in 12.6 minutes" in parsed.text


def test_all_parts_are_there_in_order(parsed: Parsed) -> None:
    assert list(parsed.tables) == [
        "verdicts", "findings", "spectra-table", "runs", "windows", "truncation-table",
        "pruning-table", "rows-table", "conditioning-table", "transfer", "trials", "modes",
        "ledger-table", "window", "scaling-table", "facts", "settings",
    ]  # fmt: skip
    drawn = [key for key in parsed.plots["figures"] if not key.startswith(("ledger", "scaling"))]
    assert drawn == [
        "spectra", "proxy", "curves", "window-errors", "truncation", "pruning", "rows",
        "conditioning", "readout",
    ]  # fmt: skip
    assert "Not measured:" not in parsed.text


def test_notes_stand_below_the_verdicts_or_the_title_and_once_each() -> None:
    report = sample()
    report.notes = ["Mind the first.", "Mind the second.", "Mind the first. "]
    text = page(report)
    verdicts, notes, measures = (
        text.index(f'id="{key}"') for key in ("verdicts", "notes-part", "findings")
    )
    assert verdicts < notes < measures
    assert text.count("Mind the first.") == text.count("Mind the second.") == 1
    report.findings = []
    text = page(report)
    assert text.index("<h1>") < text.index('id="notes-part"') < text.index("<nav")
    report.notes = []
    assert 'id="notes-part"' not in page(report)


def test_the_ledger_begins_with_its_key_numbers_and_names_its_window() -> None:
    report = sample()
    assert report.ledger is not None
    values = {"physical_qubits": 2.5e7, "years": 3.21e6}
    report.ledger.entries[:] = [
        dataclasses.replace(entry, value=values.get(entry.key, entry.value))
        for entry in report.ledger.entries
    ]
    report.ledger.window["physical"] = {"physical_qubits": 2.5e7}
    report.ledger.window["origin"] = {"kappa": "measured"}
    text = page(report)
    (shown,) = re.findall(r'<dl class="numbers">(.*?)</dl>', text, re.DOTALL)
    pairs = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", shown))
    assert pairs["physical qubits"] == "2.5×10⁷"
    assert pairs["time in all, on one such computer"] == "3\u202f210\u202f000 years"
    assert pairs["T gates in all, tables in QROAM"] == "1.22×10¹⁸"
    assert len(pairs) == 5
    parsed = Parsed(text)
    drawn = parsed.plots["figures"]["ledger-2"]["layout"]["annotations"]
    assert any("physical qubits" in note["text"] for note in drawn)
    window = {row[0]: row[1] for row in parsed.tables["window"]}
    assert window["active weights n"] == "1\u202f117\u202f396"
    assert window["where the numbers come from"].endswith("of the system: measured")
    assert not {"physical", "active", "solver_error"} & set(window)


def test_losses_of_all_tables_have_five_digits() -> None:
    report = sample()
    assert report.pruning is not None
    assert report.truncation is not None
    assert report.transfer is not None
    report.pruning = dataclasses.replace(report.pruning, loss=2.193456)
    report.truncation = dataclasses.replace(report.truncation, loss_true=2.193456)
    report.transfer.trials[0].losses[:] = [2.193456]
    tables = Parsed(page(report)).tables
    for key in ("pruning-table", "truncation-table", "trials"):
        assert "2.1935" in {text for row in tables[key] for text in row}, key
    final = report.runs[0].final.loss
    assert number(final, 5) in tables["runs"][1]


def test_tables_hold_the_reports_numbers(parsed: Parsed) -> None:
    report = sample()
    ledger, pruning, truncation = report.ledger, report.pruning, report.truncation
    assert ledger is not None
    assert pruning is not None
    assert truncation is not None
    for given in (
        [finding.value for finding in report.findings],
        [entry.value for entry in ledger.entries],
        [layer.weights for layer in pruning.layers],
        [layer.loss for layer in pruning.layers],
        [order.errors[-1] for order in truncation.orders],
        [window.error for window in report.runs[0].windows],
        [v for curve in report.scaling for v in curve.t_gates],
    ):
        assert _in_order([float(v) for v in given if not math.isnan(v)], parsed.values)
    rows = parsed.tables["ledger-table"][1:]
    assert [row[0] for row in rows] == [entry.quantity for entry in ledger.entries]
    assert [row[-2:] for row in rows] == [[e.formula, e.source] for e in ledger.entries]
    facts = dict(row for row in parsed.tables["facts"])
    assert facts["parameters"] == "11\u202f173\u202f962"
    assert facts["gpu"] == "–"


def _in_order(wanted: list[float], values: list[float]) -> bool:
    """Whether all are among the values, in their order."""
    rest = iter(values)
    return all(any(value == one for value in rest) for one in wanted)


def test_infinity_and_what_is_not_measured_are_said(parsed: Parsed) -> None:
    found = {row[0]: row for row in parsed.tables["findings"]}
    assert found["best window t*"][2] == "∞"
    assert found["certificate of the error bound"][2] == "not measured"
    assert found["copies to read the displacement"][2] == "3.9×10⁷"
    assert not re.search(r"\b(nan|inf|NaN|Infinity)\b", parsed.text)


def test_text_is_escaped_and_the_plots_data_cannot_end_their_script() -> None:
    text = page(nasty())
    parsed = Parsed(text)
    assert [kind for kind, _ in parsed.scripts] == ["style", "script", "application/json", "script"]
    assert "b" not in parsed.tags
    assert parsed.text.count(NASTY) > 8
    assert "<script>alert" not in text
    labels = parsed.plots["figures"]["pruning"]["layout"]["yaxis"]["ticktext"]
    assert labels[0].startswith("&lt;/script")
    assert parsed.plots["figures"]["curves"]["data"][0]["name"].count("<") == 0


def test_an_empty_audit_says_what_is_missing() -> None:
    parsed = Parsed(page(Report("", "audit")))
    assert parsed.tables == {}
    assert "Incomplete." in parsed.text
    missing = next(line for line in parsed.text.splitlines() if line.startswith("Not measured:"))
    for part in ("spectra", "training", "verdicts", "truncation", "pruning", "rows", "ledger"):
        assert part in missing
    assert parsed.plots["figures"] == {}


def test_a_training_run_misses_no_audit() -> None:
    quantum, plain, monitor = trained()
    parsed = Parsed(page(Report("run", "training run", runs=[quantum, plain], monitor=monitor)))
    assert "Not measured" not in parsed.text
    assert "quantum computer would need" not in parsed.text
    assert list(parsed.plots["figures"]) == ["curves", "window-errors", "spectra", "proxy"]
    assert "alidation" not in parsed.text
    alone = Parsed(page(Report("run", "training run", runs=[plain])))
    assert "Not measured: spectra of the Hessian" in alone.text


def test_spectra_that_all_failed_are_said() -> None:
    report = sample()
    assert report.monitor is not None
    report.monitor.records = [
        dataclasses.replace(record, spectrum=None, error="DivergenceError: the loss is NaN")
        for record in report.monitor.records
    ]
    parsed = Parsed(page(report))
    assert "spectra" not in parsed.plots["figures"]
    assert "Every spectrum failed" in parsed.text
    assert parsed.tables["spectra-table"][1][-1] == "DivergenceError: the loss is NaN"


def test_a_long_run_fits() -> None:
    """2000 windows, a spectrum each, and two runs of some 20 000 evaluations."""
    report = sample()
    assert report.monitor is not None
    run, records = report.runs[0], report.monitor.records
    starts = range(0, 220_000, 110)
    report.monitor.records = [
        dataclasses.replace(records[i % len(records)], step=start, window_step=0, taken="upload")
        for i, start in enumerate(starts)
    ]
    report.monitor.windows = [WindowSpan(start, start + 100, "length") for start in starts]
    run.windows = [
        dataclasses.replace(run.windows[i % 5], start=start, stop=start + 100)
        for i, start in enumerate(starts)
    ]
    for i, history in enumerate(report.runs):
        history.evaluations = [
            Evaluation(step, 2 - 1e-6 * step + i, 0.5 + 1e-6 * step)
            for step in range(0, 220_000, 10)
        ]
    text = page(report)
    assert own_size(text) < 1_000_000
    parsed = Parsed(text)
    assert len(parsed.plots["figures"]["spectra"]["frames"]) == 100
    assert "Of 2\u202f000 spectra, 100 are drawn" in parsed.text
    assert len(parsed.tables["windows"]) == 101
    assert "100 of 2\u202f000 windows" in parsed.text


def test_the_same_report_gives_the_same_page() -> None:
    assert page(sample()) == page(Report.from_json(json.loads(json.dumps(sample().to_json()))))
    assert own_size(page(sample())) < 300_000
