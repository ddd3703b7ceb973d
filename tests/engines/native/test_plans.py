"""A call that is repeated without its rule gives what the rule gives."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.exact_replay import same_bytes
from support.operator_cases import CASES, Case
from support.outcomes import assert_alike, outcome
from torch import Tensor
from torch.utils._pytree import tree_leaves

from morphbits import stages
from morphbits.choices import MODES
from morphbits.engines.native import dispatch, random_rounding
from morphbits.engines.native.kernels import plans
from morphbits.engines.native.rules.arithmetic import Operator
from morphbits.engines.native.rules.registry import RULES


def check(
    monkeypatch: pytest.MonkeyPatch, function: Any, inputs: list[Tensor], **options: Any
) -> None:
    """By the rule, recorded, and repeated on other values."""
    values = [(x * 0.75).as_strided(x.shape, x.stride()) for x in inputs]
    monkeypatch.setattr(plans, "keeping", False)
    torch.manual_seed(1)
    expected = outcome(function, values, **options)
    monkeypatch.setattr(plans, "keeping", True)
    for given in (inputs, inputs, values):
        torch.manual_seed(1)
        results = outcome(function, given, **options)
    assert_alike(results, expected)


def parts(cases: list[Case]) -> list[Any]:
    """All, every eighth of them by default."""
    return [
        pytest.param(c, id=c.name, marks=[pytest.mark.slow] if n % 8 else [])
        for n, c in enumerate(cases)
    ]


@pytest.mark.parametrize("case", parts(CASES))
def test_each_rule_is_repeated_with_its_bytes(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    check(monkeypatch, case.function, case.inputs(torch.float32), threads=1)


@pytest.mark.parametrize("mode", MODES)
def test_so_are_all_modes_types_and_layouts(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(2, 3, 5, 6, generator=generator)
    filters, rows = torch.randn(4, 3, 3, 3, generator=generator), image[0, 0]
    last = image.to(memory_format=torch.channels_last)
    others = ({"precision": 11}, {"precision": "bfloat16"}, {"subnormals": "flush"})
    options: dict[str, Any]
    for options in ({}, *(others if mode == "random" else ())):
        check(monkeypatch, F.conv2d, [image, filters], mode=mode, **options)
        check(monkeypatch, F.conv2d, [last, filters.double().float()], mode=mode, **options)
        check(monkeypatch, torch.matmul, [rows, rows.t()], mode=mode, **options)
        check(monkeypatch, torch.sigmoid, [rows.t()], mode=mode, **options)
        check(
            monkeypatch, lambda x: (x * 1)[:, ::2].mul_(x[:, 1::2]), [rows], mode=mode, **options
        )
        check(monkeypatch, lambda x: x.softmax(0), [rows.double()], mode=mode, **options)


def test_stages_that_are_not_selected_have_plans_of_their_own() -> None:
    x = torch.rand(1000) / 3
    with random_rounding(seed=2, perturb="only:flow") as stats:
        for _ in range(3):
            inside, outside = stages.run("flow", torch.sigmoid, x), x.sigmoid()
    with random_rounding("nearest"):
        nearest = x.sigmoid()
    assert same_bytes(outside, nearest) and not same_bytes(inside, nearest)
    assert stats.operators == {"sigmoid": 3 * 3 * 1000}


def test_operands_that_share_memory_are_computed_by_the_rule() -> None:
    a, b, c = (torch.arange(1.0, 10).view(3, 3) + k for k in range(3))
    with random_rounding("nearest", seed=5):
        for _ in range(3):  # of kinds that two tensors have, too
            torch.sub(a, a.detach()), torch.div(a[1:], a[:2]), torch.mul(a, a)
        found = [
            torch.sub(a, b),
            torch.div(b[1:], c[:2]),
            torch.mul(a, b),
            torch.div(a[1:], a[:2]),
        ]
    expected = [a - b, b[1:] / c[:2], a * b, a[1:] / a[:2]]
    assert all(map(same_bytes, found, expected))


def test_what_is_written_is_not_read_elsewhere() -> None:
    base = torch.arange(1.0, 10)
    with random_rounding("nearest", seed=5):
        for _ in range(3):
            torch.ones(5).mul_(torch.full((5,), 3.0))
        with pytest.raises(RuntimeError, match="memory location"):
            base[:5].mul_(base[1:6])
        x = base.clone()
        x[:5].mul_(x[:5])
        statistics = torch.ones(2)
        for mean in (torch.zeros(2), torch.zeros(2), torch.zeros(2), statistics):
            F.batch_norm(torch.rand(4, 2), mean, statistics, training=True)
    assert same_bytes(x[:5], base[:5] ** 2)


def test_other_whole_numbers_are_not_taken_for_those_that_were_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the cases above only the floating-point operands change."""
    rows = torch.rand(4, 5, generator=torch.Generator().manual_seed(2))
    chances = torch.stack([rows, rows / 3, rows / 7], 1).log_softmax(2)  # steps, images, classes
    functions: tuple[Callable[[Tensor], Any], ...] = (
        lambda n: rows.scatter_reduce(0, n[:, None].expand(4, 5), rows, "prod"),
        lambda n: F.embedding(n, rows.clone(), max_norm=1.2),
        lambda n: F.embedding_bag(n[None], rows, padding_idx=2, mode="mean"),
        lambda n: F.nll_loss(rows, n, ignore_index=3),
        lambda n: F.ctc_loss(chances, n[None, :2].expand(3, 2) + 1, n[1:] * 0 + 4, n[1:] % 3),
        lambda n: rows.index_add(0, n, rows) * n[:, None].gt(1),
        lambda n: torch._foreach_addcmul([rows], [rows], [rows], n[1:2].float())[0],
    )
    numbers = [torch.tensor(n) for n in ([0, 1, 2, 0], [0, 1, 2, 0], [2, 3, 3, 1], [1, 1, 0, 3])]
    results = []
    for kept in (False, True):
        monkeypatch.setattr(plans, "keeping", kept)
        with random_rounding(seed=3):
            results.append([function(n) for function in functions for n in numbers])
    assert all(map(same_bytes, *results))


