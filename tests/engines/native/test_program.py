"""Operations that are recorded and computed together give the bytes of each by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.exact_replay import same_bytes
from support.operator_cases import CASES, Case
from support.outcomes import assert_alike, outcome
from torch import Tensor

from morphbits.choices import MODES
from morphbits.engines.native import random_rounding
from morphbits.engines.native.kernels import library, program


def check(
    monkeypatch: pytest.MonkeyPatch, function: Any, inputs: list[Tensor], **options: Any
) -> None:
    monkeypatch.setattr(program, "recording", True)
    together = outcome(function, inputs, **options)
    monkeypatch.setattr(program, "recording", False)
    assert_alike(together, outcome(function, inputs, **options))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_rule_gives_the_bytes_of_its_operations_one_by_one(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(monkeypatch, case.function, case.inputs(torch.float32), threads=1)


@pytest.mark.slow
@pytest.mark.parametrize("precision", [24, 11, "bfloat16"])
@pytest.mark.parametrize("mode", MODES)
def test_so_does_every_mode_and_precision(
    mode: str, precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for case in CASES:
        for dtype in (torch.float32, torch.float64):
            check(
                monkeypatch,
                case.function,
                case.inputs(dtype),
                mode=mode,
                precision=precision,
                threads=2,
            )


def _formulas(x: Tensor) -> list[Tensor]:
    positive = x.abs()
    return [
        F.layer_norm(x, x.shape[-1:]),
        x.softmax(-1),
        F.gelu(x),
        F.softplus(positive),
        F.hardswish(x),
        x.var(-1),
        x.sum(-1),
        F.batch_norm(x[None], None, None, training=True),
    ]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("subnormals", ["keep", "flush"])
def test_every_instruction_set_gives_the_same(
    mode: str, subnormals: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of odd numbers: subnormal, infinite, NaN, zeros of both signs, sums that are zero."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(33, 600, generator=generator)
    x[0, :6] = torch.tensor([0.0, -0.0, 1e-42, -1e-42, torch.inf, torch.nan])
    x[1:3] *= 1e-38
    x[3] = -0.0
    x[4] = torch.tensor([1.0, -1.0]).repeat(300)
    expected = None
    for name in library.available_variants():
        monkeypatch.setattr(library, "default_variant", lambda name=name: name)
        for recording in (True, False):
            monkeypatch.setattr(program, "recording", recording)
            with random_rounding(mode, seed=3, subnormals=subnormals, threads=2):
                results = _formulas(x)
            expected = expected or results
            assert all(map(same_bytes, results, expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "shape",
    [
        (3, 2),
        (17, 255),
        (5, 256),
        (40, 257),
        (6, 700),
        (19, 1000),
        (7, 1500),
        (18, 2048),
        (3, 2500),
        (1, 4096),
        (3, 5000),
        (2, 65536),
        (2, 65537),
    ],
)
def test_rows_of_any_length_are_summed_alike(
    shape: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One chain; several, which are read by parts of 4, 8 or 16 terms; so many that they are side
    by side in a vector; too many. Between sums 1,024 elements are computed at a time."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=dtype)
    for mode in ("random", "nearness", "downward"):
        check(monkeypatch, lambda x: x.sum(-1), [x], mode=mode)
        check(monkeypatch, lambda x: x.log_softmax(-1), [x], mode=mode)
        check(monkeypatch, lambda x: x.cumsum(-1), [x], mode=mode)
    check(monkeypatch, lambda x: x[:, :300].cumprod(-1), [x])
    check(monkeypatch, lambda x: F.layer_norm(x, x.shape[-1:], x[0], x[-1]), [x], threads=2)


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("channels", [5, 17])
def test_rows_of_several_axes_are_summed_alike(
    images: int, channels: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many rows as a vector has lanes are summed where they lie; fewer are copied before."""
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(images, channels, 9, 31, generator=generator, dtype=dtype)
    mean, scale = torch.rand(2, channels, generator=generator, dtype=dtype)
    for mode in ("random", "nearness", "downward"):
        check(monkeypatch, lambda x: (x * 1).transpose(0, 1).sum((1, 2, 3)), [x], mode=mode)
        check(monkeypatch, lambda x: x.exp().sum((2, 3)).cumsum(1), [x], mode=mode)
        for training in (True, False):
            check(
                monkeypatch,
                lambda x, t=training: F.batch_norm(x, mean.clone(), scale.clone(), scale, mean, t),
                [x],
                mode=mode,
            )
        check(monkeypatch, lambda x: F.batch_norm(x, None, None, training=True), [x], mode=mode)


