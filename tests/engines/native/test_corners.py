"""Warps sampled in two programs: the same numbers as operator by operator."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from morphbits import stages
from morphbits.engines.native import random_rounding
from morphbits.engines.native.dispatch import RandomRounding
from morphbits.models import spatial

SETTINGS: list[dict[str, Any]] = [
    *({"mode": mode} for mode in ("random", "nearness", "nearest", "upward", "toward_zero")),
    {"mode": "random", "subnormals": "flush"},
    {"mode": "random", "precision": "12"},
    {"mode": "random", "perturb": "except:squaring-2"},
]


class Looking(TorchDispatchMode):
    """Does nothing but look on."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each sampling that was offered, whether it was computed in programs."""
    found: list[bool] = []
    corners = RandomRounding.corners

    def told(*arguments: Any) -> Any:
        result = corners(*arguments)
        found.append(result is not NotImplemented)
        return result

    monkeypatch.setattr(RandomRounding, "corners", told)
    return found


def sampled(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """A warp integrated and rescaled, and an image with a zero of each sign moved by it."""
    rng = torch.Generator().manual_seed(1)
    svf = torch.randn((1, 3, 5, 6, 7), generator=rng, dtype=dtype)
    image = torch.rand((1, 1, 10, 12, 14), generator=rng, dtype=dtype) - 0.5
    image[..., :4] = -0.0
    warp = spatial.rescale(spatial.integrate(svf, 3), 2)
    return spatial.transform(image, warp), warp


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_as_operator_by_operator(
    settings: dict[str, Any], dtype: torch.dtype, used: list[bool]
) -> None:
    if dtype == torch.float64 and "precision" in settings:
        pytest.skip("precision is float32's")
    found = []
    for looking in (False, True):  # who looks on sees each operator
        with torch.no_grad(), random_rounding(seed=5, **settings) as counts, ExitStack() as stack:
            if looking:
                stack.enter_context(Looking())
            found.append([*sampled(dtype), torch.ones(9) / 3, dict(counts.operators)])
    assert used == [True] * 5 + [False] * 5
    assert found[0][-1] == found[1][-1]
    for one, other in zip(found[0][:-1], found[1][:-1], strict=True):
        assert one.numpy().tobytes() == other.numpy().tobytes()


def test_gradients_are_recorded(used: list[bool]) -> None:
    svf = torch.randn((1, 3, 4, 4, 4), requires_grad=True)
    with random_rounding(seed=1):
        spatial.integrate(svf, 2).sum().backward()
    assert svf.grad is not None and svf.grad.abs().sum() > 0
    assert used == [False] * 2


def test_offers_end_with_the_region(used: list[bool]) -> None:
    with torch.no_grad(), random_rounding(seed=1), random_rounding(seed=2):
        pass
    with torch.no_grad():
        sampled()
    assert stages.offered("corners") is NotImplemented and not used
    with torch.no_grad(), random_rounding(seed=1):
        torch.vmap(lambda x: spatial.integrate(x[None], 1))(torch.randn(2, 3, 4, 4, 4))
    assert used == [False]
