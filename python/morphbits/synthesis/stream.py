"""Pairs from the synthesis process, made ahead of the trainer that asks for them.

The first trainer of a host starts the process (or several), all connect to it. Each trainer owns
`SLOTS` places in shared memory; a request names a key and a place, so no more than that is ever
made ahead. A trainer's next keys are guessed from the last one it asked for, so that a pair lies
ready when it is wanted; a wrong guess costs time and changes no byte.

Images are copied out of their place once; label maps travel as one byte per voxel and become
channels as they leave it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import IO, Any

import torch
from numpy.typing import NDArray
from torch import Tensor

import morphbits
from morphbits import machine
from morphbits.config import to_json
from morphbits.errors import UserError
from morphbits.synthesis import wire
from morphbits.synthesis.labels import drawing_seconds
from morphbits.synthesis.pair import Key, Pair
from morphbits.synthesis.settings import Ranks, SourceConfig

SLOTS = 3  # of each trainer: the pair it waits for, or has, and two ahead
START = 60  # seconds within which the first trainer's process must listen
END = 30  # seconds that the first trainer waits for the others to leave
LOADING = 6.0  # seconds until TensorFlow is there and the generator compiled
DRAWERS = 4  # threads that draw label maps, at most
# What torchrun gives the processes that it starts: alike for all of one host and no other's.
TORCHRUN = (
    "TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK", "TORCHELASTIC_RESTART_COUNT"
)  # fmt: skip


_opened = itertools.count()


class Stream:
    """A trainer's end of its connections, one to each synthesis process."""

    def __init__(
        self,
        config: SourceConfig,
        connections: list[socket.socket],
        processes: list[_Process],
    ) -> None:
        """`processes`: those that this trainer has started, to tell why one has ended."""
        self.config, self._connections, self._processes = config, connections, processes
        for connection in connections:
            wire.send(connection, {"config": to_json(config)})
        *_, welcome = [self._heard(connection) for connection in connections]
        layout = welcome["layout"]
        self.layout = wire.Layout(tuple(layout["shape"]), layout["labels"], layout["batch"])
        self.shape, self.channels = self.layout.shape, self.layout.labels
        self.description: str = welcome["description"]
        self.orientation: str = welcome["orientation"]
        count = SLOTS + len(connections) - 1
        memory = wire.shared_memory(self.layout, count)
        for connection in connections:
            wire.send(connection, {"slots": count}, memory)
        self._slots = wire.Slots(memory, self.layout, count)
        os.close(memory)
        self._free = list(range(count))
        self._pending: dict[Key, int] = {}  # asked for; in which slot it will be
        self._ready: dict[Key, int] = {}

    def pair(self, epoch: int, step: int, rank: int) -> Pair:
        """The batch of `rank` at `step` of `epoch`; UserError says why there is none."""
        key = (epoch, step, rank)
        ahead = self._following(key, len(self._slots) - 1)
        self._forget_all_but(key, *ahead)
        if key not in self._pending and key not in self._ready:
            while not self._free:  # all of them are being filled, with what was guessed wrongly
                self._await(next(iter(self._pending)))
                self._forget_all_but(key, *ahead)
            self._request(key, wanted=True)
        while key not in self._ready:
            self._await(key)
        pair = self._pair_in(self._ready[key])
        self._forget_all_but(*ahead)
        for next_key in ahead:
            if self._free and next_key not in self._pending and next_key not in self._ready:
                self._request(next_key, wanted=False)
        return pair

    def _following(self, key: Key, count: int) -> list[Key]:
        """The keys that a training asks for after this one."""
        epoch, step, rank = key
        index = epoch * self.config.steps + step
        return [
            (*divmod(later, self.config.steps), rank)
            for later in range(index + 1, index + 1 + count)
        ]

    def _forget_all_but(self, *keys: Key) -> None:
        for key in self._ready.keys() - set(keys):
            self._free.append(self._ready.pop(key))

    def _connection(self, key: Key) -> socket.socket:
        _, step, rank = key
        return self._connections[(step + rank) % len(self._connections)]

    def _request(self, key: Key, wanted: bool) -> None:
        slot = self._free.pop()
        epoch, step, rank = key
        request = {"slot": slot, "epoch": epoch, "step": step, "rank": rank, "wanted": wanted}
        try:
            wire.send(self._connection(key), request)
        except ConnectionError:
            raise self._ended() from None
        self._pending[key] = slot

    def _await(self, key: Key) -> None:
        """Take the next reply of the process that makes the pair of `key`: that, or another."""
        slot = self._heard(self._connection(key))["slot"]
        done = next(key for key, pending in self._pending.items() if pending == slot)
        self._ready[done] = self._pending.pop(done)

    def _heard(self, connection: socket.socket) -> dict[str, Any]:
        message = wire.receive(connection)
        if message is None:
            raise self._ended()
        if "error" in message:
            raise UserError(message["error"])
        return message

    def _ended(self) -> UserError:
        reasons = [reason for process in self._processes if (reason := process.reason(1))]
        return UserError(f"the synthesis process has ended{''.join(reasons)}; see --resume")

    def _pair_in(self, slot: int) -> Pair:
        """The pair of a slot in memory of its own."""
        labels = [_channels(targets, self.layout.labels) for targets in self._slots.targets(slot)]
        moving_image, fixed_image = (
            torch.from_numpy(images)[:, None].clone() for images in self._slots.images(slot)
        )
        return Pair(moving_image, fixed_image, *labels)


