"""`random_rounding` around torch code: what it perturbs, what passes, what it refuses, what it
leaves behind."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.exact_replay import same_bytes
from support.frequencies import assert_frequency

from morphbits.engines.native import (
    engine_version,
    kernel_version,
    random_rounding,
    selftest,
)
from morphbits.engines.native.kernels import library
from morphbits.engines.native.kernels.library import MODES, control_register
from morphbits.engines.native.rules import context
from morphbits.errors import UserError

PYTHON = Path(__file__).parents[3] / "python"


def test_counts_the_operations_of_a_convolution_analytically() -> None:
    x, w, b = torch.randn(2, 3, 5, 6, 7), torch.randn(4, 3, 3, 3, 3), torch.randn(4)
    inside = sum(  # by walking over every output voxel and tap
        all(0 <= v + t - 1 < n for v, t, n in zip(voxel, tap, (5, 6, 7), strict=True))
        for voxel in product(range(5), range(6), range(7))
        for tap in product(range(3), repeat=3)
    )
    products, outputs = 2 * 3 * 4 * inside, 2 * 4 * 5 * 6 * 7
    for accumulation, additions in (("sequential", 0), ("blocked:20", 4), ("direct", 0)):
        with random_rounding(accumulation=accumulation) as stats:
            F.conv3d(x, w, b, padding=1)
        assert stats.operators == {"convolution": products + (additions + 1) * outputs}
        with random_rounding(accumulation=accumulation) as stats:
            F.conv3d(x, w, padding=1)
        assert stats.operations == products + additions * outputs


def test_counts_elementwise_operations_by_operator() -> None:
    a, b = torch.rand(4, 5), torch.rand(5)
    with random_rounding() as stats:
        torch.add(a, b, alpha=0.3)
        a * b - 1
        1 - a
        F.leaky_relu(a, 0.2)
        a.double().float()
        torch.arange(3) * 2
    assert stats.operators == {
        "add": 25, "mul": 20, "sub": 20, "rsub": 20, "leaky_relu": 20, "to (conversion)": 20
    }  # fmt: skip
    assert stats.operations == 125


def test_nearest_is_torch_itself() -> None:
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.float64):
        a, b = torch.randn(2, 50, 60, dtype=dtype)
        c = torch.arange(60)
        calls: list[Callable[[], torch.Tensor]] = [
            lambda a=a, b=b: a + b,
            lambda a=a, b=b: a - b,
            lambda a=a, b=b: a * b,
            lambda a=a, b=b: a / b,
            lambda a=a: a * 0.3,
            lambda a=a: 0.7 - a,
            lambda a=a, c=c: a + c,
            lambda a=a, c=c: a / c[1],
            lambda c=c: c / 7,
            lambda a=a: F.leaky_relu(a, 0.2),
            lambda a=a, b=b: a.clone().mul_(b),
            lambda a=a, b=b: a.double() * b,
            lambda a=a: a.to(torch.float32),
        ]
        for i, call in enumerate(calls):
            with random_rounding("nearest"):
                found = call()
            assert same_bytes(found, call()), i
        with random_rounding("nearest"):
            scaled = torch.add(a, b, alpha=3)  # torch itself fuses the two operations
        assert same_bytes(scaled, a + b * 3)


def test_convolutions_of_every_dimension_and_setting() -> None:
    """To (n + 2)·u·Σ|x||w| of torch's result in float64."""
    torch.manual_seed(0)
    for dims, function in ((1, F.conv1d), (2, F.conv2d), (3, F.conv3d)):
        x, w, b = torch.randn(2, 4, *(9,) * dims), torch.randn(6, 4, *(3,) * dims), torch.randn(6)
        for options in ({}, {"padding": 1, "stride": 2}, {"dilation": 2}):
            exact = function(x.double(), w.double(), b.double(), **options)
            bound = function(x.double().abs(), w.double().abs(), b.double().abs(), **options)
            for setting in (torch.no_grad, torch.inference_mode, torch.enable_grad):
                with setting(), random_rounding("random") as stats:
                    out = function(x, w, b, **options)
                n = 4 * 3**dims
                assert ((out.double() - exact).abs() <= (n + 2) * 2.0**-23 * bound).all()
                assert stats.operations > 0


