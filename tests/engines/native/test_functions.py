"""Functions of the C library and 16-bit formats, against exact arithmetic and mpmath."""

from __future__ import annotations

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.exact_replay import same_bytes, word
from support.frequencies import assert_frequency

from morphbits.engines.native.kernels import functions, reference
from morphbits.engines.native.kernels.library import MODES, Rounding, available_variants

VARIANTS = [*available_variants(), "naive"]
HALVES = (torch.float16, torch.bfloat16)
mpmath.mp.prec = 300
EXACT = {
    "atan2": mpmath.atan2,
    "pow": mpmath.power,
    "hypot": mpmath.hypot,
    "lgamma": lambda x: mpmath.log(abs(mpmath.gamma(x))),
    "log1p": mpmath.log1p,
    "exp2": lambda x: mpmath.power(2, x),
    "log2": lambda x: mpmath.log(x, 2),
}
RANGES = {
    **dict.fromkeys("log log2 log10 lgamma".split(), (0.01, 50)),
    **dict.fromkeys("asin acos atanh".split(), (-0.99, 0.99)),
    "log1p": (-0.9, 50),
    "acosh": (1.01, 50),
    "tan": (-1.5, 1.5),
}


@pytest.mark.parametrize("name", [n for n in functions.FUNCTIONS if n != "fmod"])
@settings(max_examples=25)
@given(data=st.data())
def test_a_result_is_a_neighbour_of_the_exact_one(
    dtype: torch.dtype, name: str, data: st.DataObject
) -> None:
    """Tolerance: the wider type's own last place (2^-52 or 2^-63, twice): nearer than that to a
    number of the format, the result may be that number or the one beyond."""
    low, high = RANGES.get(name, (-20, 20))
    width = 32 if dtype == torch.float32 else 64
    numbers = st.floats(float(np.float32(low)), float(np.float32(high)), width=width)
    x = data.draw(numbers)
    y = None if name not in ("atan2", "pow", "hypot") else data.draw(numbers)
    if name == "pow":
        x = abs(x) + 0.5
        x = float(np.float32(x)) if dtype == torch.float32 else x
    assume(y is None or 0 not in (x, y))  # mpmath's zero has no sign
    a = torch.tensor([x], dtype=dtype)
    b = None if y is None else torch.tensor([y], dtype=dtype)
    arguments = [mpmath.mpf(x), *([] if y is None else [mpmath.mpf(y)])]
    exact = EXACT.get(name, getattr(mpmath, name, None))(*arguments)
    slack = abs(exact) * mpmath.mpf(2) ** (-51 if dtype == torch.float32 else -62)
    down, _ = reference.neighbours(fraction(exact - slack), dtype)
    _, up = reference.neighbours(fraction(exact + slack), dtype)
    found = {m: functions.function(Rounding(m, key=5), name, a, b).item() for m in MODES}
    for mode, value in found.items():
        assert down <= value <= up, (mode, x, y)
    assert found["downward"] <= found["nearest"] <= found["upward"]
    assert found["random"] in (found["downward"], found["upward"])


def fraction(x: mpmath.mpf) -> Fraction:
    sign, mantissa, exponent, _ = x._mpf_
    return Fraction(-mantissa if sign else mantissa) * Fraction(2) ** exponent


def test_special_values_are_the_c_librarys(dtype: torch.dtype) -> None:
    x = torch.tensor([0.0, -0.0, 1.0, torch.inf, -torch.inf, torch.nan, 1e30, -1e30], dtype=dtype)
    for name in functions.FUNCTIONS:
        if name in ("pow", "atan2", "hypot", "fmod"):
            continue
        expected = getattr(torch, name)(x.double())
        for mode in MODES:
            found = functions.function(Rounding(mode), name, x)
            special = ~torch.isfinite(expected) | (expected == 0)
            finite = torch.isfinite(x)
            pole = special & (~finite | (expected != expected) | (x == 0))
            assert torch.equal(
                found[pole].double().nan_to_num(7, 8, 9), expected[pole].nan_to_num(7, 8, 9)
            ), (name, mode)
    tall = torch.tensor([800.0, -800.0], dtype=torch.float32)
    up = functions.function(Rounding("upward"), "exp", tall).tolist()
    down = functions.function(Rounding("downward"), "exp", tall).tolist()
    assert up == [math.inf, 2.0**-149] and down == [torch.finfo(torch.float32).max, 0]


