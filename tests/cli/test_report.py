"""``report`` as its users meet it: what it reads, prints, writes and refuses."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.cli.running import TINY, Outcome, train
from tests.report.small import report as small_report
from tests.report.test_content import leaves
from torch_qsgd.cli import app
from torch_qsgd.report.content import Report
from torch_qsgd.report.from_run import report_of_run


def invoke(*arguments: str, columns: int = 120) -> Outcome:
    result = CliRunner().invoke(app, ["report", *arguments], env={"COLUMNS": str(columns)})
    return Outcome(result.exit_code, result.stdout, result.stderr, result.exception, Path())


def make(*arguments: str, columns: int = 120) -> Outcome:
    outcome = invoke(*arguments, columns=columns)
    assert outcome.code == 0, (outcome.stderr, outcome.exception)
    return outcome


def assert_refused(outcome: Outcome, message: str) -> None:
    assert outcome.code == 2
    assert isinstance(outcome.exception, SystemExit), outcome.exception
    (line,) = outcome.stderr.strip().splitlines()
    assert line.startswith("error ")
    assert re.search(message, line), line
    assert outcome.stdout == ""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("run")
    train(output, "--data", "digits", *TINY, "--eval-batches", "1", "--monitor")
    return output


@pytest.fixture
def audit(tmp_path: Path) -> Path:
    small_report().save(tmp_path / "audit.json")
    return tmp_path


# ---- Of a training run ---------------------------------------------------------------------------


def test_a_run_is_reported_into_its_folder_in_three_forms(run: Path, tmp_path: Path):
    folder = Path(shutil.copytree(run, tmp_path / "copy"))
    outcome = make(str(folder))
    wanted = report_of_run(folder)
    assert wanted.complete
    assert list(leaves(Report.load(folder / "report.json"))) == list(leaves(wanted))
    assert (folder / "report.md").read_text(encoding="utf-8") == wanted.to_markdown()
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert "resnet on digits" in html
    for ending in ("json", "md", "html"):
        assert f"{ending}: {folder / 'report'}.{ending}" in outcome.stdout
    assert "incomplete" not in outcome.stdout
    assert outcome.stderr == ""


def test_windows_are_printed_as_the_log_has_them(run: Path, tmp_path: Path):
    outcome = make(str(run), "--output", str(tmp_path / "new" / "folder"))
    windows = json.loads((run / "run.json").read_text())["runs"][0]["windows"]
    rows = re.findall(
        r"^│ +(\d+)–(\d+) │ +(\d+) │ +(\S+) → (\S+) │ +(\S+)% │ (.*?) +│$",
        outcome.stdout,
        re.MULTILINE,
    )
    assert len(rows) == len(windows) == 2
    for row, window in zip(rows, windows, strict=True):
        assert row == (
            str(window["start"]),
            str(window["stop"]),
            str(window["record"]["steps"]),
            f"{window['before']['loss']:.4f}",
            f"{window['after']['loss']:.4f}",
            f"{100 * window['error']:.2f}",
            window["record"]["reason"],
        )
    assert (tmp_path / "new" / "folder" / "report.html").is_file()
    assert not (run / "report.html").exists()


def test_the_log_itself_may_be_given(run: Path, tmp_path: Path):
    make(str(run / "run.json"), "--output", str(tmp_path))
    assert Report.load(tmp_path / "report.json").title == "resnet on digits"


def test_json_is_alone_on_stdout(run: Path, tmp_path: Path):
    outcome = make(str(run), "--json", "--output", str(tmp_path))
    assert json.loads(outcome.stdout) == json.loads((tmp_path / "report.json").read_text())
    assert f"html: {tmp_path / 'report.html'}" in outcome.stderr


def test_an_interrupted_run_is_said_to_be_incomplete(run: Path, tmp_path: Path):
    log = json.loads((run / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**log, "complete": False}))
    assert "incomplete: not all that was asked for" in make(str(tmp_path)).stdout


# ---- Of an audit ---------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", ["", "audit.json"])
def test_an_audit_is_reported_with_its_verdicts(audit: Path, inner: str):
    outcome = make(str(audit / inner), columns=80)
    for assumption, verdict in small_report().verdicts.items():
        assert re.search(rf"^ +[✓✗?] +{assumption} +{verdict} *$", outcome.stdout, re.MULTILINE)
    (row,) = re.findall(r"^ +(.) +growth +(.*)$", outcome.stdout, re.MULTILINE)
    assert re.split(" {2,}", f"{row[0]}  {row[1].strip()}") == ["✗", "3.25 ×", "≤ 2"]
    assert max(map(len, outcome.stdout.splitlines()[:-3])) <= 80
    assert list(leaves(Report.load(audit / "report.json"))) == list(leaves(small_report()))


def test_a_report_may_be_read_again(audit: Path, tmp_path: Path):
    make(str(audit))
    first = (audit / "report.md").read_text()
    make(str(audit / "report.json"), "--output", str(tmp_path / "again"))
    assert (tmp_path / "again" / "report.md").read_text() == first


# ---- What is refused -----------------------------------------------------------------------------


def test_a_source_that_is_not_there_is_refused_with_the_nearest_one(audit: Path):
    assert_refused(
        invoke(str(audit / "audti.json")),
        r"audti\.json is not there; did you mean .*audit\.json'\?",
    )
    assert_refused(invoke("/nowhere/at/all"), r"/nowhere/at/all is not there$")


def test_a_folder_without_a_log_is_refused_with_what_to_give(tmp_path: Path):
    assert_refused(
        invoke(str(tmp_path)),
        r"holds neither run\.json nor audit\.json: give the --output folder of `torch-qsgd train`",
    )
    small_report().save(tmp_path / "report.json")
    assert_refused(invoke(str(tmp_path)), r"; did you mean '.*report\.json'\?$")


def test_a_folder_of_runs_is_refused_with_one_of_them(tmp_path: Path):
    (tmp_path / "demo").mkdir()
    small_report().save(tmp_path / "demo" / "audit.json")
    assert_refused(invoke(str(tmp_path)), r"; did you mean '.*/demo'\?$")


def test_a_folder_with_both_is_refused(audit: Path):
    (audit / "run.json").write_text("{}")
    assert_refused(invoke(str(audit)), r"holds run\.json and audit\.json: give one of these files")


@pytest.mark.parametrize("text", ["", "{}", '{"format": "torch_qsgd.Report", "version": 1}'])
def test_a_damaged_file_is_refused_by_its_name(tmp_path: Path, text: str):
    (tmp_path / "audit.json").write_text(text)
    assert_refused(invoke(str(tmp_path)), r"audit\.json: ")
    (tmp_path / "audit.json").rename(tmp_path / "run.json")
    assert_refused(invoke(str(tmp_path)), r"run\.json is no log of a training run, or damaged: ")
    assert not (tmp_path / "report.json").exists()


def test_a_file_that_is_no_json_is_refused(tmp_path: Path):
    for name, content in (
        ("picture.png", b"\x89PNG\xff"),
        ("report.md", b"# Report\n"),
        ("e", b""),
    ):
        (tmp_path / name).write_bytes(content)
        assert_refused(
            invoke(str(tmp_path / name)),
            rf"^error [^:]*{re.escape(name)}: this is no JSON file: .*; SOURCE must be the JSON "
            r"file of an audit or a report, or a folder that `torch-qsgd train` or",
        )


def test_a_json_file_of_something_else_is_refused_with_what_to_give(run: Path):
    assert_refused(invoke(str(run / "monitor.json")), r"this is no report: .*; SOURCE must be the")


# ---- What cannot be written ----------------------------------------------------------------------


@pytest.mark.parametrize("lost", ["md", "html"])
def test_a_form_that_cannot_be_written_loses_none_of_the_others(tmp_path: Path, lost: str):
    (tmp_path / f"small.{lost}").mkdir()  # where a file cannot take its place
    with pytest.raises(OSError, match=rf"small\.{lost}"):
        small_report().write(tmp_path, "small")
    kept = {"json", "md", "html"} - {lost}
    assert {path.suffix[1:] for path in tmp_path.iterdir() if path.is_file()} == kept
    assert list(leaves(Report.load(tmp_path / "small.json"))) == list(leaves(small_report()))
    if lost == "md":
        assert "</html>" in (tmp_path / "small.html").read_text(encoding="utf-8")


class Unprintable(Report):
    def to_markdown(self) -> str:
        raise ArithmeticError("no such number")


def test_markdown_that_fails_leaves_numbers_and_page(tmp_path: Path):
    with pytest.raises(ArithmeticError, match="no such number"):
        Unprintable("title", "audit").write(tmp_path, "small")
    assert {path.name for path in tmp_path.iterdir()} == {"small.json", "small.html"}


def test_an_output_that_cannot_be_made_is_refused(audit: Path):
    (audit / "file").write_text("")
    assert_refused(invoke(str(audit), "--output", str(audit / "file" / "out")), "file")


def test_the_help_has_an_example_and_a_source_is_asked_for():
    text = CliRunner().invoke(app, ["report", "--help"], env={"COLUMNS": "200"}).stdout
    assert re.search(r"Example: python -m torch_qsgd report runs/train --output runs/report", text)
    assert "SOURCE" in text
    outcome = invoke()
    assert outcome.code == 2
    assert "SOURCE" in outcome.stderr
