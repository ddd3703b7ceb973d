"""To whom an open region belongs: to a thread; in it to an asyncio task and those it starts.

What another task computes while the region's waits is outside. A generator that holds a region
open over its `yield` is resumed by somebody else, whose operators in between are an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import sys
import threading
from contextvars import ContextVar
from types import FrameType

from morphbits.errors import UserError

_open: ContextVar[tuple[Scope, ...]] = ContextVar("_open", default=())


class Scope:
    """Of one region, open from now on; `frame` holds it open, None if it closes before anything
    else can run."""

    def __init__(self, frame: FrameType | None) -> None:
        self.thread, self._task = threading.get_ident(), _task()
        self._generator = None if frame is None else _generator(frame)
        _open.set((*_open.get(), self))

    def close(self) -> None:
        """Also in another context than that in which it was opened."""
        self._generator = None
        _open.set(tuple(scope for scope in _open.get() if scope is not self))

    def is_here(self) -> bool:
        """Whether the region was opened by this thread and task, or one that started the task."""
        return threading.get_ident() == self.thread and self in _open.get()

    def holds(self) -> bool:
        """Whether what runs now is inside: also in torch's own threads, of a backward pass."""
        return threading.get_ident() != self.thread or self in _open.get()

    def check(self) -> None:
        """UserError if what runs now is inside because a generator has not closed the region."""
        generator = self._generator
        if generator is None or _task() is not self._task or _runs(generator):
            return
        code = generator.f_code
        raise UserError(
            f"the generator {code.co_qualname} ({code.co_filename}) holds a region of "
            "random_rounding open over a yield, so the operators of its caller would be "
            "perturbed: decorate the generator with the region, or close the region before "
            "each yield; a context manager is marked by contextlib.contextmanager"
        )


def _task() -> asyncio.Task | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no event loop runs
        return None


def _generator(frame: FrameType | None) -> FrameType | None:
    """The generator that is `frame`, or that opened the region through contextlib; None if it is
    no generator. Functions that contextlib resumes hold a region open for their user."""
    while frame is not None:
        is_generator = frame.f_code.co_flags & (inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR)
        if frame.f_code.co_filename != contextlib.__file__:
            if not is_generator:
                return None
            if frame.f_back is None or frame.f_back.f_code.co_filename != contextlib.__file__:
                return frame
        frame = frame.f_back
    return None


def _runs(frame: FrameType) -> bool:
    """Whether the frame is among those that wait for this call."""
    caller: FrameType | None = sys._getframe(1)
    while caller is not None and caller is not frame:
        caller = caller.f_back
    return caller is frame
