"""`python -m torch_qsgd`: the command line."""

from torch_qsgd.cli import app

app(prog_name="torch-qsgd")
