"""What a rule may ask of the region that it computes in: random bits, counters, precision, orders.

One object is one random stream. `dispatch.RandomRounding` adds what torch calls.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch

from morphbits import stages
from morphbits.engines.native import selftest
from morphbits.engines.native.kernels import plans, program
from morphbits.engines.native.kernels import precision as formats
from morphbits.engines.native.kernels.library import Rounding, Terms, elementwise, mix64, rounded
from morphbits.engines.native.orders import accumulation as orders
from morphbits.engines.native.scope import Scope
from morphbits.errors import UserError


@dataclass
class Statistics:
    """What a region has done so far; `random_rounding` gives it."""

    operators: dict[str, int] = field(default_factory=Counter)
    """Elementary operations that were rounded, by operator."""
    unperturbed: dict[str, int] = field(default_factory=Counter)
    """Calls of operators that `allow` let pass, by operator."""
    orders: dict[str, str] = field(default_factory=dict)
    """With `accumulation="probe"`: the order that was measured for each layer."""

    @property
    def operations(self) -> int:
        """Elementary operations that were rounded, in all."""
        return sum(self.operators.values())


_alone: list[bool] = []
_ways: dict[Any, int] = {}  # combinations of regions' options
_numbers = count()  # of these


def _in_child() -> None:
    """GNU OpenMP's threads do not come along into a forked process, where it waits for them."""
    if selftest.tested:
        _alone.append(True)


os.register_at_fork(after_in_child=_in_child)


