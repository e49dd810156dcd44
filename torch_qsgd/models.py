"""The package's residual network for small images, with presets at the paper's two sizes.

References:
    [He2016] He, Zhang, Ren, Sun, *Deep residual learning for image recognition*, CVPR 2016,
    section 4.2: three stages of n basic blocks, 6n + 2 layers.
    [He2015] He, Zhang, Ren, Sun, *Delving deep into rectifiers*, ICCV 2015: the initial weights,
    in their fan-out form. PyTorch's own default makes the same networks far stiffer: the error of
    a window of 50 steps at the start of training is then tens to hundreds of times larger.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torchvision
from torch import Tensor, nn

from torch_qsgd.checks import require_one_of
from torch_qsgd.names import from_module, nearest

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
}

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "group": lambda channels: nn.GroupNorm(min(8, channels), channels),
    "instance": lambda channels: nn.InstanceNorm2d(channels, affine=True),
    "none": lambda channels: nn.Identity(),
}

#: Their training-mode outputs are tuples unless the auxiliary heads are left out.
_WITH_AUXILIARY_HEADS = ("googlenet", "inception_v3")


@dataclass(frozen=True)
class ResNetConfig:
    """Shape of a residual network.

    Attributes:
        width: channels of the first stage, a multiple of 8 with group normalisation; the next
            two stages have twice and four times as many.
        depth: layers, 6n + 2 for n blocks a stage.
        activation: a key of :data:`ACTIVATIONS`.
        norm: a key of :data:`NORMS`.
        channels: channels of the images.
    """

    width: int = 16
    depth: int = 20
    activation: str = "relu"
    norm: str = "batch"
    channels: int = 3


#: 7 and 103 million parameters at 100 classes: the sizes of the paper's two experiments.
PRESETS: dict[str, ResNetConfig] = {
    "resnet-7m": ResNetConfig(width=80, depth=20),
    "resnet-103m": ResNetConfig(width=176, depth=56),
}


class _BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut, 1×1 where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, config: ResNetConfig) -> None:
        super().__init__()
        norm, activation = NORMS[config.norm], ACTIVATIONS[config.activation]
        bias = config.norm == "none"
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=bias)
        self.norm1 = norm(outputs)
        self.activation1 = activation()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=bias)
        self.norm2 = norm(outputs)
        self.activation2 = activation()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=bias), norm(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.activation1(self.norm1(self.conv1(x)))))
        output: Tensor = self.activation2(y + self.shortcut(x))
        return output


class ResNet(nn.Sequential):
    """Residual network for images of about 8×8 to 64×64 pixels [He2016], initialised as [He2015].

    Args:
        classes: number of outputs, at least 2.
        config: its shape.

    Raises:
        ValueError: for a shape that does not exist.

    Example:
        >>> import torch
        >>> net = ResNet(10, ResNetConfig(width=8, depth=8, norm="group", channels=1))
        >>> net(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(self, classes: int, config: ResNetConfig = ResNetConfig()) -> None:
        _check(classes, config)
        blocks: list[nn.Module] = []
        inputs = config.width
        for stage in range(3):
            outputs = config.width * 2**stage
            for block in range((config.depth - 2) // 6):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(_BasicBlock(inputs, outputs, stride, config))
                inputs = outputs
        super().__init__(
            nn.Conv2d(config.channels, config.width, 3, 1, 1, bias=config.norm == "none"),
            NORMS[config.norm](config.width),
            ACTIVATIONS[config.activation](),
            *blocks,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(inputs, classes),
        )
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


def _check(classes: int, config: ResNetConfig) -> None:
    if classes < 2:
        raise ValueError(f"classes must be at least 2, got {classes}")
    if config.depth < 8 or (config.depth - 2) % 6:
        raise ValueError(f"depth must be 8, 14, 20, … (6n + 2), got {config.depth}")
    if config.width < 1 or config.channels < 1:
        raise ValueError(f"width and channels must be positive, got {asdict(config)}")
    for kind, known in (("activation", ACTIVATIONS), ("norm", NORMS)):
        require_one_of(kind, getattr(config, kind), tuple(known))
    if config.norm == "group" and config.width % min(8, config.width):
        raise ValueError(f"width must be a multiple of 8 with group norm, got {config.width}")


def torchvision_names() -> list[str]:
    """Names of torchvision's image classifiers."""
    names: list[str] = torchvision.models.list_models(torchvision.models)
    return names


def build_model(name: str, classes: int, channels: int = 3, **shape: str | int) -> nn.Module:
    """Build a network by name.

    Args:
        name: ``"resnet"`` or one of :data:`PRESETS` for the package's own network; any of
            torchvision's image classifiers, with its own stem, ``googlenet`` and ``inception_v3``
            without their auxiliary heads; or ``"module:function"`` for a function (or a class)
            that returns a network, which is called with those of the keywords ``classes`` and
            ``channels`` that it takes.
        classes: number of outputs.
        channels: channels of the images.
        **shape: fields of :class:`ResNetConfig` to change, for the package's own network.

    Raises:
        ValueError: for an unknown name, with the nearest known one; for a shape that torchvision
            or the function does not let choose; where the function fails or returns no network.

    Example:
        >>> build_model("torch.nn:Identity", 10)
        Identity()
    """
    if name == "resnet" or name in PRESETS:
        config = PRESETS.get(name, ResNetConfig())
        return ResNet(classes, ResNetConfig(**{**asdict(config), "channels": channels, **shape}))
    theirs = torchvision_names()
    users = ":" in name
    if not users and name not in theirs:
        near = nearest(name, ["resnet", *PRESETS, *theirs])
        if near:
            raise ValueError(
                f"unknown model {name!r}; did you mean {near!r}? Known: resnet, "
                f"{', '.join(PRESETS)}, torchvision's image classifiers, and module:function"
            )
        known = ["resnet", *PRESETS, "module:function", *theirs]
        raise ValueError(f"unknown model {name!r}. Known: {', '.join(known)}")
    if shape or (channels != 3 and not users):
        whose = "not the package's own" if users else "torchvision's, for 3 channels"
        raise ValueError(
            f"{name} is {whose}: {', '.join(shape) or 'channels'} can be "
            "chosen only for 'resnet' and its presets"
        )
    if users:
        return _users_model(name, classes, channels)
    if name in _WITH_AUXILIARY_HEADS:
        options = {"num_classes": classes, "aux_logits": False, "init_weights": True}
    else:
        options = {"num_classes": classes}
    model: nn.Module = torchvision.models.get_model(name, **options)
    return model


def _users_model(reference: str, classes: int, channels: int) -> nn.Module:
    make = from_module(reference, "model")
    if not callable(make):
        raise ValueError(f"model {reference!r} is no function: it is of type {type(make).__name__}")
    offered = {"classes": classes, "channels": channels}
    try:
        taken = inspect.signature(make).parameters
    except ValueError:  # builtins without a signature
        taken = {}  # type: ignore[assignment]
    try:
        model = make(**{key: value for key, value in offered.items() if key in taken})
    except Exception as error:  # whatever a user's function raises
        raise ValueError(f"model {reference!r} raised {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"model {reference!r} must return a torch.nn.Module, got {type(model).__name__}"
        )
    return model
