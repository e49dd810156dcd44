"""Images to train on: digits, image trees, and what is said where there are none."""

from __future__ import annotations

import hashlib
import itertools
import os
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor
from torchvision import datasets

from torch_qsgd.data import load_data

Batches = list[tuple[Tensor, Tensor]]


def collected(loader: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


def rows(loader: Iterable[tuple[Tensor, Tensor]]) -> Counter[tuple[bytes, int]]:
    images, labels = collected(loader)
    return Counter((x.numpy().tobytes(), int(y)) for x, y in zip(images, labels, strict=True))


def same(first: Batches, second: Batches) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, c) and torch.equal(b, d)
        for (a, b), (c, d) in zip(first, second, strict=True)
    )


def paint(path: Path, colour: tuple[int, int, int], size: tuple[int, int], seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 30, (size[1], size[0], 3))
    Image.fromarray((np.array(colour) + noise).astype(np.uint8)).save(path)


def tree(root: Path, sizes: tuple[tuple[int, int], ...] = ((12, 12),)) -> Path:
    """Two classes, red and blue; six training and three validation images each."""
    for part, count in (("train", 6), ("val", 3)):
        for name, colour in (("blue", (20, 20, 200)), ("red", (200, 20, 20))):
            for i in range(count):
                paint(root / part / name / f"{i}.png", colour, sizes[i % len(sizes)], i)
    return root


# ---- Digits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 7])
def test_the_digits_split_is_a_partition_of_all_images_with_their_labels(seed: int):
    # A batch of one drops nothing, so that all training images are seen.
    data = load_data("digits", batch_size=1, seed=seed)
    train, validation = rows(data.train), rows(data.validation)
    digits = load_digits()
    pixels = torch.tensor(digits.images, dtype=torch.float32)
    pixels = ((pixels - pixels.mean()) / pixels.std())[:, None]
    everything = Counter(
        (x.numpy().tobytes(), int(y)) for x, y in zip(pixels, digits.target, strict=True)
    )
    assert max(everything.values()) == 1
    assert train + validation == everything
    assert not train & validation
    assert sum(validation.values()) == 360
    assert (data.classes, data.channels) == (10, 1)


def test_the_digits_split_is_stratified():
    data = load_data("digits", batch_size=1, seed=3)
    everything = Counter(load_digits().target.tolist())
    held_out = Counter(collected(data.validation)[1].tolist())
    for label, count in everything.items():
        assert abs(held_out[label] - 0.2 * count) < 1


def test_the_digits_split_depends_on_the_seed_alone():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first = load_data("digits", batch_size=64, seed=5)
        torch.manual_seed(2)
        second = load_data("digits", batch_size=32, seed=5)
        other = load_data("digits", batch_size=64, seed=6)
    assert same(list(first.validation), list(second.validation))
    assert not same(list(first.validation), list(other.validation))


def test_digits_come_as_standardised_one_channel_images():
    data = load_data("digits", batch_size=1)
    images = torch.cat([collected(data.train)[0], collected(data.validation)[0]])
    assert images.shape == (1797, 1, 8, 8)
    assert images.dtype == torch.float32
    assert float(images.double().mean()) == pytest.approx(0, abs=1e-5)
    assert float(images.double().std()) == pytest.approx(1, abs=1e-5)


def test_batches_are_reproducible_and_reshuffled_each_epoch():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first, second = (load_data("digits", batch_size=64, seed=5) for _ in range(2))
        first_epochs = [list(first.train) for _ in range(2)]
        torch.manual_seed(2)
        second_epochs = [list(second.train) for _ in range(2)]
        other = list(load_data("digits", batch_size=64, seed=6).train)
    assert all(same(a, b) for a, b in zip(first_epochs, second_epochs, strict=True))
    assert not same(first_epochs[0], first_epochs[1])
    assert not same(first_epochs[0], other)


