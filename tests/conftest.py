"""What holds for all tests."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that load TensorFlow into this process come after all that must not see it."""
    items.sort(key=lambda item: item.get_closest_marker("tensorflow") is not None)
