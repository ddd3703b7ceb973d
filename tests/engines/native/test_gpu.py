"""The GPU's kernels against the naive reference, byte for byte: on a CUDA device where there is
one (marker gpu), and everywhere the same source on the emulator."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from support import emulator
from support.exact_replay import same_bytes
from torch import Tensor

from morphbits.engines.native import random_rounding
from morphbits.engines.native.kernels import cuda, functions, gpu, library, sums
from morphbits.engines.native.kernels.build import SOURCES
from morphbits.engines.native.kernels.library import MODES, Rounding
from morphbits.engines.native.kernels.precision import FLOAT32, Format
from morphbits.engines.native.orders.accumulation import terms
from morphbits.engines.native.selftest import self_test
from morphbits.errors import UserError
from morphbits.models.synthmorph_torch import init_model
from morphbits.models.weights import Architecture

needs_emulator = pytest.mark.skipif(not emulator.FOUND, reason="no g++")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
PLACES = [
    pytest.param("emulated", marks=needs_emulator),
    pytest.param("cuda", marks=[pytest.mark.gpu, needs_gpu]),
]
SINGLE, DOUBLE = torch.float32, torch.float64


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> str:
    return request.param


def differing(place: str, kernel: Callable[..., Tensor], rounding: dict, *tensors: Tensor) -> bool:
    """Whether `kernel` of (a Rounding, tensors) gives other bytes there than the reference."""
    naive = kernel(Rounding(**rounding, variant="naive"), *tensors)
    if place == "cuda":
        there = kernel(Rounding(**rounding), *(x.cuda() for x in tensors)).cpu()
    else:
        there = kernel(Rounding(**rounding, variant="emulated"), *tensors)
    return not same_bytes(there, naive)


def roundings(dtype: torch.dtype, formats: bool = False) -> list[dict]:
    """All modes, with subnormals kept and flushed, and in formats of fewer bits."""
    found = [
        {"mode": mode, "flush": flush, "key": 7}
        for mode, flush in product(MODES, (False, True))
        if not (mode == "nearness" and flush and dtype == DOUBLE)
    ]
    if formats and dtype == SINGLE:
        fewer = product(MODES, (Format(11, -14), Format(8)))
        found += [{"mode": mode, "key": 7, "format": format} for mode, format in fewer]
    return found


def numbers(count: int, dtype: torch.dtype, scale: float, seed: int) -> Tensor:
    """Normal ones, and zeros, infinities, NaN and the ends of the type."""
    limits = torch.finfo(dtype)
    ends = (limits.max, limits.tiny, limits.smallest_normal / 2, limits.smallest_normal * 2**-20)
    odd = [s * v for v in (0.0, 1.0, float("inf"), float("nan"), *ends) for s in (1, -1)]
    drawn = torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)
    return torch.cat([torch.tensor(odd, dtype=dtype), (drawn * scale).to(dtype)])


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE], ids=str)
def test_elementwise_bytes(place: str, dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).tiny
    for scale, name in product((1.0, 2 * tiny, tiny**0.5), library.OPERATIONS):
        if dtype == DOUBLE and name in ("narrow", "round"):
            continue
        a = numbers(700, DOUBLE if name == "narrow" else dtype, scale, seed=1)
        b = numbers(
            700, a.dtype, 1.0 if name in ("mul", "div") and scale == 2 * tiny else scale, 2
        )
        operands = (a,) if name in ("sqrt", "narrow", "round") else (a, b.flip(0))
        for r in roundings(dtype, formats=True):
            if name == "round" and "format" not in r:
                continue

            def kernel(r: Rounding, *x: Tensor, name: str = name) -> Tensor:
                return library.elementwise(r, name, *x)

            assert not differing(place, kernel, r, *operands), (name, scale, r)


def test_broadcast_bytes(place: str) -> None:
    a, b = torch.randn(3, 1, 5, 40).transpose(0, 3), torch.randn(4, 5, 1)
    for r in roundings(SINGLE)[:4]:
        assert not differing(place, lambda r, *x: library.elementwise(r, "div", *x), r, a, b)


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE], ids=str)
def test_chain_bytes(place: str, dtype: torch.dtype) -> None:
    x = numbers(700, dtype, 1, 3).nan_to_num(1, 1, 1)[: 7 * 90].view(2, 315)
    for (name, scan), r in product((("add", False), ("mul", True)), roundings(dtype)):

        def kernel(r: Rounding, x: Tensor, name: str = name, scan: bool = scan) -> Tensor:
            return sums.reduce(r, name, x, 7, scan)

        assert not differing(place, kernel, r, x), (name, r)


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE], ids=str)
def test_matrix_product_bytes(place: str, dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).tiny
    left, right = torch.randn(2, 37, 70, dtype=dtype), torch.randn(2, 20, 70, dtype=dtype)
    for (scale, length), r in product(((1, None), (tiny**0.5, 33)), roundings(dtype)):
        ends = sums.segments(70, length)

        def kernel(r: Rounding, *x: Tensor, ends: object = ends) -> Tensor:
            return sums.matrix_product(r, x[0], x[1].transpose(1, 2), ends)

        assert not differing(place, kernel, r, left * scale, right * scale), (scale, length, r)


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE], ids=str)
@pytest.mark.parametrize("order", ["sequential", "direct", "blocked:5", "from the bias"])
def test_convolution_bytes(place: str, dtype: torch.dtype, order: str) -> None:
    """Sums that can underflow and sums that cannot; exact cancellations; every border."""
    found = terms("blocked:9" if order == "from the bias" else order, 27, 6)
    found = replace(found, bias_starts=order == "from the bias")
    tiny = torch.finfo(dtype).tiny
    for scale, geometry in (
        (1, ((1, 1, 1), (1, 1, 1), (1, 1, 1))),
        (tiny**0.5, ((1, 2, 1), (0, 2, 1), (1, 1, 2))),
    ):
        x, w = torch.randn(2, 6, 4, 3, 7, dtype=dtype), torch.randn(5, 6, 3, 3, 3, dtype=dtype)
        x[:, :, :1] = 0
        x[:, 1], w[:, 1] = x[:, 0], -w[:, 0]
        bias = torch.randn(5, dtype=dtype)

        def kernel(r: Rounding, *x: Tensor, g: tuple = geometry) -> Tensor:
            return library.convolution(r, *x, *g, found)

        for r in roundings(dtype, formats=True):
            if r.get("format", FLOAT32).emin == FLOAT32.emin:
                assert not differing(place, kernel, r, x * scale, w * scale, bias * scale), r


def network() -> tuple[torch.nn.Module, list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    images = [torch.rand(1, 1, 16, 16, 16, generator=generator) for _ in range(2)]
    return init_model(Architecture((4,) * 4, (4,) * 6), seed=1), images


@pytest.mark.parametrize("mode", ["random", "nearness"])
def test_a_whole_registration_has_the_bytes_of_the_cpu(
    place: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, images = network()
    with torch.no_grad(), random_rounding(mode, seed=3) as here:
        expected = model(*images)
    if place == "cuda":
        model, images = model.cuda(), [x.cuda() for x in images]
    else:
        monkeypatch.setattr(library, "default_variant", lambda: "emulated")
    with torch.no_grad(), random_rounding(mode, seed=3) as there:
        found = model(*images)
    assert here.operators == there.operators
    assert all(same_bytes(a, b.cpu()) for a, b in zip(expected, found, strict=True))


def test_a_backward_pass_has_the_bytes_of_the_cpu(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Convolution, its three gradients, mean and square; float32 and float64."""
    gradients = []
    for device in ("cpu", "cuda") if place == "cuda" else ("cpu", "emulated"):
        if device == "emulated":
            monkeypatch.setattr(library, "default_variant", lambda: "emulated")
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(1, 2, 5, 6, generator=generator)
        w = torch.randn(3, 2, 3, 3, generator=generator)
        leaves = [v.to(device.replace("emulated", "cpu")).requires_grad_() for v in (x, w)]
        with random_rounding("random", seed=5):
            out = torch.nn.functional.conv2d(*leaves, stride=2, padding=1)
            out.square().mean().backward()
        gradients.append([v.grad.cpu() for v in leaves])
    assert all(same_bytes(a, b) for a, b in zip(*gradients, strict=True))