def test_equal_seeds_give_equal_bytes_and_others_do_not() -> None:
    x, w = torch.randn(1, 2, 6, 6, 6), torch.randn(3, 2, 3, 3, 3)

    def sample(seed: int, threads: int = 1) -> torch.Tensor:
        with random_rounding(seed=seed, threads=threads):
            return F.conv3d(x, w) * 1.1 + 0.3

    assert same_bytes(sample(5), sample(5, threads=4))
    seeds = [0, 1, 2, 5, 2**32, 2**64 - 1]
    samples = [sample(s) for s in seeds]
    assert all(not same_bytes(a, b) for i, a in enumerate(samples) for b in samples[:i])
    with random_rounding(seed=1):
        once, again = x * 1.1, x * 1.1
    assert not same_bytes(once, again)  # each operator has bits of its own


def test_an_operator_without_a_rule_is_an_error_that_names_it() -> None:
    a = torch.rand(3, 3)
    with random_rounding():
        for call, name in (
            (lambda: torch.fft.rfft(a), "fft"),
            (lambda: torch.linalg.qr(a), "linalg_qr"),
        ):
            with pytest.raises(UserError, match=name):
                call()
        with pytest.raises(UserError, match="complex"):
            a + torch.tensor(1j, dtype=torch.complex128)
        index = torch.arange(6).reshape(2, 3)
        assert (index.sum(), (index @ index.T)[0, 0]) == (15, 5)  # integers are not rounded


def test_a_conversion_inside_an_operator_is_an_error_or_perturbed() -> None:
    """Types brought to one round; none of it may pass in silence."""
    a, third = torch.zeros(3), torch.full((3,), 1 / 3, dtype=torch.float64)
    whole, where = torch.tensor([2**24 + 1] * 3), torch.tensor([True, False, True])
    for call in (
        lambda: torch.complex(a, a).abs(),
        lambda: third.to(torch.complex64),
        lambda: torch.complex(third, third).to(torch.float32),
        lambda: third.to(torch.float8_e4m3fn),
        lambda: torch.tensor([2**53 + 1]) + third,
    ):
        with random_rounding() as stats, pytest.raises(UserError, match="no rule"):
            call()
        assert stats.operations == 0
    for call in (
        lambda: torch.cat([a, whole]),
        lambda: torch.cat([third, third], out=torch.empty(6)),
        lambda: torch.stack([a, whole]),
        lambda: torch.where(where, third[0], a),
        lambda: torch.maximum(a, whole),
        lambda: torch.max(a, third[0]),
        lambda: a.clamp(min=third[0]),
        lambda: whole.clamp(min=0.5),
        lambda: a.clone().clamp_(min=third),
        lambda: a.clone().fill_(third[0]),
        lambda: a.masked_fill(where, third[0]),
        lambda: a.eq(whole),
    ):
        with random_rounding() as stats:
            call()
        assert any("conversion" in name for name in stats.operators)
    with random_rounding("upward") as stats:
        found = torch.ones(3).mul_(third)
    assert stats.operators == {"mul_": 3, "to (conversion)": 3}
    assert (found > third).all()
    with random_rounding("upward") as stats:  # decimals, steps, sums of weights
        found = [third.round(decimals=2), torch.arange(0, 1, 0.1), torch.arange(3).bincount(third)]
    assert stats.operators == {"round": 6, "arange": 20, "bincount": 3}
    assert all(
        x.dtype == y for x, y in zip(found, (third.dtype, a.dtype, third.dtype), strict=True)
    )
    with random_rounding() as stats:  # nothing to round
        torch.where(where, a, 0.1), a.clamp(0, 0.5), a.round(), torch.arange(3.0), a > 0.1
        torch.cat([whole, whole]).max(), whole.clamp(0, 5), torch.where(where, whole, 1)
    assert stats.operations == 0


def test_what_torch_refuses_is_refused_in_its_words() -> None:
    """The kernels are handed addresses: shapes and types that do not fit must not reach them."""
    x, w = torch.ones(1, 2, 5), torch.ones(4, 2, 2)
    with random_rounding() as stats:
        for call, message in (
            (lambda: torch.zeros(3, 1).add_(torch.ones(3, 4)), "broadcast shape"),
            (lambda: torch.zeros(()).add_(torch.ones(1)), "broadcast shape"),
            (lambda: torch.ones(3, dtype=torch.long).add_(1.5), "can't be cast"),
            (lambda: F.conv1d(x, torch.ones(4, 3, 2)), "channels"),
            (lambda: F.conv1d(x, w.double()), "scalar type"),
            (lambda: F.conv1d(x, w, torch.ones(1)), "bias"),
            (lambda: F.conv1d(x, w, stride=0), "stride"),
            (lambda: F.conv1d(x, w, padding=-1), "padding"),
            (lambda: F.conv1d(x, torch.ones(4, 2, 6)), "[Kk]ernel size"),
        ):
            with pytest.raises(RuntimeError, match=message):
                call()
    assert stats.operations == 0
    with pytest.raises(UserError, match="threads -1"), random_rounding(threads=-1):
        pass


