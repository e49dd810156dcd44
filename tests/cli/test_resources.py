"""``resources`` as its users meet it: numbers of the ledger, tables, files, audits, complaints."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from tests.cli.running import Outcome, assert_one_clear_line
from torch_qsgd.cli.resources import resources_command
from torch_qsgd.report.content import Report
from torch_qsgd.report.measurements import Conditioning
from torch_qsgd.resources import Ledger, WindowSize, ledger, physical, scaling
from torch_qsgd.resources.sentence import short

app = typer.Typer(pretty_exceptions_enable=False)
app.callback()(lambda: None)
app.command("resources")(resources_command)

PAPER = ["--parameters=1.03e8", "--density=0.1", "--window=100", "--order=3", "--batch-size=128"]


def invoke(output: Path, *arguments: str, columns: int = 100) -> Outcome:
    result = CliRunner().invoke(
        app, ["resources", *arguments, "--output", str(output)], env={"COLUMNS": str(columns)}
    )
    return Outcome(result.exit_code, result.stdout, result.stderr, result.exception, output)


def counted(output: Path, *arguments: str, columns: int = 100) -> Outcome:
    outcome = invoke(output, *arguments, columns=columns)
    assert outcome.code == 0, (outcome.stderr, outcome.exception)
    return outcome


def found(outcome: Outcome) -> dict[str, Any]:
    return json.loads((outcome.output / "resources.json").read_text())


def values(plain: dict[str, Any]) -> dict[str, float]:
    return {entry["key"]: entry["value"] for entry in plain["ledger"]["entries"]}


def assert_values(plain: dict[str, Any], expected: Ledger, but: tuple[str, ...] = ()) -> None:
    seen = values(plain)
    assert list(seen) == [entry.key for entry in expected.entries]
    for entry in expected.entries:
        if entry.group not in but:
            value = entry.value if math.isfinite(entry.value) else None
            assert seen[entry.key] == value, entry.key


@pytest.fixture
def without_qdk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(physical.importlib.util, "find_spec", lambda name: None)


def size(**changes: Any) -> WindowSize:
    given = {"parameters": 10**6, "active": 10**5, "steps": 100, "order": 2, "batches": 100}
    return WindowSize(**{**given, **changes})


# ---- Numbers -------------------------------------------------------------------------------------


def test_numbers_are_the_ledgers_of_the_sizes_given(tmp_path: Path):
    plain = found(counted(tmp_path, *PAPER))
    window = size(parameters=103_000_000, active=10_300_000, order=3, batch_size=128, batches=100)
    expected = ledger(window)
    assert_values(plain, expected, but=("physical",))
    assert plain["ledger"]["sentence"] == expected.sentence
    assert plain["ledger"]["dominant"] == expected.dominant == "copies"
    assert plain["title"] == (
        "103,000,000 weights at density 0.1, a window of 100 steps at order 3"
    )
    for curve, over in zip(plain["scaling"], ("active", "steps", "density"), strict=True):
        assert curve["over"] == over
        assert curve["t_gates"] == scaling(window, over).t_gates


@pytest.mark.usefixtures("without_qdk")
def test_every_option_reaches_the_ledger(tmp_path: Path):
    options = "kappa=77 row-nonzeros=50 alpha=3 epsilon=1e-6 precision=0.01 batches=4 batch-size=8"
    options += " window=7 order=1 density=1 solver=qsvt-relative"
    outcome = counted(tmp_path, "--parameters=1e6", *(f"--{option}" for option in options.split()))
    window = WindowSize(
        parameters=10**6,
        active=10**6,
        steps=7,
        order=1,
        kappa=77.0,
        row_nonzeros=50.0,
        subnormalization=3.0,
        solver_error=1e-6,
        readout_error=0.01,
        batches=4,
        batch_size=8,
    )
    assert_values(found(outcome), ledger(window, "qsvt-relative"))
    assert "totals take those of qsvt-relative" in outcome.stdout


@pytest.mark.usefixtures("without_qdk")
def test_what_is_not_given_is_as_it_says(tmp_path: Path):
    assert_values(found(counted(tmp_path, "--parameters=1e6")), ledger(size()))


def test_few_weights_leave_at_least_one(tmp_path: Path):
    plain = found(counted(tmp_path, "--parameters=3"))
    assert plain["ledger"]["window"]["active"] == 1


# ---- The physical estimate -----------------------------------------------------------------------


def test_the_physical_estimate_is_of_one_copy(tmp_path: Path):
    pytest.importorskip("qdk", reason="needs qdk")
    outcome = counted(tmp_path, *PAPER)
    seen = values(found(outcome))
    cost = physical.physical_cost(seen["copy_qroam"], int(seen["logical_qubits"]), 0.1**2)
    assert seen["physical_qubits"] == cost.physical_qubits
    assert seen["seconds_copy"] == cost.seconds
    assert seen["seconds"] == pytest.approx(cost.seconds * seen["copies"])
    assert f"surface code of distance {cost.code_distance}" in outcome.stdout


@pytest.mark.usefixtures("without_qdk")
def test_without_qdk_there_is_a_note_and_no_line_for_what_is_not_known(tmp_path: Path):
    outcome = counted(tmp_path, "--parameters=1e6")
    assert 'pip install "torch_qsgd[physical]"' in " ".join(outcome.stdout.split())
    assert "give --batch-size" in outcome.stdout
    for unknown in ("physical qubits", "time of one copy", "nan", "floating-point"):
        assert unknown not in outcome.stdout
    assert values(found(outcome))["physical_qubits"] is None


def test_an_infinite_condition_number_is_told_and_not_estimated(tmp_path: Path):
    outcome = counted(tmp_path, "--parameters=1e6", "--kappa=inf")
    text = " ".join(outcome.stdout.split())
    assert "No number of queries is enough" in text
    assert "There is no physical estimate" in text
    assert "∞" in text


# ---- What is printed and written -----------------------------------------------------------------


@pytest.mark.parametrize("columns", [80, 100])
def test_tables_fit_and_show_every_line_with_its_basis(tmp_path: Path, columns: int):
    outcome = counted(tmp_path, *PAPER, columns=columns)
    files = "json: ", "ledger: ", "scaling: "
    lines = [line for line in outcome.stdout.splitlines() if not line.startswith(files)]
    assert max(map(len, lines)) <= columns
    plain = found(outcome)
    text = " ".join(" ".join(lines).split())
    for entry in plain["ledger"]["entries"]:
        if entry["value"] is not None:
            value = re.escape(short(entry["value"]))
            assert re.search(rf" {value} +{entry['tag']}", text), entry["key"]
    places = [text.index(f"{group} ") for group in ("Qubits", "Queries", "Block encoding")]
    assert places == sorted(places)
    assert plain["ledger"]["sentence"] in text
    assert "assumed hardware" in text


def test_queries_stand_beside_their_citation_and_what_backs_them(tmp_path: Path):
    lines = counted(tmp_path, *PAPER, columns=80).stdout.splitlines()
    for title, tag, source in (
        ("CKS, Chebyshev", "proven", "arXiv:1511.02306"),
        ("shortcut, ‖x‖ known", "assumes known norm", "arXiv:2406.12086"),
        ("discrete adiabatic, c = 1.84", "numerical", "arXiv:2312.07690"),
        ("Jennings et al., Theorem 1", "proven", "arXiv:2305.11352"),
    ):
        (line,) = [line for line in lines if line.startswith(title)]
        assert tag in line
        assert source in line


def test_json_alone_is_on_stdout_and_the_same_as_in_the_file(tmp_path: Path):
    outcome = counted(tmp_path, *PAPER, "--json")
    assert json.loads(outcome.stdout) == found(outcome)
    assert f"ledger: {tmp_path / 'ledger.png'}" in outcome.stderr


def test_files_are_written_into_a_folder_that_need_not_be_there(tmp_path: Path):
    folder = tmp_path / "a" / "b"
    outcome = counted(folder, *PAPER)
    for name in ("ledger.png", "scaling.png"):
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 300
            assert len(picture.convert("RGB").getcolors(2**24)) > 10
        assert str(folder / name) in outcome.stdout
    assert sorted(path.name for path in folder.iterdir()) == [
        "ledger.png",
        "resources.json",
        "scaling.png",
    ]


def test_help_shows_examples_of_known_options():
    text = CliRunner().invoke(app, ["resources", "--help"], env={"COLUMNS": "200"}).stdout
    described, listed = text.split("Options", 1)
    assert described.count("Example: python -m torch_qsgd resources --") == 2
    options = set(re.findall(r"--[a-z-]+", described))
    assert {"--parameters", "--audit"} < options
    assert all(re.search(rf"{option}\b", listed) for option in options)


# ---- From an audit -------------------------------------------------------------------------------


@pytest.fixture
def audited(tmp_path: Path) -> Path:
    window = size(kappa=50.0, flops=1e12, physical={"physical_qubits": 7.0})
    report = Report(
        title="a network that was audited",
        kind="audit",
        ledger=ledger(window, "adiabatic"),
        scaling=[scaling(window, "steps", [10, 100])],
        conditioning=Conditioning([1], [1.0], [1.0], [1.0], [1.0], 1, 1.0, 0.1, "T"),
    )
    path = tmp_path / "audit.json"
    report.save(path)
    return path


def test_an_audits_own_ledger_is_shown_as_it_is(tmp_path: Path, audited: Path):
    outcome = counted(tmp_path / "out", f"--audit={audited}")
    plain = found(outcome)
    assert_values(plain, Report.load(audited).ledger or Ledger({}))
    assert values(plain)["physical_qubits"] == 7
    assert [curve["values"] for curve in plain["scaling"]] == [[10, 100]]
    assert outcome.stdout.startswith("a network that was audited")


@pytest.mark.usefixtures("without_qdk")
def test_an_audits_window_may_be_looked_at_with_another_solver(tmp_path: Path, audited: Path):
    window = size(kappa=50.0, flops=1e12)
    plain = found(counted(tmp_path / "out", f"--audit={audited}", "--solver=cks"))
    assert_values(plain, ledger(window, "cks"))
    # Without a spectrum nothing tells how κ grows with T.
    assert plain["scaling"][1]["t_gates"] == scaling(window, "steps", solver="cks").t_gates
    plain = found(counted(tmp_path / "out", f"--audit={audited}", "--precision=0.02"))
    assert_values(plain, ledger(size(kappa=50.0, flops=1e12, readout_error=0.02), "adiabatic"))


@pytest.mark.parametrize("option", ["--parameters=1e6", "--window=5", "--row-nonzeros=3"])
def test_what_an_audit_has_measured_is_not_to_be_given(tmp_path: Path, audited: Path, option: str):
    outcome = invoke(tmp_path / "out", f"--audit={audited}", option)
    assert_one_clear_line(outcome, f"has measured the window's sizes: leave out {option[:8]}")


def test_a_report_without_a_ledger_is_refused(tmp_path: Path):
    path = tmp_path / "run.json"
    Report(title="a run", kind="training run").save(path)
    assert_one_clear_line(invoke(tmp_path / "out", f"--audit={path}"), "holds no ledger")


def test_a_file_that_is_no_report_is_refused(tmp_path: Path):
    path = tmp_path / "other.json"
    path.write_text("{}")
    assert_one_clear_line(invoke(tmp_path / "out", f"--audit={path}"), r"other.json: .* no report")
    path.write_text("no JSON")
    assert_one_clear_line(invoke(tmp_path / "out", f"--audit={path}"), "other.json")
    assert_one_clear_line(invoke(tmp_path / "out", f"--audit={tmp_path / 'none'}"), "No such file")


# ---- Complaints ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give --parameters"),
        (["--parameters=0"], "parameters must be a number above 0"),
        (["--parameters=nan"], "parameters must be a number above 0"),
        (["--parameters=1.5"], "parameters must be a whole number, got 1.5"),
        (["--parameters=1e6", "--density=0"], "density must be .* or 1 for no pruning"),
        (["--parameters=1e6", "--window=0"], "window must be an integer of at least 1"),
        (["--parameters=1e6", "--order=0"], "order must be an integer of at least 1"),
        (["--parameters=1e6", "--kappa=1"], "kappa must be a number above 1"),
        (["--parameters=1e6", "--alpha=0.5"], "alpha must be a number of at least 1"),
        (["--parameters=1e6", "--epsilon=1"], "epsilon must be a number above 0 and below 1"),
        (["--parameters=1e6", "--precision=2"], "precision must be a number above 0 and below 1"),
        (["--parameters=1e6", "--row-nonzeros=1e6"], "row_nonzeros must be at most"),
        (["--parameters=1e6", "--batches=0"], "batches must be an integer"),
        (["--parameters=1e6", "--batch-size=0"], "batch_size must be an integer"),
        (["--parameters=1e6", "--solver=shortcat"], "unknown solver .* did you mean 'shortcut'"),
    ],
)
def test_wrong_sizes_are_told_in_one_line(tmp_path: Path, arguments: list[str], words: str):
    outcome = invoke(tmp_path, *arguments)
    assert_one_clear_line(outcome, words)
    assert not list(tmp_path.iterdir())


def test_sizes_beyond_all_floats_are_told_or_counted_without_a_traceback(tmp_path: Path):
    outcome = invoke(tmp_path, "--parameters=1e300")
    assert "Traceback" not in outcome.stderr
    assert outcome.code == 0 or "smaller sizes" in outcome.stderr
    assert outcome.exception is None or isinstance(outcome.exception, SystemExit)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path):
    (tmp_path / "file").write_text("")
    assert_one_clear_line(invoke(tmp_path / "file" / "out", *PAPER), "Not a directory")
