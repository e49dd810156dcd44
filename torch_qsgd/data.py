"""Images to train on: scikit-learn's digits, CIFAR-10, CIFAR-100, or any ``ImageFolder`` tree."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset
from torchvision import datasets, transforms

from torch_qsgd.names import nearest

#: Mean and deviation of natural images, channel by channel, as used for ImageNet.
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

#: Class, name, archive and number of labels.
_CIFAR: dict[str, tuple[Any, str, str, int]] = {
    "cifar10": (datasets.CIFAR10, "CIFAR-10", "cifar-10-python.tar.gz", 10),
    "cifar100": (datasets.CIFAR100, "CIFAR-100", "cifar-100-python.tar.gz", 100),
}
#: What may be given by name.
SOURCES = ("digits", *_CIFAR)


@dataclass(frozen=True)
class ImageData:
    """Loaders of one image task.

    Attributes:
        train: shuffled batches (images, labels), the last incomplete one dropped.
        validation: batches in a fixed random order.
        generator: of the order of the training batches.
        classes: number of labels.
        channels: channels of the images.
    """

    train: DataLoader[Any]
    validation: DataLoader[Any]
    generator: torch.Generator
    classes: int
    channels: int


def _digits(seed: int) -> tuple[Dataset[Any], Dataset[Any], int, int]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1)
    images = (images - images.mean()) / images.std()
    labels = torch.tensor(digits.target)
    first, second = train_test_split(
        range(len(labels)), test_size=0.2, random_state=seed, stratify=digits.target
    )
    train, validation = (TensorDataset(images[i], labels[i]) for i in (first, second))
    return train, validation, 10, 1


def _transform(size: int, augment: bool) -> Any:
    steps: list[Any] = [transforms.Resize((size, size))]
    if augment:
        steps += [transforms.RandomCrop(size, padding=size // 8), transforms.RandomHorizontalFlip()]
    return transforms.Compose(
        [*steps, transforms.ToTensor(), transforms.Normalize(_MEAN, _DEVIATION)]
    )


def _image_folder(
    root: Path, augment: bool, size: int | None
) -> tuple[Dataset[Any], Dataset[Any], int, int]:
    for part in ("train", "val"):
        if not (root / part).is_dir():
            raise ValueError(
                f"{root} has no {part}/ folder: an image tree holds train/CLASS/*.jpg and "
                "val/CLASS/*.jpg"
            )
    try:
        probe = datasets.ImageFolder(root / "train")
        size = size or min(probe[0][0].size)
        train = datasets.ImageFolder(root / "train", _transform(size, augment))
        validation = datasets.ImageFolder(root / "val", _transform(size, False))
    except OSError as error:
        raise ValueError(f"{root} is no tree of images: {error}") from error
    if train.classes != validation.classes:
        raise ValueError(f"{root}: train/ and val/ hold different classes")
    return train, validation, len(train.classes), 3


def _cifar(
    source: str, root: Path, augment: bool, size: int | None
) -> tuple[Dataset[Any], Dataset[Any], int, int]:
    size = size or 32
    kind, name, archive, classes = _CIFAR[source]
    try:
        train = kind(root, True, _transform(size, augment), download=True)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"{name} is not in {root} and could not be downloaded ({error}): put {archive} there, "
            "or give --data the path of an image tree"
        ) from error
    return train, kind(root, False, _transform(size, False)), classes, 3


def _mixed(count: int, seed: int) -> list[int]:
    """A fixed random order, so that a few batches already hold many classes."""
    order: list[int] = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return order


def load_data(
    source: str,
    *,
    batch_size: int,
    seed: int = 0,
    augment: bool = True,
    image_size: int | None = None,
    workers: int = 0,
    root: str | Path = "data",
) -> ImageData:
    """Load an image task.

    Args:
        source: ``"digits"`` (8×8, bundled with scikit-learn), ``"cifar10"``, ``"cifar100"``, or the
            path of a tree with train/ and val/ folders, one folder a class in each.
        batch_size: images a batch, at least 1.
        seed: of the order of batches, and of the digits' split (four fifths for training).
        augment: random crops and flips of the training images; never of digits.
        image_size: side in pixels; by default that of the first image. Digits stay 8×8.
        workers: processes that read images.
        root: where the CIFAR archives lie or are downloaded to.

    Raises:
        ValueError: where the data is not there or does not have the layout.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if source == "digits":
        train, validation, classes, channels = _digits(seed)
    elif source in _CIFAR:
        train, validation, classes, channels = _cifar(source, Path(root), augment, image_size)
    elif Path(source).is_dir():
        train, validation, classes, channels = _image_folder(Path(source), augment, image_size)
    else:
        near = nearest(source, SOURCES)
        raise ValueError(
            f"no data {source!r}: give {', '.join(map(repr, SOURCES))}, or the path of a folder "
            f"with train/ and val/{f'; did you mean {near!r}?' if near else ''}"
        )
    if len(cast(Sized, train)) < batch_size:
        raise ValueError(
            f"batch_size {batch_size} is larger than the {len(cast(Sized, train))} training images"
        )
    generator = torch.Generator().manual_seed(seed)
    return ImageData(
        train=DataLoader(
            train,
            batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            generator=generator,
        ),
        validation=DataLoader(
            Subset(validation, _mixed(len(cast(Sized, validation)), seed)),
            max(batch_size, 256),
            num_workers=workers,
        ),
        generator=generator,
        classes=classes,
        channels=channels,
    )


def fixed_batches(
    images: ImageData, batch_size: int, most: int | None = None, seed: int = 0, workers: int = 0
) -> DataLoader[Any]:
    """The same training images in the same batches at every pass, to measure on.

    Args:
        images: loaded with ``augment=False``, for random crops are new at every pass.
        batch_size: images a batch; the last batch may hold fewer.
        most: batches at most; all unless given.
        seed: of the choice of the images and of their order.
        workers: processes that read images.

    Example:
        >>> digits = load_data("digits", batch_size=8)
        >>> [len(labels) for _, labels in fixed_batches(digits, 8, most=2)]
        [8, 8]
    """
    dataset = images.train.dataset
    count = len(cast(Sized, dataset))
    chosen = _mixed(count, seed)[: None if most is None else most * batch_size]
    return DataLoader(Subset(dataset, chosen), batch_size, num_workers=workers)
