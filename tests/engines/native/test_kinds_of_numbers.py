"""Whole numbers whose function is floating, complex numbers, results written into given tensors:
torch's types, values and refusals, and nothing rounded in silence."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from morphbits.engines.native import random_rounding
from morphbits.engines.native.rules.registry import RULES
from morphbits.errors import UserError

aten = torch.ops.aten
whole, few, mask = torch.tensor([2, 3, 5, 7]), torch.tensor([1, 2, 3, 4]), torch.ones(4) > 0
signs = torch.tensor([-1, 0, 0, 1])
single = torch.tensor([0.5, 0.1, 2.0, 0.7])
double, half = single.double(), single.bfloat16()
z = torch.complex(single, single)

_UNARY = (
    "acosh asinh atan cos cosh deg2rad digamma erf erfc exp exp2 expm1 lgamma log log10 log1p "
    "log2 rad2deg reciprocal rsqrt sigmoid sin sinc sinh sqrt tan tanh"
)
FLOATING: dict[str, Callable[[], Any]] = {
    **{name: lambda n=name: getattr(torch, n)(whole) for name in _UNARY.split()},
    "acos": lambda: torch.acos(signs),
    "asin": lambda: torch.asin(signs),
    "atanh": lambda: torch.atanh(signs),
    "erfinv": lambda: torch.erfinv(signs),
    "truth values": lambda: mask.exp(),
    "short integers": lambda: whole.to(torch.uint8).exp() + whole.to(torch.int16).log(),
    "logit": lambda: torch.logit(whole, 0.3),
    "entr": lambda: torch.special.entr(whole),
    "mvlgamma": lambda: torch.mvlgamma(whole, 2),
    "polygamma": lambda: torch.polygamma(1, whole),
    "atan2": lambda: torch.atan2(whole, few),
    "atan2 of two types": lambda: torch.atan2(double, whole),
    "hypot of two types": lambda: torch.hypot(double, single),
    "a number's type": lambda: torch.atan2(single, torch.tensor(0.3, dtype=torch.float64)),
    "xlogy": lambda: torch.xlogy(whole, few),
    "xlog1py": lambda: torch.special.xlog1py(whole, few),
    "xlogy of a number": lambda: torch.xlogy(whole, 2.5) + torch.special.xlog1py(0.3, few),
    "ldexp": lambda: torch.ldexp(whole, few),
    "a power": lambda: whole**0.3 + 0.3**whole,
    "float_power": lambda: torch.float_power(whole, few * 0.3),
    "a quotient": lambda: whole / few,
    "a power by a double": lambda: single**double,
    "addcmul": lambda: torch.addcmul(double, whole, few, value=0.3),
    "addcdiv": lambda: torch.addcdiv(double, single, few, value=0.3),
    "logsumexp": lambda: torch.logsumexp(whole, 0),
    "mean": lambda: whole.mean(dtype=torch.float32),
    "copysign": lambda: torch.copysign(torch.tensor([2**24 + 1]), torch.tensor([-1])),
    "_foreach_exp": lambda: torch._foreach_exp([whole, few])[1],
    "_foreach_div": lambda: torch._foreach_div([whole], [few])[0],
    "_foreach_pow": lambda: torch._foreach_pow(0.3, [whole])[0],
    "_foreach_lgamma": lambda: torch._foreach_lgamma([single, whole])[1],
    "exp into a tensor": lambda: torch.exp(whole, out=torch.empty(4)),
    "a sum in a half type": lambda: single.sum(dtype=torch.bfloat16),
    "a norm in a half type": lambda: torch.linalg.vector_norm(half, dtype=torch.bfloat16),
    "sum into doubles": lambda: torch.sum(single, 0, out=torch.empty((), dtype=torch.float64)),
}  # fmt: skip


@pytest.mark.parametrize("name", FLOATING)
def test_where_the_result_is_floating_it_is_torchs_and_perturbed(name: str) -> None:
    """Few operations, each off by at most a last place of values about 1, 2⁻²², or 2⁻⁷ in
    bfloat16; the digamma function has some twenty of them: 2⁻¹⁹."""
    expected = FLOATING[name]()
    rtol = 2**-6 if expected.dtype == torch.bfloat16 else 2**-19
    for mode in ("nearest", "upward"):
        with random_rounding(mode) as stats:
            found = FLOATING[name]()
        assert found.dtype == expected.dtype and stats.operations > 0
        torch.testing.assert_close(found, expected, rtol=rtol, atol=2**-22)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_zero_of_sixteen_bits_changes_its_sign_in_place(dtype: torch.dtype) -> None:
    for change in (lambda x: x.mul_(-1), lambda x: torch._foreach_mul_([x], -1)):
        x, expected = torch.zeros(2, dtype=dtype), torch.zeros(2, dtype=dtype)
        change(expected)
        with random_rounding("nearest"):
            change(x)
        assert expected.signbit().all() and x.signbit().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_numbers_beside_sixteen_bits_are_taken_in_torchs_type(dtype: torch.dtype) -> None:
    """Computed in float32 and rounded once: the same bits; functions, and a
    product that torch fuses with the sum in some elements, to a last place."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(2, 1000, generator=generator) * 4 + 0.3).to(dtype)
    number, many = torch.tensor(0.3), torch.arange(1000) + 500
    calls = (
        lambda: x + 0.3, lambda: x - 0.3, lambda: 0.3 - x, lambda: x * 0.3, lambda: x / 0.3,
        lambda: x + number, lambda: x * number,
        lambda: torch.fmod(x, 0.3), lambda: torch.remainder(x, 0.3), lambda: x + many,
        lambda: torch.lerp(x, y, 0.3), lambda: x.clone().sub_(0.3), lambda: x + 1001,
        lambda: x**1.3, lambda: 0.3**x, lambda: torch.atan2(x, number),
        lambda: torch.add(x, y, alpha=0.3),
    )  # fmt: skip
    for i, call in enumerate(calls):
        expected = call()
        with random_rounding("nearest"):
            found = call()
        rtol = torch.finfo(dtype).eps if i >= len(calls) - 4 else 0
        torch.testing.assert_close(
            found, expected, rtol=rtol, atol=0, msg=lambda m, i=i: f"{i} {m}"
        )


