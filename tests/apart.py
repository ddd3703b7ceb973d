"""TensorFlow and torch's compiler never in one process: with torch's CUDA build, Triton's LLVM and
TensorFlow's crash it. Where this is loaded, the second of them is refused by name.
"""

from __future__ import annotations

import sys

APART = ("tensorflow", "torch._dynamo")


class _Refusal:
    """Asked for each module that is not loaded yet, before anybody else."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        loaded = [other for other in APART if other != name and other in sys.modules]
        if name in APART and loaded:
            raise ImportError(
                f"{name}: {loaded[0]} is in this process already; tests marked tensorflow run by "
                "themselves (pytest -m tensorflow)"
            )


def refuse() -> None:
    """From now on."""
    sys.meta_path.insert(0, _Refusal)  # type: ignore[arg-type]