@pytest.mark.parametrize("half", HALVES)
@given(data=st.data())
def test_sixteen_bits_are_neighbours_and_the_bits_decide(
    half: torch.dtype, data: st.DataObject
) -> None:
    values = data.draw(
        st.lists(
            st.one_of(
                st.floats(width=32, allow_nan=False, allow_infinity=False),
                st.floats(-4, 4, width=32),
            ),
            min_size=1,
            max_size=30,
        )
    )
    x = torch.tensor(values)
    largest = Fraction(torch.finfo(half).max)
    for mode in MODES:
        r = Rounding(mode, key=11)
        found = functions.narrow(r, x, half)
        assert found.dtype == half
        if mode == "nearest":
            assert torch.equal(found, x.to(half))
            continue
        for element, (value, out) in enumerate(zip(values, found.tolist(), strict=True)):
            exact = Fraction(value)
            down, up = reference.neighbours(exact, half)
            if mode == "nearness":
                assert out in (down, up) or abs(exact) > largest
                continue
            goes_up = {
                "upward": True,
                "downward": False,
                "toward_zero": value < 0,
                "random": bool(word(11, 0, element) >> 31),
            }[mode]
            assert out == (up if goes_up else down), (mode, value)


@pytest.mark.parametrize("half", HALVES)
def test_sixteen_bits_by_vectors_are_those_of_the_naive_reference(half: torch.dtype) -> None:
    """All exponents; halves and quarters of last places; around the greatest number and the least;
    infinities, NaN and zeros of both signs."""
    info = torch.finfo(half)
    least = info.tiny * info.eps
    special = [0.0, -0.0, torch.inf, -torch.inf, torch.nan]
    near = [scale * edge for edge in (info.max, info.tiny, least) for scale in (1, 0.5, -1, -0.25)]
    steps = 1 + torch.arange(-40, 40) * 2.0**-23
    x = torch.cat(
        [
            stratified(1 << 13),
            torch.tensor(special),
            torch.outer(torch.tensor(near), steps).flatten(),
        ]
    )
    x = torch.cat([x, (x.view(torch.int32) & -(1 << 12)).view(torch.float32)])
    for mode in MODES:
        for flush in (False, True):
            naive = functions.narrow(Rounding(mode, flush, key=6, variant="naive"), x, half)
            for variant in available_variants():
                r = Rounding(mode, flush, threads=2, key=6, variant=variant)
                found = functions.narrow(r, x, half)
                assert torch.equal(found.view(torch.int16), naive.view(torch.int16)), (mode, flush)


def test_nearness_rounds_sixteen_bits_by_distance() -> None:
    for half in HALVES:
        x = torch.full((100_000,), 1 + 0.3125 * torch.finfo(half).eps)  # exact in float32
        found = functions.narrow(Rounding("nearness", key=1), x, half)
        assert_frequency(found > 1, 0.3125, half)


def test_random_is_one_half_and_alike_on_any_threads(dtype: torch.dtype) -> None:
    x = torch.full((100_000,), 1.3, dtype=dtype)
    once = functions.function(Rounding("random", key=3), "exp", x)
    again = functions.function(Rounding("random", key=3, threads=3), "exp", x)
    assert same_bytes(once, again)
    down, up = once.unique()
    assert torch.nextafter(down, up) == up
    assert_frequency(once == up, 0.5)


def test_flush_takes_subnormals_for_zero() -> None:
    x = torch.tensor([2.0**-140, -(2.0**-140)])
    out = functions.function(Rounding("upward", flush=True), "sin", x)
    assert same_bytes(out, torch.tensor([0.0, -0.0]))
    assert same_bytes(functions.function(Rounding("downward"), "sin", x), x)  # nearer than 2^-52


# ---- float32 by vectors of float64 -----------------------------------------------------------


