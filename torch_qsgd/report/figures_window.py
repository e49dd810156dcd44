"""Figures of one window: truncation, conditioning, pruning, rows of the Hessian, readout."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from torch_qsgd.report.figures import (
    Figure,
    Trace,
    axis,
    evenly,
    joined,
    known,
    layout,
    line,
    log_axis,
    look,
    marks,
    panels,
    power_of_ten,
    safe,
    shortened,
    steps_axis,
)
from torch_qsgd.report.measurements import (
    Conditioning,
    LayerPruning,
    Pruning,
    RowSparsity,
    Transfer,
    Truncation,
)
from torch_qsgd.report.numbers import number, whole
from torch_qsgd.report.palette import BLUE, GREEN, GREY, INK, PURPLE, VERMILION

_POINTS = 400  # of a curve
_LAYERS = 40  # drawn at most; the table has all
_LETTERS = 22  # of a layer's name
_ROWS = 500


# ---- Truncation --------------------------------------------------------------------------------


def truncation(found: Truncation) -> Figure:
    """The window error over its steps for each order, and the kink floor."""
    data: list[Trace] = []
    heights: list[float] = []

    def add(errors: list[float], name: str, colour: str, dash: str) -> None:
        places = [i for i in evenly(len(errors), _POINTS) if errors[i] > 0]
        heights.extend(known((errors[i] for i in places), positive=True))
        values = [errors[i] for i in places]
        one = {"mode": "lines+markers"} if len(values) == 1 else {}
        data.append(line([i + 1 for i in places], values, name, colour, dash, **one))

    for number_, order in enumerate(found.orders):
        colour, dash, _ = look(number_)
        add(order.errors, f"order {order.order}", colour, dash)
    caption = (
        "Relative error ‖u_N(t) − u(t)‖/‖u(t)‖ of a window cut at order N, against true SGD from "
        "the same anchor on the same batches. Each order more should lower the curve by about the "
        "same factor; where it does not, more orders do not help."
    )
    if found.floor is None:
        caption += " The kink floor could not be measured" + (
            f", for these cannot be held on their pieces: {', '.join(found.unfrozen)}."
            if found.unfrozen
            else "."
        )
    elif any(value > 0 for value in found.floor):
        add(found.floor, "kink floor: no order removes it", INK, "longdash")
        caption += (
            f" The kink floor is the part that the kinks of {', '.join(found.kinks)} make: the "
            "full Taylor series describes SGD on the pieces of the anchor, so that no order "
            "removes it."
        )
    else:
        caption += " The kink floor is zero: no kink was crossed."
    if found.rounding > 0:
        caption += (
            f" About {number(found.rounding)} at the end is what the weights' precision alone "
            "makes: curves that low tell nothing of the series."
        )
    return Figure(
        "truncation",
        "Error of the truncated window",
        caption,
        data,
        layout(
            380,
            xaxis=steps_axis("steps t since the upload", 0, 1.02 * max(1, found.steps)),
            yaxis=log_axis("relative error", heights),
        ),
    )


# ---- Conditioning ------------------------------------------------------------------------------


def conditioning(found: Conditioning) -> Figure:
    """Singular values and condition numbers over T, with the fitted exponent."""
    above, below = panels([1, 1], gap=0.1)
    steps = found.steps
    data = [
        joined(steps, found.largest, "σ_max, order 1", BLUE, "solid", "circle"),
        joined(steps, found.smallest, "σ_min, order 1", VERMILION, "dash", "square"),
        joined(steps, found.kappa, "κ, order 1", GREEN, "solid", "triangle-up", yaxis="y2"),
    ]
    if found.order > 1:
        name = f"κ, order {found.order} (diagonal blocks)"
        data.append(
            joined(steps, found.kappa_order, name, PURPLE, "dashdot", "diamond", yaxis="y2")
        )
    whole_form = found.kappa_homogeneous
    if whole_form:
        name = f"κ, order {found.order}, homogeneous (estimated)"
        data.append(joined(steps, whole_form, name, VERMILION, "dash", "star", yaxis="y2"))
    data += _fit(found)
    singular = [*found.largest, *found.smallest]
    kappas = [*found.kappa, *(found.kappa_order if found.order > 1 else []), *whole_form]
    return Figure(
        "conditioning",
        "Singular values and κ of the window's linear system",
        "Both are pure numbers, over the number of steps T in the system. κ that levels off means "
        "that modes are damped; κ that grows as T, that some are hardly damped; faster growth, "
        "that some are amplified. σ_max, σ_min and their κ are of the standard form's diagonal "
        f"blocks, where κT grows as {_regime(found.regime)}; they know neither constant nor "
        "gradient. The homogeneous form has both, its κ grows at least as T, and its estimate is "
        "what the ledger takes. The dotted line is the fitted power of T over the upper half.",
        data,
        layout(
            520,
            xaxis=log_axis("steps T of the window", [float(t) for t in steps], anchor="y2"),
            yaxis={**log_axis("singular value", singular, most=5), "domain": above},
            yaxis2={**log_axis("condition number κ", kappas, most=5), "domain": below},
        ),
    )


def _regime(regime: str) -> str:
    return "an exponential in T" if regime == "exponential" else regime


def _fit(found: Conditioning) -> list[Trace]:
    """The power law with the fitted exponent, through the middle of the points it was fitted to."""
    half = len(found.steps) // 2
    pairs = [
        (t, k)
        for t, k in zip(found.steps[half:], found.kappa[half:], strict=True)
        if math.isfinite(k) and k > 0
    ]
    if len(pairs) < 2 or not math.isfinite(found.exponent):
        return []
    middle = [sum(math.log(pair[i]) for pair in pairs) / len(pairs) for i in (0, 1)]
    ends = [float(pairs[0][0]), float(pairs[-1][0])]
    heights = [
        math.exp(min(middle[1] + found.exponent * (math.log(t) - middle[0]), 700)) for t in ends
    ]
    name = f"fit: κ ∝ T^{number(found.exponent)} ± {number(found.exponent_error, 2)}"
    fitted = line(ends, heights, name, INK, "dot", yaxis="y2")
    fitted["line"]["width"] = 3
    return [fitted]


# ---- Pruning -----------------------------------------------------------------------------------


def pruning(found: Pruning) -> Figure | None:
    """Density of each layer, and what pruning that layer alone costs."""
    if not found.layers:
        return None
    scored = math.isfinite(found.accuracy_dense)
    lost = [_lost(found, layer, scored) for layer in found.layers]
    places = list(range(len(lost)))
    if len(lost) > _LAYERS:
        worst = sorted(places, key=lambda i: -abs(lost[i]) if math.isfinite(lost[i]) else 0.0)
        places = sorted(worst[:_LAYERS])
    layers = [found.layers[i] for i in places]
    rows = [-float(i) for i in range(len(places))]
    shares = [100 * layer.active / layer.weights for layer in layers]
    changes = [100 * lost[i] if scored else lost[i] for i in places]
    says = [
        f"{safe(layer.name)}: {whole(layer.active)} of {whole(layer.weights)}" for layer in layers
    ]
    common: dict[str, Any] = {"showlegend": False, "text": says, "hoverinfo": "text+x"}
    title = "accuracy<br>lost (points)" if scored else "rise of<br>the loss"
    longest = max(len(layer.name) for layer in layers)
    return Figure(
        "pruning",
        "Pruning, layer by layer",
        "Left, the share of weights that stay in each tensor. Right, what the held-out "
        + ("accuracy loses, in percentage points," if scored else "loss gains")
        + " when that tensor alone is pruned, before any training; left of zero, pruning helps. "
        "Look for a tensor far to the right: a higher density there costs little and saves much."
        + f" Drawn: the {_LAYERS} of {len(lost)} tensors that matter most."
        * (len(lost) > _LAYERS),
        [
            marks(shares, rows, "", BLUE, "circle", **common),
            line([0, 0], [0.7, rows[-1] - 0.7], "", GREY, "solid", xaxis="x2", showlegend=False),
            marks(changes, rows, "", VERMILION, "diamond", xaxis="x2", **common),
        ],
        layout(
            110 + 22 * len(places),
            xaxis={
                **log_axis("weights<br>kept (%)", shares, most=4, room=0.12),
                "domain": [0, 0.47],
            },
            xaxis2=axis(title, domain=[0.53, 1], nticks=5),
            yaxis={
                **axis("", range=[rows[-1] - 0.7, 0.7]),
                "tickvals": rows,
                "ticktext": [safe(shortened(layer.name, _LETTERS)) for layer in layers],
                "tickfont": {"size": 11 if longest > 12 else 13},
            },
        ),
    )


def _lost(found: Pruning, layer: LayerPruning, scored: bool) -> float:
    return found.accuracy_dense - layer.accuracy if scored else layer.loss - found.loss_dense


# ---- Rows of the Hessian -----------------------------------------------------------------------


def rows(found: RowSparsity) -> Figure | None:
    """Non-zeros of the probed rows, sorted, beside the length of a row."""
    if not found.nonzeros:
        return None
    order = np.argsort(found.nonzeros, kind="stable")[::-1]
    kept = [int(order[i]) for i in evenly(len(order), _ROWS)]
    ranks = list(range(1, len(kept) + 1))
    full = f"length of a row, n = {whole(found.dimension)}"
    nonzeros = [float(found.nonzeros[i]) for i in kept]
    effective = [float(found.effective[i]) for i in kept]
    size = {"marker": {"size": 7}}
    data = [
        line([0.5, len(kept) + 0.5], [found.dimension] * 2, full, GREY, "dash"),
        marks(ranks, nonzeros, "non-zeros", VERMILION, "square"),
        marks(ranks, effective, "entries that hold 99 % of its squared length", BLUE, "circle"),
    ]
    for trace in data[1:]:
        trace["marker"] |= size["marker"]
    heights = [*nonzeros, *effective, float(found.dimension)]
    if empty := [rank for rank, count in zip(ranks, nonzeros, strict=True) if count == 0]:
        heights.append(0.7 * min(known(heights, positive=True)))
        name = "rows of zeros, drawn at the bottom"
        data.append(marks(empty, heights[-1:] * len(empty), name, INK, "x"))
    return Figure(
        "rows",
        "Non-zeros in rows of the Hessian",
        f"{whole(found.rows)} random rows of the Hessian restricted to active weights, sorted. An "
        f"entry counts where it is above {number(found.cutoff)} of the row's largest. A sparse "
        "model would have its squares far below the dashed line; the circles say how few entries "
        "nearly all of a row lies in. Rows not probed may be longer.",
        data,
        layout(
            340,
            xaxis=axis("probed row, by its non-zeros", range=[0.5, len(kept) + 0.5], nticks=8),
            yaxis=log_axis("entries of a row", heights, most=5),
        ),
    )


# ---- Readout -----------------------------------------------------------------------------------


def readout(found: Transfer) -> Figure | None:
    """Copies and held-out loss over the precision that the readout asks for."""
    trials = sorted(found.trials, key=lambda trial: trial.precision)
    if not trials:
        return None
    above, below = panels([1, 1], gap=0.1)
    asked = [100 * trial.precision for trial in trials]
    copies = [float(trial.copies) for trial in trials]
    guaranteed = [float(trial.guaranteed) for trial in trials]
    spread = [
        (100 * trial.precision, loss)
        for trial in trials
        for loss in trial.losses
        if math.isfinite(loss)
    ]
    x = log_axis("error asked of the readout (% of ‖u‖)", asked, room=0.1, anchor="y2")
    ends = [power_of_ten(e) for e in x.get("range", (-2, 0))]
    data = [
        joined(asked, copies, "copies used", BLUE, "solid", "circle"),
        joined(asked, guaranteed, "copies that the theorem asks for", PURPLE, "dash", "square"),
        marks(
            [p for p, _ in spread],
            [loss for _, loss in spread],
            "loss after one readout",
            BLUE,
            "circle-open",
            yaxis="y2",
        ),
        line(ends, [found.loss_after] * 2, "after an exact readout", GREEN, "dashdot", yaxis="y2"),
        line(ends, [found.loss_before] * 2, "at the anchor", VERMILION, "dot", yaxis="y2"),
    ]
    return Figure(
        "readout",
        "What reading the displacement costs, and what its error does",
        "Above, copies of the window's state that one download uses, each a run of the solver with "
        f"success probability {number(found.probability)}. Below, the held-out loss after emulated "
        "readouts with the noise of real measurement counts. Look for the coarsest error at which "
        "the loss still lies at the exact readout's: tighter ones cost copies for nothing.",
        data,
        layout(
            520,
            xaxis=x,
            yaxis={**log_axis("copies", [*copies, *guaranteed], most=5), "domain": above},
            yaxis2=axis("held-out loss", domain=below, nticks=6),
        ),
    )
