"""The TensorFlow reference, loaded at its first use.

Tests that use it are marked ``tensorflow`` and run last (`conftest.py`): the native engine and
TensorFlow do not share a process, and a test module is imported long before its tests run.
"""

from __future__ import annotations

import sys
from importlib.util import LazyLoader, find_spec, module_from_spec
from types import ModuleType


def _lazy(name: str) -> ModuleType:
    spec = find_spec(name)
    assert spec is not None and spec.loader is not None, name
    spec.loader = LazyLoader(spec.loader)
    module = sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = _lazy("morphbits.models.synthmorph_tf")