@needs_emulator
def test_the_self_test_passes_and_no_order_of_threads_matters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    self_test(only="emulated")
    x, w = torch.randn(1, 4, 3, 2, 40), torch.randn(70, 4, 3, 3, 3)
    found = []
    for backwards in (False, True):
        monkeypatch.setattr(gpu, "emulator", emulator.Emulator(backwards))
        r = Rounding("random", key=1, variant="emulated")
        order = terms("blocked:50", 27, 4)
        found.append(library.convolution(r, x, w, None, (1,) * 3, (1,) * 3, (1,) * 3, order))
    assert same_bytes(*found)


@pytest.mark.gpu
@needs_gpu
def test_the_self_test_passes_on_the_device() -> None:
    self_test(torch.device("cuda"))


@needs_emulator
def test_what_has_no_kernel_is_an_error_that_names_it() -> None:
    r = Rounding("random", variant="emulated")
    with pytest.raises(gpu.NoKernel, match="functions of the C library"):
        functions.function(r, "exp", torch.ones(3))
    with pytest.raises(gpu.NoKernel, match="scattered"):
        zero = torch.zeros(1, dtype=torch.int64)
        sums.scatter_add(r, torch.zeros(1, 2), zero, torch.ones(1, 1))
    with pytest.raises(UserError, match="infinite or NaN weights on a GPU"):
        w = torch.full((1, 1, 1, 1, 1), torch.inf)
        library.convolution(r, w, w, None, *((1,) * 3,) * 3, terms("sequential", 1, 1))


