"""The monitor through a run's turns: states loaded, triggers changed, ranks, costs, real images."""

from __future__ import annotations

import copy
import itertools
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from tests.cases import classifier, image_batches, run_recorded, seeded
from torch_qsgd import QuantumSGD
from torch_qsgd.data import load_data
from torch_qsgd.errors import DivergenceError
from torch_qsgd.hessian.monitor import DissipativityMonitor
from torch_qsgd.training import evaluate

# What share of the time so small a problem's spectra take depends on the machine.
pytestmark = pytest.mark.filterwarnings("ignore:.*of the time:RuntimeWarning")

OFF: dict[str, Any] = {"adapt_window": False, "proxy": None, "jet_ratio": None}
NOTHING = (torch.zeros(1), torch.zeros(1))


class Point(nn.Module):
    """A model that is its own parameters, so that the loss is any function of them."""

    def __init__(self, *start: float) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(start, dtype=torch.float64))

    def forward(self, _: Tensor) -> Tensor:
        return self.theta


def cubic(theta: Tensor, _: Tensor) -> Tensor:
    """Of curvature 1 and 6x: convex where x > 0."""
    x, y = theta
    return x**3 + y**2 / 2


def saddle(theta: Tensor, _: Tensor) -> Tensor:
    """Of curvatures 1 and −2, so that t* = 0."""
    x, y = theta
    return x**2 / 2 - y**2


def run(opt: QuantumSGD, model: nn.Module, loss_fn: Any, steps: int) -> None:
    run_recorded(opt, model, [NOTHING] * steps, loss_fn)


def watch(loss_fn: Any, start: tuple[float, ...], **options: Any) -> Any:
    cycle = {"lr": 0.01, "density": 1, "window": 5, "classical_steps": 0}
    cycle |= {name: options.pop(name) for name in list(options) if name in cycle or name == "order"}
    model = Point(*start)
    opt = QuantumSGD(model.parameters(), **cycle)
    return model, opt, DissipativityMonitor(opt, model, loss_fn, NOTHING, **options)


# ---- Least length, and cost -----------------------------------------------------------------


