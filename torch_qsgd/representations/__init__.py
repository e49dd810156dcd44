"""The forms of a window that a solver can be given."""

from torch_qsgd.names import by_name
from torch_qsgd.representations.base import Outcome, Representation
from torch_qsgd.representations.jet import Jet
from torch_qsgd.representations.subspace import Explicit, Krylov

__all__ = ["Explicit", "Jet", "Krylov", "Outcome", "Representation", "resolve"]

_REPRESENTATIONS: dict[str, type[Representation]] = {
    form.name: form for form in (Jet, Krylov, Explicit)
}


def resolve(representation: str | Representation) -> Representation:
    """Return the representation of that name, or the instance itself.

    Raises:
        ValueError: for a name that is not known.
        TypeError: for anything but a name or a :class:`Representation`.

    Example:
        >>> resolve("krylov").dimension
        4
    """
    return by_name(
        representation,
        Representation,  # type: ignore[type-abstract]
        _REPRESENTATIONS,
        "representation",
    )
