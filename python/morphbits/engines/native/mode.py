"""Random rounding of torch operators: `random_rounding` and what it does with each operator.

A TorchDispatchMode sees every operator below autograd. One that rounds is sent to a compiled
kernel in which each elementary operation is rounded by the mode; one that moves, compares or
counts passes; any other, on floating-point data, is an error that names it: nothing is silently
left unperturbed. Semantics as Verrou's (Févotte & Lathuilière, "Verrou: a CESTAC evaluation
without recompilation", SCAN 2016), for torch.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from morphbits import stages
from morphbits.engines.native import accumulation as orders
from morphbits.engines.native import operators  # noqa: F401  (fills the table)
from morphbits.engines.native import precision as formats
from morphbits.engines.native.library import MODES, Rounding, elementwise, rounded
from morphbits.engines.native.rules import RULES, passes
from morphbits.engines.native.selftest import self_test
from morphbits.errors import UserError

SUBNORMALS = ("keep", "flush")


@dataclass
class Statistics:
    """What was done so far: elementary operations in all and by operator."""

    operators: dict[str, int] = field(default_factory=Counter)

    @property
    def operations(self) -> int:
        """Elementary operations that the engine rounded."""
        return sum(self.operators.values())


@contextmanager
def random_rounding(
    mode: str = "random",
    seed: int = 1,
    accumulation: str = "sequential",
    subnormals: str = "keep",
    threads: int | None = None,
    precision: str | int = 24,
    perturb: str = "all",
) -> Iterator[Statistics]:
    """Round every floating-point operation of the torch operators inside by `mode`.

        with random_rounding(mode="random", seed=1) as stats:
            y = model(x)
        print(stats.operations)

    mode: nearest, random, nearness, upward, downward or toward_zero (Verrou's names);
    seed: names the random stream, 0 to 2^64 - 1; equal seeds give equal bytes, with any number of
    threads and on any instruction set; accumulation: order of the additions in a convolution (see
    `accumulation`); subnormals: keep, or flush operands and results to zero; threads: torch's
    number if None; precision: bits of each result, or a format's name (see `precision`);
    perturb: all, or only:NAME or except:NAME of the stages that the model announces
    (`morphbits.stages`): outside them each rounding is float32's to nearest.

    Holds for the calling thread's float32 and float64 tensors on the CPU. Raises UserError for an
    option that is not known and, inside, for an operator that the engine does not perturb.
    """
    if mode not in MODES:
        raise UserError(f"rounding mode '{mode}' is not known; use one of {', '.join(MODES)}")
    if subnormals not in SUBNORMALS:
        raise UserError(f"subnormals '{subnormals}' is not known; use keep or flush")
    if not 0 <= seed < 2**64:
        raise UserError(f"seed {seed} is out of range; use 0 to 2^64 - 1")
    if threads is not None and threads < 1:
        raise UserError(f"threads {threads} is out of range; use 1 or more")
    orders.parse(accumulation)
    fewer = formats.parse(precision)
    if fewer != formats.FULL and subnormals == "flush":
        raise UserError(f"precision {precision} needs subnormals=keep: its own format has them")
    _self_test_once()
    rounding = RandomRounding(mode, seed, accumulation, subnormals == "flush", threads, fewer)
    rounding.selection = stages.select(perturb)
    with rounding:
        yield rounding.statistics
    rounding.check_stages()


_tested: list[bool] = []
_hidden: list[bool] = []


def _self_test_once() -> None:
    if not _tested:
        self_test()
        _tested.append(True)


class RandomRounding(TorchDispatchMode):
    """The mode behind `random_rounding`; one object is one random stream."""

    def __init__(
        self,
        mode: str,
        seed: int,
        accumulation: str,
        flush: bool,
        threads: int | None,
        precision: formats.Precision = formats.FULL,
    ) -> None:
        super().__init__()
        self.mode, self.seed, self.accumulation, self.flush = mode, seed, accumulation, flush
        self.threads = threads or torch.get_num_threads()
        self._precision, self.selection = precision, stages.ALL
        self._stages: set[str] = set()
        self.statistics = Statistics()
        self._operators = 0

    def next_rounding(self, name: str, operations: int, accumulates: bool = False) -> Rounding:
        """Count an operator of `operations` elementary operations and give it its own random
        bits. One that accumulates rounds its factors and its result by `factor` and `store`."""
        selected = self.selection.holds()
        self._stages.update(stages.current())
        if selected:
            self.statistics.operators[name] += operations
        key = _mix64(_mix64(self.seed) + self._operators)
        self._operators += 1
        stored = self.precision.stored
        format, operands = self.precision.each, formats.FLOAT32
        if stored != formats.FLOAT32 and not accumulates:
            format, operands = stored, stored
        mode = self.mode if selected else "nearest"
        return Rounding(mode, self.flush, self.threads, key, format=format, operands=operands)

    @property
    def precision(self) -> formats.Precision:
        """What is rounded to what in the stage that is running."""
        return self._precision if self.selection.holds() else formats.FULL

    def check_stages(self) -> None:
        """UserError if a selected stage was none of those that ran."""
        missing = self.selection.names - self._stages
        if missing:
            ran = ", ".join(sorted(self._stages)) or "none"
            raise UserError(
                f"no stage {', '.join(sorted(missing))} was run; this model's stages are: {ran}"
            )

    def factor(self, x: torch.Tensor) -> torch.Tensor:
        """`x` as an operator that accumulates multiplies it."""
        return rounded(x, self.precision.factors, self.threads)

    def store(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """The result `x` of an operator that accumulates, in the format in which it is kept."""
        if self.precision.stored == formats.FLOAT32 or x.dtype != torch.float32:
            return x
        rounding = self.next_rounding(f"{name} (storage)", x.numel())
        return elementwise(rounding, "round", x, in_place=True)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False, or torch would load its compiler (seconds of every process) at the first
        operator, only to hide this class from it; `__enter__` does so where it is loaded."""
        return False

    def __enter__(self) -> RandomRounding:
        if "torch._dynamo" in sys.modules and not _hidden:
            hidden = torch._dynamo.disable(RandomRounding.__torch_dispatch__)
            RandomRounding.__torch_dispatch__ = hidden  # type: ignore[method-assign]
            _hidden.append(True)
        super().__enter__()
        return self

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        rule = RULES.get(func.overloadpacket.__name__)
        if rule is not None and "out" not in kwargs:
            return rule.handler(self, func, *args, **kwargs)
        if passes(func, args, kwargs):
            return func(*args, **kwargs)
        with self:  # a composite operator: its parts come back here
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        if not any(_is_floating(x) for x in tree_leaves((args, kwargs))):
            result = func(*args, **kwargs)
            if not any(_is_floating(x) for x in tree_leaves(result)):
                return result
        raise UserError(
            f"the native engine has no rule for the operator {func} on floating-point data of "
            "these types; write the model with operators it knows (notes/native-engine.md lists "
            "them) and operands of one type, or run it under Verrou"
        )

    def apply(self, operator: Any, *args: Any, **kwargs: Any) -> Any:
        """An operator under this mode, called from a rule."""
        with self:
            return operator(*args, **kwargs)


def _mix64(x: int) -> int:
    """Splitmix64's step (Steele, Lea, Flood 2014)."""
    mask = 2**64 - 1
    x = (x + 1) * 0x9E3779B97F4A7C15 & mask
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & mask
    x = (x ^ x >> 27) * 0x94D049BB133111EB & mask
    return x ^ x >> 31


def _is_floating(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and (x.is_floating_point() or x.is_complex())
