"""Tests of the command line leave the random state as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _random_state_is_put_back() -> Iterator[None]:
    with torch.random.fork_rng():
        yield
