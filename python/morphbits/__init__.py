"""morphbits: how many bits of a brain registration are significant?

Importing this package never imports TensorFlow, and imports torch only when an engine or a
model is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from morphbits.engines.native import random_rounding

__all__ = ["random_rounding"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`random_rounding` is loaded, and its kernels are compiled, when it is first used."""
    if name == "random_rounding":
        from morphbits.engines.native import random_rounding

        return random_rounding
    raise AttributeError(f"module 'morphbits' has no attribute '{name}'")
