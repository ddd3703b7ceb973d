"""`random_rounding`: its options, and where it perturbs: a context, or a decorator."""

from __future__ import annotations

import inspect
import sys
import threading
import types
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial, wraps
from operator import index
from types import FrameType
from typing import Any

import torch
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _get_current_dispatch_mode_stack,
)

from morphbits import stages
from morphbits.choices import MODES, SUBNORMALS, one_of, parsed
from morphbits.engines.native import selftest, torch_state
from morphbits.engines.native.dispatch import RandomRounding
from morphbits.engines.native.kernels import precision as formats
from morphbits.engines.native.orders import accumulation as orders
from morphbits.engines.native.rules import replay
from morphbits.engines.native.rules.context import Statistics
from morphbits.engines.native.rules.registry import RULES
from morphbits.engines.native.scope import Scope
from morphbits.errors import UserError


def random_rounding(
    mode: str = "random",
    seed: int = 1,
    accumulation: str = "sequential",
    subnormals: str = "keep",
    threads: int | None = None,
    precision: str | int = 24,
    perturb: str = "all",
    allow: Sequence[str] = (),
) -> Region:
    """Round the result of every floating-point operation of the torch operators inside by `mode`.

        >>> import torch
        >>> with random_rounding(mode="random", seed=1) as stats:
        ...     y = torch.ones(4) / 3
        >>> stats.operations
        4
        >>> with random_rounding(mode="random", seed=1):  # equal seeds give equal bytes
        ...     assert torch.equal(torch.ones(4) / 3, y)
        >>> with random_rounding(mode="downward"):
        ...     low = torch.ones(4) / 3
        >>> bool((low <= y).all())
        True

    - `mode`: `random` (up or down with probability ½; exact results stay), `nearness` (stochastic
      rounding: probability by distance), `nearest` (nothing is perturbed), `upward`, `downward` or
      `toward_zero`. The names are Verrou's.
    - `seed`: names the random stream, 0 to 2⁶⁴ − 1. Equal seeds give equal bytes, with any number
      of threads and on any instruction set.
    - `accumulation`: order of the additions in a convolution: `sequential` (TensorFlow's),
      `direct` (torch's on AVX-512), `blocked:K` (in blocks of K terms) or `probe` (torch's own,
      measured on this machine).
    - `subnormals`: `keep`, or `flush` operands and results to zero.
    - `threads`: torch's number if None. Without effect on a GPU.
    - `precision`: significant bits of each result, 2 to 24; or `float16`, `bfloat16` (what
      operators read and write) or `tf32` (what convolutions multiply).
    - `perturb`: `all`; or `only:NAME,…` or `except:NAME,…` of the stages that the model announces
      (`morphbits.stages`). Outside them, float32 is rounded to nearest.
    - `allow`: names of operators without a rule, as the error gives them, which then run as torch
      runs them. `stats.unperturbed` counts their calls.

    It is a context manager and a decorator, also of generators and `async def`, and acts on what
    the calling thread and task compute (notes/native-engine.md). float16 and bfloat16 are computed
    in float32, as torch does, and each result is then rounded to its format by the mode.

    Inside, torch's fused paths for attention, transformer layers and oneDNN are off, and functions
    of torch.compile run uncompiled: their plain forms are perturbed. Raises `UserError` for an
    unknown option and, inside, for an operator that the engine does not perturb. A region that is
    opened again draws the same stream again. A process that is forked inside is not perturbed.
    """
    for name, value, known in (("mode", mode, MODES), ("subnormals", subnormals, SUBNORMALS)):
        parsed(name, partial(one_of, known), value)
    seed = _whole("seed", seed, "0 to 2^64 - 1", range(2**64))
    if threads is not None:
        threads = _whole("threads", threads, "1 or more", range(1, 2**31))
    for name, value in (("accumulation", accumulation), ("perturb", perturb)):
        if not isinstance(value, str):
            raise UserError(f"{name} {value!r} is not a word")
    orders.parse(accumulation)
    fewer = formats.parse(precision)
    if fewer != formats.FULL and subnormals == "flush":
        raise UserError(f"precision {precision} needs subnormals=keep: its own format has them")
    selection, allowed = stages.select(perturb), _names(allow)

    def stream() -> RandomRounding:
        if accumulation == "probe" and inside():
            raise UserError(
                "accumulation=probe cannot read torch's kernels inside another region; leave that "
                "one first"
            )
        selftest.once()
        flush = subnormals == "flush"
        rounding = RandomRounding(mode, seed, accumulation, flush, threads, fewer)
        rounding.selection, rounding.allowed = selection, allowed
        return rounding

    return Region(stream)


