"""CTC loss and its gradient (LossCTC.cpp): sums of probabilities over alignments, in logarithms.

(N, S): images and states, S = 2·L + 1 for targets of at most L labels, a blank around each label;
(T, N, C): time, images, classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

import torch

from morphbits.engines.native.rules.arithmetic import Operator
from morphbits.engines.native.rules.registry import rule

T = torch.Tensor


def _log_sum(op: Operator, *terms: T) -> T:
    """log(exp(a − m) + exp(b − m) + …) + m, m the greatest; −∞ where all are."""
    top = torch.stack(terms).amax(0)
    none = top == -inf
    top = torch.where(none, 0.0, top).to(top.dtype)
    total = op.chain("add", torch.stack([op.function("exp", op.sub(x, top)) for x in terms]))
    total = torch.where(none, 1.0, total).to(top.dtype)
    return torch.where(none, -inf, op.add(op.function("log", total), top)).to(top.dtype)


class _States:
    """The states of the alignments: blank, label, blank, label, …, blank."""

    def __init__(self, targets: T, inputs: Any, labels: Any, blank: int, images: int) -> None:
        self.times = torch.as_tensor(inputs).long().reshape(-1)
        self.labels = torch.as_tensor(labels).long().reshape(-1)
        width = int(self.labels.max()) if images else 0
        rows = torch.full((images, width), blank, dtype=torch.long)
        start = 0
        for i, n in enumerate(self.labels.tolist()):
            rows[i, :n] = targets[i, :n] if targets.dim() == 2 else targets[start : start + n]
            start += n
        self.classes = torch.full((images, 2 * width + 1), blank, dtype=torch.long)
        self.classes[:, 1::2] = rows
        self.count = 2 * self.labels + 1  # states of each image
        self.there = torch.arange(2 * width + 1) < self.count[:, None]
        before = torch.full_like(self.classes, -1)
        before[:, 2:] = self.classes[:, :-2]
        # a label may follow another label at once
        self.skips = (self.classes != blank) & (before >= 0) & (self.classes != before)

    def chances(self, x_TNC: T) -> T:
        """(T, N, S): log-probabilities of the states' classes."""
        return x_TNC.gather(2, self.classes.expand(len(x_TNC), -1, -1))


def _later(x_NS: T, by: int) -> T:
    """Each state gets the value of the state `by` before it, −∞ where there is none."""
    out = torch.full_like(x_NS, -inf)
    if x_NS.shape[1] > by:
        out[:, by:] = x_NS[:, : x_NS.shape[1] - by]
    return out


def _forward(op: Operator, chances_TNS: T, states: _States, first_NS: T) -> T:
    """(T, N, S): logarithms of the sums over all ways to each state, from `first` on."""
    sums = [first_NS]
    never = torch.full((), -inf, dtype=first_NS.dtype)
    for chance in chances_TNS[1:]:
        last = sums[-1]
        two = torch.where(states.skips, _later(last, 2), never)
        way = op.add(_log_sum(op, last, _later(last, 1), two), chance)
        sums.append(torch.where(states.there, way, never))
    return torch.stack(sums)


@rule(
    "_ctc_loss",
    "time by time: the log of a chain of three exponentials, less their greatest, added to it; "
    "then the log-probability; at the end two states in the same way",
)
def _ctc(
    op: Operator,
    x: T,
    targets: T,
    inputs: T | Sequence[int],
    labels: T | Sequence[int],
    blank: int = 0,
    zero_infinity: bool = False,
) -> tuple[T, T]:
    op.check(x)
    plain = op.func(x, targets, inputs, labels, blank, zero_infinity)  # says what does not fit
    images = x.shape[1]
    states = _States(targets, inputs, labels, blank, images)
    chances = states.chances(x)
    first = torch.full_like(chances[0], -inf)
    first[:, :2] = chances[0, :, :2]
    first = torch.where(states.there, first, -inf).to(x.dtype)
    alpha = _forward(op, chances, states, first)
    every = torch.arange(images)
    end = alpha[states.times.clamp(min=1) - 1, every]
    last, label = (end.gather(1, (states.count - k).clamp(min=0)[:, None])[:, 0] for k in (1, 2))
    label = torch.where(states.labels > 0, label, -inf).to(x.dtype)
    loss = -_log_sum(op, last, label)
    none = torch.where(states.labels > 0, inf, 0.0).to(x.dtype)  # no time at all
    loss = torch.where(states.times > 0, loss, none)
    return loss, alpha.movedim(0, 1).contiguous().view(plain[1].shape)


def _earlier(x_NS: T, by: int) -> T:
    """Each state gets the value of the state `by` after it, −∞ where there is none."""
    return _later(x_NS.flip(1), by).flip(1)


def _backward(op: Operator, chances_TNS: T, states: _States) -> T:
    """(T, N, S): logarithms of the sums over all ways from each state to the end."""
    state, never = torch.arange(states.classes.shape[1]), torch.full((), -inf)
    final = (state >= states.count[:, None] - 2) & states.there
    never = never.to(chances_TNS.dtype)
    skips = torch.zeros_like(states.skips)
    skips[:, :-2] = states.skips[:, 2:]
    last, sums = torch.full_like(chances_TNS[0], -inf), []
    for t in reversed(range(len(chances_TNS))):
        two = torch.where(skips, _earlier(last, 2), never)
        way = op.add(_log_sum(op, last, _earlier(last, 1), two), chances_TNS[t])
        left = (states.times - 1 - t)[:, None]
        way = torch.where(states.there & (left > 0), way, never)
        last = torch.where(final & (left == 0), chances_TNS[t], way)
        sums.append(last)
    return torch.stack(sums[::-1])


@rule(
    "_ctc_loss_backward",
    "the sums from the end as the loss's from the start; for each class the log of the sum over "
    "its states, state by state; (exp(x) − exp(sum + loss − x))·gradient",
)
def _ctc_backward(
    op: Operator,
    g: T,
    x: T,
    targets: T,
    inputs: T | Sequence[int],
    labels: T | Sequence[int],
    loss: T,
    alpha: T,
    blank: int,
    zero_infinity: bool = False,
) -> T:
    op.check(g, x)
    (times, images, _) = x.shape
    states = _States(targets, inputs, labels, blank, images)
    beta = _backward(op, states.chances(x), states)
    during = torch.arange(times)[:, None] < states.times
    ways = torch.where(beta == -inf, -inf, alpha.movedim(1, 0)).to(x.dtype)
    both = op.add(ways, beta)
    sums = torch.full_like(x, -inf)
    for s in range(both.shape[2]):
        index = states.classes[:, s, None].expand(times, -1, 1)
        sums = sums.scatter(2, index, _log_sum(op, sums.gather(2, index), both[:, :, s, None]))
    expected = op.function("exp", op.sub(op.add(sums, loss[:, None]), x))
    out = op.mul(op.sub(op.function("exp", x), expected), g[:, None])
    left_out = ~during | (zero_infinity & (loss == inf))
    return torch.where(left_out[..., None], torch.zeros((), dtype=x.dtype), out)