@pytest.mark.parametrize(
    "name", sorted(n for n in RULES if n.startswith("_foreach_") and n != "_foreach_mm")
)
def test_operators_on_lists_are_torchs_with_every_kind_of_argument(name: str) -> None:
    """Values as above, or both refuse; bfloat16 is rounded once an operation: 2⁻⁶."""

    def lists(dtype: torch.dtype) -> list[Tensor]:
        return [torch.tensor([0.5, 0.1, 0.9]).to(dtype), torch.tensor([[0.3], [0.7]]).to(dtype)]

    def call(dtype: torch.dtype, form: str) -> list[Tensor]:
        first, one, two = lists(dtype), lists(dtype), lists(dtype)
        arguments: dict[str, tuple[Any, ...]] = {
            "alone": (first,), "number": (first, 0.3), "numbers": (first, [0.3, 1.7]),
            "list": (first, one), "tensor": (first, torch.tensor(0.3)), "lists": (first, one, two),
            "lists and a number": (first, one, two, 0.3),
            "lists and numbers": (first, one, two, [0.3, 1.7]),
            "lists and a tensor": (first, one, two, torch.tensor([0.3, 1.7])),
            "another type": (first, [x.double() for x in one]), "of a number": (0.3, first),
        }  # fmt: skip
        result = getattr(aten, name)(*arguments[form])
        return first if name.endswith("_") else list(result)

    forms = (
        "alone", "number", "numbers", "list", "tensor", "lists", "lists and a number",
        "lists and numbers", "lists and a tensor", "another type", "of a number",
    )  # fmt: skip
    taken = 0
    for dtype, form in product((torch.float32, torch.bfloat16, torch.int64), forms):
        try:
            expected = call(dtype, form)
        except (RuntimeError, NotImplementedError):
            with random_rounding(), pytest.raises((RuntimeError, NotImplementedError, UserError)):
                call(dtype, form)
            continue
        with random_rounding("nearest"):
            found = call(dtype, form)
        taken += 1
        for one, other in zip(found, expected, strict=True):
            rtol = 2**-6 if other.dtype == torch.bfloat16 else 2**-19
            torch.testing.assert_close(one, other, rtol=rtol, atol=2**-22, equal_nan=True)
    assert taken


def test_lists_of_unlike_lengths_are_refused_in_torchs_words() -> None:
    def ones(count: int) -> list[Tensor]:
        return [torch.ones(3) for _ in range(count)]

    for call in (
        lambda: torch._foreach_mul_(ones(3), [0.3, 0.4]),
        lambda: torch._foreach_addcdiv_(ones(2), ones(2), ones(2), [0.3, 0.4, 0.5]),
        lambda: torch._foreach_addcmul_(ones(2), ones(2), ones(2), torch.tensor([0.3, 0.4, 0.5])),
        lambda: torch._foreach_lerp(ones(2), ones(3), 0.3),
        lambda: torch._foreach_copy_(ones(2), ones(3)),
    ):
        with pytest.raises(RuntimeError) as torchs:
            call()
        with random_rounding(), pytest.raises(RuntimeError) as ours:
            call()
        assert str(ours.value) == str(torchs.value)


