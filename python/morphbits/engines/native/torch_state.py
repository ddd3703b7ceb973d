"""Torch's fused and compiled paths, switched off while any thread computes in a region.

The switches are the process's: the first region that opens sets them, the last one that closes
brings back what was there.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
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
    with _uncompiled():
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
    if "torch._dynamo" in sys.modules:
        _before.enter_context(torch.compiler.set_stance("force_eager"))


@contextmanager
def _uncompiled() -> Iterator[None]:
    """The calling thread is not in a function of torch.compile, which would not let its stance be
    set. Torch's compiler is not loaded for this (seconds of every process): where it is not,
    nothing has been compiled, and what is compiled inside of a region runs uncompiled anyway."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    from torch._C._dynamo.eval_frame import set_eval_frame

    compiling = set_eval_frame(None)
    try:
        yield
    finally:
        set_eval_frame(compiling)


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
