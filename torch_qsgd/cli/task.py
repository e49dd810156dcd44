"""Data, loss and model as a command's options name them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from torch_qsgd.cli import common
from torch_qsgd.cli.checkpoint import load_weights
from torch_qsgd.data import ImageData, load_data
from torch_qsgd.models import build_model
from torch_qsgd.training import LossFunction


def load_task(given: Mapping[str, Any]) -> tuple[ImageData, LossFunction, nn.Module]:
    """The images, without augmentation, the loss, and the model at its weights, on the CPU.

    Args:
        given: the command's options by name: data, batch_size, image_size, workers, seed, loss,
            model, width, depth, activation, norm and checkpoint.

    Raises:
        ValueError: for a name or a file that is not there, or weights that do not fit.
    """
    loss_fn = common.build_loss(given["loss"])
    images = load_data(
        given["data"],
        batch_size=given["batch_size"],
        seed=given["seed"],
        augment=False,
        image_size=given["image_size"],
        workers=given["workers"],
    )
    shape = common.model_shape(*(given[k] for k in ("width", "depth", "activation", "norm")))
    model = build_model(given["model"], images.classes, images.channels, **shape)
    if given["checkpoint"] is not None:
        load_weights(given["checkpoint"], model, given["model"], images.classes, images.channels)
    return images, loss_fn, model