class Context(ABC):
    """One region's random stream, statistics and settings."""

    scope: Scope  # of the region that is open

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
        self.mode, self.accumulation, self.flush = mode, accumulation, flush
        self.restart(seed, 0)
        self._unkeyed: dict[bool, Rounding] = {}  # by whether the stage that runs is selected
        self._way: dict[bool, int | None] = {}
        self.threads = 1 if _alone else threads or torch.get_num_threads()
        self.onednn = torch._C._get_mkldnn_enabled()  # outside; inside, it is switched off
        self._precision, self.selection = precision, stages.ALL
        self._stages: set[str] = set()
        self.allowed: frozenset[str] = frozenset()
        self.statistics = Statistics()
        self._asking = False
        self._calls = 0  # of operators on tensors that are no wrappers
        self._widened = False  # an operator on float16 or bfloat16 is computed in float32
        self._process = os.getpid()
        self.refusal: str | None = None

    def restart(self, seed: int, position: int) -> None:
        """Go on in the stream of `seed`, after its first `position` operators."""
        self.seed, self.start, self.position = seed, mix64(seed), position

    def next_rounding(self, name: str, operations: int, accumulates: bool = False) -> Rounding:
        """Count an operator of `operations` elementary operations and give it its own random
        bits. One that accumulates rounds its factors and its result by `factor` and `store`."""
        position = self.draw(name, operations)
        like, number = self.unkeyed, self.start + position
        format, operands = like.format, like.operands
        if accumulates:
            format, operands = self.precision.each, formats.FLOAT32
        key = mix64(number)
        return Rounding(like.mode, self.flush, self.threads, key, None, format, operands, number)

    def draw(self, name: str, operations: int) -> int:
        """Count an operator of `operations` elementary operations; its number in the stream."""
        self.advance(1, ((name, operations),))
        return self.position - 1

    @property
    def next_draw(self) -> int:
        """From which a kernel counts that draws for several operations."""
        return self.start + self.position

    def counts_since(self, before: Mapping[str, int]) -> list[tuple[str, int]]:
        """Elementary operations by name, counted since the statistics were `before`."""
        now = self.statistics.operators
        return [(n, now[n] - before.get(n, 0)) for n in now if now[n] != before.get(n)]

    def advance(self, draws: int, counts: Iterable[tuple[str, int]]) -> None:
        """Count operators, and their elementary operations by name."""
        self.scope.check()
        if running := stages.current():
            self._stages.update(running)
        if self.selected:
            for name, operations in counts:
                self.statistics.operators[name] += operations
        self.position += draws

    @property
    def selected(self) -> bool:
        """Whether what is running is perturbed."""
        return self.selection is stages.ALL or self.selection.holds()

    @property
    def unkeyed(self) -> Rounding:
        """How the next operation is rounded, but for its random bits."""
        selected = self.selected
        if selected not in self._unkeyed:
            precision = self._precision if selected else formats.FULL
            single = precision.stored == formats.FLOAT32
            format = precision.each if single else precision.stored
            mode = self.mode if selected else "nearest"
            self._unkeyed[selected] = Rounding(
                mode, self.flush, self.threads, format=format, operands=precision.stored
            )
        return self._unkeyed[selected]

    @property
    def way(self) -> int | None:
        """Stands for the options in force at the next operation; None if no plans are kept."""
        selected = self.selected
        if selected not in self._way:
            variant = self.unkeyed.chosen_variant
            how = self.mode, self.flush, self.threads, variant, self._precision, selected
            settings = self.accumulation, self.onednn, program.recording
            kept, options = plans.keeping and self.accumulation != "probe", (*how, *settings)
            self._way[selected] = _ways.setdefault(options, next(_numbers)) if kept else None
        return self._way[selected]

    def key(self) -> int:
        """Stands for the random bits of the operator that comes next."""
        plans.refuse()
        return mix64(self.next_draw)

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

    def probes(self, x: torch.Tensor) -> bool:
        """Whether the framework's own order is to be measured for this tensor."""
        if self.accumulation == "probe" and x.is_cuda:
            raise UserError(
                "accumulation=probe reads the orders of torch's kernels on the CPU; on a GPU use "
                "sequential, direct or blocked:K"
            )
        return self.accumulation == "probe"

    def probed(self, layer: str, words: str) -> None:
        """Enter what was found into the statistics. Of 16-bit operands the kernel that was read is
        that of float32, which says nothing of the framework's bytes."""
        if self._widened:
            layer, words = f"{layer}, 16 bits", words.removesuffix(": the same bytes")
            words = words if words.startswith("not read") else f"{words}, read in float32"
        self.statistics.orders[layer] = words

    def not_probed(self, name: str, instead: str) -> None:
        """Note in the statistics that the order of an operator's additions was not measured."""
        if self.accumulation == "probe":
            self.statistics.orders[name] = f"not probed: {instead}"

    def order(self, name: str, taps: int, channels: int) -> Terms:
        """The order in which an operator that is not probed adds its products."""
        self.not_probed(name, "one chain")
        return orders.terms(self.accumulation, taps, channels)

    def as_framework(self, kernel: Callable[..., Any], *tensors: Any) -> Any:
        """What the framework's kernel gives outside of this mode, which switches oneDNN off."""
        inside = torch._C._get_mkldnn_enabled()
        torch._C._set_mkldnn_enabled(self.onednn)
        try:
            return kernel(*tensors)
        finally:
            torch._C._set_mkldnn_enabled(inside)

    def factor(self, x: torch.Tensor) -> torch.Tensor:
        """`x` as an operator that accumulates multiplies it."""
        return rounded(x, self.precision.factors, self.threads)

    def store(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """The result `x` of an operator that accumulates, in the format in which it is kept."""
        if self.precision.stored == formats.FLOAT32 or x.dtype != torch.float32:
            return x
        rounding = self.next_rounding(f"{name} (storage)", x.numel())
        return elementwise(rounding, "round", x, in_place=True)

    @property
    def widened(self) -> bool:
        """Whether the running operator is one on float16 or bfloat16, computed in float32."""
        return self._widened

    @abstractmethod
    def apply(self, operator: Any, *args: Any, **kwargs: Any) -> Any:
        """Call an operator of torch from a rule: it is perturbed in its turn."""
