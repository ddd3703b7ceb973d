"""How many bits of a computation in PyTorch, or of a brain registration, are significant?

`random_rounding` rounds the result of every floating-point operation in it randomly up or down.
Repeat a computation with other seeds, and count the leading bits that the results share:

    >>> import torch
    >>> from morphbits import random_rounding
    >>> from morphbits.stats.significance import significant_bits
    >>> _ = torch.manual_seed(0)
    >>> model, x = torch.nn.Linear(64, 1), torch.rand(8, 64)
    >>> samples = []
    >>> with torch.no_grad():
    ...     for seed in range(1, 11):
    ...         with random_rounding(mode="random", seed=seed) as stats:
    ...             samples.append(model(x))
    >>> stats.operations  # 64 products and additions, and the bias, of 8 results
    520
    >>> bits = significant_bits(torch.stack(samples).numpy(), None)
    >>> bool(bits.min() > 15), bool(bits.mean() < 24)
    (True, True)

`random_rounding` needs torch, NumPy and a C compiler; `morphbits.stats.significance`,
`morphbits.registration` and the command `morphbits` need the extra `suite`. Importing this package
imports neither torch nor TensorFlow; the kernels are compiled when `random_rounding` is first
used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from morphbits.engines.native import Statistics, random_rounding

__all__ = ["Statistics", "random_rounding"]
__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """The engine is imported when a name of `__all__` is first used."""
    if name in __all__:
        return getattr(importlib.import_module("morphbits.engines.native"), name)
    raise AttributeError(f"module 'morphbits' has no attribute '{name}'")
