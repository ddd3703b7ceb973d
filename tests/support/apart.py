"""TensorFlow and torch's compiler never in one process: with torch's CUDA build, Triton's LLVM and
TensorFlow's crash it. Where this is loaded, the second of them is refused by name.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec

APART = ("tensorflow", "torch._dynamo")


class _Refusal:
    """Asked for each module that is not loaded yet, before anybody else. To look for one is
    allowed, as torch's compiler looks for TensorFlow; to load it is not."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        loaded = [other for other in APART if other != name and other in sys.modules]
        return ModuleSpec(name, _Refusal) if name in APART and loaded else None  # type: ignore[arg-type]

    @staticmethod
    def create_module(spec: ModuleSpec) -> None:
        loaded = [other for other in APART if other != spec.name and other in sys.modules]
        raise ImportError(
            f"{spec.name}: {loaded[0]} is in this process already; tests marked tensorflow run by "
            "themselves (pytest -m tensorflow)"
        )

    @staticmethod
    def exec_module(module: object) -> None: ...


def refuse() -> None:
    """From now on."""
    sys.meta_path.insert(0, _Refusal)  # type: ignore[arg-type]
