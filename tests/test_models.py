"""The package's residual network and its presets."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from torch_qsgd.models import ACTIVATIONS, NORMS, PRESETS, ResNet, ResNetConfig, build_model


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("resnet-7m", 6_500_000, 7_500_000), ("resnet-103m", 102_000_000, 104_000_000)],
)
def test_a_preset_has_the_size_in_its_name_at_100_classes(name: str, low: int, high: int):
    with torch.device("meta"):
        model = build_model(name, 100)
    assert low <= parameters(model) <= high


@pytest.mark.parametrize("depth", [8, 14, 20, 26])
def test_the_network_has_as_many_layers_as_its_depth(depth: int):
    with torch.device("meta"):
        model = build_model("resnet", 10, width=8, depth=depth)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    heads = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert len(layers) + len(heads) == depth
    each = (depth - 2) // 3
    channels = [8] * (1 + each) + [16] * each + [32] * each
    assert [m.out_channels for m in layers] == channels


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_norm_with_every_activation_gives_finite_outputs_and_gradients(
    norm: str, activation: str
):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model("resnet", 5, 2, width=8, depth=8, norm=norm, activation=activation)
        images = torch.randn(3, 2, 8, 8)
    for training in (True, False):
        model.train(training)
        outputs = model(images)
        assert outputs.shape == (3, 5)
        assert torch.isfinite(outputs).all()
    outputs.square().sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert torch.isfinite(p.grad).all(), name
    kinds = {type(m) for m in model.modules()}
    assert type(ACTIVATIONS[activation]()) in kinds
    assert type(NORMS[norm](8)) in kinds


@pytest.mark.parametrize("size", [8, 11, 32, 64])
def test_images_of_any_side_from_8_to_64_pixels_go_through(size: int):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model("resnet", 4, 1, width=8, depth=8)
        assert model(torch.randn(2, 1, size, size)).shape == (2, 4)


def test_convolutions_start_with_the_fan_out_deviation_of_he_2015():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model("resnet", 10, width=32, depth=8)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.out_channels * math.prod(layer.kernel_size)
            # The deviation of n normal numbers is itself known to 1/sqrt(2n): five of those.
            slack = 5 / math.sqrt(2 * layer.weight.numel())
            assert float(layer.weight.detach().std()) == pytest.approx(
                math.sqrt(2 / fan_out), rel=slack
            )
            assert layer.bias is None


def test_without_normalisation_convolutions_have_biases_and_every_width_goes():
    model = build_model("resnet", 10, width=5, depth=8, norm="none")
    assert all(m.bias is not None for m in model.modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"depth": 9}, r"depth must be 8, 14, 20, … \(6n \+ 2\), got 9"),
        ({"depth": 2}, r"depth must be 8, 14, 20, … \(6n \+ 2\), got 2"),
        ({"depth": -4}, r"depth must be 8, 14, 20, … \(6n \+ 2\), got -4"),
        ({"width": 0}, r"width and channels must be positive, got .*'width': 0"),
        ({"channels": 0}, r"width and channels must be positive, got .*'channels': 0"),
        ({"activation": "swish"}, r"activation must be one of relu, silu, gelu, tanh, got 'swish'"),
        ({"norm": "layer"}, r"norm must be one of batch, group, instance, none, got 'layer'"),
        ({"activation": "slu"}, r"got 'slu'; did you mean 'silu'\?$"),
        ({"norm": "bach"}, r"got 'bach'; did you mean 'batch'\?$"),
        ({"norm": "group", "width": 12}, r"width must be a multiple of 8 with group norm, got 12"),
    ],
    ids=str,
)
def test_a_shape_that_does_not_exist_is_refused_with_what_is_allowed(
    shape: dict[str, str | int], message: str
):
    with pytest.raises(ValueError, match=message):
        build_model("resnet", 10, **shape)


@pytest.mark.parametrize("classes", [1, 0, -3])
def test_fewer_than_two_classes_are_refused(classes: int):
    with pytest.raises(ValueError, match=f"classes must be at least 2, got {classes}"):
        ResNet(classes)


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("resnet-7mm", "resnet-7m"),
        ("resnet103m", "resnet-103m"),
        ("resnet_18", "resnet18"),
        ("resnt", "resnet"),
        ("wide_resnet50", "wide_resnet50_2"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_known_one(wrong: str, nearest: str):
    message = re.escape(f"unknown model '{wrong}'; did you mean '{nearest}'?")
    with pytest.raises(ValueError, match=message):
        build_model(wrong, 10)


def test_a_name_like_none_is_refused_with_the_list_of_known_ones():
    with pytest.raises(ValueError, match="unknown model 'perceptron'") as caught:
        build_model("perceptron", 10)
    assert "did you mean" not in str(caught.value)
    for known in ("resnet", *PRESETS, "resnet18", "vgg11", "vit_b_16", "module:function"):
        assert known in str(caught.value)


@pytest.mark.parametrize("name", PRESETS)
def test_a_presets_shape_can_be_changed_and_the_rest_of_it_stays(name: str):
    with torch.device("meta"):
        theirs = build_model(name, 10, 1, activation="silu")
        config = PRESETS[name]
        ours = ResNet(10, ResNetConfig(config.width, config.depth, "silu", config.norm, 1))
    assert [p.shape for p in theirs.parameters()] == [p.shape for p in ours.parameters()]
    assert any(isinstance(m, nn.SiLU) for m in theirs.modules())
    assert not any(isinstance(m, nn.ReLU) for m in theirs.modules())


def test_torchvisions_resnet18_is_built_with_our_classes():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model("resnet18", 7).eval()
        assert model(torch.randn(1, 3, 64, 64)).shape == (1, 7)
    # 11,689,512 is its published size, with a head of 1000 classes.
    assert parameters(model) == 11_689_512 - (1000 - 7) * (512 + 1)


@pytest.mark.parametrize(("channels", "shape"), [(1, {}), (3, {"width": 8}), (3, {"depth": 20})])
def test_torchvisions_resnet18_does_not_let_its_shape_be_chosen(
    channels: int, shape: dict[str, int]
):
    with pytest.raises(ValueError, match="resnet18 is torchvision's, for 3 channels"):
        build_model("resnet18", 10, channels, **shape)


@pytest.mark.parametrize("name", ["vgg11_bn", "shufflenet_v2_x0_5", "vit_b_16", "inception_v3"])
def test_torchvisions_other_classifiers_are_built_with_our_classes(name: str):
    with torch.random.fork_rng(), torch.device("meta"):
        model = build_model(name, 7).train()
        size = 299 if name == "inception_v3" else 224
        outputs = model(torch.zeros(2, 3, size, size))
    assert outputs.shape == (2, 7)


USERS = """
from torch import nn

