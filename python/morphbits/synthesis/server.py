"""The synthesis process: makes pairs for all trainers of a host, in the order of their requests.

    python -m morphbits.synthesis.server NAME TRAINERS THREADS CORES CONFIG   (started by `stream`)

Listens at the socket NAME (see `wire`) at once, then loads TensorFlow and the label maps. Maps
that are drawn are drawn meanwhile, all of them, by CORES threads; then the trainers are let in.
One pair is made at a time, by THREADS; what a trainer waits for is made before what it will
need next. Ends when all TRAINERS have come and left, or at once when the process that started it
dies: standard input is a pipe that nobody writes to, and its end is the signal.
"""

from __future__ import annotations

import os
import selectors
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from morphbits.errors import UserError
from morphbits.synthesis import wire

Request = dict[str, Any]
Make = Callable[[wire.Slots, Request], None]  # puts the pair of a request into its slot


def main() -> None:
    name, trainers, threads, cores, config = sys.argv[1:]
    threading.Thread(target=_end_with_parent, daemon=True).start()
    listener = wire.listen(name)
    try:
        made = _prepare(config, int(threads), int(cores))
    except Exception as error:
        made = _Made(_refuse, failure=_sentence(error))
    _Server(listener, config, made).serve(int(trainers))


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def _sentence(error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error)
    return f"the synthesis process failed ({type(error).__name__}: {error})"


def _refuse(slots: wire.Slots, request: Request) -> None:
    raise AssertionError("nobody who asks has been let in")


@dataclass(frozen=True)
class _Made:
    """What the trainers are served with, and what it is in words; or, instead, the `failure` that
    all of them are told."""

    make: Make
    layout: wire.Layout | None = None
    description: str = ""
    orientation: str = ""
    failure: str = ""


def _prepare(text: str, threads: int, cores: int) -> _Made:
    # here, so that the socket is there at once, and faults are found before TensorFlow is loaded
    from morphbits.config import from_json
    from morphbits.synthesis.generator import choose
    from morphbits.synthesis.labels import drawing_seconds, open_labels
    from morphbits.synthesis.settings import SourceConfig

    config = from_json(SourceConfig, text, "the trainer's configuration")
    labels = config.labels or "shapes"
    maps = open_labels(labels, config.targets, config.maps, config.seed, config.size, config.data)
    choose(config, maps.count, config.seed, 0, 0, 0)  # raises where one map is not enough
    with ThreadPoolExecutor(1) as beside:
        drawn = bool(drawing_seconds(labels, config.maps, config.size))
        drawing = beside.submit(maps.draw_all, cores) if drawn else None
        from morphbits.synthesis import generator_tf

        generator_tf.set_threads(threads)
        generator = generator_tf.Generator(config, maps)
    if drawing:
        drawing.result()  # raises what it ended with
    generator.image(0, (), (0, 0))  # TensorFlow takes a second more for the first one

    def make(slots: wire.Slots, request: Request) -> None:
        images, targets = slots.images(request["slot"]), slots.targets(request["slot"])
        for k in range(config.batch):
            item = request["rank"] * config.batch + k
            choice = choose(
                config, maps.count, config.seed, request["epoch"], request["step"], item
            )
            for side, (image, target) in enumerate(generator.pair(choice)):
                images[side, k], targets[side, k] = image, target

    layout = wire.Layout(maps.shape, len(maps.targets), config.batch)
    return _Made(make, layout, maps.describe(), maps.orientation)


@dataclass(eq=False)
class _Trainer:
    connection: socket.socket
    slots: wire.Slots | None = None


class _Server:
    """Answers the trainers."""

    def __init__(self, listener: socket.socket, config: str, made: _Made) -> None:
        self.listener, self.config, self.made = listener, config, made
        self.selector = selectors.DefaultSelector()
        self.selector.register(listener, selectors.EVENT_READ)
        self.jobs: deque[tuple[_Trainer, Request]] = deque()
        self.left = 0

    def serve(self, trainers: int) -> None:
        """Until that many have come and left."""
        while self.left < trainers:
            for ready, _ in self.selector.select(0 if self.jobs else None):
                if ready.data is None:
                    self._welcome(self.listener.accept()[0])
                else:
                    self._hear(ready.data)
            if self.jobs:
                self._answer(*self.jobs.popleft())

    def _welcome(self, connection: socket.socket) -> None:
        if not wire.same_user(connection):
            connection.close()
            return
        trainer = _Trainer(connection)
        self.selector.register(connection, selectors.EVENT_READ, trainer)

    def _hear(self, trainer: _Trainer) -> None:
        """Take one packet: the trainer's hello, its memory, a request, or its leave."""
        message, file = wire.receive_with_file(trainer.connection)
        if message is None:
            self._disconnect(trainer)
        elif "config" in message:
            failure = self.made.failure
            if message["config"] != self.config:
                failure = "the synthesis process of this host serves another training"
            if failure or self.made.layout is None:
                self._tell(trainer, {"error": failure})
                return
            made = {name: getattr(self.made, name) for name in ("description", "orientation")}
            self._tell(trainer, {"layout": vars(self.made.layout), **made})
        elif file is not None and self.made.layout is not None:
            trainer.slots = wire.Slots(file, self.made.layout, message["slots"])
            os.close(file)
        elif message["wanted"]:
            self.jobs.appendleft((trainer, message))
        else:
            self.jobs.append((trainer, message))

    def _answer(self, trainer: _Trainer, request: Request) -> None:
        assert trainer.slots is not None
        try:
            self.made.make(trainer.slots, request)
            self._tell(trainer, {"slot": request["slot"]})
        except Exception as error:
            self._tell(trainer, {"error": _sentence(error)})

    def _tell(self, trainer: _Trainer, message: dict[str, Any]) -> None:
        with suppress(ConnectionError):  # it has died: its end of the connection says so next
            wire.send(trainer.connection, message)

    def _disconnect(self, trainer: _Trainer) -> None:
        self.selector.unregister(trainer.connection)
        trainer.connection.close()
        self.jobs = deque(job for job in self.jobs if job[0] is not trainer)
        self.left += 1


if __name__ == "__main__":
    main()
