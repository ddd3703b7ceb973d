"""What holds for all tests."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
from support import apart

apart.refuse()
# tensorboard, which MONAI imports, would load TensorFlow; with this module there it does not
sys.modules.setdefault("tensorboard.compat.notf", ModuleType("notf"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with a test that loads TensorFlow into this process come after all that must not see
    it; a worker of xdist is given whole files. Make runs them by themselves (`apart`)."""
    last = {item.path for item in items if item.get_closest_marker("tensorflow")}
    items.sort(key=lambda item: item.path in last)