def stratified(count: int, seed: int = 1) -> torch.Tensor:
    """float32 numbers of every sign, exponent and kind, and those that networks compute with."""
    generator = np.random.default_rng(seed)
    patterns = generator.integers(0, 2**32, count // 2, dtype=np.uint32).view(np.float32)
    usual = generator.standard_normal(count // 2).astype(np.float32) * 4
    ends = [0, -0.0, 1, -1, np.inf, -np.inf, np.nan, 2.0**-149, -(2.0**-126), 3.4e38, 2.0**19]
    return torch.from_numpy(np.concatenate([patterns, usual, np.array(ends, np.float32)]))


@pytest.mark.parametrize("name", functions.CORES)
def test_vectors_give_the_same_bytes_on_every_instruction_set(name: str) -> None:
    x = stratified(10_000)
    values = [functions.wide(Rounding("nearest", variant=v), name, x) for v in VARIANTS[:-1]]
    assert all(same_bytes(values[0], other) for other in values[1:])
    for mode in MODES:
        found = [
            functions.function(Rounding(mode, key=5, variant=v, threads=t), name, x)
            for v, t in [*((v, 1) for v in VARIANTS[:-1]), (VARIANTS[0], 2)]
        ]
        assert all(same_bytes(found[0], other) for other in found[1:])


@pytest.mark.parametrize("name", ["exp", "tanh", "erf"])
def test_values_rounded_as_they_are_computed_have_the_bytes_of_two_passes(name: str) -> None:
    """On AVX-512, up to the first 32 arguments of a chunk of which one lies beyond the limits."""
    generator = np.random.default_rng(1)
    places = (None, 0, 500, 1090)
    for count, place in ((31, None), (32, None), *((1100, place) for place in places)):
        x = torch.from_numpy(generator.standard_normal(count).astype(np.float32))
        x[::9] *= 2.0**-128  # and subnormal numbers
        x[::7] *= 0
        for odd in (-torch.inf, torch.nan, 1e9) if place is not None else (1.0,):
            x[place or 0] = odd
            for mode in ("random", "upward", "downward"):
                for flush in (False, True):
                    found = [
                        functions.function(Rounding(mode, flush=flush, key=5, variant=v), name, x)
                        for v in VARIANTS[:-1]
                    ]
                    assert all(same_bytes(found[0], other) for other in found[1:])


def units_apart(values: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """|values − reference| in 2^-52 of the reference; 0 where both are NaN, zero or infinite."""
    alike = (values == reference) | (values.isnan() & reference.isnan())
    # what is less than 2^-29 of the least float32 (which mode nearness cannot tell from nothing),
    # or far beyond the greatest, is given a limit
    outside = (values.abs() < 2.0**-178) & (reference.abs() < 2.0**-178)
    outside |= (values.abs() > 2.0**200) & (reference.abs() > 2.0**200)
    apart = (values - reference).abs() / reference.abs() * 2.0**52
    return torch.where(alike | outside, 0.0, apart)


# Units of 2^-52 that a vector's value may lie from the exact one: four roundings of half a unit,
# after those that the series damps. erfc has six: exp's last sum, the series' last product and
# sum, the argument of the series, a product, a quotient.
UNITS = {**dict.fromkeys(functions.CORES, 2), "erfc": 3}
LIBRARY = {**dict.fromkeys(functions.CORES, 1.5), "erfc": 3}  # glibc's, as measured


@pytest.mark.parametrize("name", functions.CORES)
def test_a_vector_is_near_the_exact_value(name: str) -> None:
    """Where vectors and the C library differ most, each is compared with mpmath."""
    x = stratified(1 << 16, seed=2)
    values, libm = (functions.wide(Rounding("nearest", variant=v), name, x) for v in VARIANTS[-2:])
    apart = units_apart(values, libm)
    assert apart.max() <= UNITS[name] + LIBRARY[name]
    worst = torch.where(values.isfinite(), apart, -1.0).topk(20).indices.tolist()
    for i in worst:
        exact = EXACT.get(name, getattr(mpmath, name, None))(mpmath.mpf(x[i].item()))
        unit = abs(exact) * mpmath.mpf(2) ** -52
        assert abs(mpmath.mpf(values[i].item()) - exact) <= UNITS[name] * unit


ONE_ARGUMENT = [n for n in functions.FUNCTIONS if n not in ("pow", "atan2", "hypot", "fmod")]
# Those of the C library: glibc's manual ("Errors in Math Functions") gives at most 2 units in the
# last place, for lgamma 4; a unit in the last place is 2^-52 of the value at most.
BOUND = {**dict.fromkeys(ONE_ARGUMENT, 2), **UNITS, "lgamma": 4}


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_ARGUMENT)
def test_a_value_of_every_256_neighbouring_arguments_is_near_the_exact_one(name: str) -> None:
    """2^24 arguments: of all 2^32 patterns of bits, one drawn from each 256 neighbours. Compared
    with the C library's long double (64 bits), whose last places (2^-11 units here: 8 allowed)
    and the rounding to float64 (half a unit) are added to the bound."""
    if torch.finfo(torch.float64).eps <= np.finfo(np.longdouble).eps:
        pytest.skip("long double is float64 on this processor")
    generator, part = np.random.default_rng(3), 2**20
    for start in range(0, 2**24, part):
        patterns = np.arange(start, start + part, dtype=np.uint32) << 8
        patterns |= generator.integers(0, 256, part, dtype=np.uint32)
        x = torch.from_numpy(patterns.view(np.float32))
        rounding = Rounding("nearest", threads=torch.get_num_threads())
        values = functions.wide(rounding, name, x)
        exact = functions.function(rounding, name, x.double())
        assert units_apart(values, exact).max() <= BOUND[name] + 0.5 + 2.0**-8


@pytest.mark.parametrize("name", functions.CORES)
def test_infinities_zeros_and_nan_are_the_c_librarys(name: str) -> None:
    """Also where one of them among ordinary arguments is a vector's only odd lane."""
    ends = [0.0, -0.0, 2.0**-149, -(2.0**-149), 3.4e38, -3.4e38, torch.inf, -torch.inf, torch.nan]
    x = torch.full((64 * len(ends),), 0.75)
    x[::64] = torch.tensor(ends)
    *values, libm = (functions.wide(Rounding("nearest", variant=v), name, x) for v in VARIANTS)
    special = ~libm.isfinite() | (libm == 0)
    for found in values:
        assert torch.equal(found.isnan(), libm.isnan())
        kept = special & ~libm.isnan()
        size, sign = found[kept].abs(), found[kept].sign()
        limited = torch.where(size > 2.0**200, sign * torch.inf, found[kept])
        limited = torch.where(
            size < 2.0**-178, torch.copysign(0 * size, found[kept]), limited
        )  # as in `units_apart`
        assert same_bytes(limited, libm[kept])


def test_small_arguments_stay_on_their_side() -> None:
    """x is a float32 there: a value beyond it would be rounded to the wrong neighbour."""
    x = torch.logspace(-44, -2, 5000)
    for variant in VARIANTS[:-1]:
        rounding = Rounding("nearest", variant=variant)
        for name in ("tanh", "sin", "log1p"):
            assert (functions.wide(rounding, name, x) <= x).all(), name
        for name in ("sinh", "tan", "expm1"):
            assert (functions.wide(rounding, name, x) >= x).all(), name


def powers(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Bases and exponents: any, usual, and those whose powers are exact or the C library's."""
    base, exponent = stratified(count, seed=4), stratified(count, seed=5)
    base[count // 2 : count] = base[count // 2 : count].abs()
    ends = torch.tensor([0, -0.0, 1, -1, torch.inf, -torch.inf, torch.nan, 2, -2, 0.5, 1e-40])
    pairs = torch.cartesian_prod(ends, ends)
    return torch.cat([base, pairs[:, 0]]), torch.cat([exponent, pairs[:, 1]])


def test_powers_by_vectors_are_near_the_exact_ones() -> None:
    """Special values are the C library's; others within 2^-51, as all functions."""
    base, exponent = powers(1 << 15)
    *values, libm = (
        functions.wide(Rounding("nearest", variant=v), "pow", base, exponent) for v in VARIANTS
    )
    assert all(same_bytes(values[0], other) for other in values[1:])
    apart = units_apart(values[0], libm)
    assert apart.max() <= 2 + 1  # glibc's is within one unit
    special = ~libm.isfinite() | (libm == 0)
    assert same_bytes(values[0][special].nan_to_num(7), libm[special].nan_to_num(7))
    for i in torch.where(values[0].isfinite(), apart, -1.0).topk(20).indices.tolist():
        exact = mpmath.power(mpmath.mpf(base[i].item()), mpmath.mpf(exponent[i].item()))
        assert abs(mpmath.mpf(values[0][i].item()) - exact) <= abs(exact) * mpmath.mpf(2) ** -51


def test_exact_powers_stay_exact() -> None:
    base = torch.arange(1.0, 65).repeat(3)
    exponent = torch.tensor([4.0, 1.5, -0.5]).repeat_interleave(64)
    exact = torch.tensor([float(b) ** float(e) for b, e in zip(base, exponent, strict=True)])
    single = exact.double() == torch.tensor(
        [math.pow(b, e) for b, e in zip(base.tolist(), exponent.tolist(), strict=True)],
        dtype=torch.float64,
    )
    assert (
        single.sum() > 60
    )  # 1^4 to 64^4, squares to the power of 1.5, powers of 4 to that of -0.5
    for mode in MODES:
        for variant in VARIANTS:
            found = functions.function(Rounding(mode, 1, variant=variant), "pow", base, exponent)
            assert torch.equal(found[single], exact[single])


def test_what_is_exact_stays_exact() -> None:
    powers = torch.tensor([2.0**k for k in range(-149, 128)])
    tens = torch.tensor([10.0**k for k in range(11)])
    whole = torch.arange(-149.0, 128.0)
    zero = torch.tensor([0.0, -0.0])
    for mode in MODES:
        for variant in VARIANTS:
            rounding = Rounding(mode, key=2, variant=variant)
            assert torch.equal(functions.function(rounding, "log2", powers), whole)
            assert torch.equal(functions.function(rounding, "exp2", whole), powers)
            assert torch.equal(functions.function(rounding, "log10", tens), torch.arange(11.0))
            for name in ("exp", "cosh", "cos"):
                assert torch.equal(functions.function(rounding, name, zero), torch.ones(2))
            for name in "expm1 log1p sin tan sinh tanh erf".split():
                assert same_bytes(functions.function(rounding, name, zero), zero)


def test_a_float32_that_stays_below_the_normal_ones_is_rounded_too() -> None:
    """exp(-95) is 5.52e-42, between two multiples of 2^-149; flushed, it is zero."""
    x = torch.full((64,), -95.0)
    steps = math.exp(-95) / 2.0**-149
    for variant in VARIANTS:
        found = functions.function(Rounding("random", key=1, variant=variant), "exp", x)
        expected = [math.floor(steps) * 2.0**-149, math.ceil(steps) * 2.0**-149]
        assert found.unique().tolist() == expected
        flushed = functions.function(Rounding("random", flush=True, variant=variant), "exp", x)
        assert same_bytes(flushed, torch.zeros(64))


@pytest.mark.slow
@pytest.mark.parametrize("name", functions.CORES)
def test_vectors_and_the_c_library_differ_in_few_results(name: str) -> None:
    """On 2^24 arguments in directed modes: a result differs where a float32 lies between the two
    values, or where one of them is that number. That happens near exact results alone, such as
    tanh of small numbers: at most one argument in 64."""
    x = stratified(1 << 24, seed=3)
    values, libm = (functions.wide(Rounding("nearest", variant=v), name, x) for v in VARIANTS[-2:])
    assert units_apart(values, libm).max() <= UNITS[name] + LIBRARY[name]
    for mode in ("nearest", "upward", "downward"):
        one, other = (
            functions.function(Rounding(mode, variant=v), name, x).nan_to_num()
            for v in VARIANTS[-2:]
        )
        differ = one != other
        assert differ.double().mean() < (1 / 64 if mode != "nearest" else 2.0**-20)
