"""A call that is repeated without its rule gives what the rule gives."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.exact_replay import same_bytes
from support.operator_cases import CASES, Case
from support.outcomes import assert_alike, outcome
from torch import Tensor

from morphbits import stages
from morphbits.choices import MODES
from morphbits.engines.native import dispatch, random_rounding
from morphbits.engines.native.kernels import plans
from morphbits.engines.native.rules import context


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


def test_few_plans_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "PLANS", 8)
    kept = plans.Plans()
    monkeypatch.setattr(context, "plans_of", lambda how: kept)
    x = torch.rand(3)
    with random_rounding("nearest"):
        for value in range(20):
            for _ in range(3):
                assert same_bytes(x * (value + 1.5), torch.tensor(x.numpy() * (value + 1.5)))
            assert 0 < len(kept.known) <= 8


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
