"""Torch's fused and compiled paths, switched off while any thread computes in a region.

The switches are the process's: the first region that opens sets them, the last one that closes
brings back what was there.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch

from morphbits.errors import UserError

_lock, _open, _before = threading.Lock(), [0], ExitStack()
_guarded: list[type] = []


@contextmanager
def paths(inside: Callable[[], bool]) -> Iterator[None]:
    """Fused attention, fused transformer layers, oneDNN's own operators and compiled functions
    switched off; `inside` says whether the calling thread is in a region."""
    _guard_inductor(inside)
    with _lock:
        if not _open[0]:
            _switch_off()
        _open[0] += 1
    try:
        yield
    finally:
        with _lock:
            _open[0] -= 1
            if not _open[0]:
                _before.close()


def _switch_off() -> None:
    layers = torch.backends.mha
    for read, write in (
        (torch._C._get_flash_sdp_enabled, torch._C._set_sdp_use_flash),
        (torch._C._get_mkldnn_enabled, torch._C._set_mkldnn_enabled),
        (layers.get_fastpath_enabled, layers.set_fastpath_enabled),
    ):
        _before.callback(write, read())
        write(False)
    try:
        _before.enter_context(_uncompiled())
    except UserError:
        _before.close()
        raise


@contextmanager
def _uncompiled() -> Iterator[None]:
    """What torch.compile made before runs as it was written. Torch's compiler is not loaded for
    this (seconds of every process): where it is not, nothing has been compiled, and what is
    compiled inside of a region runs uncompiled by itself."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    stance: AbstractContextManager
    try:
        stance = torch.compiler.set_stance("force_eager")
    except RuntimeError:
        raise UserError(
            "random_rounding was opened inside a function of torch.compile; open it around the "
            "call of that function"
        ) from None
    with stance:
        yield


def _guard_inductor(inside: Callable[[], bool]) -> None:
    """Make it an error to run what torch's compiler generated: the backward pass of a function
    that ran compiled outside. Its code does not come to the dispatcher."""
    module = sys.modules.get("torch._inductor.output_code")
    graph = getattr(module, "CompiledFxGraph", None)
    if graph is None or graph in _guarded:
        return
    run = graph.__call__

    @functools.wraps(run)
    def guarded(self: Any, inputs: Any) -> Any:
        if inside():
            raise UserError(
                "the native engine cannot perturb code that torch.compile generated: this is the "
                "backward pass of a function that ran compiled outside of the region, or code "
                "compiled ahead; run the forward pass inside the region, too, or leave out "
                "torch.compile"
            )
        return run(self, inputs)

    graph.__call__ = guarded
    _guarded.append(graph)
