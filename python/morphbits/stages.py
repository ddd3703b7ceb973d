"""The parts of a computation, by name: a model announces them, an engine or a report listens.

A stage may hold others: ``integration`` holds ``squaring-1``, ``squaring-2``, … Names and nesting
belong to the thread. An engine may have a faster function for a part of a model, which the model
then calls by its name (`offering`, `offered`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from morphbits import choices
from morphbits.choices import parsed

Result = TypeVar("Result")
Observer = Callable[[str, Any], None]
Listener = Callable[[str], None]


class _Local(threading.local):
    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self.observers: tuple[Observer, ...] = ()
        self.listeners: tuple[Listener, ...] = ()
        self.offers: dict[str, Callable[..., Any]] = {}


_local = _Local()


def run(name: str, function: Callable[..., Result], *arguments: Any) -> Result:
    """``function(*arguments)`` as the stage of that name; listeners are told that it starts,
    observers its result."""
    for listener in _local.listeners:
        listener(name)
    outer = _local.names
    _local.names = (*outer, name)
    try:
        result = function(*arguments)
    finally:
        _local.names = outer
    for observer in _local.observers:
        observer(name, result)
    return result


def current() -> tuple[str, ...]:
    """The stages that are running in this thread, the outermost first."""
    return _local.names


@contextmanager
def observed(observer: Observer) -> Iterator[None]:
    """``observer(name, result)`` is called at the end of every stage inside."""
    outer = _local.observers
    _local.observers = (*outer, observer)
    try:
        yield
    finally:
        _local.observers = outer


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """``listener(name)`` is called at the start of every stage inside."""
    outer = _local.listeners
    _local.listeners = (*outer, listener)
    try:
        yield
    finally:
        _local.listeners = outer


@contextmanager
def offering(name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Inside, `offered(name, …)` of this thread calls `function`. It gives the bytes and counts of
    the model's own operations, or NotImplemented where it cannot."""
    outer = _local.offers
    _local.offers = {**outer, name: function}
    try:
        yield
    finally:
        _local.offers = outer


def offered(name: str, *arguments: Any) -> Any:
    """What the engine's function of this name returns; NotImplemented where there is none: then
    the model computes the part itself."""
    function = _local.offers.get(name)
    return NotImplemented if function is None else function(*arguments)


@dataclass(frozen=True)
class Selection:
    """Stages that are meant: all, ``only`` the named ones or all ``except`` them, each with the
    stages in it."""

    kind: str = "all"
    names: frozenset[str] = frozenset()

    def holds(self) -> bool:
        """Whether what is running in this thread is meant."""
        return self.kind == "all" or self.names.isdisjoint(current()) == (self.kind == "except")


ALL = Selection()


def select(text: str) -> Selection:
    """``all``, ``only:flow``, ``except:encoder,flow``; UserError if it is none of these."""
    return Selection(*parsed("stages", choices.stages, text))
