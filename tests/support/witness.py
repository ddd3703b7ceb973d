"""What reaches torch itself while the engine perturbs: a mode outside `random_rounding`.

Operators that pass, and those that the rules use to move data, come out below the engine and are
seen here. None of them may round, but for constants of the program that become a tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

# what these return is drawn, left unset, or may hold a constant, rounded to nearest as in torch
NOT_COMPARED = frozenset(
    """
    bernoulli bernoulli_ clamp clamp_ clamp_max clamp_min constant_pad_nd empty empty_like
    empty_strided exponential_ fill fill_ full full_like hardtanh hardtanh_ index_fill index_fill_
    masked_fill masked_fill_ new_empty new_empty_strided new_full nextafter normal_ rand rand_like
    randn randn_like resize_ resize_as_ scalar_tensor threshold threshold_ uniform_ where
    """.split()
)


class Witness(TorchDispatchMode):
    """Collects in `rounded` every operator on float32 that changed its exact result."""

    def __init__(self) -> None:
        super().__init__()
        self.rounded: list[str] = []
        self.seen: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        self.seen.add(name)
        if name in NOT_COMPARED:
            return func(*args, **kwargs)
        before = tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, args)
        result = func(*args, **kwargs)
        single = isinstance(result, torch.Tensor) and result.dtype == torch.float32
        if single and not result.is_meta:
            double = torch.float64
            options = {k: double if isinstance(v, torch.dtype) else v for k, v in kwargs.items()}
            exact = func(*tree_map(_double, before), **options)
            if not torch.equal(*(_comparable(x) for x in (exact, result))):
                self.rounded.append(str(func))
        return result


def _comparable(x: torch.Tensor) -> torch.Tensor:
    return x.double().nan_to_num(7, torch.inf, -torch.inf)


def _double(x: Any) -> Any:
    return x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