@pytest.mark.parametrize("least", [1, 3])
@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        ({}, "best window"),
        ({**OFF, "negative_mass": 0.0}, "negative mass"),
        ({**OFF, "proxy": 1.0}, "error proxy"),
    ],
)
def test_no_rule_on_spectra_ends_a_window_before_its_least_length(
    least: int, rules: dict[str, Any], reason: str
) -> None:
    model, opt, monitor = watch(saddle, (1.0, 0.1), min_window=least, order=1, **rules)
    run(opt, model, saddle, 6)
    assert [(w.steps, w.reason) for w in opt.windows] == [(least, reason)] * (6 // least)
    assert monitor.history.records[0].best_window == 0
    assert len(monitor.history.records) == 6 // least


def test_the_jet_ratio_does_not_wait_for_the_least_length() -> None:
    model, opt, _ = watch(cubic, (1.0, 0.1), min_window=4, order=2, jet_ratio=1e-9)
    run(opt, model, cubic, 2)
    assert [w.reason for w in opt.windows] == ["jet ratio"]


@pytest.mark.parametrize("dear", [True, False])
def test_that_the_monitor_takes_most_of_the_time_is_told_once_after_ten_spectra(dear: bool) -> None:
    model, opt, monitor = watch(saddle, (1.0, 0.1), window=2, **OFF)
    # So much time has gone by that what these few steps take does not count.
    monitor.history.elapsed, monitor.history.seconds = 1e9, 0.9e9 if dear else 0.1e9
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(opt, model, saddle, 18)
        assert len(monitor.history.records) == 9
    if dear:
        with pytest.warns(RuntimeWarning, match=r"10 spectra took 90 % of the time: .*min_window"):
            run(opt, model, saddle, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(opt, model, saddle, 6)


def test_lanczos_vectors_may_be_stored_in_less_memory() -> None:
    spectra: list[Any] = []
    for dtype in (None, torch.bfloat16):
        model = classifier("group")
        opt = QuantumSGD(model.parameters(), density=0.5)
        monitor = DissipativityMonitor(
            opt, model, F.cross_entropy, image_batches(1)[0], basis_dtype=dtype, basis_device="cpu"
        )
        opt.upload()
        spectra.append(monitor.history.records[0].spectrum)
    full, short = spectra
    assert short.lambda_max != full.lambda_max
    assert short.lambda_max == pytest.approx(full.lambda_max, rel=0.02)
    opt = QuantumSGD(model.parameters(), density=0.5)
    DissipativityMonitor(opt, model, F.cross_entropy, image_batches(1)[0], basis_dtype=torch.int32)
    with pytest.raises(ValueError, match="basis_dtype"):
        opt.upload()


# ---- States that are loaded -----------------------------------------------------------------


def seen(monitor: DissipativityMonitor) -> list[Any]:
    spectra = [
        (r.taken, r.step, r.window_step, r.best_window, r.spectrum and r.spectrum.nodes.tolist())
        for r in monitor.history.records
    ]
    return [spectra, monitor.history.windows]


@pytest.mark.parametrize("classical", [0, 2])
@pytest.mark.parametrize("back_to", [0, 3, 5, 6, 7, 9])
@pytest.mark.parametrize("reload", [False, True])
def test_after_a_roll_back_the_history_is_that_of_a_straight_run(
    classical: int, back_to: int, reload: bool
) -> None:
    options: dict[str, Any] = {"classical_steps": classical, "at": ("upload", "download"), **OFF}
    start = (1.0, 0.2)
    model, opt, straight = watch(cubic, start, **options)
    run(opt, model, cubic, 17)
    model, opt, monitor = watch(cubic, start, **options)
    run(opt, model, cubic, back_to)
    saved = copy.deepcopy((model.state_dict(), opt.state_dict()))
    run(opt, model, cubic, 13 - back_to)
    if reload:  # another process, which loads the history of the longer run last
        history = monitor.history
        model, opt, monitor = watch(cubic, (0.0, 0.0), **options)
    model.load_state_dict(saved[0])
    opt.load_state_dict(saved[1])
    if reload:
        monitor.history = history
    run(opt, model, cubic, 17 - back_to)
    expected = seen(straight)
    if (classical, back_to) == (0, 9):  # one step from its length, that window is not judged again
        expected[0] = [fact for fact in expected[0] if fact[:2] != ("upload", 5)]
    assert seen(monitor) == expected


def test_a_state_that_is_loaded_is_not_judged_by_the_spectrum_before() -> None:
    """Both stand at the second step of their first window, one where the loss is convex."""
    convex = Point(1.0, 0.2)
    plain = QuantumSGD(convex.parameters(), lr=0.01, density=1, window=5)
    run(plain, convex, cubic, 2)
    model, opt, monitor = watch(cubic, (-1.0, 0.2), **OFF)
    run(opt, model, cubic, 2)
    assert [r.negative_mass for r in monitor.history.records] == [0.5]
    model.load_state_dict(convex.state_dict())
    opt.load_state_dict(plain.state_dict())
    assert monitor.history.records == monitor.history.windows == []
    monitor.rules.negative_mass = 0.0
    run(opt, model, cubic, 2)
    assert [(r.step, r.negative_mass) for r in monitor.history.records] == [(0, 0.0)]
    assert (opt.windows, opt.window_step) == ([], 4)


# ---- Triggers that change -------------------------------------------------------------------


def test_without_being_the_trigger_it_takes_no_spectra() -> None:
    model, opt, monitor = watch(saddle, (1.0, 0.1), at=("upload", "download"), every=2, **OFF)
    run(opt, model, saddle, 3)
    before = seen(monitor)
    opt.trigger = None
    run(opt, model, saddle, 10)
    assert len(opt.windows) == 2
    assert seen(monitor) == before
    opt.trigger = monitor
    run(opt, model, saddle, 1)
    steps = [(r.step, r.window_step) for r in monitor.history.records]
    assert steps == [(0, 0), (2, 2), (10, 0), (14, 4)]
    assert monitor.history.windows[-1].start == 10


def test_a_spectrum_of_an_earlier_window_judges_none_later() -> None:
    model, opt, monitor = watch(cubic, (-1.0, 0.2), **OFF)
    run(opt, model, cubic, 2)
    assert monitor.history.records[-1].negative_mass == 0.5
    opt.trigger = None
    opt.discard()
    with torch.no_grad():
        model.theta[0] = 1.0
    run(opt, model, cubic, 1)
    monitor.attach(opt)
    monitor.rules.negative_mass = 0.0
    run(opt, model, cubic, 2)
    assert (opt.windows, opt.window_step) == ([], 3)
    assert [r.negative_mass for r in monitor.history.records] == [0.5, 0.0]


def test_an_optimizer_without_windows_is_told_of() -> None:
    model = Point(1.0, 1.0)
    with pytest.warns(RuntimeWarning, match="window=0: there is no window"):
        watch(saddle, (1.0, 1.0), window=0)
    opt = QuantumSGD(model.parameters(), window=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DissipativityMonitor(opt, model, saddle, NOTHING)


# ---- Ranks ----------------------------------------------------------------------------------

#: Unequal parts of a batch of eight.
PARTS = ([0, 1, 2, 3, 4], [5, 6, 7])


def spectrum_at_upload(model: nn.Module, data: Any, **options: Any) -> Tensor:
    opt = QuantumSGD(model.parameters(), lr=0.05, density=0.5, window=4)
    monitor = DissipativityMonitor(opt, model, F.cross_entropy, data, **options)
    opt.upload()
    (record,) = monitor.history.records
    assert record.spectrum is not None
    return torch.tensor(record.spectrum.nodes)


def work(rank: int, folder: str) -> None:
    """What one process does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        model = nn.parallel.DistributedDataParallel(classifier().eval())
        x, y = image_batches(1)[0]
        mine = x[PARTS[rank]], y[PARTS[rank]]
        # Each rank draws its own probes; the first rank's count.
        nodes = spectrum_at_upload(model, mine, process_group=dist.group.WORLD, seed=rank)
        torch.save(nodes, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="PyTorch was built without torch.distributed")
def test_ranks_judge_by_the_same_spectrum_of_the_data_of_all(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call]
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert torch.equal(*found)
    expected = spectrum_at_upload(classifier().eval(), image_batches(1)[0])
    torch.testing.assert_close(found[0], expected, rtol=1e-6, atol=1e-9)


# ---- What it is for -------------------------------------------------------------------------


def final_loss(window: int, watched: bool) -> tuple[float, list[Any]]:
    """Validation loss on digits after 220 steps, all of them in windows, and a download."""
    data = load_data("digits", batch_size=64, seed=1)
    model = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(8, 16, 3, padding=1, stride=2),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(256, 10),
        ),
        1,
    )
    opt = QuantumSGD(
        model.parameters(), lr=0.05, density=0.5, window=window, classical_steps=0, order=1
    )
    stream = itertools.chain.from_iterable(itertools.repeat(data.train))
    batches = list(itertools.islice(stream, 220))
    if watched:
        DissipativityMonitor(opt, model, F.cross_entropy, batches[0])
    # A window that diverges is what is compared with.
    try:
        run_recorded(opt, model, batches, F.cross_entropy)
        if opt.phase == "window":
            opt.download()
    except DivergenceError:
        return math.inf, opt.windows
    loss = evaluate(model, F.cross_entropy, data.validation, torch.device("cpu"))[0]
    return loss if math.isfinite(loss) else math.inf, opt.windows


def test_on_real_images_it_does_as_well_as_a_length_found_by_trial() -> None:
    too_long, _ = final_loss(100, watched=False)
    by_trial, _ = final_loss(12, watched=False)
    watched, windows = final_loss(100, watched=True)
    assert watched < too_long / 2
    assert watched < 1.05 * by_trial
    assert {w.reason for w in windows[:-1]} == {"best window"}
