"""Trainings of 16³ voxels for tests: the real loop and real processes, on made-up images.

As a program it is one rank that torchrun starts:

    python -m torch.distributed.run … toy_training.py FOLDER [OPTION]...

with the options of a training; without torchrun it is the only one.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import torch

import morphbits
from morphbits import engines
from morphbits.config import add_arguments, from_arguments
from morphbits.errors import UserError, run_cli
from morphbits.synthesis import sources
from morphbits.synthesis.pair import Pair
from morphbits.synthesis.settings import Ranks, SourceConfig
from morphbits.training import RunConfig, TrainConfig, checkpoint, group, loop
from morphbits.training.group import processes
from morphbits.training.rounding import TrainingEngine

TOY = TrainConfig(
    enc="2 3",
    dec="3 2",
    epochs=3,
    steps=4,
    learning_rate=1e-2,
    smoothness=0.1,
    threads=1,
    optimizer="torch-adam",
)
FILES = ("model.h5", "log.csv")
# imported in the server that ranks are forked from: each of them would take two seconds for it
PRELOADED = (
    "support.toy_training",
    "morphbits.engines.native",
    "tensorboard.summary.writer.record_writer",
    "torch._dynamo",
)


class ToySource:
    """Two blobs somewhere, in images of random brightness."""

    shape = (16, 16, 16)
    channels = 2
    orientation = "PIR"

    def __init__(self, config: SourceConfig, ranks: Ranks) -> None:
        self.config, self.ranks = config, ranks

    def pair(self, epoch: int, step: int, rank: int) -> Pair:
        batch = self.config.batch
        places = range(rank * batch, (rank + 1) * batch)  # in the batch of all ranks
        pairs = [self._draw(f"{self.config.seed} {epoch} {step} {place}") for place in places]
        return Pair(*(torch.cat(parts) for parts in zip(*pairs, strict=True)))

    def _draw(self, key: str) -> tuple[torch.Tensor, ...]:
        digest = hashlib.sha256(key.encode()).digest()
        random = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        mesh = torch.stack(torch.meshgrid(*[torch.arange(16.0)] * 3, indexing="ij"))
        images, maps = [], []
        for _ in range(2):
            centres = 5 + 6 * torch.rand(2, 3, generator=random)
            distance = (mesh[None] - centres[..., None, None, None]).square().sum(1)
            labels = (distance < 16).float()[None]
            gains = torch.rand(2, generator=random).view(1, 2, 1, 1, 1)
            images.append((labels * gains).amax(1, keepdim=True))
            maps.append(labels)
        return (*images, *maps)


@contextmanager
def toy_source(config: SourceConfig, ranks: Ranks, *threads: int) -> Iterator[ToySource]:
    yield ToySource(config, ranks)


def train_toy(
    folder: Path,
    config: TrainConfig = TOY,
    run: RunConfig | None = None,
    ranks: Ranks | None = None,
    die: tuple[int, int] | None = None,
    differ: tuple[int, int] | None = None,
    silent: tuple[int, int] | None = None,
    infinite: tuple[int, int] | None = None,
    other_made: tuple[int, dict[str, str]] | None = None,
    streams_of_their_own: bool = False,
    updates_of_their_own: bool = False,
) -> Path:
    """Train in this process; as a rank, `die` (rank, step) by SIGKILL, `differ` in a bit, be
    `silent` for a while, have an `infinite` loss, find that it has `other_made` it, or
    update the weights with roundings of its own: the native engine's, or a bit as Verrou might."""
    sources.open_source, real = toy_source, sources.open_source
    agree = loop._Training._agree
    ranks = ranks or Ranks()

    def agree_or_not(
        training: loop._Training, terms: dict[str, torch.Tensor], *arguments: object
    ) -> tuple[int, bool]:
        if die == (training.ranks.rank, training.step):
            os.kill(os.getpid(), signal.SIGKILL)
        if silent == (training.ranks.rank, training.step):
            time.sleep(15)
        if differ == (training.ranks.rank, training.step):
            change_a_bit(next(training.model.parameters()), 0)
        if infinite == (training.ranks.rank, training.step):
            terms["loss"] = torch.tensor(float("inf"))
        return agree(training, terms, *arguments)  # type: ignore[arg-type]

    loop._Training._agree = agree_or_not  # type: ignore[assignment, method-assign]
    made = checkpoint.made_with
    if other_made and other_made[0] == ranks.rank:
        checkpoint.made_with = lambda config: made(config) | other_made[1]
    of_all = TrainingEngine.of_all
    if streams_of_their_own:
        rank = ranks.rank
        TrainingEngine.of_all = lambda self, step: self.of_rank(step, rank)  # type: ignore[method-assign]
    step, get = torch.optim.Adam.step, engines.get
    if updates_of_their_own:
        here = ranks.rank

        def own_step(optimizer: torch.optim.Adam) -> None:
            step(optimizer)
            change_a_bit(optimizer.param_groups[0]["params"][0], here)

        torch.optim.Adam.step = own_step  # type: ignore[assignment, method-assign]
        counted = SimpleNamespace(
            region=lambda *_: nullcontext(engines.Counts(operations=1)), version=lambda: "toy"
        )
        engines.get = lambda name: counted if name == "verrou" else get(name)  # type: ignore[assignment, return-value]
    try:
        return loop.train(config, folder, run, ranks)
    finally:
        torch.optim.Adam.step, engines.get = step, get  # type: ignore[method-assign]
        checkpoint.made_with = made
        loop._Training._agree = agree  # type: ignore[method-assign]
        TrainingEngine.of_all = of_all  # type: ignore[method-assign]
        sources.open_source = real


