"""The report as Markdown, read back by a Markdown parser that is not ours."""

from __future__ import annotations

import math
import re
import unicodedata
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from tests.report.small import findings, monitor, report, run
from tests.report.test_numbers import read
from torch_qsgd.report.content import Report
from torch_qsgd.report.markdown import document
from torch_qsgd.report.numbers import number
from torch_qsgd.report.pipe_table import pipe_table, plain

PARSER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])

Rows = list[dict[str, str]]


def shown(text: str) -> str:
    """What a reader sees of inline Markdown: text alone; marks, code and HTML are an error."""
    (block,) = PARSER.parseInline(text)
    kinds = {token.type for token in block.children or []}
    assert kinds <= {"text", "text_special"}, kinds
    return "".join(token.content for token in block.children or [])


def tables(text: str) -> dict[str, list[Rows]]:
    """The tables under each heading, as a parser of Markdown finds them."""
    found: dict[str, list[Rows]] = {}
    heading, head, row, tokens = "", [], [], PARSER.parse(text)
    for token, following in zip(tokens, [*tokens[1:], tokens[-1]], strict=True):
        if token.type == "heading_open":
            heading = shown(following.content)
        elif token.type == "table_open":
            found.setdefault(heading, []).append([])
            head = []
        elif token.type == "th_open":
            head.append(shown(following.content))
        elif token.type == "tr_open":
            row = []
        elif token.type == "td_open":
            row.append(shown(following.content))
        elif token.type == "tr_close" and row:
            found[heading][-1].append(dict(zip(head, row, strict=True)))
    return found


def columns_of(line: str) -> int:
    """Columns that a line takes in a terminal."""
    return sum(
        0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in line
    )


# ---- Tables --------------------------------------------------------------------------------------

NAMES = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=12)
TRICKY = st.text("|\\`*_<>[]()!#~$&;a1-\n: ", max_size=12)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(TRICKY | NAMES, TRICKY | NAMES), min_size=1, max_size=4))
def test_any_text_in_a_cell_is_shown_as_it_is_on_one_line(rows: list[tuple[str, str]]):
    lines = pipe_table(["first", "second"], rows, "r")
    ((found,),) = tables("\n".join(lines)).values()
    for row, wanted in zip(found, rows, strict=True):
        for given_, seen in zip(wanted, row.values(), strict=True):
            assert " ".join(seen.split()) == " ".join(given_.split())
    assert len({columns_of(line) for line in lines}) == 1


@pytest.mark.parametrize(
    "text",
    ["a|b", "*bold*", "_x_ and __y__", "<script>alert(1)</script>", "`code`", "[a](b)", "~~no~~",
     "$x$", "&lt;", "a\\|b", "snake_case_name", "**"],
)  # fmt: skip
def test_marks_are_text(text: str):
    assert shown(plain(text)) == text


def test_words_with_inner_underscores_need_no_escapes():
    assert plain("layer1.conv_2.weight") == "layer1.conv_2.weight"


def test_columns_line_up_with_letters_of_any_width():
    lines = pipe_table(["名前", "n"], [["e\u0301tude", "1"], ["中文字", "10"]], "lr")
    assert lines == [
        "| 名前   |   n |",
        "| :----- | --: |",
        "| e\u0301tude  |   1 |",
        "| 中文字 |  10 |",
    ]


# ---- The document --------------------------------------------------------------------------------


def test_every_table_of_the_document_lines_up_in_plain_text():
    blocks = re.findall(r"(?:^\|.*\n)+", document(report()), re.MULTILINE)
    assert len(blocks) >= 15
    for block in blocks:
        lines = block.splitlines()
        assert len({columns_of(line) for line in lines}) == 1
        bars = [[i for i, c in enumerate(line) if c == "|"] for line in lines[:2]]
        assert bars[0] == bars[1]


def test_parts_stand_in_the_order_of_a_paper():
    headings = re.findall(r"^#+ (.*)$", document(report()), re.MULTILINE)
    wanted = ["a model", "erdict", "easures", "Facts", "Settings", "Pruning", "Truncation error"]
    wanted += ["κ", "Rows of the Hessian", "Upload and download", "readouts", "Derivatives"]
    wanted += ["ledger", "Scaling", "runs", "Windows of QuantumSGD", "Spectra", "Notes"]
    places = [next(i for i, h in enumerate(headings) if word in h) for word in wanted]
    assert places == sorted(places)


def test_verdicts_and_findings_are_those_of_the_report():
    found = tables(document(report()))
    ((verdicts,), (measures,)) = (
        next(rows for heading, rows in found.items() if word in heading)
        for word in ("erdict", "easures")
    )
    assert [(row["assumption"], row["verdict"]) for row in verdicts] == list(
        report().verdicts.items()
    )
    assert len(measures) == len(findings())
    for finding in findings():
        (row,) = (row for row in measures if finding.quantity in row.values())
        text = " | ".join(row.values())
        assert finding.sentence in text
        assert finding.verdict in row.values()
        assert finding.unit in text
        if not math.isnan(finding.value):
            assert number(finding.value, 4) in text
            assert f"{finding.relation} {number(finding.threshold)}" in text
        if finding.low is not None and finding.high is not None:
            assert f"{number(finding.low)} to {number(finding.high)}" in text


