"""The order in which the framework's own convolution adds, measured by numerical testing.

Method: `trees`. One call of a convolution answers for many pairs of terms: each in a place of its
own in the image, or an output channel of its own.

The tree does not say which of a chain's first two products was rounded and which one was fused
with the addition: that is asked with a product that loses a bit when it is rounded. An order
counts as proven only when the kernel of this engine, in mode nearest, has the framework's bytes on
random numbers and on the data at hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from morphbits.engines.native.kernels.library import Rounding, convolution
from morphbits.engines.native.orders import store
from morphbits.engines.native.orders.accumulation import Terms, terms
from morphbits.engines.native.orders.trees import (
    MASK,
    Node,
    Pair,
    UnreadableError,
    chain,
    chains,
    drawn,
    lossy,
    same,
    tree,
)

Convolve = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


@dataclass(frozen=True)
class Steps:
    """Stride, padding and dilation along each axis of a convolution, and how many outputs it has
    (left out: as many as the image holds)."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    outputs: tuple[int, ...] | None = None

    def axes(self) -> Iterator[tuple[int, int, int]]:
        """The three of each axis."""
        return zip(self.stride, self.padding, self.dilation, strict=True)

    def widened(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """The same for three axes."""
        missing = 3 - len(self.stride)
        return (
            (1,) * missing + self.stride,
            (0,) * missing + self.padding,
            (1,) * missing + self.dilation,
        )


@dataclass(frozen=True)
class Geometry:
    """A convolution's shapes: image (B, C, *space), weight (O, C, *kernel), and its steps."""

    image: tuple[int, ...]
    weight: tuple[int, ...]
    steps: Steps

    @property
    def taps(self) -> int:
        return math.prod(self.weight[2:])

    @property
    def terms(self) -> int:
        return self.taps * self.weight[1]

    def centres(self) -> list[tuple[int, ...]]:
        """Output voxels that have all taps inside the image, and no position in common."""
        axes = []
        for n, k, outputs, (step, pad, spread) in zip(
            self.image[2:],
            self.weight[2:],
            self.steps.outputs or self.image[2:],
            self.steps.axes(),
            strict=True,
        ):
            extent = spread * (k - 1) + 1
            first, last = -(-pad // step), (n + pad - extent) // step
            axes.append(range(first, min(last + 1, outputs), -(-extent // step)))
        return list(product(*axes))

    def position(self, centre: tuple[int, ...], term: int) -> tuple[int, ...]:
        """Channel and place in the image of a term (channel·taps + tap) of an output voxel."""
        channel, tap = divmod(term, self.taps)
        at = np.unravel_index(tap, self.weight[2:])
        return (
            channel,
            *(
                o * step - pad + int(t) * spread
                for o, t, (step, pad, spread) in zip(centre, at, self.steps.axes(), strict=True)
            ),
        )


def _measure(
    convolve: Convolve, geometry: Geometry, like: tuple[torch.Tensor, torch.Tensor], bias: bool
) -> Callable[[Sequence[Pair]], list[int]]:
    """`sizes` for `tree`: terms by their numbers, the bias by the number after the last one."""
    dtype = like[0].dtype
    centres = geometry.centres()
    if not centres:
        raise UnreadableError("no output has all its products inside the image")
    channels, n = geometry.weight[0], geometry.terms
    ones = [torch.ones_like(tensor) for tensor in like]

    def run(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return convolve(x, w, b if bias else None)

    def by_place(pairs: Sequence[Pair]) -> Iterator[float]:
        x, b = ones[0].clone(), torch.full((channels,), float(bias), dtype=dtype)
        for centre, pair in zip(centres, pairs, strict=False):
            for term, value in zip(pair, (MASK, -MASK), strict=True):
                x[(0, *geometry.position(centre, term))] = value
        out = run(x, ones[1], b)
        yield from (float(out[(0, 0, *centre)]) for centre in centres[: len(pairs)])

    def by_channel(pairs: Sequence[Pair]) -> Iterator[float]:
        w, b = ones[1].clone(), torch.full((channels,), float(bias), dtype=dtype)
        for o, pair in enumerate(pairs):
            for term, value in zip(pair, (MASK, -MASK), strict=True):
                if term == n:
                    b[o] = value
                else:
                    channel, tap = divmod(term, geometry.taps)
                    at = map(int, np.unravel_index(tap, geometry.weight[2:]))
                    w[(o, channel, *at)] = value
        out = run(ones[0], w, b)
        yield from (float(out[(0, o, *centres[0])]) for o in range(len(pairs)))

    def sizes(pairs: Sequence[Pair]) -> list[int]:
        places = len(centres) > channels
        in_image = [pair for pair in pairs if places and n not in pair]
        in_weight = [pair for pair in pairs if not places or n in pair]
        found: dict[Pair, int] = {}
        for asked, ask, many in (
            (in_image, by_place, len(centres)),
            (in_weight, by_channel, channels),
        ):
            for start in range(0, len(asked), many):
                some = asked[start : start + many]
                for pair, value in zip(some, ask(some), strict=True):
                    if not (0 <= value <= n + bias and value == int(value)):
                        raise UnreadableError("it does not add its products as they are")
                    found[pair] = n + bias - int(value)
        return [found[pair] for pair in pairs]

    return sizes


def _rounded_first(
    convolve: Convolve, geometry: Geometry, like: tuple[torch.Tensor, torch.Tensor], bias: bool
) -> Callable[[Sequence[Pair]], list[bool]]:
    """Whether the first of each pair of products, which a chain begins with, was rounded before
    it was added: see `trees.lossy`."""
    small = lossy(like[0].dtype)
    centres, w = geometry.centres(), torch.full_like(like[1], 1 + small)
    zeros = torch.zeros(geometry.weight[0], dtype=w.dtype) if bias else None

    def ask(pairs: Sequence[Pair]) -> list[bool]:
        found: list[bool] = []
        for start in range(0, len(pairs), len(centres)):
            x, some = torch.zeros_like(like[0]), pairs[start : start + len(centres)]
            for centre, pair in zip(centres, some, strict=False):
                for term, value in zip(pair, (1 + small, -1.0), strict=True):
                    x[(0, *geometry.position(centre, term))] = value
            out = convolve(x, w, zeros)
            found += [float(out[(0, 0, *centre)]) == small for centre in centres[: len(some)]]
        return found

    return ask


def read(
    convolve: Convolve, geometry: Geometry, like: tuple[torch.Tensor, torch.Tensor], bias: bool
) -> Terms:
    """The order in which a convolution of tensors like these adds; UnreadableError if it is none
    that the kernels can follow."""
    n = geometry.terms
    root = tree(range(n + bias), _measure(convolve, geometry, like, bias))
    bias_first = bias_starts = False
    if bias:
        root, bias_first, bias_starts = _place_of_bias(root, n)
    found = chains(root)
    if bias_starts:
        if n not in found[0][:2]:
            raise UnreadableError("it adds the bias within a chain")
        found[0].remove(n)
    unsure = [one for one in found if len(one) > 1]
    ask = _rounded_first(convolve, geometry, like, bias)
    as_read = ask([(one[0], one[1]) for one in unsure])
    reverse = ask([(one[1], one[0]) for one in unsure])
    if any(a and b for a, b in zip(as_read, reverse, strict=True)):
        if len(found) > 1:
            raise UnreadableError("it rounds products before it adds them, in several chains")
        found = [[term] for term in found[0]]
        bias_first, bias_starts = bias_first or bias_starts, False
    else:  # of the first two products of each chain, the one that was rounded comes first
        for one, first in zip(unsure, as_read, strict=True):
            if not first and not (bias_starts and one is found[0]):
                one[:2] = one[1::-1]
    channel, tap = np.divmod(np.concatenate(found).astype(np.int64), geometry.taps)
    ends = np.cumsum([len(one) for one in found], dtype=np.int64)
    tap, channel = np.ascontiguousarray(tap), np.ascontiguousarray(channel)
    return Terms(tap, channel, ends, bias_first, bias_starts)


def _place_of_bias(root: Node, bias: int) -> tuple[Node, bool, bool]:
    """The tree of the products alone and whether the bias is added to the first chain's sum; or
    the tree as it is, and that a chain starts from the bias."""
    last = root.parts[-1]
    if last.first == bias and not last.parts:
        return Node(root.first, root.parts[:-1]), False, False
    for place, part in enumerate(root.parts):
        if part.first == bias and not part.parts:
            if any(not later.parts for later in root.parts[place + 1 :]):
                break
            if place and chain(Node(root.first, root.parts[:place])) is None:
                break
            if place:
                rest = root.parts[:place] + root.parts[place + 1 :]
                return Node(root.first, rest), True, False
    return root, False, True


@dataclass(frozen=True)
class Found:
    """The order of a layer's sums, in words what it is, and whether it is proven."""

    terms: Terms
    words: str
    proven: bool

    def fits(self, geometry: Geometry, bias: bool) -> bool:
        """Whether this order adds each product of a convolution of this geometry once."""
        order, taps = self.terms, geometry.taps
        terms = order.channel * taps + order.tap
        return (
            order.tap.shape == order.channel.shape
            and np.array_equal(np.sort(terms), np.arange(geometry.terms))
            and bool((order.tap >= 0).all() and (order.tap < taps).all())
            and bool((np.diff(order.segment_end, prepend=0) > 0).all())
            and int(order.segment_end[-1]) == geometry.terms
            and (bias or not (order.bias_first or order.bias_starts))
        )


def order(
    convolve: Convolve,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    steps: Steps,
    threads: int,
    kernel: tuple = (),
) -> Found:
    """The order of the framework's convolution of these tensors; one chain where it is not read.

    ``kernel``: what else tells kernels apart.
    """
    geometry = Geometry(tuple(x.shape), tuple(weight.shape), steps)
    layout = (geometry, x.stride(), weight.stride(), x.dtype, bias is None, kernel)

    def measure() -> Found:
        proven, chosen = False, terms("sequential", geometry.taps, weight.shape[1])
        try:
            chosen = read(convolve, geometry, (x, weight), bias is not None)
            equal = compared = 0
            given = [x, weight, *([] if bias is None else [bias])]
            outputs = x.shape[0] * weight.shape[0] * math.prod(steps.outputs or x.shape[2:])
            for image, kernels, *biases in drawn(given, outputs * geometry.terms):
                b = biases[0] if biases else None
                theirs = widened(convolve(image, kernels, b))
                ours = convolution(
                    Rounding("nearest", threads=threads),
                    lengthened(image, kernels, steps),
                    widened(kernels),
                    b,
                    *steps.widened(),
                    terms=chosen,
                )[tuple(map(slice, theirs.shape))]
                equal += int(same(ours, theirs).sum())
                compared += theirs.numel()
            share, proven = equal / compared, equal == compared
            below = math.floor(1000 * share) / 10  # never 100 where one differs
            words = describe(chosen, geometry.taps, bias is not None)
            words += store.PROVEN if proven else f": {below:.1f}% of values the same"
        except UnreadableError as error:
            words = f"not read ({error}): one chain"
        return Found(chosen, words, proven)

    return store.order(layout, measure, lambda found: found.fits(geometry, bias is not None))


def lengthened(x: torch.Tensor, weight: torch.Tensor, steps: Steps) -> torch.Tensor:
    """The image, three axes of space, with the zeros after its end that let a convolution have
    all outputs."""
    pads: list[int] = []
    for n, k, outputs, (step, pad, spread) in zip(
        x.shape[2:], weight.shape[2:], steps.outputs or x.shape[2:], steps.axes(), strict=True
    ):
        reach = step * (outputs - 1) + spread * (k - 1) + 1 - 2 * pad if steps.outputs else n
        pads = [0, max(0, reach - n), *pads]
    return widened(F.pad(x, pads) if any(pads) else x)  # torch would copy it


def widened(x: torch.Tensor) -> torch.Tensor:
    """(B, C, …) with three axes of space."""
    return x.reshape(*x.shape[:2], *(1,) * (5 - x.dim()), *x.shape[2:])


def describe(terms: Terms, taps: int, bias: bool) -> str:
    """An order in a few words."""
    lengths = np.diff(terms.segment_end, prepend=0)
    number = len(lengths)
    together = terms.channel[: lengths[0]]
    runs = np.flatnonzero(np.diff(terms.tap[: lengths[0]]))
    inner = "taps inner"
    if len(terms.tap) == 1 or terms.tap[0] == terms.tap[1]:
        inner, width = "channels inner", int(runs[0]) + 1 if len(runs) else len(together)
        if width < len(np.unique(together)):
            inner += f" in blocks of {width}"
    within = len(np.unique(terms.tap[: lengths[0]]))
    block = lengths[0] // taps if within == taps and lengths[0] % taps == 0 else 0
    sizes = " + ".join(
        f"{count}×{length}" if count > 1 else str(length) for length, count in _runs(lengths)
    )
    words = "one chain" if number == 1 else f"{number} chains ({sizes})"
    if 1 < number == len(terms.tap):
        words, block = "each product rounded, then added", 0
    across = f", {block} channels each" if number > 1 and block else ""
    across = ", a tap each" if taps > within == 1 < lengths[0] else across
    place = "start" if terms.bias_starts else "first" if terms.bias_first else "last"
    return f"{words}{across}, {inner}" + (f", bias {place}" if bias else "")


def _runs(values: Any) -> list[tuple[int, int]]:
    """Values with how often each follows itself."""
    found: list[tuple[int, int]] = []
    for value in values:
        if found and found[-1][0] == value:
            found[-1] = (int(value), found[-1][1] + 1)
        else:
            found.append((int(value), 1))
    return found
