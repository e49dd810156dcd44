"""The audited examples at small size: their data, their models, and an audit of each."""

from __future__ import annotations

import copy
import importlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from sklearn.datasets import load_sample_images
from torch import Tensor, nn

from torch_qsgd.derivatives import higher_derivatives, taylor_coefficients
from torch_qsgd.report.findings import ASSUMPTIONS

EXAMPLES = Path(__file__).parent.parent / "examples"
NAMES = ("language_model", "denoising")


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, ModuleType]]:
    """The examples, imported as a script beside them would."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        yield {name: importlib.import_module(name) for name in ("audited", *NAMES)}


@pytest.fixture(scope="module")
def language(modules: dict[str, ModuleType]) -> Any:
    return modules["language_model"]


@pytest.fixture(scope="module")
def denoising(modules: dict[str, ModuleType]) -> Any:
    return modules["denoising"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class Small:
    """One example at small size."""

    model: nn.Module
    loss_fn: Callable[..., Tensor]
    batches: Callable[[int], Iterator[tuple[Tensor, Tensor]]]
    held_out: list[tuple[Tensor, Tensor]]


def small(modules: dict[str, ModuleType], name: str) -> Small:
    example: Any = modules[name]
    if name == "language_model":
        text = example.load_text()
        return Small(
            example.build_model(len(text.characters), width=16, depth=1, heads=2, length=16),
            example.cross_entropy,
            lambda seed: example.load_batches(text.train, seeded(seed), size=8, length=16),
            example.held_out_batches(text.validation, size=64, length=16),
        )
    seen, unseen = example.load_photographs()
    return Small(
        example.build_model(widths=(4, 8)),
        F.mse_loss,
        lambda seed: example.load_batches(seen, seeded(seed), size=4, side=16),
        example.held_out_batches(unseen, seeded(), size=64, side=16),
    )


# ---- Text ----------------------------------------------------------------------------------------


def test_the_text_is_english_and_its_end_is_held_out(language: Any) -> None:
    text = language.load_text()
    whole = "".join(text.characters[i] for i in torch.cat([text.train, text.validation]).tolist())
    assert len(whole) > 40_000
    assert "number of instances" in whole.lower().replace("\n", " ")
    assert len(text.validation) == len(whole) // 10
    first, rest = whole[: len(text.train)], whole[len(text.train) :]
    counts, different = Counter(first), len(set(whole))
    expected = -sum(math.log((counts[c] + 1) / (len(first) + different)) for c in rest) / len(rest)
    assert text.unigram == pytest.approx(expected, rel=1e-12)
    assert text.uniform == pytest.approx(math.log(different))


def test_targets_are_the_next_characters(language: Any) -> None:
    codes = torch.arange(100)
    for inputs, targets in islice(language.load_batches(codes, seeded(), size=5, length=7), 20):
        assert inputs.shape == targets.shape == (5, 7)
        assert inputs.dtype == targets.dtype == torch.int64
        assert torch.equal(targets, inputs + 1)
        assert torch.equal(inputs, inputs[:, :1] + torch.arange(7))
    held_out = language.held_out_batches(codes, size=3, length=7)
    inputs, targets = (torch.cat(part).flatten() for part in zip(*held_out, strict=True))
    assert torch.equal(inputs, codes[:98])
    assert torch.equal(targets, codes[1:99])


def test_the_transformer_does_not_look_ahead(language: Any) -> None:
    model = language.build_model(20, width=16, depth=2, heads=2, length=8)
    codes = torch.randint(20, (3, 8), generator=seeded())
    changed = codes.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 20
    with torch.no_grad():
        before, after = model(codes), model(changed)
    assert before.shape == (3, 8, 20)
    torch.testing.assert_close(before[:, :5], after[:, :5], rtol=0, atol=1e-6)
    for place in (5, 6, 7):
        assert float((before - after)[:, place].abs().max()) > 1e-3


# ---- Photographs ---------------------------------------------------------------------------------


def test_photographs_are_parted_and_cut_without_loss(denoising: Any) -> None:
    parts = denoising.load_photographs()
    originals = load_sample_images().images
    for seen, unseen, original in zip(*parts, originals, strict=True):
        whole = torch.cat([seen, unseen], 2) * denoising.NOISE + 0.5
        torch.testing.assert_close(whole.permute(1, 2, 0) * 255, torch.tensor(original).float())
        assert seen.shape[2] == 4 * unseen.shape[2]
    images = torch.arange(2 * 3 * 9 * 7.0).view(2, 3, 9, 7)
    cut = denoising.held_out_batches(list(images), seeded(), size=5, side=3)
    patches = [patch for _, clean in cut for patch in clean]
    expected = [
        image[:, top : top + 3, left : left + 3]
        for image in images
        for top in (0, 3, 6)
        for left in (0, 3)
    ]
    assert len(patches) == len(expected) == 12
    assert all(any(torch.equal(patch, one) for patch in patches) for one in expected)


def test_noise_has_variance_one_in_the_units_of_the_loss(denoising: Any) -> None:
    seen, _ = denoising.load_photographs()
    inputs, targets = next(denoising.load_batches(seen, seeded(), size=64))
    assert inputs.shape == targets.shape == (64, 3, 32, 32)
    error = F.mse_loss(inputs, targets)
    assert float(error) == pytest.approx(1, abs=0.02)
    # Of images from 0 to 1, by the definition of the ratio.
    grey = float((denoising.NOISE**2 * (inputs - targets).double() ** 2).mean())
    found = denoising.peak_signal_to_noise(float(error))
    assert found == pytest.approx(10 * math.log10(1 / grey), abs=1e-3)


def test_the_unet_passes_each_level_on(denoising: Any) -> None:
    """Fine detail by the first skip, all else by the coarsest level: both reach the output."""
    model = denoising.build_model(widths=(4, 8, 12))
    images = torch.randn(2, 3, 16, 16, generator=seeded())
    removed = images - model(images)
    assert removed.shape == images.shape
    for level in (*model.down, *model.up):
        (gradient,) = torch.autograd.grad(
            removed.square().sum(), level[0].weight, retain_graph=True
        )
        assert bool((gradient.flatten(2).abs().amax((0, 2)) > 0).all())  # each input channel


# ---- Both ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_makes_model_and_batches(modules: dict[str, ModuleType], name: str) -> None:
    state = torch.get_rng_state()
    first = small(modules, name)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)  # another global state, the same model and batches
        second = small(modules, name)
    for p, q in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(p, q)
    drawn = [list(islice(s.batches(seed), 3)) for s, seed in ((first, 1), (second, 1), (first, 2))]
    assert all(
        torch.equal(a, b)
        for one, other in zip(drawn[0], drawn[1], strict=True)
        for a, b in zip(one, other, strict=True)
    )
    assert not torch.equal(drawn[0][0][0], drawn[2][0][0])
    for (x, y), (again, _) in zip(first.held_out, second.held_out, strict=True):
        assert torch.equal(x, again)
        assert len(x) == len(y)


def test_both_have_a_size_that_an_audit_takes_minutes_for(language: Any, denoising: Any) -> None:
    for model in (language.build_model(92), denoising.build_model()):
        assert 50_000 < sum(p.numel() for p in model.parameters()) < 100_000


def pretrained(modules: dict[str, ModuleType], name: str, steps: int) -> tuple[Small, float, float]:
    case, lr = small(modules, name), 0.3
    history = modules["audited"].pretrain(
        case.model,
        case.loss_fn,
        case.batches(0),
        case.held_out,
        steps=steps,
        lr=lr,
        console=Console(quiet=True),
    )
    return case, history.evaluations[0].loss, history.final.loss


def test_the_transformer_learns_more_than_frequencies(modules: dict[str, ModuleType]) -> None:
    text = modules["language_model"].load_text()
    _, before, after = pretrained(modules, "language_model", 150)
    assert before > text.unigram
    assert after < text.unigram - 0.3


def test_the_unet_removes_noise(modules: dict[str, ModuleType]) -> None:
    ratio = modules["denoising"].peak_signal_to_noise
    case, _, after = pretrained(modules, "denoising", 60)
    noise = float(F.mse_loss(*(torch.cat(part) for part in zip(*case.held_out, strict=True))))
    assert ratio(noise) == pytest.approx(20, abs=0.05)
    assert ratio(after) > ratio(noise) + 2


@pytest.mark.parametrize("name", NAMES)
def test_second_order_derivatives_match_differences_of_gradients(
    modules: dict[str, ModuleType], name: str
) -> None:
    """Along θ + εc_1 + ε²c_2, against plain gradients of the model as PyTorch runs it."""
    case, _, _ = pretrained(modules, name, 30)
    model = copy.deepcopy(case.model).double()
    parameters = list(model.parameters())
    (inputs, targets) = next(case.batches(5))
    if inputs.is_floating_point():
        inputs, targets = inputs.double(), targets.double()
    draw = seeded(3)
    jets = [
        [torch.randn(p.shape, generator=draw, dtype=torch.float64) * 0.1 for p in parameters]
        for _ in range(2)
    ]
    with higher_derivatives():
        loss = case.loss_fn(model(inputs), targets)
        gradients = torch.autograd.grad(loss, parameters, create_graph=True)
        found = taylor_coefficients(gradients, parameters, jets)

    def gradient(eps: float) -> list[Tensor]:
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for p, c1, c2 in zip(moved.parameters(), *jets, strict=True):
                p += eps * c1 + eps**2 * c2
        loss = case.loss_fn(moved(inputs), targets)
        return list(torch.autograd.grad(loss, list(moved.parameters())))

    def differences(h: float) -> list[Tensor]:
        up, at, down = (torch.cat([g.flatten() for g in gradient(eps)]) for eps in (h, 0.0, -h))
        return [(up - down) / (2 * h), (up - 2 * at + down) / (2 * h**2)]

    h = 2e-3
    for row, coarse, fine in zip(found, differences(2 * h), differences(h), strict=True):
        expected = (4 * fine - coarse) / 3  # Richardson's extrapolation
        vector = torch.cat([g.flatten() for g in row])
        assert float((vector - expected).norm() / expected.norm()) < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_the_audit_judges_every_assumption(
    modules: dict[str, ModuleType],
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    example: Any = modules[name]
    build = example.build_model
    if name == "language_model":
        monkeypatch.setattr(
            example, "build_model", lambda n, seed: build(n, seed, width=16, depth=1, heads=2)
        )
    else:
        monkeypatch.setattr(example, "build_model", lambda seed: build(seed, widths=(4, 8)))
    monkeypatch.setattr(example, "WINDOW", 4)
    example.main(output=tmp_path, steps=10, quick=True, seed=0)
    report = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))
    assert tuple(report["verdicts"]) == ASSUMPTIONS
    assert {finding["assumption"] for finding in report["findings"]} == set(ASSUMPTIONS)
    assert report["complete"]
    assert not [note for note in report["notes"] if "could not be measured" in note]
    assert (tmp_path / f"{name}.html").stat().st_size > 10_000
    assert report["title"] in (tmp_path / f"{name}.md").read_text(encoding="utf-8")
    printed = capsys.readouterr().out
    for assumption in ASSUMPTIONS:
        assert assumption in printed
    assert str(tmp_path / f"{name}.html") in printed.replace("\n", "")