def test_a_few_times_of_the_truncation_error_are_there_for_each_order():
    part = report().truncation
    assert part is not None
    steps = 1234
    errors = [0.001 * t**0.5 for t in range(1, steps + 1)]
    long = replace(part, steps=steps, orders=[replace(part.orders[0], errors=errors)], floor=errors)
    ((rows,),) = (
        rows
        for heading, rows in tables(document(report(truncation=long))).items()
        if heading == "Truncation error"
    )
    times = [int(read(row["t (steps)"])) for row in rows]
    assert times == [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 1234]
    for t, row in zip(times, rows, strict=True):
        assert read(row["order 1"]) == pytest.approx(0.001 * t**0.5, rel=1e-3)
        assert row["kink floor"] == row["order 1"]


def test_windows_spectra_and_readouts_have_a_row_each():
    found = tables(document(report()))
    ((windows,),) = (rows for heading, rows in found.items() if "of QuantumSGD" in heading)
    assert len(windows) == 1
    assert "best window" in windows[0].values()
    assert {"0.0375", number(1 / 1.5, 5), number(1 / 8.5, 5)} <= set(windows[0].values())
    ((spectra,),) = (rows for heading, rows in found.items() if heading == "Spectra")
    assert [read(row["step"]) for row in spectra] == [0, 9]
    assert {"−0.375", "4.25", "16"} <= set(spectra[0].values())
    assert "it | diverged" in spectra[1].values()
    assert len(monitor().records) == 2


def test_every_line_of_the_ledger_has_its_formula_source_and_tag():
    text = document(report())
    found = tables(text)
    ledger = report().ledger
    assert ledger is not None
    lines = next(rows[0] for heading, rows in found.items() if "ledger, line" in heading)
    assert len(lines) == len(ledger.entries)
    for entry, row in zip(ledger.entries, lines, strict=True):
        cells = set(row.values())
        assert {entry.quantity, entry.group, entry.unit, entry.formula, entry.source} <= cells
        assert entry.tag in cells
        assert number(entry.value, 4) in cells
    assert "**T gates dominate.**" in text


def numbers_of(given_report: Report) -> list[float]:
    """Numbers that a reader must find, as the JSON has them."""
    part = given_report
    assert None not in (part.pruning, part.conditioning, part.transfer, part.truncation, part.rows)
    found = [f.value for f in part.findings]
    found += [part.pruning.active, part.pruning.loss_dense, part.pruning.loss]
    found += [part.pruning.layers[0].loss, 100 * part.pruning.layers[0].norm_removed]
    found += [*part.conditioning.kappa, *part.conditioning.kappa_order, *part.conditioning.largest]
    found += [part.transfer.final, part.transfer.level_one, part.transfer.t_gates]
    found += [part.transfer.trials[0].copies, sum(part.transfer.trials[0].losses) / 2]
    found += [*(o.loss for o in part.truncation.orders), *part.truncation.orders[0].errors]
    found += [part.truncation.loss_true, *part.rows.nonzeros]
    found += [v for c in part.scaling for vs in (c.values, c.t_gates, c.flops) for v in vs]
    return [*found, *(e.value for e in part.ledger.entries), part.runs[0].final.loss]


def test_the_tables_hold_the_numbers_of_the_json():
    given_report = Report.from_json(report().to_json())
    cells = {
        cell
        for many in tables(document(given_report)).values()
        for rows in many
        for row in rows
        for cell in row.values()
    }
    missing = [v for v in numbers_of(given_report) if not {number(v, 4), number(v, 5)} & cells]
    assert [v for v in missing if not math.isnan(v)] == []


def test_what_was_not_measured_is_left_out():
    text = document(Report("bare", "training run", complete=True))
    assert "|" not in text
    assert re.findall(r"^#+ .*$", text, re.MULTILINE) == ["# bare"]
    assert text.endswith("\n")
    assert not text.endswith("\n\n")


def test_it_says_what_it_is_and_that_no_advantage_is_claimed():
    for kind, words in (("audit", "arXiv:2303.03428"), ("training run", "log of a training run")):
        text = document(Report("t", kind))
        assert words in text
        assert len(re.findall("claims no quantum advantage", text)) == 1
        assert "**Incomplete**" in text
        assert "**Incomplete**" not in document(Report("t", kind, complete=True))


def test_infinite_and_unknown_numbers_are_signs():
    text = document(report())
    assert "∞" in text
    assert "–" in text
    for word in ("nan", "inf", "None", "NaN"):
        assert not re.search(rf"(?<![\w.]){word}(?![\w.])", text)


def test_a_run_without_an_evaluation_is_a_row_of_dashes():
    empty = replace(run("cut"), evaluations=[], windows=[])
    ((rows,),) = tables(document(Report("t", "training run", runs=[empty]))).values()
    assert rows[0]["run"] == "cut"
    assert "–" in rows[0].values()


def test_a_note_said_twice_is_written_once():
    text = document(report(notes=["One note.", "Another.", "One  note."]))
    assert text.endswith("## Notes\n\n- One note.\n- Another.\n")


def test_notes_are_one_line_each():
    text = document(report())
    assert text.endswith("## Notes\n\n- Losses are of \\*few\\* batches.\n- One more.\n")
