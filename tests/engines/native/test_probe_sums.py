"""Orders of sums and of products of matrices measured from a kernel: known ones are recovered,
torch's own are proven by bytes, and what is added in an order obeys the modes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from support.exact_replay import same_bytes
from support.processors import ORDERS_ARE_READ

from morphbits.engines.native import random_rounding
from morphbits.engines.native.kernels import sums
from morphbits.engines.native.kernels.library import Rounding
from morphbits.engines.native.orders import probe_sums, store
from morphbits.engines.native.orders.trees import Node, TreeOrder, UnreadableError, describe, tree

NEAREST = partial(Rounding, "nearest", threads=1)


@pytest.fixture(autouse=True)
def forget() -> None:
    store.measured.clear()


def random_tree(terms: int, seed: int) -> Node:
    """A tree of additions: two subtrees are joined at a time, any two."""
    generator = np.random.default_rng(seed)
    nodes = [Node(term) for term in range(terms)]
    while len(nodes) > 1:
        one, other = (nodes.pop(int(generator.integers(len(nodes)))) for _ in range(2))
        one.parts.append(other)
        nodes.append(one)
    return nodes[0]


def by_tree(node: Node, x_NI: torch.Tensor) -> torch.Tensor:
    """The naive reference: the additions of a tree, one by one."""
    total = x_NI[node.first]
    for part in node.parts:
        total = total + by_tree(part, x_NI)
    return total


@pytest.mark.parametrize("terms", [1, 2, 3, 17, 90])
def test_a_plan_adds_as_its_tree(terms: int, dtype: torch.dtype) -> None:
    for seed in range(8):
        x, root = torch.randn(terms, 5, dtype=dtype), random_tree(terms, seed)
        ours = TreeOrder.of(root, terms).add(lambda count: NEAREST(), x)
        assert same_bytes(ours, by_tree(root, x))


def test_every_tree_is_recovered() -> None:
    """A kernel that adds in a tree drawn at random: read, it is the same tree, up to the two sides
    of an addition, and so gives the same bytes."""
    for seed in range(12):
        root, x = random_tree(40, seed), torch.randn(40, 3)
        found = probe_sums.sum_order(lambda t, root=root: by_tree(root, t), x, [0], threads=2)  # type: ignore[misc]
        assert "the same bytes" in found.words, found.words
        assert same_bytes(found.add(lambda count: NEAREST(), x), by_tree(root, x))
        store.measured.clear()


def test_results_of_several_orders_are_told_apart() -> None:
    first, second = random_tree(30, 1), random_tree(30, 2)

    def kernel(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([by_tree(first, x[:, :4]), by_tree(second, x[:, 4:])])

    x = torch.randn(30, 7)
    found = probe_sums.sum_order(kernel, x, [0], threads=1)
    assert [index.tolist() for index, _ in found.parts] == [[0, 1, 2, 3], [4, 5, 6]]
    assert found.words.startswith("2 orders: ")
    assert same_bytes(found.add(lambda count: NEAREST(), x), kernel(x))


def test_what_is_no_order_is_said() -> None:
    x = torch.randn(20, 2)
    for kernel, why in (
        (lambda x: x.double().sum(0).float(), "does not give its bytes"),
        (lambda x: x.abs().sum(0), "does not add its terms"),
        (lambda x: x.sort(0).values.sum(0), "no tree"),
    ):
        found = probe_sums.sum_order(kernel, x, [0], threads=1)
        assert "not read" in found.words and not found.parts, (why, found.words)
        store.measured.clear()
    with pytest.raises(UnreadableError):
        tree(range(4), lambda pairs: [3 for _ in pairs])
    long = torch.zeros(probe_sums.TERMS + 1)
    assert "more than 16,384" in probe_sums.sum_order(torch.sum, long, [0], threads=1).words
    assert describe(Node(0, [Node(1)]), 2) == "one addition"


def check(f: Callable[..., torch.Tensor], *given: torch.Tensor) -> dict[str, str]:
    """torch's bytes in mode nearest, where the statistics say so; other results at random, the
    same of the same seed with any number of threads. Returns what was found."""
    with torch.no_grad():
        plain = f(*given)
        with random_rounding("nearest", accumulation="probe") as stats:
            ours = f(*given)
        assert same_bytes(ours, plain) == all("same bytes" in w for w in stats.orders.values())
        results = []
        for seed, threads in ((1, 1), (1, 2), (2, 2)):
            with random_rounding("random", seed, accumulation="probe", threads=threads) as random:
                results.append(f(*given))
            assert random.operations == stats.operations
        bounds = []
        for mode in ("downward", "upward"):
            with random_rounding(mode, accumulation="probe"):
                bounds.append(f(*given))
    assert same_bytes(results[0], results[1])
    if plain.numel() > 9:
        assert not torch.equal(results[0], results[2])
    for result in results if f in (torch.sum,) else ():  # additions are monotonic
        assert (bounds[0] <= result).all() and (result <= bounds[1]).all()
    return stats.orders


@pytest.mark.parametrize("shape, dims", [
    ((7,), None), ((100,), None), ((1000,), None), ((3000,), None), ((37, 100), 1),
    ((100, 37), 0), ((6, 5, 70), (0, 2)), ((4, 300), 0), ((2, 16, 9, 9), (0, 2, 3)),
])  # fmt: skip
def test_torchs_sums(shape: tuple[int, ...], dims: Any, dtype: torch.dtype) -> None:
    x = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(3))
    words = check(lambda x: x.sum(dims), x)
    words |= check(lambda x: x.mean(dims), x)
    words |= check(lambda x: x.mT.sum(dims), x) if len(shape) == 2 else {}
    assert all("the same bytes" in found for found in words.values()), words
    if dims is None:
        check(torch.sum, x)


@pytest.mark.parametrize("m, k, n", [
    (64, 64, 64), (40, 500, 24), (8, 1000, 16), (1, 300, 40), (40, 300, 1), (4, 64, 4),
    (33, 27, 3), (10, 400, 40), (5, 33, 7),
])  # fmt: skip
def test_torchs_products(m: int, k: int, n: int) -> None:
    """With and without something added; both sides also transposed."""
    generator = torch.Generator().manual_seed(4)
    a, b, c = (torch.randn(s, generator=generator) for s in ((m, k), (k, n), (n,)))
    words = check(torch.mm, a, b)
    words |= {"t " + key: value for key, value in check(torch.mm, b.t(), a.t()).items()}
    words |= check(torch.nn.functional.linear, a, b.t().contiguous(), c)
    words |= check(torch.addmm, torch.randn(m, n, generator=generator), a, b)
    words |= check(torch.bmm, torch.stack([a, -a]), torch.stack([b, b]))
    odd = (m, k, n) == (5, 33, 7)  # each result has an order of its own: where its row begins
    if ORDERS_ARE_READ and not odd:
        unread = {layer: found for layer, found in words.items() if "same bytes" not in found}
        assert not unread, unread


@pytest.mark.parametrize("k", [1, 10, 64, 1001])
def test_torchs_products_of_vectors(k: int) -> None:
    x, y = torch.randn(2, k, generator=torch.Generator().manual_seed(5))
    check(torch.dot, x, y)
    check(torch.mv, torch.stack([x, y, x * y]), y)
    check(torch.mv, torch.stack([x, y, x * y], 1).t(), y)


def test_an_order_may_depend_on_where_a_tensor_lies() -> None:
    """Views that begin at other bytes, and rows with gaps between them."""
    memory = torch.randn(40, 80, generator=torch.Generator().manual_seed(6))
    vector = torch.randn(64, generator=torch.Generator().manual_seed(7))
    for shift in (0, 1, 3):
        x = memory[:, shift : shift + 64]
        check(torch.mv, x, vector)
        check(torch.mm, x, memory[:6, shift : shift + 64].t())
        check(lambda x: x.sum(1), x)
    check(lambda x: x.sum(0), memory[:1].expand(30, 80))


@pytest.mark.parametrize("dims", [0, 1, 2, (0, 1), "mm"])
def test_what_is_computed_before_keeps_its_layout(dims: Any) -> None:
    """A sum or product of a result that torch leaves transposed."""
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(40, 30, 50, generator=generator).transpose(0, 2)
    if dims == "mm":
        a, w = torch.randn(200, 300, generator=generator).t(), torch.randn(200, 1)
        words = check(lambda a: (a * 1.5) @ w, a)
    else:
        words = check(lambda x: (x * 1.5).sum(dims), x)
    proven = all("the same bytes" in found for found in words.values())
    assert words and (proven or not ORDERS_ARE_READ), words


def test_products_begin_from_what_they_are_added_to() -> None:
    """A kernel whose chains start from the bias: the order that some processors' gemm has."""
    a, b, c = torch.randn(1, 9, 30), torch.randn(1, 30, 5), torch.randn(5)

    def kernel(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor | None) -> torch.Tensor:
        assert c is not None
        one = torch.ones_like(a[:, :, :1])
        row = c.expand(1, 1, 5)
        left, right = torch.cat([one, a], 2), torch.cat([row, b], 1)
        return sums.matrix_product(NEAREST(), left, right, np.array([20, 31]))

    found = probe_sums.product_order(kernel, a, b, c, threads=1)
    assert (
        found.words == "2 chains (19 + 11), added one after the other, bias start: the same bytes"
    )
    assert same_bytes(found.compute(lambda count: NEAREST(), a, b, c), kernel(a, b, c))
    matrix = torch.randn(9, 5)
    found = probe_sums.product_order(
        lambda a, b, c: kernel(a, b, c[0] if c is not None else None), a, b, matrix, threads=1
    )
    assert "not read" in found.words


