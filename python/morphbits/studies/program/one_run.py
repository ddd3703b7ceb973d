"""One run of a program with a float64 shadow: bits of what its modules return, and counters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from morphbits import stages
from morphbits.engines.shadow import Shadow
from morphbits.stats.one_run import counter_row, estimated_bits
from morphbits.studies.program.comparison import without_nan

TYPE_BITS = {torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}


@dataclass
class _Results:
    """Of one module, over its calls."""

    tensors: int = 0
    numbers: int = 0
    bits: float = 0.0  # their sum
    of: int = 0


class OneRun:
    """The shadow of what the main thread computes, each module of torch a stage.

    mode, runs: of the samples whose bits are estimated.
    """

    def __init__(self, mode: str, runs: int) -> None:
        self._mode, self._runs = mode, runs
        self._shadow = Shadow()
        self._found: dict[str, _Results] = {}

    def watch(self, program: Callable[[], None]) -> None:
        """Call the program. A module is named by its place in the first one that is called, and
        that one by its class."""
        call = torch.nn.Module.__call__
        names: WeakKeyDictionary[torch.nn.Module, str] = WeakKeyDictionary()

        def staged(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
            if module not in names:
                for name, part in module.named_modules(prefix=type(module).__name__):
                    names.setdefault(part, name)
            return stages.run(names[module], lambda: call(module, *args, **kwargs))

        torch.nn.Module.__call__ = staged  # type: ignore[method-assign, assignment]
        try:
            with self._shadow, stages.observed(self._observe):
                program()
        finally:
            torch.nn.Module.__call__ = call  # type: ignore[method-assign]

    def _observe(self, stage: str, result: Any) -> None:
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor) and x.dtype in TYPE_BITS:
                of = TYPE_BITS[x.dtype]
                exact = self._shadow.of(x).numpy(force=True)
                values = x.float().numpy(force=True)
                bits = estimated_bits(values, exact, self._runs, self._mode, of)
                counted = bits[np.isfinite(bits)]
                found = self._found.setdefault(stage, _Results())
                found.tensors += 1
                found.numbers += counted.size
                found.bits += float(counted.sum())
                found.of = max(found.of, of)

    def tables(self) -> dict[str, Any]:
        """one_run: bits of what each module returns, mean over the numbers of all its calls;
        counters: by module; unshadowed: calls of operators that float64 could not follow."""
        rows = [
            {
                "stage": stage,
                "tensors": found.tensors,
                "numbers": found.numbers,
                "bits": min(found.of, found.bits / found.numbers),
                "of": found.of,
            }
            for stage, found in self._found.items()
            if found.numbers
        ]
        counts = self._shadow.counts.items()
        counters = [counter_row(stage, of) for stage, of in counts if of.results]
        return {
            "one_run": rows,
            "counters": without_nan(counters),
            "unshadowed": dict(self._shadow.unshadowed),
            "estimated_for": {"mode": self._mode, "runs": self._runs},
        }
