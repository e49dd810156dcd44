"""What ``torch-qsgd spectrum`` prints and writes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from torch_qsgd.cli import common, tables
from torch_qsgd.cli.layers_plot import plot_layers
from torch_qsgd.hessian import Spectrum


@dataclass
class SpectrumReport:
    """Spectra as they come in; tables or JSON, and files, of those there are.

    Attributes:
        console: for all that is not JSON.
        output: folder of the files.
        as_json: print JSON on stdout in place of tables.
        lr: learning rate, or ``None``.
        title: of model, data and weights.
        facts: what the spectra are of, as plain values.
        spectra: by layer, or the only one under ``""``.
        pairs: extreme eigenvalues.
        complete: whether all that was asked for is there.
    """

    console: Console
    output: Path
    as_json: bool
    lr: float | None
    title: str
    facts: dict[str, Any]
    spectra: dict[str, Spectrum] = field(default_factory=dict)
    pairs: list[dict[str, Any]] = field(default_factory=list)
    complete: bool = False

    def to_json(self) -> dict[str, Any]:
        """All numbers: ``spectrum``, or ``layers`` by name, is what ``Spectrum.from_json`` reads.

        ``negative_mass`` is that of each with its range, and ``gradient_descent``, where a learning
        rate was given. ``null`` stands for infinity and for what is not known.
        """
        whole = self.spectra.get("")
        parts = {name: spectrum.to_json() for name, spectrum in self.spectra.items()}
        found: dict[str, Any] = {"title": self.title, "complete": self.complete, **self.facts}
        found |= {"layers": parts} if whole is None else {"spectrum": parts[""]}
        masses = {name: tables.negative_mass(s) for name, s in self.spectra.items()}
        found["negative_mass"] = masses if whole is None else masses[""]
        if self.lr is not None:
            descent = {name: tables.descent(s, self.lr) for name, s in self.spectra.items()}
            found["gradient_descent"] = descent if whole is None else descent[""]
        if self.pairs:
            found["eigenpairs"] = self.pairs
        return found

    def write(self) -> None:
        """Print and write, where there is a spectrum."""
        if not self.spectra:
            return
        plain = common.finite(self.to_json())
        files = {"json": self.output / "spectrum.json", "picture": self.output / "spectrum.png"}
        common.write_json(files["json"], plain)
        if "" in self.spectra:
            self.spectra[""].plot(files["picture"], lr=self.lr, title=self.title)
        else:
            plot_layers(self.spectra, files["picture"], lr=self.lr, title=self.title)
        if self.as_json:
            print(common.as_json(plain))
        else:
            self._print_tables()
        for name, path in files.items():
            common.say(self.console, f"{name}: {path}")

    def _print_tables(self) -> None:
        whole = self.spectra.get("")
        if whole is None:
            self.console.print(tables.layers_table(self.spectra, self.lr))
            return
        self.console.print(tables.spectrum_table(whole, self.facts["samples"]))
        if self.pairs:
            self.console.print(tables.eigenpairs_table(self.pairs))
        if self.lr is not None:
            found = tables.descent(whole, self.lr)
            for table in tables.descent_tables(found, coarse=not whole.exact.all()):
                self.console.print(table)
