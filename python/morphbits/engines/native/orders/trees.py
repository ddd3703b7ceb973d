"""Trees of additions: measured from a kernel by numerical testing, then added in the same order.

Method: FPRev (arXiv 2411.00442). All terms are 1, but one is 2^100 and another −2^100: every 1
that is added between the two is swallowed, so the number of terms less the result is the size of
the smallest subtree that holds both. These sizes for one term and all others give the subtrees in
which it is added to the rest, each of which is asked in the same way.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from morphbits.engines.native.kernels import sums
from morphbits.engines.native.kernels.library import Rounding

MASK = 2.0**100  # swallows sums below 2^76; a product with 1 is exact
# Random tensors on which an order is compared: so many, or as many as this many operations give.
DRAWS, DRAWN_OPERATIONS = 16, 2_000_000_000
Pair = tuple[int, int]
Sizes = Callable[[Sequence[Pair]], Sequence[int]]


class UnreadableError(Exception):
    """The sizes are not those of a tree of additions, or the tree is none that the kernels can
    follow; the reason in words."""


@dataclass
class Node:
    """((first + parts[0]) + parts[1]) + …; a part without parts is a term."""

    first: int
    parts: list[Node] = field(default_factory=list)


def tree(leaves: Sequence[int], sizes: Sizes) -> Node:
    """The tree of additions over ``leaves``; ``sizes`` measures the smallest subtrees of pairs,
    which must count leaves of this tree alone."""
    root = Node(leaves[0])
    pending = [(root, list(leaves[1:]))] if len(leaves) > 1 else []
    while pending:
        pairs = [(node.first, other) for node, others in pending for other in others]
        measured = iter(sizes(pairs))
        following: list[tuple[Node, list[int]]] = []
        for node, others in pending:
            groups: dict[int, list[int]] = defaultdict(list)
            for other in others:
                groups[next(measured)].append(other)
            held = 1
            for size, group in sorted(groups.items()):
                held += len(group)
                if size != held:
                    raise UnreadableError("its sums are no tree of additions of two numbers")
                part = Node(group[0])
                node.parts.append(part)
                following.append((part, group[1:]))
        pending = [(node, others) for node, others in following if others]
    return root


def chain(node: Node) -> list[int] | None:
    """The terms of a chain that adds one after the other, the first two in any order; or None if
    the tree is none."""
    before: list[int] = []
    while True:
        inner = bool(node.parts) and bool(node.parts[0].parts)
        rest = node.parts[inner:]
        if any(part.parts for part in rest):
            return None
        before = [node.first, *(part.first for part in rest), *before]
        if not inner:
            return before
        node = node.parts[0]


def chains(node: Node) -> list[list[int]]:
    """The chains of a tree that adds up chains one after the other."""
    whole = chain(node)
    if whole is not None:
        return [whole]
    own, (first, *later) = _parted(node)
    added = [chain(part) for part in later]
    if not all(added):
        raise UnreadableError("its tree of sums is none of chains added up one after the other")
    inner = chains(first)  # one chain comes after this one, the sum of several before it
    start = [own, *inner] if len(inner) == 1 else [*inner, own]
    return [*start, *(one for one in added if one)]


def _parted(node: Node) -> tuple[list[int], list[Node]]:
    """The chain that a tree begins with, and the parts that are added to it."""
    cut = 0
    while chain(Node(node.first, node.parts[: cut + 1])) is not None:
        cut += 1
    own = chain(Node(node.first, node.parts[:cut]))
    assert own is not None
    return own, node.parts[cut:]


def grouped(node: Node) -> tuple[list[list[int]], Node]:
    """All chains of a tree, and the tree that adds them up, by their numbers."""
    found: list[list[int]] = []
    top = Node(-1)
    pending = [(node, top)]
    while pending:
        part, to = pending.pop()
        whole = chain(part)
        own, rest = (whole, []) if whole is not None else _parted(part)
        to.first = len(found)
        found.append(own)
        for one in rest:
            added = Node(-1)
            to.parts.append(added)
            pending.append((one, added))
    return found, top


@dataclass(frozen=True, eq=False)
class TreeOrder:
    """How to add up in the order of a tree: values are terms, then what the steps give.

    steps: (length, count) int64 each, the values that ``count`` chains of ``length`` add from the
    first row to the last; the last step gives the sum.
    """

    terms: int
    steps: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, root: Node, terms: int) -> TreeOrder:
        """Sums of one height and length are one step."""
        leaves, top = grouped(root)
        nodes = [top]
        for node in nodes:  # which grows: every sum before its parts
            nodes += node.parts
        heights: dict[int, int] = {}
        levels: dict[Pair, list[Node]] = defaultdict(list)
        place: dict[int, int] = {}
        for node in reversed(nodes):
            length = len(leaves[node.first]) + len(node.parts)
            heights[id(node)] = max((1 + heights[id(part)] for part in node.parts), default=0)
            if length > 1:
                levels[heights[id(node)], length].append(node)
            else:
                place[id(node)] = leaves[node.first][0]
        steps, made = [], terms
        for (_, length), together in sorted(levels.items()):
            columns = [
                [*leaves[node.first], *(place[id(part)] for part in node.parts)]
                for node in together
            ]
            for node in together:
                place[id(node)] = made
                made += 1
            steps.append(np.array(columns, dtype=np.int64).T.reshape(length, len(together)))
        return cls(terms, tuple(steps))

    def fits(self, terms: int) -> bool:
        """Whether it adds each of `terms` terms, and each partial sum, once."""
        made = terms
        for step in self.steps:
            if step.max() >= made:
                return False
            made += step.shape[1]
        used = np.concatenate([np.empty(0, np.int64), *(step.reshape(-1) for step in self.steps)])
        return self.terms == terms and np.array_equal(np.sort(used), np.arange(made - 1))

    def add(self, rounding: Callable[[int], Rounding], terms_NI: torch.Tensor) -> torch.Tensor:
        """The sum over the first axis, (I,). Each step is a kernel's call of its own, with the
        random bits that `rounding` gives for so many additions."""
        inner = terms_NI.shape[1]
        if not self.steps:
            return terms_NI[0].clone()
        values = terms_NI.new_empty((self.terms + sum(s.shape[1] for s in self.steps), inner))
        values[: self.terms] = terms_NI
        end = self.terms
        for step in self.steps:
            length, count = step.shape
            operands = values.index_select(0, torch.from_numpy(step.reshape(-1)))
            operations = (length - 1) * count * inner
            added = sums.reduce(
                rounding(operations), "add", operands.view(1, -1), max(count * inner, 1)
            )
            values[end : end + count] = added.view(count, inner)
            end += count
        return values[end - 1].clone()


def describe(root: Node, terms: int) -> str:
    """A tree of additions in a few words."""
    if terms < 3:
        return "one addition" if terms == 2 else "one term"
    parts, top = grouped(root)
    if len(parts) == 1:
        order = parts[0]
        steady = sorted(order) == order or sorted(order, reverse=True) == order
        return "one chain" if steady else "one chain, not in the order of the terms"
    lengths = Counter(len(one) for one in parts)
    sizes = " + ".join(f"{n}×{length}" if n > 1 else str(length) for length, n in lengths.items())
    how = "one after the other" if chain(top) is not None else "in a tree"
    return f"{len(parts)} chains ({sizes}), added {how}"


def lossy(dtype: torch.dtype) -> float:
    """e, of which the product (1 + e)² loses e² when it is rounded, and only then: the sum with
    −(1 + e) says whether it was."""
    return 2.0 ** -(12 if dtype == torch.float32 else 27)


def same(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Which elements of two results have the same bytes."""
    integer = {torch.float32: torch.int32, torch.float64: torch.int64}[one.dtype]
    return one.contiguous().view(integer) == other.contiguous().view(integer)


