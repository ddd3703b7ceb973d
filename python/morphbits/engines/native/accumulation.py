"""The order in which a convolution adds its products: part of what is measured.

- `sequential`: one chain of fused multiply-adds from zero, taps outer, input channels inner; the
  bias last. TensorFlow's kernel with oneDNN (channels last), up to 511 input channels.
- `direct`: the bias first; for every 16 input channels a chain over taps (outer) and these
  channels (inner), added to the total. torch's oneDNN kernel on AVX-512.
- `blocked:K`: the sequence of `sequential` cut into chains of K products whose sums are added up;
  the bias last. A matrix multiplication blocked by K, as TensorFlow without oneDNN does (K = 192
  under Valgrind).
- `probe`: that of the framework's own kernel for each layer, measured at run time (`probe`,
  and `probe_sums` for products of matrices and sums); what cannot be read is one chain.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from morphbits import choices
from morphbits.choices import parsed

_DIRECT_CHANNELS = 16


@dataclass(frozen=True, eq=False)
class Terms:
    """The terms of one output of a convolution, in the order of accumulation.

    tap, channel: (terms,) int64, position in the kernel (row-major) and input channel of each
    term; segment_end: (segments,) int64, the term after the last one of each chain. bias_starts:
    the first chain starts from the bias; bias_first: the bias is added to the first chain's sum;
    neither: the bias is added last.
    """

    tap: np.ndarray
    channel: np.ndarray
    segment_end: np.ndarray
    bias_first: bool = False
    bias_starts: bool = False


def parse(accumulation: str) -> tuple[str, int]:
    """Split the option into (kind, block length); UserError if it is none of the four kinds."""
    return parsed("accumulation", choices.accumulation, accumulation)


@lru_cache(maxsize=256)
def terms(accumulation: str, taps: int, channels: int) -> Terms:
    """The order `accumulation` for a kernel of `taps` positions and `channels` input channels."""
    kind, length = parse(accumulation)
    n = taps * channels
    if kind == "direct":
        starts = range(0, channels, _DIRECT_CHANNELS)
        blocks = [np.arange(s, min(s + _DIRECT_CHANNELS, channels)) for s in starts]
        tap = np.concatenate([np.repeat(np.arange(taps), len(b)) for b in blocks])
        channel = np.concatenate([np.tile(b, taps) for b in blocks])
        ends = np.cumsum([taps * len(b) for b in blocks])
    else:
        tap, channel = np.divmod(np.arange(n), channels)
        ends = np.array([*range(length, n, length), n] if kind == "blocked" else [n])
    tap, channel, ends = (np.ascontiguousarray(v, dtype=np.int64) for v in (tap, channel, ends))
    return Terms(tap, channel, ends, bias_first=kind == "direct")
