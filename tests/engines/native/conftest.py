"""The variants of the kernels that this processor runs, and the naive reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings

from morphbits.engines.native.library import available_variants

settings.register_profile("morphbits", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("morphbits")


@pytest.fixture(scope="session", params=[*available_variants(), "naive"])
def variant(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session", params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param
