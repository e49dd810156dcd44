"""Where numbers were measured: versions and machine."""

from __future__ import annotations

import datetime
import os
import platform
from importlib.metadata import version

import torch
from torch import Tensor


def surroundings(parameter: Tensor) -> dict[str, str | int]:
    """Versions, machine and date, by name.

    Args:
        parameter: of the model; tells device and dtype.
    """
    device = parameter.device
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{platform.machine()} CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    )
    return {
        "device": name,
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "torch_qsgd": version("torch_qsgd"),
        "torch": torch.__version__,
        "Python": platform.python_version(),
        "measured": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
