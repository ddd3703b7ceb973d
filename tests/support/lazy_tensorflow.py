"""The modules that import TensorFlow, loaded at their first use.

Tests that use them are marked ``tensorflow`` and wait for their turn (`conftest.py`): the native
engine and TensorFlow do not share a process, and a test module is imported long before its tests
run.
"""

from __future__ import annotations

import importlib
from typing import Any


class _Module:
    """What `name` has, imported when somebody asks."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("__", "_mock")):  # pytest asks all that a test module holds for these
            raise AttributeError(name)
        return getattr(importlib.import_module(self._name), name)


reference = _Module("morphbits.models.synthmorph_tf")
generator_tf = _Module("morphbits.synthesis.generator_tf")