def like(x: torch.Tensor, value: float) -> torch.Tensor:
    """A tensor of one value that lies in memory as `x` does: its strides, and its start within 64
    bytes, which some kernels' orders depend on. Where elements of `x` share their memory: without
    gaps."""
    overlaps = any(n > 1 and stride == 0 for n, stride in zip(x.shape, x.stride(), strict=True))
    strides = torch.empty(x.shape, device="meta").stride() if overlaps else x.stride()
    extent = 1 + sum((n - 1) * s for n, s in zip(x.shape, strides, strict=True))
    shift = x.data_ptr() % 64 // x.element_size()
    memory = torch.full((max(extent, 0) + 16,), value, dtype=x.dtype)  # begins at a multiple of 64
    return memory.as_strided(x.shape, strides, shift)


def drawn(given: Sequence[torch.Tensor], operations: int) -> Iterator[list[torch.Tensor]]:
    """Random tensors of the same layouts, always the same ones; then those given."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(min(DRAWS, 1 + DRAWN_OPERATIONS // max(operations, 1))):
        yield [like(x, 0).normal_(generator=generator) for x in given]
    yield list(given)


def layout(x: torch.Tensor) -> tuple:
    """What an order may depend on."""
    return tuple(x.shape), x.stride(), x.dtype, x.data_ptr() % 64
