"""Networks that nobody here wrote: forward pass, backward pass and a step of AdamW.

`pip install "./python[architectures]"` brings their packages; without them this is skipped.

In mode `nearest`, in float64, against torch: order of additions apart the same operations, to
2^-30 of the largest value: of 53 bits, 23 may be lost on the way through a network, more than any
here does, and a wrong formula is off by more. Some networks convert to float32 inside, whatever
their type: to 2^-14, ten of its 24 bits lost. AdamW turns a derivative that is 0 but for rounding
into anything, so its step is compared with torch's on the same derivatives, to 2^-40: some ten
operations of 2^-53 each. In mode `random`, in float32: other bytes for other seeds, nothing
unperturbed, and the same values to a tenth of the largest.
"""

from __future__ import annotations

import importlib.util
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from support.architectures import MAKERS
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from morphbits import random_rounding

RATE = 1e-3


@pytest.fixture(scope="module", autouse=True)
def operators_of_torchvision() -> None:
    """Transformers imports it where it is there. Its wheel on PyPI is built for CUDA and beside
    torch's CPU build comes without its own operators, which nothing calls here; to be imported it
    needs two of them declared."""
    if importlib.util.find_spec("torchvision") is None:
        return
    extension = Path(importlib.util.find_spec("torchvision").origin).with_name("_C.so")  # type: ignore[union-attr, arg-type]
    try:
        torch.ops.load_library(extension)
    except OSError:
        KEPT.append(torch.library.Library("torchvision", "DEF"))
        for name in ("nms", "qnms"):
            KEPT[0].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


KEPT: list[torch.library.Library] = []


def _numbers(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor) and x.is_floating_point()]


@dataclass
class Step:
    """Of a fresh network: what it gives, its derivatives, and its weights before and after."""

    outputs: list[Tensor]
    gradients: list[Tensor]
    before: list[Tensor]
    after: list[Tensor]
    stats: Any


def _step(
    name: str, dtype: torch.dtype, region: AbstractContextManager[Any] | None = None
) -> Step:
    torch.manual_seed(3)
    model, inputs = MAKERS[name]()
    model.to(dtype)
    inputs = tree_map(lambda x: x.to(dtype) if x.is_floating_point() else x, inputs)
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    torch.manual_seed(4)
    with region or nullcontext() as stats:
        output = model(**inputs)
        numbers = _numbers(output if isinstance(output, (tuple, list, Tensor)) else dict(output))
        sum((x * x.detach().cos()).mean() for x in numbers if x.requires_grad).backward()  # type: ignore[union-attr]
        optimizer.step()
    used = [(w, p) for w, p in zip(before, model.parameters(), strict=True) if p.grad is not None]
    gradients = [p.grad for _, p in used if p.grad is not None]
    after = [p.detach() for _, p in used]
    return Step([x.detach() for x in numbers], gradients, [w for w, _ in used], after, stats)


def _torchs_step(step: Step) -> list[Tensor]:
    """The weights after torch's own step on these derivatives."""
    weights = [nn.Parameter(w.clone()) for w in step.before]
    for weight, gradient in zip(weights, step.gradients, strict=True):
        weight.grad = gradient
    torch.optim.AdamW(weights, lr=RATE).step()
    return [w.detach() for w in weights]


def _off(found: list[Tensor], expected: list[Tensor]) -> float:
    """The greatest difference, beside the greatest value of all."""
    assert [x.shape for x in found] == [x.shape for x in expected]
    differences = [(a - b).abs().max() for a, b in zip(found, expected, strict=True) if a.numel()]
    most = max(float(b.abs().max()) for b in expected if b.numel())
    return float(max(differences)) / most


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKERS)
def test_an_architecture_computes_as_torch_does_and_is_perturbed(name: str) -> None:
    package = name.split()[0]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"no package {package}: pip install './python[architectures]'")
    expected = _step(name, torch.float64)
    found = _step(name, torch.float64, random_rounding("nearest"))
    converts = any("(conversion)" in operator for operator in found.stats.operators)
    bound = 2**-14 if converts else 2**-30
    assert _off(found.outputs, expected.outputs) < bound
    assert _off(found.gradients, expected.gradients) < bound
    assert _off(found.after, _torchs_step(found)) < 2**-40
    one = _step(name, torch.float32, random_rounding(seed=1))
    two = _step(name, torch.float32, random_rounding(seed=2))
    assert one.stats.operations > 1000 and not one.stats.unperturbed
    assert any(not torch.equal(a, b) for a, b in zip(one.outputs, two.outputs, strict=True))
    assert _off([x.double() for x in one.outputs], expected.outputs) < 0.1
