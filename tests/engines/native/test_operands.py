"""Tensors that are no plain arrays: wrappers, whose parts are perturbed, and what has no memory.

Where nothing is refused, a crash of the process would be the failure: these tests run after the
kinds were tried one by one in processes of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._pytree import tree_map

from morphbits import random_rounding
from morphbits.errors import UserError

CALLS: dict[str, Callable[[Any], Any]] = {
    "mul": lambda x: x * 0.1,
    "exp": lambda x: x.exp(),
    "mm": lambda x: x @ x.new_ones(4, 4),
    "linear": lambda x: torch.nn.functional.linear(x, x.new_ones(4, 4)),
    "sum": lambda x: x.sum(-1),
    "add_": lambda x: torch.ones(4, 4).add_(x, alpha=0.1),
    "scalar": lambda x: x * torch.tensor(0.1),
    "double": lambda x: x.double() * 0.1,
    "softmax": lambda x: torch.softmax(x, -1),
}


class Wrapper(Tensor):
    """Holds a tensor, and computes on that."""

    elem: Tensor

    @staticmethod
    def __new__(cls, x: Tensor) -> Wrapper:
        wrapper = torch.Tensor._make_wrapper_subclass(cls, x.shape, dtype=x.dtype)
        wrapper.elem = x
        return wrapper

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inner = tree_map(lambda x: x.elem if isinstance(x, Wrapper) else x, (args, kwargs or {}))
        outer = func(*inner[0], **inner[1])
        return tree_map(lambda x: cls(x) if isinstance(x, Tensor) else x, outer)


class Hidden(Tensor):
    """A tensor with memory, computed where no mode sees it."""

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C._DisableTorchDispatch():
            return func(*args, **(kwargs or {}))


class Refuses(Wrapper):
    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return NotImplemented


class Named(Tensor):
    """A class without a dispatch of its own."""


def values() -> Tensor:
    return torch.rand(4, 4, generator=torch.Generator().manual_seed(1)) + 1


@pytest.mark.parametrize("name", CALLS)
def test_the_parts_of_wrappers_are_perturbed(name: str) -> None:
    """In the bytes and the count of the parts by themselves."""
    call = CALLS[name]

    def up(x: Any) -> tuple[Any, int]:
        with random_rounding("upward") as stats:
            return call(x), stats.operations

    expected, counted = up(values())
    assert not torch.equal(expected, call(values())) or name in ("mm", "linear", "sum")
    for wrap, unwrap in (
        (Wrapper, lambda y: getattr(y, "elem", y)),
        (lambda x: Wrapper(Wrapper(x)), lambda y: y.elem.elem if isinstance(y, Wrapper) else y),
        (lambda x: torch.nn.Parameter(Wrapper(x)).detach(), lambda y: getattr(y, "elem", y)),
        (lambda x: x.as_subclass(Named), lambda y: y.as_subclass(Tensor)),
    ):
        found, number = up(wrap(values()))
        assert torch.equal(unwrap(found), expected) and number == counted
    if name != "add_":
        two, number = up(TwoTensor(values(), values()))
        assert torch.equal(two.a, expected) and torch.equal(two.b, expected)
        assert number == 2 * counted


def test_backward_passes_and_optimizers_on_wrappers_are_perturbed() -> None:
    weight = torch.nn.Parameter(TwoTensor(values(), values()))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    with random_rounding("upward") as stats:
        (weight * weight).sum().backward()
        optimizer.step()
    assert {"mul", "sum", "add_"} <= stats.operators.keys() | {"add_"}
    assert (weight.grad.a.double() >= 2 * values().double()).all()
    assert (weight.a != values() - 0.1 * weight.grad.a).any()


def test_jagged_and_masked_tensors_are_perturbed() -> None:
    parts = [values()[:2], values()[2:]]
    jagged = torch.nested.nested_tensor(parts, layout=torch.jagged)
    masked = torch.masked.masked_tensor(values(), values() > 1.5)
    expected = values() * 0.1
    with random_rounding("upward") as stats:
        found = [jagged * 0.1, masked * 0.1]
        softmax = torch.softmax(jagged, -1)
    assert stats.operators["mul"] == 32 and stats.operators["_softmax"] == 4 * (4 + 4 + 3 + 4)
    assert (found[0].values() >= expected).all() and (found[1].get_data() >= expected).all()
    assert torch.allclose(softmax.values(), torch.softmax(values(), -1), rtol=2**-20)


@pytest.mark.parametrize("name", CALLS)
def test_a_class_that_computes_unseen_is_named(name: str) -> None:
    x = torch.Tensor._make_subclass(Hidden, values())
    with random_rounding(), pytest.raises(UserError, match="of the class Hidden, which computes"):
        CALLS[name](x)
    with random_rounding(), pytest.raises(TypeError, match="Refuses"):
        Refuses(values()).exp()
    with random_rounding() as stats:  # moves
        assert x.clone().shape == (4, 4)
    assert stats.operations == 0


def test_tensors_of_shapes_alone_pass() -> None:
    with FakeTensorMode() as mode:
        fake = torch.ones(4, 4)
    for x, names in (
        (fake, ("mul", "exp", "sum", "softmax", "double")),
        (values().to("meta"), CALLS),
    ):
        for name in names:
            if name in ("add_", "scalar"):
                continue
            with random_rounding() as stats:
                y = CALLS[name](x)
            assert y.shape == CALLS[name](values()).shape and stats.operations == 0
    with mode, random_rounding():
        assert (torch.ones(4) * 0.1).shape == (4,)


def _freed() -> Tensor:
    x = values()
    x.untyped_storage().resize_(0)
    return x


WITHOUT_MEMORY: dict[str, tuple[Callable[[], Tensor], str]] = {
    "coo": (lambda: values().to_sparse(), "torch.sparse_coo tensors"),
    "csr": (lambda: values().to_sparse_csr(), "torch.sparse_csr tensors"),
    "csc": (lambda: values().to_sparse_csc(), "torch.sparse_csc tensors"),
    "bsr": (lambda: values().to_sparse_bsr((2, 2)), "torch.sparse_bsr tensors"),
    "onednn": (lambda: values().to_mkldnn(), "oneDNN's own layout"),
    "nested": (lambda: torch.nested.nested_tensor(list(values().split(2))), "nested tensors"),
    "quantized": (
        lambda: torch.quantize_per_tensor(values(), 0.1, 0, torch.quint8),
        "quantized tensors",
    ),
    "by channel": (
        lambda: torch.quantize_per_channel(
            values(), torch.ones(4), torch.zeros(4), 0, torch.qint8
        ),
        "quantized tensors",
    ),
    "freed": (_freed, "memory was given back"),
}


@pytest.mark.parametrize("kind", WITHOUT_MEMORY)
def test_what_has_no_dense_memory_is_refused_by_name(kind: str) -> None:
    make, message = WITHOUT_MEMORY[kind]
    plain = torch.ones(4, 4)
    calls = {
        **CALLS,
        "mm": lambda x: x @ plain,
        "linear": lambda x: torch.nn.functional.linear(x, plain),
        "second": lambda x: plain * x,
        "out": lambda x: torch.mul(plain, 0.1, out=x),
        "foreach": lambda x: torch._foreach_mul([plain, x], 0.1),
    }
    for name, call in calls.items():
        x = make()
        with random_rounding(), pytest.raises(UserError, match=message):
            call(x), name


def test_what_quantized_tensors_would_round_is_refused() -> None:
    q = torch.quantize_per_tensor(values(), 0.1, 0, torch.quint8)
    other = torch.quantize_per_tensor(values(), 0.2, 0, torch.quint8)
    calls: tuple[Callable[[], object], ...] = (
        q.dequantize,
        lambda: torch.quantize_per_tensor(values(), 0.1, 0, torch.quint8),
        lambda: torch.cat([q, other]),
        lambda: torch.ops.quantized.add(q, other, 0.1, 0),
    )
    for call in calls:
        with random_rounding(), pytest.raises(UserError, match="has no rule for"):
            call()
    with random_rounding():
        view = q.view(2, 8)
    assert torch.equal(view.int_repr(), q.int_repr().view(2, 8))


def test_lists_on_meta_take_numbers_that_change() -> None:
    """A plan takes these numbers as one tensor, which lies in memory."""
    x = torch.ones(3, device="meta")
    with random_rounding() as stats:
        torch._foreach_mul_([x], [0.3])
        torch._foreach_addcdiv_([x], [x], [x], [0.7])
    assert stats.operations == 0


def test_meta_beside_memory_is_refused() -> None:
    for call in (lambda m: m * values(), lambda m: values().add_(m), lambda m: m @ values()):
        with random_rounding(), pytest.raises(UserError, match=r"meta \(device\) tensors"):
            call(torch.rand(4, 4, device="meta"))


def test_views_that_torch_resolves_first_are_perturbed() -> None:
    """A negated view, a zero without memory, a tensor of the functionalization."""
    view = torch.complex(values(), values()).conj().imag
    assert view.is_neg()
    x, nothing = values(), torch._efficientzerotensor((4, 4))
    with random_rounding("upward") as stats:
        negated = view * 0.1
        zero = nothing * 0.1 + x
        functional = torch.func.functionalize(lambda x: x * 0.1)(x)
    assert (negated.double() >= -values().double() * float(torch.tensor(0.1))).all()
    assert torch.equal(zero, values()) and (functional >= values() * 0.1).all()
    assert stats.operators["mul"] >= 32
