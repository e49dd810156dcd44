"""The command line: ``python -m torch_qsgd``, one module a command."""

from __future__ import annotations

import typer

from torch_qsgd.cli.audit import audit_command
from torch_qsgd.cli.report import report_command
from torch_qsgd.cli.resources import resources_command
from torch_qsgd.cli.spectrum import spectrum_command
from torch_qsgd.cli.train import train_command

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _main() -> None:
    """Train pruned networks by windows of a truncated Carleman system, and look at Hessians.

    Example: python -m torch_qsgd train --data digits --output runs/demo

    python -m torch_qsgd spectrum --data digits --checkpoint runs/demo/model.pt --lr 0.01

    python -m torch_qsgd audit --data digits --lr 0.01 --quick

    python -m torch_qsgd report runs/demo
    """


app.command("train")(train_command)
app.command("spectrum")(spectrum_command)
app.command("audit")(audit_command)
app.command("report")(report_command)
app.command("resources")(resources_command)
