"""The program itself, in a process of its own, and its help."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from torch_qsgd.cli import app


def program(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "torch_qsgd", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_module_runs_as_a_program_and_shows_its_help():
    done = program("--help")
    assert done.returncode == 0
    assert "torch-qsgd" in done.stdout
    assert "train" in done.stdout
    assert "spectrum" in done.stdout
    assert done.stderr == ""


def test_the_program_ends_with_code_2_and_one_line_on_stderr(tmp_path: Path):
    done = program("train", "--data", str(tmp_path / "nowhere"), "--output", str(tmp_path / "out"))
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"error no data '{tmp_path / 'nowhere'}'")


INTERRUPTED = """
import runpy, sys

class Interrupting:
    def find_spec(self, name, *_):
        if name == "torch_qsgd.cli{where}":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupting())
sys.argv = ["torch-qsgd", "report"]
runpy.run_module("torch_qsgd", run_name="__main__")
"""


@pytest.mark.parametrize("where", ["", ".train"])
def test_ctrl_c_while_commands_are_imported_ends_without_a_traceback(where: str):
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED.format(where=where)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["-h"], 0),
        (["train", "-h"], 0),
        (["spectrum", "-h"], 0),
        (["report", "-h"], 0),
        ([], 2),
        (["train"], 2),
        (["spectrum"], 2),
        (["report"], 2),
        (["x"], 2),
    ],
)
def test_help_is_shown_where_asked_for_or_where_something_is_missing(
    arguments: list[str], code: int
):
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == code
    assert "Usage" in result.stdout + result.stderr


@pytest.mark.parametrize("command", ["train", "spectrum"])
def test_help_shows_an_example_of_known_options(command: str):
    text = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).stdout
    (example,) = re.findall(rf"Example: python -m torch_qsgd {command} ((?:.+\n)+)", text)
    options = re.findall(r"--[a-z-]+", example)
    assert "--data" in options
    listed = text.split("Options", 1)[1]
    assert all(re.search(rf"{option}\b", listed) for option in options)


def test_the_help_of_the_program_has_an_example_of_each_command_that_runs_long():
    text = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).stdout
    for command in ("train", "spectrum", "audit", "report"):
        assert f"python -m torch_qsgd {command} " in text
    (example,) = re.findall(r"python -m torch_qsgd audit (.+)", text)
    listed = CliRunner().invoke(app, ["audit", "--help"], env={"COLUMNS": "200"}).stdout
    options = re.findall(r"--[a-z-]+", example)
    assert {"--data", "--lr"} <= set(options)
    assert all(re.search(rf"{option}\b", listed.split("Options", 1)[1]) for option in options)