def test_networks_on_sixteen_bits_pooling_and_lists_have_plans(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From the third call on no rule runs."""
    monkeypatch.setattr(plans, "kept", plans.Plans(2**26))
    x = torch.rand(1, 2, 7, 7, generator=torch.Generator().manual_seed(4))
    half, rows = x.bfloat16(), [x[0, 0], x[0, 1, :3].clone()]
    functions: tuple[Callable[[], Any], ...] = (
        lambda: (half * 1.7 + half.flip(3)).float(),
        lambda: F.avg_pool2d(x, 2),
        lambda: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
        lambda: F.adaptive_avg_pool2d(x, 3),
        lambda: torch._foreach_mul(rows, 1.5),
        lambda: torch.lerp(x, x.flip(0), 0.3),
    )
    results: list[list[Any]] = []
    for keeping in (False, True):
        monkeypatch.setattr(plans, "keeping", keeping)
        with random_rounding(seed=6):
            results.append([function() for _ in range(3) for function in functions])
            if keeping:
                monkeypatch.setattr(dispatch.RandomRounding, "_by_rule", None)
                [function() for function in functions]
    assert all(map(same_bytes, *map(tree_leaves, results)))


def test_a_fused_step_is_repeated_with_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    monkeypatch.setattr(plans, "kept", plans.Plans(2**26))
    for keeping in (False, True):
        monkeypatch.setattr(plans, "keeping", keeping)
        weights = [torch.nn.Parameter(torch.linspace(-1, 1, n)) for n in (5, 7)]
        for weight in weights:
            weight.grad = weight.detach() ** 2
        optimizer = torch.optim.AdamW(weights, fused=True, amsgrad=True, weight_decay=0.1)
        with random_rounding(seed=6) as stats:
            for _ in range(5):
                optimizer.step()
        results.append(([w.detach() for w in weights], stats.operators))
    assert results[0][1] == results[1][1]
    assert all(map(same_bytes, results[0][0], results[1][0]))


def test_steps_on_lists_with_other_numbers_each_time_have_plans(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with random_rounding(seed=8) as stats:
        torch._foreach_addcmul_(*([torch.ones(4)] for _ in range(3)), [1.0])
    assert stats.operations == 8  # a factor of 1 is none
    results = []
    monkeypatch.setattr(plans, "kept", plans.Plans(2**26))
    for keeping in (False, True):
        monkeypatch.setattr(plans, "keeping", keeping)
        x, y = ([torch.rand(5, generator=torch.Generator().manual_seed(n))] for n in (5, 6))
        with random_rounding(seed=8) as stats:
            for n in range(5):
                if keeping and n == 3:
                    monkeypatch.setattr(dispatch.RandomRounding, "_by_rule", None)
                torch._foreach_div_(x, [1.25 + n])
                torch._foreach_addcdiv_(x, y, y, [0.1 * n - 0.7])
                torch._foreach_mul_(x, [-0.3 * n + 2.1])
        results.append((x[0], stats.operators))
    assert same_bytes(results[0][0], results[1][0]) and results[0][1] == results[1][1]


@pytest.mark.parametrize("name", ["add", "sub", "mul", "div", "addcmul", "addcdiv"])
def test_lists_of_numbers_give_in_place_what_they_give_out_of_place(name: str) -> None:
    """There they stay numbers."""
    numbers = [0.3, -1.0, 1e-42]
    for dtype in (torch.float32, torch.float64):
        generator = torch.Generator().manual_seed(3)
        lists = [
            [torch.randn(shape, dtype=dtype, generator=generator) for shape in ((5,), (2, 3), ())]
            for _ in range(3 if name.startswith("addc") else 1)
        ]
        results = []
        for in_place in (False, True):
            with random_rounding(seed=8) as stats:
                first = [x.clone() for x in lists[0]]
                function = getattr(torch, f"_foreach_{name}" + "_" * in_place)
                made = function(first, *lists[1:], numbers)
            results.append((first if in_place else made, stats.operations))
        assert results[0][1] == results[1][1]
        assert all(map(same_bytes, results[0][0], results[1][0]))


def test_greatest_squares_that_are_not_asked_for_stay() -> None:
    """torch takes a list of them with amsgrad=False."""
    results = []
    for greatest in ([], [torch.full((3,), 7.0)]):
        given = [[torch.full((3,), n)] for n in (1.0, 2.0, 3.0, 4.0)]
        options = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.0, "eps": 1e-8}
        with random_rounding(seed=1):
            torch._fused_adam_(
                *given, greatest, [torch.tensor(2.0)], **options, amsgrad=False, maximize=False
            )
        results.append([x for (x,) in given])
    assert all(map(same_bytes, *results)) and (greatest[0] == 7).all()


def test_a_weight_that_becomes_infinite_is_not_multiplied_by_zero() -> None:
    image, weight = torch.ones(1, 1, 3), torch.ones(1, 1, 3)
    with random_rounding("nearest"):
        for _ in range(3):
            F.conv1d(image, weight, padding=1)
        for value in (torch.inf, torch.nan):
            weight[0, 0, 0] = value  # outside the image for the first result
            assert F.conv1d(image, weight, padding=1)[0, 0, 0] == 2


def test_threads_repeat_a_plan_at_the_same_time() -> None:
    operands = [(torch.randn(50, 40), torch.randn(40, 50)) for _ in range(4)]

    def results(pair: tuple[Tensor, Tensor]) -> list[Tensor]:
        with random_rounding(seed=7, threads=1):
            return [torch.mm(*pair).sigmoid().softmax(1) for _ in range(50)]

    expected = [results(pair) for pair in operands]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(results, operands))
    for some, others in zip(found, expected, strict=True):
        assert all(map(same_bytes, some, others))


def test_plans_keep_to_their_memory_and_the_oldest_go_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = plans.Plans(100_000)
    monkeypatch.setattr(plans, "kept", kept)
    x = torch.rand(3)
    for number in range(40):
        for mode in ("nearest", "nearest, and flushed"):
            flush = "keep" if mode == "nearest" else "flush"
            with random_rounding("nearest", subnormals=flush):
                for _ in range(3):
                    x.sqrt()  # used again and again
                    expected = torch.tensor(x.numpy() * (number + 1.5))
                    assert same_bytes(x * (number + 1.5), expected)
        sizes = [plan.size for plan in kept.known.values()]
        assert 0 < sum(sizes) <= 100_000
    assert len(sizes) < 80
    names = [str(kind[1]) for kind in kept.known]
    assert names.count("aten.sqrt.default") == 2  # of both regions


def test_the_bytes_of_a_plan_are_not_more_than_it_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = plans.Plans(2**30)
    monkeypatch.setattr(plans, "kept", kept)
    x, y, rows = torch.rand(5), torch.rand(5), torch.rand(4, 5)
    functions: tuple[Callable[[float], Any], ...] = (
        lambda n: rows * n,
        lambda n: F.layer_norm(rows, (5,), x, y, n),
        lambda n: F.batch_norm(rows, x, y, eps=n),
        lambda n: F.elu(rows.bfloat16(), n),
    )
    with random_rounding():
        for function in functions:
            function(0.5), function(0.5)
            before, counted = len(kept.known), sum(plan.size for plan in kept.known.values())
            tracemalloc.start()
            for number in range(50):
                function(number + 1.5), function(number + 1.5)
            used, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert len(kept.known) >= before + 50
            counted = sum(plan.size for plan in kept.known.values()) - counted
            assert counted / 4 <= used <= counted


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.tolist()[0],
        lambda x: x.numpy()[0],
        lambda x: np.asarray(x)[0],
        lambda x: x[0].item(),
        lambda x: float(x[0]),
        lambda x: float(np.from_dlpack(x)[0]),
    ],
)
def test_a_rule_that_reads_numbers_gets_no_plan(
    read: Callable[[Tensor], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def rule(op: Operator, a: Tensor) -> Tensor:
        return op.mul(a, float(read(a)))

    monkeypatch.setitem(RULES, "sqrt", replace(RULES["sqrt"], handler=rule))
    dispatch._known.cache_clear()
    try:
        with random_rounding("nearest"):
            for number in (2.0, 2.0, 3.0, 5.0):
                assert torch.full((7,), number).sqrt()[0] == number**2
    finally:
        dispatch._known.cache_clear()


def test_networks_are_repeated_without_a_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the third pass on."""
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    network = torch.nn.Sequential(torch.nn.Conv1d(4, 6, 3), torch.nn.LeakyReLU(), layer)
    lstm, x = torch.nn.LSTM(8, 8), torch.randn(2, 4, 10)
    with random_rounding(), torch.no_grad():
        for _ in range(2):
            lstm(network(x))
        monkeypatch.setattr(dispatch.RandomRounding, "_by_rule", None)
        lstm(network(x))
