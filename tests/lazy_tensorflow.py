"""The TensorFlow reference, loaded at its first use.

Tests that use it are marked ``tensorflow`` and run last (`conftest.py`): the native engine and
TensorFlow do not share a process, and a test module is imported long before its tests run.
"""

from __future__ import annotations

import importlib
from typing import Any


class _Reference:
    """`morphbits.models.synthmorph_tf`, which pytest does not load by looking at this name."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(importlib.import_module("morphbits.models.synthmorph_tf"), name)


reference = _Reference()
