"""The orders in which the framework's own sums and products of matrices add, measured.

Method: `trees`. A sum is followed whatever its tree. Of a product the tree is taken apart into
chains of fused multiply-adds, whose sums are added up in the tree that is left; which products
were rounded before they were added is asked one by one. Many results of one call answer for a
pair of terms each. Results that the order found does not fit, such as those of the last columns
that fill no vector, are asked again by themselves. An order counts as proven only when it gives,
to nearest, the framework's bytes on random numbers and on the data at hand.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
import torch

from morphbits.engines.native.kernels import sums
from morphbits.engines.native.kernels.library import Rounding, elementwise
from morphbits.engines.native.orders import store
from morphbits.engines.native.orders.trees import (
    MASK,
    Node,
    Pair,
    TreeOrder,
    UnreadableError,
    chain,
    describe,
    drawn,
    grouped,
    layout,
    like,
    lossy,
    same,
    tree,
)

# More terms are not read: every term is asked for, level by level of the tree.
TERMS = 2**14
# Orders that the results of one call may have.
ORDERS = 8
Draw = Callable[[int], Rounding]  # the random bits of a kernel of so many operations


def _times(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "1"


def _nearest(threads: int) -> Draw:
    return lambda operations: Rounding("nearest", threads=threads)


def _counts(values: Sequence[float], most: int) -> list[int]:
    """The sizes of subtrees, which are what `most` ones lost."""
    if not all(0 <= value <= most and value == int(value) for value in values):
        raise UnreadableError("it does not add its terms as they are")
    return [most - int(value) for value in values]


# ---------------------------------------------------------------------------------- sums


@dataclass(frozen=True)
class FoundSum:
    """The order of a sum: an operator's shapes, what was found in words, and for results (by their
    numbers) the order of their additions; no parts where it is not read."""

    layer: str
    words: str
    parts: tuple[tuple[torch.Tensor, TreeOrder], ...] = ()

    def add(self, rounding: Draw, terms_NI: torch.Tensor) -> torch.Tensor:
        """The sums over the first axis, (I,)."""
        if len(self.parts) == 1:
            return self.parts[0][1].add(rounding, terms_NI)
        out = terms_NI.new_empty(terms_NI.shape[1])
        for index, plan in self.parts:
            out[index] = plan.add(rounding, terms_NI[:, index])
        return out

    def fits(self, terms: int, results: int) -> bool:
        """Whether it adds each of `terms` terms once for each of `results` results, or says that
        the order could not be measured."""
        return not self.parts or (
            all(plan.fits(terms) for _, plan in self.parts)
            and torch.cat([index for index, _ in self.parts]).sort()[0].tolist()
            == list(range(results))
        )


def sum_order(
    kernel: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    axes: Sequence[int],
    threads: int,
) -> FoundSum:
    """The order of the framework's sum of `x` over `axes`.

    kernel: the framework's sum over these axes.
    """
    terms = prod(x.shape[d] for d in axes)

    def measure() -> FoundSum:
        layer = f"{_times(x.shape)} over {_times([x.shape[d] for d in axes])}"
        try:
            return _sum_order(layer, kernel, x, axes, threads)
        except UnreadableError as error:
            return FoundSum(layer, f"not read ({error}): chains of up to 256")

    return store.order(
        ("sum", *layout(x), tuple(axes)),
        measure,
        lambda found: found.fits(terms, x.numel() // terms),
    )


def _sum_order(
    layer: str,
    kernel: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    axes: Sequence[int],
    threads: int,
) -> FoundSum:
    terms = prod(x.shape[d] for d in axes)
    if terms > TERMS:
        raise UnreadableError(f"{terms:,} terms, more than {TERMS:,}")
    left, nearest = torch.arange(x.numel() // terms), _nearest(threads)
    parts: list[tuple[torch.Tensor, TreeOrder]] = []
    words: list[str] = []
    while len(left):
        root = _read_sum(kernel, x, axes, left, alone=bool(parts))
        plan, fits = TreeOrder.of(root, terms), torch.ones(len(left), dtype=torch.bool)
        for (one,) in drawn([x], x.numel()):
            ours = plan.add(nearest, terms_first(one, axes)[:, left])
            fits &= same(ours, kernel(one).reshape(-1)[left])
        if not fits[0] or len(parts) == ORDERS:
            raise UnreadableError("the order that was read does not give its bytes")
        parts.append((left[fits], plan))
        words.append(describe(root, terms))
        left = left[~fits]
    return FoundSum(layer, f"{_either(words)}{store.PROVEN}", tuple(parts))


def _either(words: Sequence[str]) -> str:
    different = "; ".join(dict.fromkeys(words))
    return different if len(words) == 1 else f"{len(words)} orders: {different}"


def terms_first(x: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
    """(N, I): the elements that are summed, in row-major order, of each sum."""
    kept = [d for d in range(x.dim()) if d not in axes]
    terms, inner = (prod(x.shape[d] for d in some) for some in (axes, kept))
    return x.permute([*axes, *kept]).reshape(terms, inner)


def _read_sum(
    kernel: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    axes: Sequence[int],
    results: torch.Tensor,
    alone: bool,
) -> Node:
    """The tree over the terms of `terms_first`, asked of the first of `results` alone or of all
    of them; of the first, if they have no one order."""
    ones = like(x, 1)
    extent = 1 + sum((n - 1) * s for n, s in zip(ones.shape, ones.stride(), strict=True))
    offsets = torch.arange(extent).as_strided(ones.shape, ones.stride())
    flat = ones.as_strided((extent,), (1,))
    results = results[:1] if alone else results
    place_NI = terms_first(offsets, axes)[:, results].numpy()
    terms = len(place_NI)

    def sizes(pairs: Sequence[Pair]) -> list[int]:
        found: list[int] = []
        for start in range(0, len(pairs), len(results)):
            some = np.array(pairs[start : start + len(results)])
            at = torch.from_numpy(place_NI[some, np.arange(len(some))[:, None]])
            flat[at[:, 0]], flat[at[:, 1]] = MASK, -MASK
            held = kernel(ones).reshape(-1)[results[: len(some)]].tolist()
            flat[at] = 1.0
            found += _counts(held, terms)
        return found

    try:
        return tree(range(terms), sizes)
    except UnreadableError:
        if len(results) == 1:
            raise
        return _read_sum(kernel, x, axes, results, alone=True)


# ------------------------------------------------------------------------------ products


@dataclass(frozen=True)
class Products:
    """The order of a product of matrices, (B, M, K) by (B, K, N), perhaps added to something.

    chains: of fused multiply-adds from zero, products by their numbers; the number K is what the
    product is added to: alone, or as a chain's beginning. plan: how the chains' sums add up.
    """

    depth: int
    chains: tuple[tuple[int, ...], ...]
    plan: TreeOrder

    def compute(
        self,
        rounding: Draw,
        a_BMK: torch.Tensor,
        b_BKN: torch.Tensor,
        addend: torch.Tensor | None,
    ) -> torch.Tensor:
        """(B, M, N). Chains that are added one after the other are one operator of the random
        stream, and what they are added to a second; else chains of one length are one, and then
        each step of the plan."""
        shape = (a_BMK.shape[0], a_BMK.shape[1], b_BKN.shape[2])
        if self._in_turn:
            alone = self.chains[-1] == (self.depth,)
            chains = self.chains[:-1] if alone else self.chains
            index = np.concatenate(chains)
            if not np.array_equal(index, np.arange(self.depth)):
                a_BMK = a_BMK.index_select(2, torch.from_numpy(index))
                b_BKN = b_BKN.index_select(1, torch.from_numpy(index))
            ends = np.cumsum([len(one) for one in chains])
            count = prod(shape) * (self.depth + len(ends) - 1)
            total = sums.matrix_product(rounding(count), a_BMK, b_BKN, ends)
            return elementwise(rounding(prod(shape)), "add", total, addend) if alone else total
        parts = a_BMK.new_empty((len(self.chains), *shape))
        together: dict[tuple[int, bool], list[int]] = defaultdict(list)
        for number, one in enumerate(self.chains):
            if one == (self.depth,):
                assert addend is not None
                parts[number] = addend
            else:
                together[len(one), one[0] == self.depth].append(number)
        for (length, begun), numbers in together.items():
            lefts, rights = [], []
            for number in numbers:
                products = torch.tensor(self.chains[number][begun:])
                left, right = a_BMK.index_select(2, products), b_BKN.index_select(1, products)
                if begun:  # fma(1, addend, 0) is exact
                    assert addend is not None
                    row = addend.expand(shape)[:, :1]
                    left = torch.cat([torch.ones_like(left[:, :, :1]), left], 2)
                    right = torch.cat([row, right], 1)
                lefts.append(left)
                rights.append(right)
            count = len(numbers) * prod(shape) * (length - begun)
            ends = np.array([length], dtype=np.int64)
            sides = torch.cat(lefts), torch.cat(rights)
            found = sums.matrix_product(rounding(count), *sides, ends)
            parts[torch.tensor(numbers)] = found.view(len(numbers), *shape)
        return self.plan.add(rounding, parts.view(len(parts), -1)).view(shape)

    def fits(self, depth: int, addend: bool) -> bool:
        """Whether it adds each of `depth` products, and the addend if there is one, once."""
        terms = sorted(term for one in self.chains for term in one)
        return (
            self.depth == depth
            and all(self.chains)
            and terms == list(range(depth + addend))
            and not any(depth in one[1:] for one in self.chains)
            and self.plan.fits(len(self.chains))
        )

    @cached_property
    def _in_turn(self) -> bool:
        """Whether all chains begin from zero and are added in their order, what the product is
        added to at the end."""
        steps = self.plan.steps
        one_step = len(steps) < 2 and all(np.array_equal(s[:, 0], range(len(s))) for s in steps)
        alone = self.chains[-1] == (self.depth,)
        return one_step and not any(
            self.depth in one for one in self.chains[: -1 if alone else None]
        )

    def words(self) -> str:
        """The order in a few words."""
        products = [one for one in self.chains if one != (self.depth,)]
        lengths = [len(one) - (one[0] == self.depth) for one in products]
        if len(products) == 1:
            words = "one chain"
        elif max(lengths) == 1:
            words = "each product rounded"
        else:
            sizes = (f"{n}×{k}" if n > 1 else str(k) for k, n in Counter(lengths).items())
            words = f"{len(products)} chains ({' + '.join(sizes)})"
        in_turn = len(self.plan.steps) < 2
        if len(products) > 1:
            words += ", added one after the other" if in_turn else ", added in a tree"
        places = [n for n, one in enumerate(self.chains) if self.depth in one]
        if not places:
            return words
        alone, last = self.chains[places[0]] == (self.depth,), len(self.chains) - 1
        where = "last" if in_turn and places[0] == last else "between"
        return f"{words}, bias {where if alone else 'start'}"


@dataclass(frozen=True)
class FoundProduct:
    """As `FoundSum`; parts: the rows and columns of a block of results, and their order."""

    layer: str
    words: str
    parts: tuple[tuple[torch.Tensor, torch.Tensor, Products], ...] = ()

    def compute(
        self, rounding: Draw, a: torch.Tensor, b: torch.Tensor, addend: torch.Tensor | None
    ) -> torch.Tensor:
        """(B, M, K) by (B, K, N), plus the addend: (B, M, N), block by block."""
        if len(self.parts) == 1:
            return self.parts[0][2].compute(rounding, a, b, addend)
        out = a.new_empty((a.shape[0], a.shape[1], b.shape[2]))
        for rows, columns, order in self.parts:
            block = _block(addend, out.shape, rows, columns)
            found = order.compute(rounding, a[:, rows], b[:, :, columns], block)
            out[:, rows[:, None], columns] = found
        return out

    def fits(self, depth: int, shape: Pair, addend: bool) -> bool:
        """Whether it adds each product once for each result of `shape` (M, N), or says that the
        order could not be measured."""
        times_MN = torch.zeros(shape, dtype=torch.int64)
        for rows, columns, order in self.parts:
            times_MN[rows[:, None], columns] += 1
            if not order.fits(depth, addend):
                return False
        return not self.parts or bool((times_MN == 1).all())


Product = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


def _block(
    addend: torch.Tensor | None, shape: Sequence[int], rows: torch.Tensor, columns: torch.Tensor
) -> torch.Tensor | None:
    return None if addend is None else addend.expand(shape)[:, rows[:, None], columns]


def product_order(
    kernel: Product,
    a: torch.Tensor,
    b: torch.Tensor,
    addend: torch.Tensor | None,
    threads: int,
) -> FoundProduct:
    """The order of the framework's product of (B, M, K) by (B, K, N).

    kernel: the framework's product of such tensors, (B, M, N), perhaps added to a third.
    """
    given = [a, b, *([] if addend is None else [addend])]

    def measure() -> FoundProduct:
        layer = " by ".join(_times(x.shape[x.shape[0] == 1 :]) for x in (a, b))
        try:
            return _product_order(layer, kernel, a, b, addend, threads)
        except UnreadableError as error:
            return FoundProduct(layer, f"not read ({error}): one chain")

    size = a.shape[1], b.shape[2]
    return store.order(
        ("product", *map(layout, given)),
        measure,
        lambda found: found.fits(a.shape[2], size, addend is not None),
    )


def _product_order(
    layer: str,
    kernel: Product,
    a: torch.Tensor,
    b: torch.Tensor,
    addend: torch.Tensor | None,
    threads: int,
) -> FoundProduct:
    depth, rows, columns = a.shape[2], a.shape[1], b.shape[2]
    if depth > TERMS:
        raise UnreadableError(f"{depth:,} products, more than {TERMS:,}")
    left_MN = torch.ones((rows, columns), dtype=torch.bool)
    parts: list[tuple[torch.Tensor, torch.Tensor, Products]] = []
    while left_MN.any():
        order, place = _read_part(kernel, a, b, addend, left_MN, alone=bool(parts))
        fits_MN = left_MN.clone()
        for x, y, *z in drawn([a, b, *([] if addend is None else [addend])], a.numel() * columns):
            added = z[0] if z else None
            ours, theirs = order.compute(_nearest(threads), x, y, added), kernel(x, y, added)
            fits_MN &= same(ours, theirs).all(0)
        if not fits_MN[place] or len(parts) == ORDERS:
            raise UnreadableError("the order that was read does not give its bytes")
        at = fits_MN.any(1).nonzero()[:, 0], fits_MN.any(0).nonzero()[:, 0]
        if int(fits_MN.sum()) != len(at[0]) * len(at[1]):
            raise UnreadableError("the results that have one order are no block")
        parts.append((*at, order))
        left_MN &= ~fits_MN
    words = _either([order.words() for *_, order in parts])
    return FoundProduct(layer, f"{words}{store.PROVEN}", tuple(parts))


def _read_part(
    kernel: Product,
    a: torch.Tensor,
    b: torch.Tensor,
    addend: torch.Tensor | None,
    left_MN: torch.Tensor,
    alone: bool,
) -> tuple[Products, Pair]:
    """The order of the first of the results that are left, and its place; asked of it alone, or of
    all in its row or column; of itself, if they have no one order."""
    first_row, first_column = (int(n) for n in left_MN.nonzero()[0])
    in_row = [(first_row, int(n)) for n in left_MN[first_row].nonzero()[:, 0]]
    in_column = [(int(m), first_column) for m in left_MN[:, first_column].nonzero()[:, 0]]
    places = max(in_row, in_column, key=len)[: 1 if alone else None]
    try:
        return _read_product(_Kernel(kernel, a, b, addend, places)), places[0]
    except UnreadableError:
        if len(places) == 1:
            raise
        return _read_part(kernel, a, b, addend, left_MN, alone=True)


@dataclass(frozen=True)
class _Kernel:
    """The framework's product, asked for many pairs of terms in one call: results of one row
    answer by columns of their own of the right side, those of one column by rows of the left."""

    product: Product
    a: torch.Tensor
    b: torch.Tensor
    addend: torch.Tensor | None
    places: Sequence[Pair]

    @property
    def depth(self) -> int:
        return self.a.shape[2]

    def ask(
        self, pairs: Sequence[Pair], values: tuple[float, float], rest: float, factor: float
    ) -> list[float]:
        """For each pair the sum of products of `factor` with `values` of its two terms and with
        `rest` of all others; the term `depth` is what the product is added to."""
        in_row = self.places[0][0] == self.places[-1][0]
        varies = self.addend is not None and self.addend.shape[-1:] == self.b.shape[-1:]
        found: dict[Pair, float] = {}
        for added in (False, True):
            some = [pair for pair in pairs if (self.depth in pair) == added]
            many = len(self.places) if not added or (in_row and varies) else 1
            for start in range(0, len(some), many):
                chunk = some[start : start + many]
                answers = self._call(chunk, values, rest, factor, in_row, varies and many > 1)
                found.update(zip(chunk, answers, strict=True))
        return [found[pair] for pair in pairs]

    def _call(
        self,
        pairs: Sequence[Pair],
        values: tuple[float, float],
        rest: float,
        factor: float,
        in_row: bool,
        varies: bool,
    ) -> list[float]:
        fill_a, fill_b = (factor, rest) if in_row else (rest, factor)
        a, b = like(self.a, fill_a), like(self.b, fill_b)
        addend = None if self.addend is None else like(self.addend, rest * factor)
        places = self.places[: len(pairs)]
        for (row, column), pair in zip(places, pairs, strict=True):
            for term, value in zip(pair, values, strict=True):
                if term == self.depth:
                    assert addend is not None
                    addend[(..., column) if varies else ...] = value * factor
                elif in_row:
                    b[0, term, column] = value
                else:
                    a[0, row, term] = value
        rows, columns = (list(index) for index in zip(*places, strict=True))
        return self.product(a, b, addend)[0][rows, columns].tolist()

    def sizes(self, pairs: Sequence[Pair]) -> list[int]:
        """For `tree`."""
        return _counts(
            self.ask(pairs, (MASK, -MASK), 1.0, 1.0), self.depth + (self.addend is not None)
        )

    def rounded(self, pairs: Sequence[Pair]) -> list[bool]:
        """Whether the first product of each pair was rounded before it was added to the second
        term: see `trees.lossy`."""
        small = lossy(self.a.dtype)
        return [x == small for x in self.ask(pairs, (1 + small, -1.0), 0.0, 1 + small)]


def _read_product(asked: _Kernel) -> Products:
    depth, addend = asked.depth, asked.addend
    leaves, top = grouped(tree(range(depth + (addend is not None)), asked.sizes))
    pairs = [pair for one in leaves for pair in _pairs(one, depth)]
    rounded = dict(zip(pairs, asked.rounded(pairs), strict=True))
    chains: list[tuple[int, ...]] = []
    pending = [top]
    for node in pending:  # which grows
        pending += node.parts
        first, *others = _fused(leaves[node.first], rounded, depth)
        numbers = range(len(chains), len(chains) + 1 + len(others))
        chains += [first, *others]
        node.first = numbers[0]
        node.parts = [*(Node(number) for number in numbers[1:]), *node.parts]
    begun = any(len(one) > 1 and one[0] == depth for one in chains)
    if begun and addend is not None and addend.dim() > 1 and addend.shape[-2] > 1:
        raise UnreadableError("a chain begins from a matrix that it is added to")
    order = chain(top)
    if order is None:
        return Products(depth, tuple(chains), TreeOrder.of(top, len(chains)))
    straight = Node(0, [Node(number) for number in range(1, len(chains))])
    return Products(depth, tuple(chains[n] for n in order), TreeOrder.of(straight, len(chains)))


def _pairs(terms: Sequence[int], depth: int) -> list[Pair]:
    """What has to be asked of a chain: whether each product was rounded before it was added to
    the chain's beginning; of the first two, either may have come first."""
    first, *others = terms
    pairs = [(other, first) for other in others if other != depth]
    return [*pairs, (first, others[0])] if others and first != depth else pairs


def _fused(terms: Sequence[int], rounded: dict[Pair, bool], depth: int) -> list[tuple[int, ...]]:
    """A chain as the chain of fused multiply-adds that it begins with, and what is added to it:
    products that were rounded before, and the term `depth`."""
    first, *others = terms
    if others and (others[0] == depth or (first != depth and not rounded[first, others[0]])):
        first, others = others[0], [first, *others[1:]]
    run, added = [first], list[tuple[int, ...]]()
    for term in others:
        if term == depth or rounded[term, terms[0] if term != terms[0] else terms[1]]:
            added.append((term,))
        elif added:
            raise UnreadableError("it fuses a product with an addition to a sum of chains")
        else:
            run.append(term)
    return [tuple(run), *added]
