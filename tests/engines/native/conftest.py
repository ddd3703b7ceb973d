"""The variants of the kernels that this processor runs, the naive reference, and the GPU's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings
from support import emulator

from morphbits.engines.native.kernels.library import available_variants

settings.register_profile("morphbits", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("morphbits")

VARIANTS = [*available_variants(), "naive", *(["emulated"] if emulator.FOUND else [])]


@pytest.fixture(scope="session", params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session", params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param