def _channels(targets_BXYZ: NDArray[Any], labels: int) -> Tensor:
    """1 where the target map has the channel's label, counted from 1: (B, L, X, Y, Z) float32."""
    targets = torch.from_numpy(targets_BXYZ)
    batch, *shape = targets.shape
    channels = torch.empty(batch, labels, *shape)
    for k in range(labels):
        torch.eq(targets, k + 1, out=channels[:, k])
    return channels


# ------------------------------------------------------------------------------ processes


class _Process:
    """A synthesis process that this one has started, and that dies with it."""

    def __init__(self, name: str, trainers: int, config: SourceConfig, cores: int = 1) -> None:
        package = Path(morphbits.__file__).parents[1]
        paths = [str(package), os.environ.get("PYTHONPATH", "")]
        module = ["-m", "morphbits.synthesis.server"]
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`)
        self._process = subprocess.Popen(
            [sys.executable, *module, name, str(trainers), "1", str(cores), to_json(config)],
            stdin=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            start_new_session=True,  # an interrupt from the keyboard concerns the trainers alone
        )

    def reason(self, patience: float) -> str:
        """Why it has ended, as the end of a sentence; empty for one that goes on."""
        try:
            code = self._process.wait(patience)
        except subprocess.TimeoutExpired:
            return ""
        if code < 0:
            return f" (killed by {signal.Signals(-code).name})"
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f" (status {code}{': ' + lines[-1] if lines else ''})"

    def close(self, patience: float) -> None:
        """Let it end, by force after `patience` seconds."""
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._errors.close()


@contextmanager
def open_stream(
    config: SourceConfig, ranks: Ranks, processes: int, say: Callable[[str], object]
) -> Iterator[Stream]:
    """Pairs from `processes` synthesis processes on this host; the host's first rank starts them.

    `say` takes lines for the user: what is being waited for, then what the pairs are made of. All
    ranks of a host call this equally often, so that they agree on the names of the sockets.
    """
    # without what a kind of training has in addition
    config = SourceConfig(**{one.name: getattr(config, one.name) for one in fields(SourceConfig)})
    names = [f"{_session(ranks)}-{next(_opened)}-{number}" for number in range(processes)]
    cores = min(DRAWERS, max(1, machine.cores() // processes))
    started: list[_Process] = []
    connections: list[socket.socket] = []
    patience = 0.0
    try:
        if ranks.host_rank == 0:
            started = [_Process(name, ranks.host_size, config, cores) for name in names]
        seconds = drawing_seconds(config.labels or "shapes", config.maps, config.size)
        if seconds:
            wait = max(LOADING, (LOADING + seconds) / cores)
            say(f"{config.maps} label maps are drawn before the first step: about {_time(wait)}")
        for name in names:
            connections.append(_connected(name, started))
        stream = Stream(config, connections, started)
        say(stream.description)
        yield stream
        patience = END
    finally:
        for connection in connections:
            connection.close()
        for process in started:
            process.close(patience)


def _session(ranks: Ranks) -> str:
    """What the ranks of one training on one host have in common, and nobody else has: what
    torchrun tells them, also through a shell between it and them; without it their parent."""
    user = f"morphbits-{os.getuid()}"
    if ranks.host_size == 1:
        return f"{user}-{os.getpid()}"
    told = [os.environ.get(name, "") for name in TORCHRUN]
    if "MASTER_PORT" not in os.environ:  # which no two jobs of one host have at a time
        return f"{user}-parent-{os.getppid()}"
    return f"{user}-{hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]}"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"


def _connected(name: str, started: list[_Process]) -> socket.socket:
    deadline = time.monotonic() + START
    while True:
        try:
            return wire.connect(name)
        except ConnectionRefusedError:
            reasons = [reason for process in started if (reason := process.reason(0))]
            if reasons or time.monotonic() > deadline:
                raise UserError(
                    f"the synthesis process could not be reached{''.join(reasons)}"
                ) from None
            time.sleep(0.05)