def test_functions_of_whole_numbers_that_are_whole_stay_whole() -> None:
    calls = (
        lambda: (
            whole**2 + whole * few - whole // few + whole.square() + torch.remainder(whole, few)
        ),
        lambda: torch.addcmul(whole, few, few) + (whole @ few) + whole.cumsum(0) + whole.prod(),
        lambda: torch._foreach_add([whole], [few])[0] + whole.clone().pow_(2),
        lambda: (
            F.avg_pool1d(whole[None, None], 2)[0, 0] + torch.linspace(1, 9, 2, dtype=torch.int)
        ),
    )
    for call in calls:
        expected = call()
        with random_rounding("nearest") as stats:
            found = call()
        assert torch.equal(found, expected) and found.dtype == expected.dtype
        assert set(stats.operators) <= {"linspace"}


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "logit_": (lambda: whole.clone().logit_(), "can't be cast"),
    "exp_": (lambda: whole.clone().exp_(), "can't be cast"),
    "copysign_": (lambda: whole.clone().copysign_(-0.5), "can't be cast"),
    "_foreach_exp_": (lambda: torch._foreach_exp_([single.clone(), whole.clone()]), "can't be"),
    "exp into whole numbers": (lambda: torch.exp(single, out=whole.clone()), "can't be cast"),
    "mm into doubles": (
        lambda: torch.mm(single[None], single[:, None], out=torch.empty(1, 1).double()), "dtype",
    ),
    "an overlap": (lambda: torch.add(single[:3], 1, out=single[1:]), "memory"),
    "one place twice": (lambda: torch.exp(single, out=torch.empty(1).expand(4)), "memory"),
    "lerp of two types": (lambda: torch.lerp(single, double, 0.3), "dtype"),
    "baddbmm_": (lambda: torch.ones(3).baddbmm_(torch.ones(2, 3, 3), torch.ones(2, 3, 3)), "size"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_torch_refuses_is_refused_in_its_words(name: str) -> None:
    call, words = REFUSED[name]
    with pytest.raises(RuntimeError, match=words):
        call()
    with random_rounding(), pytest.raises(RuntimeError, match=words):
        call()


INTO: dict[str, Callable[[], Any]] = {
    "softmax": lambda: torch.softmax(single, 0, out=torch.empty(4)),
    "log_softmax": lambda: torch.log_softmax(single, 0, out=torch.empty(0)),
    "linear": lambda: torch._C._nn.linear(single, single[None], out=torch.empty(1)),
    "logsigmoid": lambda: torch._C._nn.log_sigmoid(single, out=torch.empty(4)),
    "several": lambda: torch.stack(
        aten.native_batch_norm.out(
            single[:, None], None, None, None, None, True, 0.1, 1e-5,
            **{n: torch.empty(0) for n in ("out", "save_mean", "save_invstd")},
        )[1:]
    ),
    "arange": lambda: torch.arange(0.1, 1, 0.1, out=torch.empty(9, dtype=torch.float64)),
    "linspace": lambda: torch.linspace(0.1, 1, 7, out=torch.empty(7, dtype=torch.float64)),
    "a larger tensor": lambda: torch.mv(single[None], single, out=torch.empty(0)),
}  # fmt: skip


@pytest.mark.parametrize("name", INTO)
def test_results_are_written_into_what_is_given(name: str) -> None:
    """A chain of four terms at the most: 2⁻²¹, in float64 2⁻⁵⁰."""
    expected = INTO[name]()
    with random_rounding("nearest") as stats:
        found = INTO[name]()
    rtol = 2**-50 if expected.dtype == torch.float64 else 2**-21
    torch.testing.assert_close(found, expected, rtol=rtol, atol=0)
    assert stats.operations > 0


COMPLEX: dict[str, Callable[[], Any]] = {
    "mm": lambda: z[None] @ z[:, None],
    "addmm": lambda: F.linear(z[None], z[None], z[:1]),
    "bmm": lambda: torch.einsum("bij,bjk->bik", z[None, None], z[None, :, None]),
    "dot": lambda: torch.dot(z, z),
    "vdot": lambda: torch.vdot(z, z),
    "addmv": lambda: torch.addmv(z[:1], z[None], z),
    "addr": lambda: torch.addr(z.expand(4, 4), z, z),
    **{name: lambda n=name: getattr(torch, n)(z) for name in (
        "abs acos acosh angle asin asinh atan atanh cos cosh exp exp2 expm1 log log10 log1p log2 "
        "reciprocal rsqrt sgn sigmoid sin sinh sqrt square tan tanh sum mean prod var std"
    ).split()},
    "cumsum": lambda: z.cumsum(0),
    "cumprod": lambda: z.cumprod(0),
    "logcumsumexp": lambda: z.logcumsumexp(0),
    "logsumexp": lambda: z.logsumexp(0),
    "trace": lambda: z.expand(4, 4).trace(),
    "linalg_vector_norm": lambda: torch.linalg.vector_norm(z),
    "dist": lambda: torch.dist(z, z),
    "index_add": lambda: z.index_add(0, few - 1, z),
    "scatter_add": lambda: z.scatter_add(0, few - 1, z),
    "index_put": lambda: z.index_put((few - 1,), z, accumulate=True),
    "put": lambda: z.put(few - 1, z, accumulate=True),
    "add": lambda: z + z,
    "add_": lambda: z.clone().add_(1),
    "sub": lambda: z - single,
    "rsub": lambda: 1 - z,
    "mul": lambda: single * 1j,
    "div": lambda: z / 3,
    "pow": lambda: z**2,
    "addcmul": lambda: torch.addcmul(z, z, z),
    "addcdiv": lambda: torch.addcdiv(z, z, z),
    "lerp": lambda: torch.lerp(z, z, 0.3),
    "_foreach_add": lambda: torch._foreach_add([z], [z]),
    "_foreach_exp": lambda: torch._foreach_exp([z]),
    "linspace": lambda: torch.linspace(0, 1, 3, dtype=torch.complex64),
    "sum of reals": lambda: single.sum(dtype=torch.complex64),
    "_to_copy": lambda: double.to(torch.complex64),
    "copy_": lambda: z.clone().copy_(double),
    "linalg_cross": lambda: torch.linalg.cross(z[:3], z[:3]),
    "isclose": lambda: torch.isclose(z, z),
    "polar": lambda: torch.polar(single, single),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPLEX)
def test_complex_numbers_are_never_rounded_in_silence(name: str) -> None:
    with random_rounding() as stats, pytest.raises(UserError, match=r"no rule for .*aten\.\w+"):
        COMPLEX[name]()
    assert stats.operations == 0


def test_a_complex_convolution_is_refused_where_its_real_parts_are_joined() -> None:
    with random_rounding(), pytest.raises(UserError, match=r"aten\.mul.* on complex numbers"):
        F.conv1d(z[None, None], z[None, None, :2])


def test_complex_numbers_move() -> None:
    def moved() -> list[Tensor]:
        filled = z.clone()
        filled[mask], filled[0] = z[1], 2j
        return [
            torch.view_as_real(torch.cat([z, z.conj(), z.clone()])), torch.stack([z.real, z.imag]),
            torch.complex(single, single), z.reshape(2, 2).T.contiguous(), z.conj().resolve_conj(),
            filled, z.to(torch.complex128), double.to(torch.complex128), z.real.clone(), -z,
            z == z,
            torch.empty(4, dtype=torch.complex64).copy_(single), torch.zeros_like(z), z.flip(0),
            z.index_put((few[:2],), z[:2]), torch.where(mask, z, z), z.isfinite(), z.roll(1),
            torch.view_as_complex(torch.stack([single, single], 1)), z.conj_physical(), z.diag(),
        ]  # fmt: skip

    expected = moved()
    with random_rounding() as stats:
        found = moved()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert stats.operations == 0


def _copies() -> dict[str, Callable[[], Any]]:
    square = torch.arange(12.0).view(3, 4)
    arguments: dict[str, tuple[Any, ...]] = {
        "alias": (), "as_strided": ((2, 2), (1, 2)), "detach": (), "diagonal": (),
        "expand": ((3, 4),), "lift_fresh": (), "narrow": (0, 1, 2), "permute": ((1, 0),),
        "select": (0, 1), "slice": (0, 1),
        "split": (2,), "split_with_sizes": ((1, 2),), "squeeze": (), "t": (), "transpose": (0, 1),
        "unbind": (), "unfold": (0, 2, 1), "unsqueeze": (0,), "view": ((4, 3),),
    }  # fmt: skip
    return {
        f"{name}_copy": lambda n=f"{name}_copy", a=a: getattr(aten, n)(square, *a)
        for name, a in arguments.items()
    }


MOVES: dict[str, Callable[[], Any]] = {
    **_copies(),
    "diag": lambda: torch.diag(single),
    "isposinf": lambda: torch.isposinf(single / 0),
    "isneginf": lambda: torch.isneginf(-single.log() * 0),
    "nonzero_static": lambda: torch.nonzero_static(single, size=6),
    "copysign_": lambda: single.clone().copysign_(-single),
    "heaviside_": lambda: single.clone().heaviside_(single),
    "sgn_": lambda: single.clone().sgn_(),
    "angle": lambda: torch.angle(single - 0.6),
    "searchsorted": lambda: torch.searchsorted(single, single, sorter=single.argsort()),
    "lu_unpack": lambda: torch.lu_unpack(torch.eye(3), torch.tensor([2, 2, 3]).int())[1],
    "_unsafe_masked_index": lambda: aten._unsafe_masked_index(single, mask, [few - 1], 0.3),
    "_foreach_max": lambda: torch._foreach_max([single])[0],
    "copy": lambda: aten.copy(torch.zeros(4), single),
    "round to no decimals": lambda: torch.round(single, decimals=0),
    "_foreach_maximum": lambda: torch._foreach_maximum([single], 0.6)[0],
    "_foreach_minimum": lambda: torch._foreach_minimum([single], [0.6])[0],
    "avg_pool": lambda: F.avg_pool1d(whole[None, None], 2),
    "sgn, real": lambda: torch.tensor([2, -1]).sgn(),
}  # fmt: skip


@pytest.mark.parametrize("name", MOVES)
def test_what_moves_or_compares_passes(name: str) -> None:
    expected = MOVES[name]()
    with random_rounding() as stats:
        found = MOVES[name]()
    single_result = isinstance(expected, Tensor)
    for one, other in zip(*([x] if single_result else x for x in (found, expected)), strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert torch.equal(one.nan_to_num(7), other.nan_to_num(7))
    assert set(stats.operators) <= {"div", "log", "mul", "sub"}


def test_random_whole_numbers_are_torchs() -> None:
    def drawn() -> Tensor:
        torch.manual_seed(3)
        return torch.randint_like(single, 9)

    with random_rounding():
        found = drawn()
    assert torch.equal(found, drawn())


def test_a_histogram_compares_with_perturbed_edges_and_counts() -> None:
    """Elements between two edges are counted as torch counts them; one at an edge that is rounded
    lies on either side of it."""
    x = torch.tensor([0.0, 0.3, 0.6, 0.6001, 0.95, 1.0, 1.5, -1.0, 3.0])
    for how in ((10, 0, 1), (4,), (3, -1, 3), (1, 0, 2), (7, 1, 1)):
        expected = x.histc(*how)
        with random_rounding("nearest") as stats:
            found = x.histc(*how)
        assert torch.equal(found, expected) and stats.operators["linspace"] > 0
    with pytest.raises(RuntimeError, match="finite"), random_rounding():
        (x / 0).histc()
    experts = torch.arange(64.0) % 8
    with random_rounding():  # edges of whole numbers are exact
        assert experts.histc(8, 0, 8).tolist() == [8] * 8
    inside = torch.full((1000,), torch.tensor(0.3).nextafter(torch.tensor(0.0)).item())
    counts = set()
    for seed in range(8):
        with random_rounding(seed=seed):
            counts.add(tuple(inside.histc(10, 0, 1).tolist()))
    assert counts == {tuple(1000.0 * (i == k) for i in range(10)) for k in (2, 3)}


def test_gradients_that_are_laid_out_as_torchs() -> None:
    def strides() -> list[tuple[int, ...]]:
        x = torch.ones(2, 2, 4, 4, requires_grad=True)
        y = F.conv_transpose2d(x, torch.ones(2, 3, 3, 3), stride=2, output_padding=1)
        (gradient,) = torch.autograd.grad(y.sum(), x)
        return [gradient.stride()]

    with random_rounding():
        found = strides()
    assert found == strides()


def test_normal_numbers_of_sixteen_bits_are_torchs() -> None:
    mean, deviation = torch.zeros(40, dtype=torch.bfloat16) + 3, torch.full((40,), 1.5)

    def drawn() -> list[Tensor]:
        torch.manual_seed(3)
        return [
            torch.normal(mean, deviation), torch.normal(mean, 2.0),
            torch.normal(0.3, deviation.bfloat16()), torch.normal(deviation, mean),
        ]  # fmt: skip

    with random_rounding("nearest"):
        found = drawn()
    for one, other in zip(found, drawn(), strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)


def test_no_gradient_of_one_row() -> None:
    x = torch.ones(1, 3, requires_grad=True)
    with random_rounding():
        F.pdist(x).sum().backward()
    assert torch.equal(x.grad, torch.zeros(1, 3))