def test_alpha_scales_what_torch_says() -> None:
    a, b = torch.tensor([1.0]), torch.tensor([10.0])
    with random_rounding("nearest"):
        found = [f(a, b, alpha=2) for f in (torch.add, torch.sub, torch.rsub)]
        found.append(torch.rsub(a, 10, alpha=2))
    assert [x.item() for x in found] == [21, -19, 8, 8]


def test_a_backward_pass_inside_is_perturbed() -> None:
    x = torch.full((4,), 1.1, requires_grad=True)
    with random_rounding("upward") as stats:
        (x * x).backward(x.detach())
    assert (x.grad.double() > 2 * x.double() ** 2).all()
    assert stats.operators == {"mul": 12, "add": 4}


def test_the_inner_of_two_regions_rounds_alone() -> None:
    one = torch.ones(1)
    with random_rounding("upward") as outer, random_rounding("downward") as inner:
        third = one / 3
    assert (outer.operations, inner.operations) == (0, 1)
    assert third.double().item() * 3 < 1


def test_what_moves_data_passes_untouched() -> None:
    a = torch.randn(2, 3, 4, 6, 8)
    calls: tuple[Callable[[], torch.Tensor], ...] = (
        lambda: torch.cat([a, a]).permute(1, 0, 2, 3, 4).contiguous().flatten(),
        lambda: F.max_pool3d(a, 2),
        lambda: F.interpolate(a, scale_factor=2, mode="nearest"),
        lambda: a.floor().clamp(0, 3).index_select(0, torch.tensor([1])),
        lambda: torch.where(a > 0, a, torch.zeros_like(a)).max(),
        lambda: F.pad(a, (1, 1)),
    )
    for i, call in enumerate(calls):
        with random_rounding() as stats:
            found = call()
        assert same_bytes(found, call()), i
        assert stats.operations == 0, i


def test_bad_options_are_named() -> None:
    for options in (
        {"mode": "up"},
        {"seed": -1},
        {"seed": 2**64},
        {"accumulation": "x"},
        {"subnormals": "no"},
    ):
        with (
            pytest.raises(UserError, match=str(next(iter(options.values())))),
            random_rounding(**options),
        ):
            pass


def test_plain_torch_on_all_threads_is_untouched_afterwards() -> None:
    """A rounding direction or flush left on a worker thread that torch shares would change its
    results."""
    torch.manual_seed(0)
    a, b = torch.rand(2, 2_000_000)
    x, w = torch.randn(2, 8, 24, 24, 24), torch.randn(8, 8, 3, 3, 3)
    subnormal = torch.full((2_000_000,), 2.0**-140)
    expected = [a * b, F.conv3d(x, w), subnormal * 0.5]
    register = control_register()
    flags = 0x3F  # the sticky exception flags, which any operation may raise
    for name, subnormals in product(MODES, ("keep", "flush")):
        with random_rounding(name, subnormals=subnormals, threads=4):
            for compute in (lambda: F.conv3d(x, w), lambda: a * b, lambda: a.double().float()):
                compute()
                assert control_register() | flags == register | flags
            with pytest.raises(UserError):
                torch.fft.rfft(a)
            with pytest.raises(RuntimeError):
                a * torch.rand(3)
        found = [a * b, F.conv3d(x, w), subnormal * 0.5]
        for i, (after, before) in enumerate(zip(found, expected, strict=True)):
            assert same_bytes(after, before), (name, i)


def test_autograd_sees_the_perturbed_forward_pass() -> None:
    x = torch.rand(4, requires_grad=True)
    with random_rounding("upward"):
        y = x * 1.1
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.full((4,), 1.1))


