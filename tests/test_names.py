"""Names that are like others, and what messages say of them."""

from __future__ import annotations

import pytest

from torch_qsgd.checks import require_one_of
from torch_qsgd.hessian.operator import KINDS
from torch_qsgd.names import by_name, nearest, suggestion
from torch_qsgd.resources.account import SOLVERS

KNOWN = ["exact", "hhl", "qsvt-relative", "qsvt-total", "Block-QSVT"]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("exakt", "exact"),
        ("HHL", "hhl"),
        ("qsvt", "qsvt-relative"),  # the first that begins with it
        ("QSVT", "qsvt-relative"),
        ("total", "qsvt-total"),  # none begins with it, one contains it
        ("block", "Block-QSVT"),
        ("blok-qsvt", "Block-QSVT"),  # a likeness of the whole goes first
        ("x", None),
        ("qs", None),  # too short to be a part
        ("", None),
        ("perceptron", None),
    ],
)
def test_the_nearest_name_is_alike_or_begins_with_or_contains_the_given_one(
    given: str, wanted: str | None
):
    assert nearest(given, iter(KNOWN)) == wanted
    assert suggestion(given, KNOWN) == (f"; did you mean {wanted!r}?" if wanted else "")


def test_nothing_is_like_what_is_no_name():
    assert suggestion(3, KNOWN) == suggestion(None, KNOWN) == suggestion("hhl", []) == ""


def test_a_name_that_begins_with_it_goes_before_one_that_contains_it():
    assert nearest("norm", ["batch-normalisation", "normalisation-of-batches"]) == (
        "normalisation-of-batches"
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("gg", "kind must be one of hessian, ggn, got 'gg'; did you mean 'ggn'?"),
        ("hess", "kind must be one of hessian, ggn, got 'hess'; did you mean 'hessian'?"),
        ("fisher", "kind must be one of hessian, ggn, got 'fisher'"),
        (None, "kind must be one of hessian, ggn, got None"),
        (["ggn"], "kind must be one of hessian, ggn, got ['ggn']"),
    ],
)
def test_a_name_that_is_not_allowed_is_refused_with_the_nearest(given: object, message: str):
    with pytest.raises(ValueError, match=r"^kind must") as caught:
        require_one_of("kind", given, KINDS)
    assert str(caught.value) == message


def test_a_member_by_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"^unknown number 'zro'; known: zero; did you mean 'ze"):
        by_name("zro", int, {"zero": int}, "number")


def test_part_of_a_solvers_name_finds_it():
    assert "qsvt-relative" in SOLVERS
    assert nearest("qsvt", SOLVERS) == next(name for name in SOLVERS if name.startswith("qsvt"))
