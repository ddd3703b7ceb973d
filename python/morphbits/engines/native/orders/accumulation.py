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

from functools import lru_cache

import numpy as np

from morphbits import choices
from morphbits.choices import parsed
from morphbits.engines.native.kernels.library import Terms

_DIRECT_CHANNELS = 16


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