class Region:
    """Where operators are perturbed: a context, also more than once, or a decorator."""

    def __init__(self, stream: Callable[[], RandomRounding]) -> None:
        self._stream = stream
        self._open: list[tuple[RandomRounding, AbstractContextManager[None]]] = []

    def __enter__(self) -> Statistics:
        rounding = self._stream()
        context = _active(rounding, sys._getframe(1))
        context.__enter__()
        self._open.append((rounding, context))
        return rounding.statistics

    def __exit__(self, *error: Any) -> None:
        here = [entry for entry in self._open if entry[0].scope.thread == threading.get_ident()]
        if not here:
            raise UserError("this region of random_rounding was not opened by this thread")
        mine = [entry for entry in here if entry[0].scope.is_here()]
        rounding, context = (mine or here)[-1]
        self._open.remove((rounding, context))
        context.__exit__(*error)
        if error[0] is None:
            rounding.check_stages()

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Decorate a function: each call is a region. So it is for generators and for functions
        of `async def`, whose region is left while they wait and opened again with the stream
        where it was."""
        if not callable(function) or inspect.isclass(function):
            raise UserError(
                f"random_rounding decorates functions, not {function!r}: decorate its methods"
            )

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self:
                result = function(*args, **kwargs)
            if inspect.isgenerator(result) or inspect.iscoroutine(result):
                result.close()
            elif not inspect.isasyncgen(result):
                return result
            name = getattr(function, "__qualname__", function)
            raise UserError(
                f"{name} returned a {type(result).__name__}, whose operators would run outside of "
                "the region that decorates it: decorate the function of which it is the body"
            )

        @wraps(function)
        def generator(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
            rounding = self._stream()
            result = yield from _resumed(rounding, function(*args, **kwargs))
            rounding.check_stages()
            return result

        @wraps(function)
        async def coroutine(*args: Any, **kwargs: Any) -> Any:
            rounding = self._stream()
            result = await _awaited(rounding, function(*args, **kwargs))
            rounding.check_stages()
            return result

        @wraps(function)
        async def async_generator(*args: Any, **kwargs: Any) -> AsyncGenerator:
            rounding = self._stream()
            body: AsyncGenerator = function(*args, **kwargs)
            step = body.asend(None)
            while True:
                try:
                    value = await _awaited(rounding, step)
                except StopAsyncIteration:
                    rounding.check_stages()
                    return
                try:
                    step = body.asend((yield value))
                except GeneratorExit:
                    await _awaited(rounding, body.aclose())
                    raise
                except BaseException as error:
                    step = body.athrow(error)

        if inspect.isgeneratorfunction(function):
            return generator
        if inspect.iscoroutinefunction(function):
            return coroutine
        return async_generator if inspect.isasyncgenfunction(function) else call


def _resumed(rounding: RandomRounding, body: Any) -> Generator[Any, Any, Any]:
    """Run a generator or coroutine inside of a region, which is left where it yields."""
    step, value = body.send, None
    while True:
        with _active(rounding):
            try:
                given = step(value)
            except StopIteration as end:
                return end.value
        try:
            step, value = body.send, (yield given)
        except GeneratorExit:
            with _active(rounding):
                body.close()
            raise
        except BaseException as error:
            step, value = body.throw, error


@types.coroutine
def _awaited(rounding: RandomRounding, body: Any) -> Generator[Any, Any, Any]:
    return (yield from _resumed(rounding, body))


@contextmanager
def _active(rounding: RandomRounding, frame: FrameType | None = None) -> Iterator[None]:
    """The region of a stream is open; `frame` holds it open, if others can run meanwhile."""
    replay.install(_current)
    offer = stages.offering("corners", rounding.corners)
    with torch_state.paths(inside), _own_casts(), _pushed(rounding, frame), offer:
        try:
            yield
        except RuntimeError as error:
            if "TorchScript" in str(error) and rounding.refusal:
                raise UserError(rounding.refusal) from error
            raise


@contextmanager
def _own_casts() -> Iterator[None]:
    """What autocast has converted outside is not used inside, and the other way round."""
    torch.clear_autocast_cache()
    try:
        yield
    finally:
        torch.clear_autocast_cache()


@contextmanager
def _pushed(rounding: RandomRounding, frame: FrameType | None) -> Iterator[None]:
    """The mode is among torch's, and is taken from there though others may have come after it."""
    rounding.scope = Scope(frame)
    rounding.__enter__()
    try:
        yield
    finally:
        rounding.scope.close()
        stack = _get_current_dispatch_mode_stack()
        if rounding in stack:  # or torch has put it aside, for an operator that ends this region
            above = stack[stack.index(rounding) + 1 :]
            for mode in reversed(above):
                TorchDispatchMode.__exit__(mode, None, None, None)
            rounding.__exit__(None, None, None)
            for mode in above:
                TorchDispatchMode.__enter__(mode)


def inside() -> bool:
    """Whether what runs now is in a region."""
    return _current() is not None


def _current() -> RandomRounding | None:
    """The stream that what runs now draws from: that of the innermost region."""
    stack = _get_current_dispatch_mode_stack()
    streams = (m for m in reversed(stack) if isinstance(m, RandomRounding) and m.scope.holds())
    return next(streams, None)


def _whole(name: str, value: Any, words: str, allowed: range) -> int:
    try:
        number = index(value)
    except TypeError:
        raise UserError(f"{name} {value!r} is not a whole number; use {words}") from None
    if number not in allowed:
        raise UserError(f"{name} {value} is out of range; use {words}")
    return number


def _names(allow: Sequence[str]) -> frozenset[str]:
    """The operators' names; UserError if one of them is none, or has a rule."""
    if isinstance(allow, str):
        raise UserError(f"allow is a list of operators' names: use allow=['{allow}']")
    if not isinstance(allow, Iterable) or not all(isinstance(name, str) for name in allow):
        raise UserError(f"allow {allow!r} is not a list of operators' names")
    for name in allow:
        if "::" not in name and not hasattr(torch.ops.aten, name):
            raise UserError(
                f"allow: torch has no operator '{name}'; others are named library::name"
            )
        if name in RULES:
            raise UserError(f"allow: '{name}' has a rule; it is always perturbed")
    return frozenset(allow)
