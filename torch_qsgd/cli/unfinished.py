"""What a long measurement has so far, in a folder, until it ends."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch_qsgd.cli.common import write_json
from torch_qsgd.hessian import Spectrum


class Unfinished:
    """Spectra that are done, and the state of the one that is not.

    Args:
        folder: of this alone.
        settings: that the numbers depend on, by option; plain values.
        resume: go on from what is there.

    Raises:
        ValueError: with ``resume``, where there is nothing to resume, or what is there was begun
            with other settings; without, where there is work that would be lost.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], resume: bool) -> None:
        self._folder, self._settings, self._resume = folder, dict(settings), resume
        self._stored = folder / "settings.json"
        if resume:
            if not self._stored.is_file():
                raise ValueError(
                    f"nothing to resume in {folder.parent}: no run was interrupted there, or it "
                    "was ended since; leave --resume out to begin"
                )
            self._require_same(json.loads(self._stored.read_text(encoding="utf-8")))
        elif folder.is_dir() and any(path != self._stored for path in folder.iterdir()):
            raise ValueError(
                f"{folder} holds the work of a run that was interrupted: give --resume to go on "
                "with it; to begin anew, remove that folder or give another --output"
            )

    def _require_same(self, before: Mapping[str, Any]) -> None:
        for name, value in json.loads(json.dumps(self._settings)).items():
            if before.get(name) != value:
                option = f"--{name.replace('_', '-')}"
                raise ValueError(
                    f"the run to resume in {self._folder.parent} had {option} "
                    f"{before.get(name)!r}, not {value!r}: give the same; to begin anew, remove "
                    f"{self._folder} or give another --output"
                )

    def open(self) -> None:
        """Make the folder; unless the run is resumed, it holds the settings alone."""
        if not self._resume:
            self.close()
            self._folder.mkdir(parents=True)
            write_json(self._stored, self._settings)

    def lanczos(self, index: int) -> Path:
        """The file for the state of the Lanczos runs of spectrum ``index``."""
        return self._folder / f"lanczos-{index}.pt"

    def finished(self, index: int) -> Spectrum | None:
        """Spectrum ``index``, where it was done before."""
        path = self._folder / f"spectrum-{index}.json"
        return Spectrum.load(path) if path.is_file() else None

    def keep(self, index: int, spectrum: Spectrum) -> None:
        """Store spectrum ``index``, so that it is not measured again."""
        spectrum.save(self._folder / f"spectrum-{index}.json")
        self.lanczos(index).unlink(missing_ok=True)

    def close(self) -> None:
        """Remove all of it: the run has ended."""
        shutil.rmtree(self._folder, ignore_errors=True)
