"""Where a region is: decorated functions of every kind, generators, tasks and threads."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import (
    _get_current_dispatch_mode_stack,
    is_in_torch_dispatch_mode,
)
from torch.utils.flop_counter import FlopCounterMode

from morphbits import random_rounding
from morphbits.engines.native.region import inside
from morphbits.errors import UserError

# upwards and downwards, every product here differs from the nearest and from each other
X = torch.rand(1000, generator=torch.Generator().manual_seed(1)) + 1
PLAIN = X * 0.1
with random_rounding("upward"):
    UP = X * 0.1
with random_rounding("downward"):
    DOWN = X * 0.1


def same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b) and not inside()


def test_the_values_tell_the_modes_apart() -> None:
    assert not any(torch.equal(a, b) for a, b in ((PLAIN, UP), (PLAIN, DOWN), (UP, DOWN)))


def stream(seed: int, n: int) -> list[Tensor]:
    """The first n products of a stream."""
    with random_rounding(seed=seed):
        return [X * 0.1 for _ in range(n)]


def all_equal(found: list[Tensor], expected: list[Tensor]) -> bool:
    return len(found) == len(expected) and all(map(torch.equal, found, expected))


# ------------------------------------------------------------ decorated functions


def test_a_decorated_generator_is_perturbed_and_its_caller_is_not() -> None:
    @random_rounding(seed=1)
    def three(n: int) -> Iterator[Tensor]:
        got = None
        for _ in range(n):
            got = yield X * 0.1 if got is None else got
        return "end"

    for _ in range(2):  # each call is the same stream
        found = []
        for y in three(3):
            found.append(y)
            assert same(X * 0.1, PLAIN)
        assert all_equal(found, stream(1, 3))
    pairs = list(zip(three(3), three(3), strict=True))  # two at once
    assert all_equal([a for a, _ in pairs], stream(1, 3))
    assert all_equal([b for _, b in pairs], stream(1, 3))
    sending = three(2)
    next(sending)
    assert sending.send(DOWN) is DOWN  # type: ignore[attr-defined]
    with pytest.raises(StopIteration) as end:
        next(sending)
    assert end.value.value == "end"


def test_what_is_thrown_into_a_decorated_generator_arrives_inside() -> None:
    seen = []

    @random_rounding("upward")
    def catches() -> Iterator[Tensor]:
        try:
            yield X * 0.1
        except KeyError:
            yield X * 0.1
        finally:
            seen.append(X * 0.1)

    steps = catches()
    assert torch.equal(next(steps), UP)
    assert torch.equal(steps.throw(KeyError()), UP)  # type: ignore[attr-defined]
    steps.close()  # type: ignore[attr-defined]
    assert all_equal(seen, [UP]) and same(X * 0.1, PLAIN)

    @random_rounding("upward")
    def fails() -> Iterator[Tensor]:
        yield X * 0.1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(fails())
    assert same(X * 0.1, PLAIN)


def test_decorated_coroutines_are_perturbed_and_other_tasks_are_not() -> None:
    @random_rounding("upward")
    async def up() -> list[Tensor]:
        found = []
        for _ in range(3):
            found.append(X * 0.1)
            await asyncio.sleep(0)
        return found

    @random_rounding("downward")
    async def down() -> AsyncIterator[Tensor]:
        for _ in range(3):
            yield X * 0.1
            await asyncio.sleep(0)

    async def plain() -> list[Tensor]:
        found = []
        async for y in down():
            assert torch.equal(y, DOWN)
            found.append(X * 0.1)
            await asyncio.sleep(0)
        return found

    async def both() -> list[list[Tensor]]:
        return await asyncio.gather(up(), plain())

    one, other = asyncio.run(both())
    assert all_equal(one, [UP] * 3) and all_equal(other, [PLAIN] * 3)
    assert asyncio.iscoroutinefunction(up) and same(X * 0.1, PLAIN)


def test_a_decorated_async_generator_takes_what_is_sent_thrown_and_closes() -> None:
    seen = []

    @random_rounding("upward")
    async def steps() -> Any:
        try:
            seen.append((yield X * 0.1))
            try:
                yield X * 0.1
            except KeyError:
                yield X * 0.1
        finally:
            await asyncio.sleep(0)
            seen.append(X * 0.1)

    async def run() -> None:
        body = steps()
        assert torch.equal(await body.asend(None), UP)
        assert torch.equal(await body.asend("sent"), UP)
        assert torch.equal(await body.athrow(KeyError()), UP)
        await body.aclose()
        assert same(X * 0.1, PLAIN)

    asyncio.run(run())
    assert seen[0] == "sent" and torch.equal(seen[1], UP)


def test_what_a_decorator_would_leave_unperturbed_is_refused() -> None:
    async def later() -> Tensor:
        return X * 0.1

    class Lazy:
        def __call__(self) -> Awaitable[Tensor]:
            return later()

    for lazy in (lambda: (X * 0.1 for _ in range(3)), Lazy(), lambda: _forever()):
        with pytest.raises(UserError, match="whose operators would run outside"):
            random_rounding()(lazy)()
    for other in (torch.nn.Linear, None):
        with pytest.raises(UserError, match="decorates functions"):
            random_rounding()(other)  # type: ignore[arg-type]
    assert inside() is False


async def _forever() -> AsyncIterator[Tensor]:
    while True:
        yield X * 0.1


def test_partials_and_methods_are_decorated() -> None:
    class Model:
        @random_rounding("upward")
        def each(self, n: int) -> Iterator[Tensor]:
            for _ in range(n):
                yield X * 0.1

    assert all_equal(list(Model().each(2)), [UP] * 2)
    partial = random_rounding("upward")(functools.partial(Model.each, Model(), n=2))
    assert all_equal(list(partial()), [UP] * 2)


def test_a_stage_that_a_decorated_generator_never_runs_is_named() -> None:
    @random_rounding(perturb="only:none")
    def steps() -> Iterator[Tensor]:
        yield X * 0.1

    with pytest.raises(UserError, match="no stage none was run"):
        list(steps())


# ------------------------------------------------------------ regions that are held open


def test_a_generator_that_holds_a_region_open_is_named_when_its_caller_computes() -> None:
    def held() -> Iterator[Tensor]:
        with random_rounding("upward"):
            yield X * 0.1
            yield X * 0.1

    def through_a_stack() -> Iterator[Tensor]:
        with ExitStack() as stack:
            stack.enter_context(random_rounding("upward"))
            yield X * 0.1
            yield X * 0.1

    for function in (held, through_a_stack):
        steps = function()
        assert torch.equal(next(steps), UP)
        with pytest.raises(UserError, match=rf"{function.__name__} .* open over a yield"):
            X * 0.1
        assert torch.equal(next(steps), UP)  # its own operators are
        assert list(steps) == [] and same(X * 0.1, PLAIN)
        next(function())  # given up at once: it is closed
        assert same(X * 0.1, PLAIN)
    assert all_equal(list(held()), [UP, UP])  # nobody computes in between

    async def stream() -> AsyncIterator[Tensor]:
        with random_rounding("upward"):
            yield X * 0.1

    async def consume() -> None:
        async for y in stream():
            assert torch.equal(y, UP)
            with pytest.raises(UserError, match=r"stream .* open over a yield"):
                X * 0.1

    asyncio.run(consume())
    assert same(X * 0.1, PLAIN)


def test_context_managers_hold_a_region_open_for_their_user() -> None:
    @contextmanager
    def inner() -> Iterator[None]:
        with random_rounding("upward"):
            yield

    @contextmanager
    def outer() -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(inner())
            yield

    @asynccontextmanager
    async def awaited() -> AsyncIterator[None]:
        await asyncio.sleep(0)
        with outer():
            yield

    async def run() -> Tensor:
        async with awaited():
            await asyncio.sleep(0)
            return X * 0.1

    with outer():
        assert torch.equal(X * 0.1, UP)
    assert torch.equal(outer()(lambda: X * 0.1)(), UP)
    assert torch.equal(asyncio.run(run()), UP)

    def held() -> Iterator[None]:
        with outer():
            yield

    for _ in held():
        with pytest.raises(UserError, match=r"held .* open over a yield"):
            X * 0.1


def test_a_region_over_await_perturbs_its_own_task_alone() -> None:
    """Also two regions of two tasks, of which the first that opened closes first; a task that is
    started inside is inside."""

    async def perturbed(mode: str, n: int) -> list[Tensor]:
        found = []
        with random_rounding(mode) as stats:
            for _ in range(n):
                found.append(X * 0.1)
                await asyncio.sleep(0)
            assert stats.operators == {"mul": n * 1000}
        found.append(X * 0.1)
        return found

    async def plain(n: int) -> list[Tensor]:
        found = []
        for _ in range(n):
            found.append(X * 0.1)
            assert not inside()
            await asyncio.sleep(0)
        return found

    def together(*tasks: Coroutine[Any, Any, list[Tensor]]) -> list[list[Tensor]]:
        async def run() -> list[list[Tensor]]:
            return await asyncio.gather(*tasks)

        return asyncio.run(run())

    for up, down in ((2, 4), (4, 2)):
        found = together(plain(6), perturbed("upward", up), perturbed("downward", down), plain(6))
        assert all_equal(found[0], [PLAIN] * 6) and all_equal(found[3], [PLAIN] * 6)
        assert all_equal(found[1], [UP] * up + [PLAIN])
        assert all_equal(found[2], [DOWN] * down + [PLAIN])
        assert same(X * 0.1, PLAIN)

    async def inherits() -> list[Tensor]:
        async def product() -> Tensor:
            await asyncio.sleep(0)
            return X * 0.1

        with random_rounding("upward"):
            return [*await asyncio.gather(product(), product()), await product()]

    assert all_equal(asyncio.run(inherits()), [UP] * 3)


def test_regions_that_close_out_of_order() -> None:
    first, second = random_rounding("upward"), random_rounding("downward")
    before = is_in_torch_dispatch_mode()
    with FlopCounterMode(display=False):
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert torch.equal(X * 0.1, DOWN)
        second.__exit__(None, None, None)
    assert same(X * 0.1, PLAIN)
    assert _get_current_dispatch_mode_stack() == []
    assert is_in_torch_dispatch_mode() == before


def test_a_region_belongs_to_the_thread_that_opened_it() -> None:
    """Also one region object that two threads open; closing it in another thread is an error."""
    region, found, said = random_rounding("upward"), [], []
    opened, computed = threading.Event(), threading.Event()

    def other() -> None:
        found.append(X * 0.1)
        try:
            region.__exit__(None, None, None)
        except UserError as error:
            said.append(str(error))
        with region as stats:
            opened.set()
            assert computed.wait(30)
            found.append(X * 0.1)
            assert stats.operations == 1000

    with region as stats:
        thread = threading.Thread(target=other)
        thread.start()
        assert opened.wait(30)
        assert torch.equal(X * 0.1, UP) and stats.operations == 1000
    computed.set()
    thread.join()
    assert all_equal(found, [PLAIN, UP]) and same(X * 0.1, PLAIN)
    assert "not opened by this thread" in said[0]


def test_a_task_in_a_thread_is_outside() -> None:
    async def run() -> Tensor:
        with random_rounding("upward"):
            return await asyncio.to_thread(lambda: X * 0.1)

    assert torch.equal(asyncio.run(run()), PLAIN)


# ------------------------------------------------------------ what is kept from outside


def test_autocast_does_not_carry_conversions_across_the_border() -> None:
    weight = (torch.rand(40, 40) + 1).requires_grad_()
    x = torch.eye(40, dtype=torch.bfloat16)

    def converted() -> Tensor:
        """The weight in bfloat16."""
        return torch.mm(weight, x).detach().float()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = converted()
        with random_rounding("upward") as stats:
            up = converted()
            assert stats.operators["to (conversion)"] == 1600
            converted()  # inside, torch's cache serves as ever
            assert stats.operators["to (conversion)"] == 1600
        assert torch.equal(converted(), plain)
        with random_rounding("upward"), random_rounding("nearest"):
            assert torch.equal(converted(), plain)
    assert (up >= weight).all() and not torch.equal(up, plain)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activations_that_are_computed_again_have_the_same_roundings(reentrant: bool) -> None:
    """So gradients have the bytes of a training that keeps its activations."""
    layers = [torch.nn.Linear(8, 8) for _ in range(4)]

    def two(a: int, x: Tensor) -> Tensor:
        return layers[a + 1](layers[a](x).sin()).sin()

    def gradients(run: Callable[..., Tensor], again: Callable[..., Tensor]) -> list[Tensor]:
        x = torch.linspace(0, 1, 40).view(5, 8).requires_grad_()
        seen.clear()
        with random_rounding(seed=4):
            h = run(lambda v: again(functools.partial(two, 0), v), x)
            y = run(functools.partial(two, 2), h)
            y.register_hook(lambda g: seen.append(g / 3))
            (y * 0.1).sum().backward()
            seen.append(X * 0.1)
        found = [x.grad, *(p.grad for layer in layers for p in layer.parameters())]
        for layer in layers:
            layer.zero_grad()
        return found

    seen: list[Tensor] = []
    plain = gradients(lambda f, v: f(v), lambda f, v: f(v))
    before = seen.copy()
    checkpoint = functools.partial(torch.utils.checkpoint.checkpoint, use_reentrant=reentrant)
    assert all_equal(gradients(checkpoint, lambda f, v: f(v)), plain) and all_equal(seen, before)
    assert all_equal(gradients(checkpoint, checkpoint), plain) and all_equal(seen, before)


def test_a_checkpoint_outside_is_torchs_own() -> None:
    """Also where its second half is inside, and the other way round."""

    def f(v: Tensor) -> Tensor:
        return (v * 0.1).sin()

    x = X.clone().requires_grad_()
    outside = torch.utils.checkpoint.checkpoint(f, x, use_reentrant=False)
    with random_rounding() as stats:
        inside = torch.utils.checkpoint.checkpoint(f, x, use_reentrant=False)
        counted = stats.operations
        outside.sum().backward()
        assert stats.operations > counted
    expected = torch.autograd.grad(f(x).sum(), x)[0]
    x.grad = None
    inside.sum().backward()
    assert torch.equal(x.grad, expected)
