"""Operands of several types: torch's types and values, each conversion rounded by the mode."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from morphbits.engines.native import random_rounding
from morphbits.errors import UserError

single, double = torch.tensor([0.5, 0.1, 2.0]), torch.tensor([0.5, 0.3, 2.0], dtype=torch.float64)
whole, mask = torch.tensor([2**24 + 1, 0, 2]), torch.tensor([True, False, True])
number = torch.tensor(0.1, dtype=torch.float64)


def _put(value: Tensor) -> Tensor:
    to = torch.zeros(3)
    to[mask] = value
    return to


CASES: dict[str, Callable[[], Tensor]] = {
    "float > int": lambda: single > torch.arange(3),
    "float == int": lambda: single == whole,
    "int > number": lambda: whole > 0.5,
    "float == double": lambda: single == double,
    "eq_": lambda: single.clone().eq_(double),
    "int gt_ float": lambda: whole.clone().gt_(single),
    "where": lambda: torch.where(mask, single, whole),
    "where of a double number": lambda: torch.where(mask, single, number),
    "where of an int and a number": lambda: torch.where(mask, whole, 0.1),
    "cat": lambda: torch.cat([single, whole]),
    "cat of two and a double": lambda: torch.cat([single, whole, double]),
    "cat with truth values": lambda: torch.cat([single, mask]),
    "stack": lambda: torch.stack([single, whole]),
    "clamp by a double number": lambda: torch.clamp(single, min=number),
    "clamp_ by doubles": lambda: single.clone().clamp_(min=double),
    "clamp of an int": lambda: whole.clamp(min=0.5),
    "half clamp_": lambda: single.half().clamp_(min=double),
    "fill_": lambda: single.clone().fill_(number),
    "fill_ by an int": lambda: single.clone().fill_(torch.tensor(3)),
    "a mask": lambda: _put(number),
    "a mask and an int": lambda: _put(torch.tensor(3)),
    "masked_fill": lambda: single.masked_fill(mask, number),
    "masked_fill of an int": lambda: whole.masked_fill(mask, torch.tensor(1.7)),
    "index_fill": lambda: single.index_fill(0, torch.tensor([1]), number),
    "maximum": lambda: torch.maximum(single, whole),
    "maximum into out": lambda: torch.maximum(single, double, out=torch.zeros(3)),
    "copysign": lambda: torch.copysign(whole, -0.5),
    "isin": lambda: torch.isin(single, whole),
    "bucketize": lambda: torch.bucketize(single, double),
    "select_scatter": lambda: torch.zeros(3, 3).select_scatter(double, 0, 1),
}


@pytest.mark.parametrize("name", CASES)
def test_types_and_values_are_torchs(name: str) -> None:
    expected = CASES[name]()
    with random_rounding("nearest"):
        found = CASES[name]()
    assert found.dtype == expected.dtype and torch.equal(found, expected)


def test_a_conversion_is_rounded_by_the_mode_and_counted() -> None:
    for mode, value in (("upward", 2**24 + 2), ("downward", 2**24)):
        with random_rounding(mode) as stats:
            joined = torch.cat([single, whole])
            filled = torch.zeros(2).fill_(number)
        assert joined[3] == value and stats.operators["cat (conversion)"] == 3
        assert (filled.double() > number).all() == (mode == "upward")


def test_types_that_torch_refuses_are_refused_in_its_words() -> None:
    for call, words in (
        (lambda: single.clone().scatter_(0, torch.tensor([1]), double), "dtype"),
        (lambda: whole.clone().clamp_(min=0.5), "can't be cast"),
        (lambda: torch.zeros(3).index_put_((torch.tensor([1]),), number), "dtypes match"),
    ):
        with pytest.raises(RuntimeError, match=words):
            call()
        with random_rounding(), pytest.raises(RuntimeError, match=words):
            call()


def test_complex_numbers_stay_an_error() -> None:
    z = torch.complex(single, single)
    with random_rounding(), pytest.raises(UserError, match=r"cat\.default"):
        torch.cat([single, z])