def test_the_last_incomplete_training_batch_is_dropped_and_no_validation_image_is():
    data = load_data("digits", batch_size=100)
    assert [len(y) for _, y in data.train] == [100] * (1437 // 100)
    assert sum(len(y) for _, y in data.validation) == 360


def test_a_training_set_may_be_one_batch_but_not_less():
    assert len(load_data("digits", batch_size=1437).train) == 1
    with pytest.raises(ValueError, match="batch_size 1438 is larger than the 1437 training images"):
        load_data("digits", batch_size=1438)


@pytest.mark.parametrize("batch_size", [0, -8])
def test_a_batch_of_no_images_is_refused(batch_size: int):
    with pytest.raises(ValueError, match=f"batch_size must be at least 1, got {batch_size}"):
        load_data("digits", batch_size=batch_size)


# ---- Image trees ---------------------------------------------------------------------------------


def test_an_image_tree_is_read_with_its_classes_in_alphabetical_order(tmp_path: Path):
    data = load_data(str(tree(tmp_path)), batch_size=4, augment=False)
    assert (data.classes, data.channels) == (2, 3)
    images, labels = collected(data.validation)
    assert images.shape == (6, 3, 12, 12)
    # In an order that is mixed, so that few batches hold many classes, and always the same.
    assert sorted(labels.tolist()) == [0, 0, 0, 1, 1, 1] != labels.tolist()
    assert torch.equal(labels, collected(data.validation)[1])
    red, blue = images[:, 0].mean((1, 2)), images[:, 2].mean((1, 2))
    assert torch.equal(red > blue, labels == 1)


def test_pixels_are_standardised_by_imagenets_mean_and_deviation(tmp_path: Path):
    data = load_data(str(tree(tmp_path)), batch_size=4, augment=False)
    pixels = np.asarray(Image.open(tmp_path / "val" / "red" / "1.png")).astype(np.float64) / 255
    wanted = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    images = collected(data.validation)[0].double().numpy()
    gaps = np.abs(images - wanted.transpose(2, 0, 1)).max((1, 2, 3))
    assert np.sort(gaps)[0] < 1e-6 < np.sort(gaps)[1]


@pytest.mark.parametrize("augment", [True, False])
def test_images_of_unequal_size_take_the_shorter_side_of_the_first(tmp_path: Path, augment: bool):
    root = tree(tmp_path, ((20, 14), (9, 30), (16, 16)))
    data = load_data(str(root), batch_size=5, augment=augment)
    assert [tuple(x.shape) for x, _ in data.train] == [(5, 3, 14, 14)] * 2
    assert collected(data.validation)[0].shape == (6, 3, 14, 14)


def test_a_side_can_be_asked_for(tmp_path: Path):
    data = load_data(str(tree(tmp_path)), batch_size=4, image_size=8)
    assert collected(data.train)[0].shape == (12, 3, 8, 8)
    assert collected(data.validation)[0].shape == (6, 3, 8, 8)


def test_augmentation_changes_training_images_from_epoch_to_epoch_and_no_others(tmp_path: Path):
    root = str(tree(tmp_path))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = load_data(root, batch_size=12, augment=False)
        augmented = load_data(root, batch_size=12, augment=True)
        assert rows(plain.train) == rows(plain.train)
        assert rows(augmented.train) != rows(augmented.train)
        assert rows(augmented.validation) == rows(plain.validation)


def test_grey_and_transparent_images_are_read_as_three_channels(tmp_path: Path):
    root = tree(tmp_path)
    Image.new("L", (12, 12), 100).save(root / "train" / "red" / "grey.png")
    Image.new("RGBA", (12, 12), (9, 9, 9, 9)).save(root / "train" / "red" / "clear.png")
    data = load_data(str(root), batch_size=14)
    assert collected(data.train)[0].shape == (14, 3, 12, 12)


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_tree_without_one_of_its_folders_is_refused_with_the_layout(tmp_path: Path, part: str):
    root = tree(tmp_path)
    (root / part).rename(root / "elsewhere")
    message = rf"has no {part}/ folder: an image tree holds train/CLASS/\*\.jpg and val/CLASS/"
    with pytest.raises(ValueError, match=message) as caught:
        load_data(str(root), batch_size=2)
    assert str(root) in str(caught.value)


def test_a_tree_whose_halves_hold_different_classes_is_refused(tmp_path: Path):
    root = tree(tmp_path)
    (root / "val" / "red").rename(root / "val" / "rouge")
    with pytest.raises(ValueError, match="train/ and val/ hold different classes"):
        load_data(str(root), batch_size=2)


@pytest.mark.parametrize("inner", ["", "cats"])
def test_a_tree_without_images_is_refused(tmp_path: Path, inner: str):
    for part in ("train", "val"):
        (tmp_path / part / inner).mkdir(parents=True)
    with pytest.raises(ValueError, match="is no tree of images"):
        load_data(str(tmp_path), batch_size=2)


def test_a_batch_larger_than_a_tree_is_refused_with_the_number_of_images(tmp_path: Path):
    with pytest.raises(ValueError, match="batch_size 13 is larger than the 12 training images"):
        load_data(str(tree(tmp_path)), batch_size=13)


# ---- Data that is not there ----------------------------------------------------------------------


@pytest.mark.parametrize("source", ["digit", "imagenet", ""])
def test_an_unknown_source_is_refused_with_the_known_ones(tmp_path: Path, source: str):
    name = str(tmp_path / source / "nowhere")
    with pytest.raises(ValueError, match="give 'digits', 'cifar10', 'cifar100', or the path") as e:
        load_data(name, batch_size=2)
    assert repr(name) in str(e.value)


def test_a_file_in_place_of_a_tree_is_refused(tmp_path: Path):
    path = tmp_path / "images.zip"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="or the path of a folder with train/ and val/"):
        load_data(str(path), batch_size=2)