def both(classes, channels):
    return nn.Linear(channels, classes)

def none():
    return nn.Identity()

def defaults(classes=3, width=5):
    return nn.Linear(width, classes)

def broken(classes):
    raise RuntimeError("no memory")

class Net(nn.Linear):
    def __init__(self, classes):
        super().__init__(2, classes)

number = 3
"""


@pytest.fixture
def users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "users_models.py").write_text(USERS)
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    yield "users_models"
    assert sys.path == before
    sys.modules.pop("users_models", None)


@pytest.mark.parametrize(
    ("function", "shape"), [("both", (7, 2)), ("defaults", (7, 5)), ("Net", (7, 2))]
)
def test_a_function_of_ones_own_is_given_what_it_takes(
    users: str, function: str, shape: tuple[int, ...]
):
    model = build_model(f"{users}:{function}", 7, 2)
    assert isinstance(model, nn.Linear)
    assert model.weight.shape == shape
    assert isinstance(build_model(f"{users}:none", 7, 2), nn.Identity)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("broken", "raised RuntimeError: no memory"),
        ("number", "is no function: it is of type int"),
        ("nothing", "users_models has no 'nothing'"),
        ("bot", "has no 'bot'; did you mean 'both'"),
        ("", "is not of the form module:function"),
    ],
)
def test_what_is_no_function_of_a_model_is_refused(users: str, function: str, message: str):
    with pytest.raises(ValueError, match=message):
        build_model(f"{users}:{function}", 7)


def test_the_shape_of_ones_own_model_cannot_be_chosen(users: str):
    with pytest.raises(ValueError, match="users_models:both is not the package's own: width can"):
        build_model(f"{users}:both", 7, width=3)
