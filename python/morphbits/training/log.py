"""What a training leaves to read: log.csv, times.csv, TensorBoard's events, a bar and lines.

log.csv is a function of the training, byte for byte; times are in times.csv.
"""

from __future__ import annotations

import csv
import hashlib
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from morphbits.errors import UserError
from morphbits.files import write_atomically
from morphbits.training.network import TERMS
from morphbits.training.recipe import TrainConfig
from morphbits.wording import duration

COLUMNS = ("epoch", "step", "learning_rate", *TERMS)
TIME_COLUMNS = ("epoch", "step", "seconds", "waited")


class _Table:
    """A CSV file that grows; rows from `first` on are dropped when it is opened, those before it
    are what had this `digest`."""

    def __init__(self, path: Path, columns: Sequence[str], first: int, digest: str | None) -> None:
        lines = [",".join(columns)]
        try:
            if first:
                lines = path.read_text().splitlines()[: first + 1]
            if len(lines) <= first:
                raise UserError(
                    f"{path}: lacks steps that the checkpoint has; put the whole file back, or "
                    "start in another MODEL_DIR (--model-dir)"
                )
            kept = "".join(f"{line}\n" for line in lines).encode()
            self.digest = hashlib.sha256(kept)
            if digest not in (None, self.digest.hexdigest()):
                raise UserError(
                    f"{path}: was changed or damaged since it was written; put the file back, or "
                    "start in another MODEL_DIR (--model-dir)"
                )
            write_atomically(path, kept)
            self.file = path.open("a", buffering=1, newline="")  # each row as it is made
        except OSError as error:
            raise UserError(f"{path}: cannot be read or written ({error.strerror})") from None
        self.writer = csv.DictWriter(self, columns, lineterminator="\n")

    def write(self, text: str) -> None:
        """What the CSV writer has made of a row."""
        self.file.write(text)
        self.digest.update(text.encode())

    def add(self, row: dict[str, float]) -> None:
        self.writer.writerow({name: f"{value:.9g}" for name, value in row.items()})

    def sync(self) -> str:
        """Have every row on disk; the digest of them all."""
        self.file.flush()
        os.fsync(self.file.fileno())
        return self.digest.hexdigest()


class _Events:
    """TensorBoard's file, written by its own record writer: its usual writers import TensorFlow
    where that is installed."""

    def __init__(self, folder: Path, first: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.event, self.summary = Event, Summary
        folder.mkdir(exist_ok=True)
        path = folder / f"events.out.tfevents.{int(time.time()):010d}.{first:08d}"
        self.writer = RecordWriter(path.open("wb"))
        self._write(file_version="brain.Event:2")
        # what an interrupted run has written from this step on does not count
        self._write(step=first, session_log=SessionLog(status=SessionLog.START))

    def _write(self, **what: Any) -> None:
        self.writer.write(self.event(wall_time=time.time(), **what).SerializeToString())

    def add(self, step: int, values: dict[str, float]) -> None:
        scalars = [self.summary.Value(tag=k, simple_value=v) for k, v in values.items()]
        self._write(step=step, summary=self.summary(value=scalars))
        self.writer.flush()


class Log:
    """The log of one training, written by its first rank.

    `first` is the step that it goes on from, `digests` are those of its files there, by name.
    """

    def __init__(
        self,
        folder: Path,
        config: TrainConfig,
        ranks: int,
        first: int,
        digests: Mapping[str, str],
    ) -> None:
        self.config, self.pairs = config, config.batch * ranks
        self.rows, self.times = (
            _Table(folder / name, columns, first, digests.get(name))
            for name, columns in (("log.csv", COLUMNS), ("times.csv", TIME_COLUMNS))
        )
        self.events = _Events(folder / "tensorboard", first)
        self.bar = tqdm(total=config.total_steps, initial=first, unit="step", disable=None)
        self.epoch: list[dict[str, float]] = []
        self.started = time.perf_counter()
        self.first = first

    def add(self, step: int, terms: dict[str, float], seconds: float, waited: float) -> None:
        """One step: its terms and learning rate; seconds it took, and those of them in which the
        slowest rank waited for its pairs."""
        epoch = step // self.config.steps
        self.rows.add({"epoch": epoch, "step": step, **terms})
        self.times.add({"epoch": epoch, "step": step, "seconds": seconds, "waited": waited})
        self.events.add(step, terms | {"pairs per second": self.pairs / seconds})
        self.epoch.append(terms | {"seconds": seconds, "waited": waited})
        self.bar.set_postfix_str(
            f"{self._terms(terms)}, {self.pairs / seconds:.1f} pairs/s", refresh=False
        )
        self.bar.update()
        if (step + 1) % self.config.steps == 0:
            self._end_epoch(epoch, step + 1)

    def _terms(self, terms: dict[str, float]) -> str:
        return ", ".join(f"{name} {terms[name]:.4f}" for name in TERMS)

    def _end_epoch(self, epoch: int, done: int) -> None:
        """A line that stays, with the means of the epoch."""
        mean = {k: sum(row[k] for row in self.epoch) / len(self.epoch) for k in self.epoch[0]}
        per_step = (time.perf_counter() - self.started) / (done - self.first)
        left = per_step * (self.config.total_steps - done)
        tqdm.write(
            f"epoch {epoch + 1}/{self.config.epochs}: {self._terms(mean)}; "
            f"{self.pairs / mean['seconds']:.1f} pairs/s, waited for pairs "
            f"{mean['waited'] / mean['seconds']:.1%}, {duration(left)} left",
            file=sys.stdout,
        )
        sys.stdout.flush()
        self.epoch = []

    def write(self) -> dict[str, str]:
        """Have everything up to here in the files, on disk; the tables' digests, by name."""
        self.events.writer.flush()
        return {"log.csv": self.rows.sync(), "times.csv": self.times.sync()}

    def close(self) -> None:
        """End the bar and the files."""
        self.bar.close()
        for table in (self.rows, self.times):
            table.file.close()
        self.events.writer.close()
