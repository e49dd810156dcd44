"""``torch-qsgd audit`` from the outside."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.running import Outcome, assert_one_clear_line, invoke
from torch_qsgd.report.content import Report
from torch_qsgd.report.findings import ASSUMPTIONS

TINY = ["--width=8", "--depth=8", "--norm=group", "--activation=silu", "--window=3", "--quick"]


def audit(output: Path, *arguments: str, columns: int = 80) -> Outcome:
    return invoke(output, *arguments, command="audit", columns=columns)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    found = audit(
        tmp_path_factory.mktemp("audit"), "--data=digits", "--lr=0.02", "--warmup=5", *TINY
    )
    assert found.code == 0, (found.stderr, found.exception)
    return found


def test_it_writes_one_report_three_times(outcome: Outcome) -> None:
    report = Report.load(outcome.output / "audit.json")
    assert report.complete
    assert list(report.verdicts) == list(ASSUMPTIONS)
    page = (outcome.output / "audit.html").read_text()
    text = (outcome.output / "audit.md").read_text()
    for assumption in ASSUMPTIONS:
        assert assumption in page
        assert assumption in text
    assert report.title == "resnet on digits, random weights and 5 dense steps"
    assert report.settings["window"] == 3
    for ending in ("json", "md", "html"):
        assert f"{ending}: {outcome.output / f'audit.{ending}'}" in outcome.stdout


def test_the_terminal_shows_all_verdicts_in_80_columns(outcome: Outcome) -> None:
    report = Report.load(outcome.output / "audit.json")
    for assumption, verdict in report.verdicts.items():
        assert re.search(rf"[✓✗?] +{assumption} +{verdict}", outcome.stdout)
    start, stop = outcome.stdout.index("Verdicts"), outcome.stdout.index("Thresholds are")
    assert max(map(len, outcome.stdout[start:stop].splitlines())) <= 80
    assert report.ledger is not None
    assert report.ledger.sentence in outcome.stdout


def test_json_is_alone_on_stdout(tmp_path: Path) -> None:
    found = audit(tmp_path, "--data=digits", "--lr=0.02", "--json", "--order=1", *TINY)
    assert json.loads(found.stdout) == json.loads((tmp_path / "audit.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data=digit", "--lr=0.1"], "did you mean 'digits'"),
        (["--data=digits", "--lr=0"], "lr must be a number above 0"),
        (["--data=digits", "--lr=0.1", "--model=resnet-7"], "did you mean 'resnet-7m'"),
        (["--data=digits", "--lr=0.1", "--loss=cross-entrop"], "did you mean 'cross-entropy'"),
        (["--data=digits", "--lr=0.1", "--pruning=magnitud"], "pruning must be one of"),
        (["--data=digits", "--lr=0.1", "--density=2"], "density"),
        (["--data=digits", "--lr=0.1", "--window=0"], "window must be an integer of at least 1"),
        (["--data=digits", "--lr=0.1", "--checkpoint=nowhere.pt"], "nowhere.pt is not there"),
        (["--data=digits", "--lr=0.1", "--device=cud"], "unknown device"),
    ],
)
def test_wrong_options_are_one_clear_line(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    found = audit(tmp_path / "out", *arguments)
    assert_one_clear_line(found, message)
    assert not (tmp_path / "out" / "audit.json").exists()


def test_help_shows_an_example() -> None:
    found = invoke(Path("."), "--help", command="audit", columns=100)
    assert "Example: torch-qsgd audit" in found.stdout


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_leaves_what_was_measured(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch_qsgd", "audit", "--data=digits", "--lr=0.02"]
    options = ["--width=8", "--depth=8", "--window=2000", "--order=3", f"--output={tmp_path}"]
    state = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=state, text=True
    ) as process:
        try:
            deadline = time.monotonic() + 240
            while not (tmp_path / "audit.json").exists() and time.monotonic() < deadline:
                time.sleep(0.2)
                assert process.poll() is None
            time.sleep(1)
            process.send_signal(signal.SIGINT)
            printed, _ = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 130, printed
    assert "interrupted" in printed
    report = Report.load(tmp_path / "audit.json")
    assert not report.complete
    assert report.pruning is not None
    page = (tmp_path / "audit.html").read_text()
    assert re.search(r"<[^>]*banner[^>]*>\s*(<[^>]+>\s*)*Incomplete", page)