def test_a_whole_model_is_torchs_own() -> None:
    """Convolutions, linear layers and a mean, each in torch's order: torch's bytes."""
    torch.manual_seed(8)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 12, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(12, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten(),
        torch.nn.Linear(16 * 6 * 6, 40), torch.nn.LeakyReLU(0.25), torch.nn.Linear(40, 10),
    )  # fmt: skip
    words = check(lambda x: model(x).mean(1), torch.randn(4, 3, 12, 12))
    if ORDERS_ARE_READ:
        assert len(words) == 5 and all("the same bytes" in found for found in words.values()), (
            words
        )


def test_the_gradient_of_a_convolutions_input_is_torchs_own() -> None:
    torch.manual_seed(9)
    x, w = torch.randn(2, 5, 6, 8, 10), torch.randn(18, 5, 3, 3, 3)
    gradients = []
    for accumulation in (None, "probe", "sequential"):
        image = x.clone().requires_grad_()
        out = torch.conv3d(image, w, padding=1)
        if accumulation is None:
            out.backward(torch.ones_like(out) / 3)
        else:
            with random_rounding("nearest", accumulation=accumulation) as stats:
                out.backward(torch.ones_like(out) / 3)
        gradients.append(image.grad)
        if accumulation == "probe":
            words = [w for name, w in stats.orders.items() if "(input) 2×18" in name]
    assert len(words) == 1
    assert ("the same bytes" in words[0]) == torch.equal(gradients[0], gradients[1])
    assert "the same bytes" in words[0] or not ORDERS_ARE_READ, words
    assert not torch.equal(gradients[0], gradients[2])


def test_what_is_not_probed_is_said() -> None:
    x = torch.randn(6, 12)
    with torch.no_grad(), random_rounding("nearest", accumulation="probe") as stats:
        torch.softmax(x, 1)
        torch.addmm(torch.zeros(6, 6), x, x.t(), alpha=2)
        torch.nn.functional.layer_norm(x, (12,))
    assert stats.orders["addmm"] == "not probed: one chain"
    assert {"_softmax (sums)", "native_layer_norm (sums)"} <= set(stats.orders)
    assert all(words.startswith("not probed") for words in stats.orders.values())
