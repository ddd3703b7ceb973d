"""A part of a network that torch.utils.checkpoint computes again in the backward pass draws the
roundings of the first time: else its gradients would be those of other activations."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

from morphbits.engines.native.rules.context import Context

Current = Callable[[], Context | None]
_changed: list[Any] = []


def install(current: Current) -> None:
    """From now on; `current` is the stream that what runs now draws from."""
    module = sys.modules.get("torch.utils.checkpoint")
    if module is None or module in _changed:
        return
    _changed.append(module)
    frame, function = module._CheckpointFrame, module.CheckpointFunction
    start, forward = frame.__init__, function.forward

    @functools.wraps(start)
    def start_of(self: Any, recompute: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        start(self, _replaying(recompute, current), *args, **kwargs)

    @functools.wraps(forward)
    def forward_of(ctx: Any, run: Callable[..., Any], *args: Any) -> Any:
        again = _replaying(run, current)
        result = forward(ctx, run, *args)
        ctx.run_function = again
        return result

    frame.__init__ = start_of
    function.forward = staticmethod(forward_of)


def _replaying(run: Callable[..., Any], current: Current) -> Callable[..., Any]:
    """`run`, later, with the roundings that it would draw now; of the same region only."""
    stream = current()
    if stream is None:
        return run
    position = stream.position

    def again(*args: Any, **kwargs: Any) -> Any:
        if current() is not stream:
            return run(*args, **kwargs)
        here, stream.position = stream.position, position
        try:
            return run(*args, **kwargs)
        finally:
            stream.position = here

    return again
