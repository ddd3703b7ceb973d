"""The gradients of `interpolate` in one pass have the bytes of their rule's operations one by
one."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from support.exact_replay import same_bytes
from torch import Tensor

from morphbits.choices import MODES
from morphbits.engines.native import random_rounding
from morphbits.engines.native.kernels import library, program

KEEP, ALIGNED, OTHER = 0, 1, 2  # corners; the factors are not those of the sizes
CASES = [  # operator, sizes of input and output, channels, corners
    ("linear1d", [9], [5], 3, KEEP),
    ("linear1d", [4], [11], 18, OTHER),
    ("bilinear2d", [9, 4], [5, 7], 5, ALIGNED),
    ("bilinear2d", [5, 4], [9, 11], 9, OTHER),
    ("trilinear3d", [3, 4, 5], [6, 8, 10], 3, KEEP),
    ("trilinear3d", [3, 4, 5], [3, 9, 7], 5, ALIGNED),
    ("trilinear3d", [1, 1, 1], [2, 3, 4], 1, KEEP),
    ("bicubic2d", [2, 7], [9, 3], 2, ALIGNED),
    ("_bilinear2d_aa", [9, 11], [4, 5], 2, KEEP),
    (
        "_bicubic2d_aa",
        [30, 20],
        [3, 2],
        1,
        KEEP,
    ),  # more combinations than a word has bits
    ("_lanczos2d_aa", [5, 6], [5, 13], 3, ALIGNED),
]


def gradient_of(
    case: tuple[str, list[int], list[int], int, int], dtype: torch.dtype, odd: bool
) -> tuple[Any, list[Any]]:
    """The operator and its arguments; `odd`: infinite and subnormal gradients, zeros and NaN."""
    name, size, out, channels, corners = case
    shape = [2, channels, *out]
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=dtype)
    if odd:
        gradient.view(-1)[::3] = 0
        strange = torch.tensor([torch.inf, torch.nan, 1e-41, -0.0, 3e38, -1e-42], dtype=dtype)
        gradient.view(-1)[-7:-1] = strange
    antialiased = name.startswith("_")
    operator = f"_upsample{name}_backward" if antialiased else f"upsample_{name}_backward"
    factors = [1.7 if corners == OTHER else None] * len(size)
    arguments = [gradient, out, [2, channels, *size], corners == ALIGNED, *factors]
    return getattr(torch.ops.aten, operator), arguments


def computed(operator: Any, arguments: list[Any], **options: Any) -> tuple[list[Tensor], Any]:
    """The gradient and what is drawn next; the operations counted."""
    with random_rounding(seed=3, **options) as stats:
        return [operator(*arguments), torch.ones(20) / 3], dict(stats.operators)


@pytest.mark.parametrize("mode", MODES)
def test_one_pass_gives_the_bytes_of_the_operations_one_by_one(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, case in enumerate(CASES):
        dtype, odd = (torch.float32, torch.float64)[number % 2], number % 3 == 1
        flush = "flush" if number % 4 == 1 else "keep"
        options = {"mode": mode, "threads": 1 + number % 3, "subnormals": flush}
        call = gradient_of(case, dtype, odd)
        monkeypatch.setattr(program, "recording", True)
        together = computed(*call, **options)
        monkeypatch.setattr(program, "recording", False)
        alone = computed(*call, **options)
        assert together[1] == alone[1]
        assert all(map(same_bytes, together[0], alone[0])), case


@pytest.mark.parametrize("mode", ["random", "nearness", "downward"])
def test_every_instruction_set_and_number_of_threads_gives_the_same(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for case in (CASES[3], CASES[5], CASES[9]):
        operator, arguments = gradient_of(case, torch.float32, True)
        expected: list[Tensor] = []
        last = {4: torch.channels_last, 5: torch.channels_last_3d}[arguments[0].dim()]
        for name, threads in product(library.available_variants(), (1, 4)):
            monkeypatch.setattr(library, "default_variant", lambda name=name: name)
            given = arguments[0].to(memory_format=last) if threads == 4 else arguments[0]
            call = operator, [given, *arguments[1:]]
            found, _ = computed(*call, mode=mode, threads=threads)
            expected = expected or found
            assert all(map(same_bytes, found, expected)), (case, name, threads)