def test_the_self_test_refuses_kernels_that_do_not_round(monkeypatch: pytest.MonkeyPatch) -> None:
    selftest.self_test()

    def without_direction(r: library.Rounding, *arguments: object) -> torch.Tensor:
        return library.elementwise(library.Rounding("nearest", variant=r.variant), *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(selftest, "elementwise", without_direction)
    with pytest.raises(UserError, match="self-test failed: add, mode upward"):
        selftest.self_test()


def test_another_process_and_variant_gives_the_same_bytes() -> None:
    code = textwrap.dedent(
        """
        import hashlib, torch
        from morphbits.engines.native import random_rounding
        torch.manual_seed(0)
        x, w = torch.randn(1, 3, 9, 9, 9), torch.randn(5, 3, 3, 3, 3)
        with random_rounding(seed=3):
            y = torch.nn.functional.leaky_relu(torch.nn.functional.conv3d(x, w), 0.2) / 3
        print(hashlib.sha256(y.numpy().tobytes()).hexdigest())
    """
    )
    outputs = {_run(code, MORPHBITS_VARIANT=v) for v in library.available_variants()}
    assert len(outputs) == 1


def test_importing_needs_neither_tensorflow_nor_nibabel() -> None:
    code = "import sys, morphbits.engines.native; print('tensorflow' in sys.modules)"
    assert _run(code + "; print('nibabel' in sys.modules)").split() == ["False", "False"]


def _run(code: str, **environment: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=PYTHON,
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
        text=True,
    ).stdout


COMPILER = """
import sys, torch, torch.nn as nn
from morphbits.engines.native import random_rounding
from morphbits.models.spatial import integrate
x = torch.rand(1, 3, 8, 8, 8)
with torch.no_grad(), random_rounding() as without:
    plain = integrate(nn.Conv3d(3, 3, 3, padding=1)(x), 2)
assert not {"torch._dynamo", "sympy"} & set(sys.modules)
compiled = torch.compile(lambda x: (x * 1.1 + 0.3) / 3, backend="eager")
with random_rounding(seed=3) as stats:
    inside = compiled(x)
with random_rounding(seed=3):
    expected = (x * 1.1 + 0.3) / 3
assert torch.equal(inside, expected) and stats.operations == 3 * x.numel()
assert not torch.equal(inside, (x * 1.1 + 0.3) / 3)
"""


def test_torchs_compiler_is_not_loaded_and_where_it_is_stays_outside() -> None:
    _run(COMPILER, PYTHONWARNINGS="error")


def test_the_kernel_version_is_a_hash() -> None:
    assert len(kernel_version()) == 16 and int(kernel_version(), 16) >= 0


def test_the_engines_version_is_of_its_python_too(tmp_path: Path) -> None:
    package = shutil.copytree(
        Path(context.__file__).parents[1],
        tmp_path / "native",
        ignore=shutil.ignore_patterns("_build"),
    )

    def versions() -> tuple[str, str]:
        spec = importlib.util.spec_from_file_location("build", package / "kernels/build.py")
        assert spec and spec.loader
        copy = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(copy)
        return copy.engine_version(), copy.kernel_version()

    before = versions()
    assert before == (engine_version(), kernel_version())
    with (package / "orders/accumulation.py").open("a") as file:
        file.write("_DIRECT_CHANNELS = 8\n")
    after = versions()
    assert after[0] != before[0] and after[1] == before[1]


def test_a_key_per_operator_spreads() -> None:
    keys = {library.mix64(library.mix64(seed) + i) for seed in range(100) for i in range(100)}
    assert len(keys) == 10_000
    for bit in range(64):
        assert_frequency([bool(key >> bit & 1) for key in keys], 0.5, bit)


@pytest.mark.parametrize(
    "option",
    [{"seed": 1.5}, {"seed": None}, {"threads": "2"}, {"accumulation": None}, {"allow": None}],
    ids=str,
)
def test_an_option_of_another_type_is_named(option: dict) -> None:
    with pytest.raises(UserError, match=next(iter(option))):
        random_rounding(**option)


def test_a_region_opens_again_with_the_same_stream() -> None:
    x, region = torch.rand(50), random_rounding(seed=int(np.int64(3)))
    found = []
    for _ in range(2):
        with region as stats:
            found.append(x * 0.1)
        assert stats.operations == 50
    with region as outer, region as inner:
        found.append(x * 0.1)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert (outer.operations, inner.operations) == (0, 50)
    assert torch.equal(region(lambda: x * 0.1)(), found[0])


def test_orders_are_not_probed_inside_another_region() -> None:
    inner = random_rounding(accumulation="probe")
    with random_rounding(), pytest.raises(UserError, match="inside another region"), inner:
        pass


def test_memory_that_is_read_and_written_is_refused_as_in_torch() -> None:
    two = torch.tensor([0, 1])
    calls: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (
        lambda x: x[1:].mul_(x[:-1]),
        lambda x: x[1:].index_add_(0, two, x[:2]),
        lambda x: x[:1].expand(4).add_(1.5),
        lambda x: x.view(3, 3).mul_(x.view(3, 3).t()),
    )
    for call in calls:
        with pytest.raises(RuntimeError, match="unsupported operation"):
            call(torch.arange(9.0))
        with random_rounding(), pytest.raises(RuntimeError, match="unsupported operation"):
            call(torch.arange(9.0))
    x = torch.arange(9.0)
    with random_rounding("nearest"):
        x.mul_(x), x[:4].add_(x[4:8]), x.view(3, 3)[:, 0].add_(x.view(3, 3)[:, 1])
