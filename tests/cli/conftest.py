"""What the tests of the verbs share."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest

from morphbits.datasets import phantom


@pytest.fixture(scope="session", autouse=True)
def each_phantom_is_computed_once() -> Iterator[None]:
    """Phantoms are functions of seed, index and size, as tests/datasets/test_phantom.py shows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phantom, "make_phantom", cache(phantom.make_phantom))
        yield