@pytest.mark.gpu
@needs_gpu
def test_an_operator_without_a_kernel_on_the_device_is_an_error_that_names_it() -> None:
    with (
        random_rounding(),
        pytest.raises(UserError, match="no kernel on the GPU for the operator aten"),
    ):
        torch.ones(3, device="cuda").exp()
    with random_rounding(), pytest.raises(UserError, match="tensors on cpu and cuda:0"):
        torch.ones(3, device="cuda") + torch.ones(3)


# ---- what the compilers make of the kernels, without a device

INSTANCES = {
    "elementwise<float>": "elementwise_call",
    "elementwise<double>": "elementwise_call",
    "reduction<float>": "reduction_call",
    "reduction<double>": "reduction_call",
    **{
        f"{name}<{instance}>": f"{name}_call"
        for name, instance in product(
            ("convolution", "contraction"),
            (
                *("float, PLAIN, false", "float, PLAIN, true", "float, DIRECTIONS, false"),
                *("float, DIRECTIONS, true", "float, ANY, true", "double, ANY, true"),
            ),
        )
    },
}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_nvcc_makes_directed_operations_and_no_others(architecture: str, tmp_path: Path) -> None:
    """In PTX the direction is part of the instruction: fma.rp, fma.rm; ptxas accepts it all."""
    source, ptx = tmp_path / "all.cu", tmp_path / "all.ptx"
    lines = [f"template __global__ void {k}(rounding, {call});" for k, call in INSTANCES.items()]
    source.write_text('#include "gpu.cu"\n' + "\n".join(lines), encoding="utf-8")
    flags = [f for f in cuda.FLAGS if f != "-std=c++17"]
    nvcc = ["nvcc", "-std=c++17", f"-arch={architecture}", *flags, f"-I{SOURCES}", str(source)]
    subprocess.run([*nvcc, "-ptx", "-o", str(ptx)], check=True)
    subprocess.run([*nvcc, "-cubin", "-o", str(tmp_path / "all.cubin")], check=True)
    text = ptx.read_text(encoding="utf-8")
    assert not re.search(r"\.ftz|\.approx", text)
    bodies = dict(re.findall(r"\.entry (\w+)\((.*?)\n}\n", text, flags=re.DOTALL))
    assert len(bodies) == len(INSTANCES)
    for name, body in bodies.items():
        directed, other = fused(body, "rp"), fused(body, "rn")
        if "If" in name and "Li1" in name:  # float, DIRECTIONS: 8 terms (or 1) of 8 × 4 sums
            assert directed == fused(body, "rm") == (256 if "Lb0" in name else 32)
            assert other == 0
        elif "Li0" in name:
            assert other > 0 and directed == 0


def fused(ptx: str, direction: str) -> int:
    """How many fused multiply-adds of float32 are rounded in this direction."""
    return len(re.findall(rf"\bfma\.{direction}\.f32\b", ptx))


def test_the_run_time_compiler_takes_the_kernels() -> None:
    try:
        nvrtc = cuda.find_nvrtc()
    except UserError:
        pytest.skip("no libnvrtc")
    code, name = cuda.compile_kernel(nvrtc, "convolution<float, DIRECTIONS, false>", "sm_80")
    assert code.startswith(b"\x7fELF") and b"convolution" in name
    with pytest.raises(UserError, match="compiling the GPU's kernels failed"):
        cuda.compile_kernel(nvrtc, "no_such_kernel<float>", "sm_80")