CIFAR = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}


@pytest.mark.parametrize("source", CIFAR)
def test_cifar_that_cannot_be_stored_is_refused_with_what_to_do(tmp_path: Path, source: str):
    occupied = tmp_path / "data"
    occupied.write_text("a file where the folder would be")
    name = CIFAR[source]
    archive = rf"{name.lower()}-python\.tar\.gz"
    message = rf"{name} is not in .* could not be downloaded .*{archive} there"
    with pytest.raises(ValueError, match=message):
        load_data(source, batch_size=2, root=occupied)


@pytest.mark.parametrize(
    ("source", "near"),
    [
        ("cifar-10", "cifar10"),
        ("CIFAR100", "cifar100"),
        ("cifar_100", "cifar100"),
        ("dgits", "digits"),
    ],
)
def test_the_nearest_name_is_suggested(source: str, near: str):
    with pytest.raises(ValueError, match=rf"; did you mean '{near}'\?$"):
        load_data(source, batch_size=2)


@pytest.mark.parametrize(
    ("source", "kind", "labels", "names", "meta"),
    [
        ("cifar10", datasets.CIFAR10, "labels", "label_names", "batches.meta"),
        ("cifar100", datasets.CIFAR100, "fine_labels", "fine_label_names", "meta"),
    ],
)
def test_cifar_is_read_from_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, kind: Any, labels: str,
    names: str, meta: str,
):  # fmt: skip
    # Files of the archive's form with a few images; only the checksums are those of these files.
    classes = int(source.removeprefix("cifar"))
    folder = tmp_path / kind.base_folder
    folder.mkdir()
    generator = np.random.default_rng(0)
    pixels = {}

    def write(name: str, content: dict[str, Any]) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    for part, count in (("train", 6), ("test", 4)):
        flat = generator.integers(0, 256, (count, 3 * 32 * 32)).astype(np.uint8)
        pixels[part] = flat.reshape(count, 3, 32, 32)
        files = [write(part, {"data": flat, labels: [classes - 1 - i for i in range(count)]})]
        monkeypatch.setattr(kind, f"{part}_list", files)
    known = write(meta, {names: [str(i) for i in range(classes)]})
    monkeypatch.setattr(kind, "meta", {"filename": meta, "key": names, "md5": known[1]})
    data = load_data(source, batch_size=2, augment=False, root=tmp_path)
    assert (data.classes, data.channels) == (classes, 3)
    images, found = collected(data.validation)
    order = (classes - 1 - found).tolist()
    assert sorted(order) == [0, 1, 2, 3]
    mean, deviation = (
        np.array(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    wanted = (pixels["test"][order] / 255 - mean) / deviation
    np.testing.assert_allclose(images.numpy(), wanted, atol=1e-5)
    assert collected(data.train)[0].shape == (6, 3, 32, 32)


def test_cifar100_without_a_network_is_refused_with_what_to_do(tmp_path: Path):
    # A process of its own, whose only way out is a proxy at a port where nobody listens.
    code = (
        "from torch_qsgd.data import load_data\n"
        "try:\n"
        f"    load_data('cifar100', batch_size=2, root={str(tmp_path / 'data')!r})\n"
        "except ValueError as error:\n"
        "    print(error)\n"
    )
    nobody = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
    kept = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**kept, **nobody},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.startswith(f"CIFAR-100 is not in {tmp_path / 'data'}")
    assert "could not be downloaded" in done.stdout
    assert "or give --data the path of an image tree" in done.stdout


def test_loaders_read_the_same_images_with_and_without_processes_of_their_own(tmp_path: Path):
    root = str(tree(tmp_path))
    alone, helped = (
        load_data(root, batch_size=4, augment=False, seed=2, workers=w) for w in (0, 1)
    )
    assert same(
        list(itertools.chain(alone.train, alone.validation)),
        list(itertools.chain(helped.train, helped.validation)),
    )
