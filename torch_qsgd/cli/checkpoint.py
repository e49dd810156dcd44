"""Weights from a file into a model, and what to do where they do not fit."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torch_qsgd.models import build_model, torchvision_names

#: Under which training scripts keep the weights, beside the optimizer's state and more.
_NESTED = ("state_dict", "model_state_dict", "model")
#: What ``DistributedDataParallel`` and ``torch.compile`` put before every name.
_WRAPPERS = ("module.", "_orig_mod.")
#: A count that older files lack and no output depends on.
_OPTIONAL = "num_batches_tracked"
#: Of torchvision's classifiers: AlexNet's. Building all of them takes seconds.
_FEWEST_TENSORS = 16


def load_weights(path: Path, model: nn.Module, name: str, classes: int, channels: int) -> None:
    """Load a state_dict file into a model.

    Args:
        path: what ``torch.save(model.state_dict(), path)`` wrote; a dictionary that holds it under
            state_dict, model_state_dict or model will do, and so will names that begin with
            ``module.`` or ``_orig_mod.`` throughout.
        model: to load into.
        name: of the model, as the user gave it.
        classes, channels: of the data.

    Raises:
        ValueError: where there is no such file, it holds something else, or its weights do not
            fit; the message then names the model that they would fit.
    """
    weights = read_weights(path)
    own = model.state_dict()
    missing = [key for key in own if key not in weights and not key.endswith(_OPTIONAL)]
    strange = [key for key in weights if key not in own and not key.endswith(_OPTIONAL)]
    unequal = [
        f"{key} is {tuple(weights[key].shape)} there and {tuple(own[key].shape)} in the model"
        for key in own
        if key in weights and weights[key].shape != own[key].shape
    ]
    complaints = [
        f"it lacks {_some(missing)}" if missing else "",
        f"the model has no {_some(strange)}" if strange else "",
        _some(unequal, "; ") if unequal else "",
    ]
    if any(complaints):
        hint = _origin(weights, classes, channels)
        raise ValueError(
            f"{path} does not fit {name}: {'; '.join(c for c in complaints if c)}{hint}"
        )
    for key, tensor in weights.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"{path}: {key} holds NaN or infinite values")
    model.load_state_dict({key: weights[key] for key in own if key in weights}, strict=False)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a state_dict file by name, without wrappers' prefixes, on the CPU."""
    if not path.is_file():
        inside = path / "model.pt"
        hint = f"; did you mean {inside}?" if inside.is_file() else ""
        what = "is a folder" if path.is_dir() else "is not there"
        raise ValueError(
            f"checkpoint {path} {what}: give a state_dict file, such as train's model.pt{hint}"
        )
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"checkpoint {path} is no state_dict file, or holds more than tensors: write one by "
            "torch.save(model.state_dict(), path)"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ValueError(
            f"checkpoint {path} cannot be read: it is damaged, or torch.save did not write it"
        ) from error
    if isinstance(found, Mapping):
        inner = [found[key] for key in _NESTED if isinstance(found.get(key), Mapping)]
        found = inner[0] if inner else found
    if (
        not isinstance(found, Mapping)
        or not found
        or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items())
    ):
        raise ValueError(
            f"checkpoint {path} holds no state_dict: write one by "
            "torch.save(model.state_dict(), path)"
        )
    weights: dict[str, Tensor] = dict(found)
    for wrapper in _WRAPPERS:
        if all(key.startswith(wrapper) for key in weights):
            weights = {key.removeprefix(wrapper): tensor for key, tensor in weights.items()}
    return weights


def _some(items: list[str], between: str = ", ") -> str:
    """The first three, and how many more there are."""
    more = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return between.join(items[:3]) + more


def _origin(weights: Mapping[str, Tensor], classes: int, channels: int) -> str:
    """In words, the model that these weights are of."""
    found = _package_network(weights) or _torchvision_network(weights)
    if found is None:
        return ""
    model, theirs, depth = found
    unequal = [
        f"{there} {what}, not {here}"
        for what, there, here in (("classes", theirs, classes), ("channels", depth, channels))
        if there != here
    ]
    data = f", for data with {' and '.join(unequal)}" if unequal else ""
    return f". These weights are of --model {model}{data}"


def _package_network(weights: Mapping[str, Tensor]) -> tuple[str, int, int] | None:
    """Options of the package's network, its classes and its channels."""
    blocks = sum(bool(re.fullmatch(r"\d+\.conv1\.weight", key)) for key in weights)
    stem, head = weights.get("0.weight"), weights.get(f"{blocks + 5}.weight")
    if blocks == 0 or blocks % 3 or stem is None or head is None or stem.dim() != 4:
        return None
    if "1.running_mean" in weights:
        norm = "batch"
    else:
        norm = "group (or instance)" if "1.weight" in weights else "none"
    options = f"resnet --width {stem.shape[0]} --depth {2 * blocks + 2} --norm {norm}"
    return options, head.shape[0], stem.shape[1]


def _torchvision_network(weights: Mapping[str, Tensor]) -> tuple[str, int, int] | None:
    """The classifier of torchvision's with these names and, but for its head, these shapes."""
    shapes = {k: tuple(t.shape) for k, t in weights.items() if not k.endswith(_OPTIONAL)}
    if len(shapes) < _FEWEST_TENSORS:
        return None
    classes = {shape[0] for shape in list(shapes.values())[-1:] if shape}
    for name in torchvision_names():
        for outputs in classes:
            try:
                with torch.device("meta"):
                    theirs = build_model(name, outputs).state_dict()
            except (NotImplementedError, RuntimeError, ValueError):
                continue  # some are built from values, which the meta device has none of
            own = {k: tuple(t.shape) for k, t in theirs.items() if not k.endswith(_OPTIONAL)}
            if own == shapes:
                return name, outputs, 3
    return None


def zeros_held(model: nn.Module) -> dict[str, Tensor]:
    """Masks of the weights that differ from zero, for every matrix or kernel that holds zeros.

    A pruned weight is saved as zero; vectors (biases, normalisations) are never pruned.
    """
    return {
        name: p.detach() != 0
        for name, p in model.named_parameters()
        if p.requires_grad and p.dim() > 1 and not bool(p.detach().all())
    }