def test_operands_may_be_strided_broadcast_and_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(3))
    check(monkeypatch, lambda x: F.silu(x.permute(2, 0, 1)), [x])
    check(monkeypatch, lambda x: F.silu(x[:, ::2]), [x])
    check(monkeypatch, lambda x: torch.addcmul(x[0], x[:, :1], x[:, :, :1]), [x])
    check(monkeypatch, lambda x: torch.lerp(x, x.flip(0), x[0, 0].sigmoid()), [x])
    check(monkeypatch, lambda x: (x * 1).addcmul_(x, x[0], value=3), [x])
    check(monkeypatch, lambda x: (x * 1).transpose(0, 1).sigmoid_(), [x])


@pytest.mark.parametrize("subnormals", ["keep", "flush"])
@pytest.mark.parametrize("mode", MODES)
def test_slopes_of_channels_give_the_bytes_of_one_product(mode: str, subnormals: str) -> None:
    """Also of numbers that are flushed: a positive one stays, as `where` leaves it."""
    generator = torch.Generator().manual_seed(4)
    x, g = torch.randn(2, 2, 3, 40, 30, generator=generator)
    x.view(-1)[:6] = torch.tensor([0.0, -0.0, 1e-42, -1e-42, torch.inf, torch.nan])
    slope, aten = torch.linspace(-0.5, 0.5, 3).view(3, 1, 1), torch.ops.aten
    positive = x > 0

    def perturbed(function: Any) -> Any:
        with random_rounding(mode, seed=6, subnormals=subnormals):
            return function()

    assert same_bytes(
        perturbed(lambda: aten._prelu_kernel(x, slope)),
        torch.where(positive, x, perturbed(lambda: slope * x)),
    )
    to_x, to_slope = perturbed(lambda: aten._prelu_kernel_backward(g, x, slope))
    products = perturbed(lambda: (slope * g, x * g))
    assert same_bytes(to_x, torch.where(positive, g, products[0]))
    assert same_bytes(to_slope, torch.where(positive, 0.0, products[1]))
    assert same_bytes(
        perturbed(lambda: aten.leaky_relu_backward(g, x, 0.3, False)),
        torch.where(positive, g, perturbed(lambda: g * 0.3)),
    )


def test_a_formula_of_one_memory_is_computed_again_on_two() -> None:
    a, b, c = (torch.arange(9.0).view(3, 3) + k for k in range(3))
    with random_rounding("nearest", seed=5):
        torch.add(a, a.t()), torch.mul(a, a.detach())
        added, multiplied = torch.add(b, c.t()), torch.mul(b, c)
    assert same_bytes(added, b + c.t()) and same_bytes(multiplied, b * c)


def test_a_formula_is_kept_with_the_sign_of_a_zero() -> None:
    zero, one = torch.full((3,), -0.0), torch.ones(3)
    for value in (0.0, -0.0):
        with random_rounding("nearest", seed=5):
            found = torch.addcmul(zero, one, one, value=value)
        assert same_bytes(found, torch.addcmul(zero, one, one, value=value))


def test_a_normalization_is_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    run = program.Program.run
    monkeypatch.setattr(
        program.Program,
        "run",
        lambda self, *a: (calls.append(self.done), run(self, *a))[1],
    )
    x = torch.randn(8, 300)
    with random_rounding(seed=1):
        F.layer_norm(x, (300,), x[0], x[1])
    assert calls.count(False) == 1
