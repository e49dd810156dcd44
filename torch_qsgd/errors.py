"""Exceptions of the package: what was given, what is allowed, what to do about it."""

from __future__ import annotations


class GraphError(RuntimeError):
    """The update map's derivatives cannot be had from what was handed in.

    Raised where a gradient carries no graph, where its graph has been freed, or where it holds an
    operation whose higher derivatives PyTorch gets wrong or does not have. The message names the
    line to change.
    """


class DivergenceError(FloatingPointError):
    """A loss, a gradient, or a jet is NaN or infinite.

    The weights are left at the last good anchor; the message names the step and the parameter.
    """


class SingularSystemError(ValueError):
    """A linear system has no inverse in double precision."""


class SizeError(ValueError):
    """What was asked for would not fit; nothing has been built. The message says what would."""


class RepresentationError(ValueError):
    """A solver cannot serve the form of the window; the message names those that can."""