@torch.no_grad()
def change_a_bit(parameter: torch.Tensor, place: int) -> None:
    """The next number upwards, in the first tap of a kernel."""
    tap = parameter[place, ..., 0]
    tap.copy_(torch.nextafter(tap, torch.tensor(2.0)))


def outputs(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in FILES]


# ------------------------------------------------------------ ranks forked from one server


def train_ranks(size: int, folder: Path, *arguments: object, **options: object) -> list[str]:
    """Train in `size` processes without torchrun; what each says at its end, "" where all went
    well."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED])
    # the server looks for it before it hears of this process' path
    folders = [str(Path(path).parents[1]) for path in (__file__, morphbits.__file__)]
    os.environ["PYTHONPATH"] = os.pathsep.join(folders)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    answers = context.SimpleQueue()
    workers = [
        context.Process(
            target=_rank, args=(rank, size, port, answers, folder, arguments, options), daemon=True
        )
        for rank in range(size)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)
        assert worker.exitcode is not None, "a rank hangs"
    said = dict(answers.get() for worker in workers if worker.exitcode == 0)
    return [
        said.get(rank, f"exit status {worker.exitcode}") for rank, worker in enumerate(workers)
    ]


def _rank(rank, size, port, answers, folder, arguments, options) -> None:  # type: ignore[no-untyped-def]
    here = size // options.pop("machines", 1)
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(size),
        LOCAL_RANK=str(rank % here), LOCAL_WORLD_SIZE=str(here),
    )  # fmt: skip
    message = ""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    group.PATIENCE = datetime.timedelta(seconds=options.pop("patience", 300))
    try:
        with processes() as ranks:
            train_toy(folder, *arguments, ranks=ranks, **options)
    except UserError as error:
        message = str(error)
    answers.put((rank, message))


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("folder", type=Path)
    for options in (TrainConfig, RunConfig):
        add_arguments(parser, options)
    arguments = parser.parse_args()
    config = from_arguments(TrainConfig, arguments, TOY)
    with processes() as ranks:
        train_toy(arguments.folder, config, from_arguments(RunConfig, arguments), ranks)


if __name__ == "__main__":
    run_cli(main)
