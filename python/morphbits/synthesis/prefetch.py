"""Pairs asked for ahead of their use, by a thread beside the training's own."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from morphbits.synthesis.pair import Key, Pair
from morphbits.synthesis.sources import Source


class Prefetch:
    """Pairs in the order of their keys; `waited` seconds were spent on pairs not yet there."""

    def __init__(self, waiting: queue.Queue[Pair | BaseException]) -> None:
        self._waiting = waiting
        self.waited = 0.0

    def next(self) -> Pair:
        """The pair of the next key, or the error that its source ended with."""
        start = time.perf_counter()
        pair = self._waiting.get()
        self.waited += time.perf_counter() - start
        if isinstance(pair, BaseException):
            raise pair
        return pair


class _OnDemand(Prefetch):
    def __init__(self, source: Source, keys: Iterator[Key]) -> None:
        self._source, self._keys = source, keys
        self.waited = 0.0

    def next(self) -> Pair:
        start = time.perf_counter()
        pair = self._source.pair(*next(self._keys))
        self.waited += time.perf_counter() - start
        return pair


@contextmanager
def prefetch(source: Source, keys: Iterable[Key], depth: int = 2) -> Iterator[Prefetch]:
    """At most `depth` pairs lie ready, and one more is in the making; with depth 0 each is drawn
    by the caller's own thread when it is asked for."""
    if depth == 0:
        yield _OnDemand(source, iter(keys))
        return
    waiting: queue.Queue[Pair | BaseException] = queue.Queue(depth)
    ended = threading.Event()

    def put(item: Pair | BaseException) -> None:
        while not ended.is_set():
            try:
                return waiting.put(item, timeout=0.1)
            except queue.Full:
                continue

    def draw() -> None:
        try:
            for key in keys:
                if ended.is_set():
                    return
                put(source.pair(*key))
        except BaseException as error:  # whatever it is, the training has to hear of it
            put(error)

    thread = threading.Thread(target=draw, name="training pairs", daemon=True)
    thread.start()
    try:
        yield Prefetch(waiting)
    finally:
        ended.set()
        thread.join()
