"""The one loop that one process and many share: seeded, deterministic, resumable."""

from __future__ import annotations

import copy
import ctypes
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as dist
from torch import Tensor

from morphbits import machine
from morphbits.config import option
from morphbits.errors import UserError
from morphbits.models.synthmorph_torch import init_model
from morphbits.synthesis import sources
from morphbits.synthesis.pair import Key, Pair
from morphbits.synthesis.prefetch import Prefetch, prefetch
from morphbits.synthesis.settings import Ranks
from morphbits.training import checkpoint, estimate, optimizers
from morphbits.training.group import Group, mean
from morphbits.training.log import Log
from morphbits.training.network import (
    TERMS,
    CompiledSampling,
    Objective,
    OneDnnConvolution,
    deterministic,
    layout,
    registration_loss,
)
from morphbits.training.recipe import TrainConfig
from morphbits.training.rounding import TrainingEngine

# Of the last layer's first weights, as in voxelmorph: training starts near no warp.
FLOW_STD = 1e-5


@dataclass(frozen=True)
class RunConfig:
    """How a training is run here: nothing that can change a byte of the model."""

    resume: bool = option(False, "continue from the last checkpoint")
    keep_every: int = option(
        0,
        "keep the model of every so many epochs, as epoch-NNNN.h5 (0: the last only)",
        minimum=0,
        maximum=1_000_000,
    )
    save_minutes: int = option(
        10,
        "minutes after which a checkpoint is written, besides the one after every epoch",
        minimum=0,
        maximum=1_000_000,
    )
    zero: bool = option(
        False, "share Adam's moments among the processes (ZeRO-1): less memory, the same bytes"
    )
    synth_procs: int = option(
        1,
        "synthmorph: synthesis processes on each machine, of one thread each",
        minimum=1,
        maximum=1024,
    )


class Stopped(SystemExit):
    """A signal ended the training after a step that was saved; its status is 128 + the signal."""


def train(
    config: TrainConfig,
    folder: Path,
    run: RunConfig | None = None,
    ranks: Ranks | None = None,
) -> Path:
    """Train into `folder`, or go on from its checkpoint; returns the path of the model's `.h5`.

    Every rank calls it alike; only the first one writes. Raises UserError for a folder or a
    checkpoint that does not fit, a loss that is not finite, replicas that differ or a lost rank;
    Stopped after SIGTERM or SIGINT.
    """
    run, ranks = run or RunConfig(), ranks or Ranks()
    config = resolve(config, ranks)
    if run.zero and config.engine != "ieee":
        raise UserError("with --zero nothing can be perturbed: its ranks do not compute alike")
    assert config.threads is not None
    with ExitStack() as stack:
        stack.enter_context(deterministic(config.threads))
        if config.engine != "native":
            stack.enter_context(OneDnnConvolution())
        if config.engine == "ieee":
            stack.enter_context(CompiledSampling())
        _keep_freed_memory()
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        group = Group(ranks, device)
        group.from_first(lambda: stack.enter_context(checkpoint.opened(folder, run.resume)))
        training = _Training(config, folder, run, group)
        stack.callback(training.give_up)
        say = partial(print, flush=True) if training.log else None
        source = stack.enter_context(
            sources.open_source(config, ranks, config.threads, run.synth_procs, say)
        )
        architecture = training.model.architecture
        training.model.architecture = replace(
            architecture, orientation=source.orientation, inshape=source.shape
        )
        cost = source.shape, training.step, source.channels, run.synth_procs
        group.of_machines(lambda: estimate.check_memory(config, ranks, *cost))
        if say:
            say(estimate.describe(config, ranks, *cost))
        # Verrou perturbs a process, all its threads: pairs are drawn between its regions
        ahead = 0 if config.engine == "verrou" else 2
        pairs = stack.enter_context(prefetch(source, training.keys(), ahead))
        stop = stack.enter_context(_signals())
        return training.run_to_end(pairs, stop)


def resolve(config: TrainConfig, ranks: Ranks) -> TrainConfig:
    """The configuration with every number that was left out; UserError where it asks for what
    there is not."""
    seed, threads = config.seed, config.threads
    sources.check(config)
    if config.engine == "verrou":
        if (threads or 1) > 1:
            raise UserError(
                f"Verrou runs one thread at a time, and {threads} would share its random numbers "
                "by chance: add --threads 1"
            )
        threads = 1
    return replace(
        config,
        threads=threads or max(1, machine.cores() // ranks.host_size),
        init_seed=seed if config.init_seed is None else config.init_seed,
        rounding_seed=seed if config.rounding_seed is None else config.rounding_seed,
    )


class _Training:
    def __init__(self, config: TrainConfig, folder: Path, run: RunConfig, group: Group) -> None:
        self.config, self.folder, self.run, self.group = config, folder, run, group
        self.ranks, self.device = group.ranks, group.device
        ranks = self.ranks
        assert config.init_seed is not None and config.threads is not None
        self.model = init_model(config.architecture(), config.init_seed, FLOW_STD)
        self.model.to(self.device)
        self.model.to(memory_format=layout(config))  # type: ignore[call-overload]
        self.numbers = {x: n for n, x in enumerate[Tensor](self.model.parameters())}
        self.optimizer = optimizers.build(self.model, config, run.zero and ranks.size > 1)
        self.rounding = TrainingEngine(config, config.threads)
        self.warm: set[torch.Size] = set()
        self.step = 0
        self.made = self._made_alike()
        logs: Mapping[str, str] = {}
        if run.resume:
            state = group.from_first(
                lambda: checkpoint.load(folder, config, ranks.size, self.made)
            )
            self.model.load_state_dict(state.weights)
            self.optimizer.load_state_dict(dict(state.optimizer))
            self.step, logs = state.step, state.logs
        self.objective = group.parallel(Objective(self.model, config), self._average)
        self.updated = self.step < config.total_steps
        self.log: Log | None = None
        group.from_first(lambda: self._open_log(logs))

    def _made_alike(self) -> checkpoint.Versions:
        """Versions and label maps, which all machines have alike."""
        found = self.group.of_machines(lambda: checkpoint.made_with(self.config))
        first = found[0]
        for rank, other in found.items():
            for what in {**first, **other}:
                if first.get(what) != other.get(what):
                    raise self.group.error(
                        f"{what}: {first.get(what)} on the machine of rank 0, {other.get(what)} "
                        f"on that of rank {rank}; the machines of a training need the same "
                        "software and label maps"
                    )
        return first

    def _open_log(self, digests: Mapping[str, str]) -> None:
        self.log = Log(self.folder, self.config, self.ranks.size, self.step, digests)

    def close(self) -> None:
        """Everything that was said is then on disk."""
        if self.log:
            self.log.close()

    def give_up(self) -> None:
        """Close after what has ended the training, which is what the user hears of."""
        with suppress(OSError):
            self.close()

    def keys(self) -> Iterator[Key]:
        """Of the pairs of this rank, from the next step to the last."""
        for step in range(self.step, self.config.total_steps):
            yield *divmod(step, self.config.steps), self.ranks.rank

    def run_to_end(self, pairs: Prefetch, stop: Callable[[], int]) -> Path:
        saved = time.perf_counter()
        while self.step < self.config.total_steps:
            start, waited = time.perf_counter(), pairs.waited
            pair = _on(self.device, pairs.next(), layout(self.config))
            if self.config.engine == "verrou":
                self._warm_up(pair)
            with ExitStack() as perturbed:
                stream = self.rounding.of_rank(self.step, self.ranks.rank)
                terms = self.objective(pair, partial(perturbed.enter_context, stream))
                terms["loss"].backward()
            due = start - saved > 60 * self.run.save_minutes
            signalled, due = self._agree(terms, stop(), due, pairs.waited - waited)
            self._update()
            self.step += 1
            self._log(time.perf_counter() - start)
            if signalled or due or self.step % self.config.steps == 0:
                self._save()
                saved = time.perf_counter()
            if signalled:
                self._stop(signalled)
        self.close()
        self._sum_up()
        path = self.folder / "model.h5"
        self.group.from_first(lambda: self.model.save(path))
        return path

    def _warm_up(self, pair: Pair) -> None:
        """What a first call of this size computes for itself, it computes unperturbed: Verrou has
        one stream for all, and a resumed training shall draw what an uninterrupted one does."""
        if pair.moving.shape in self.warm:
            return
        if not self.warm:  # torch arranges gradients at the second exchange, for all others
            for _ in range(2):
                self.objective(pair)["loss"].backward()
            twin = copy.deepcopy(self.model)
            for parameter in twin.parameters():
                parameter.grad = torch.zeros_like(parameter)
            optimizers.build(twin, self.config).step()
        else:  # this rank alone may have such a pair
            inputs = list(self.model.parameters())
            torch.autograd.grad(registration_loss(self.model, pair, self.config)["loss"], inputs)
        self.warm.add(pair.moving.shape)
        self.optimizer.zero_grad()

    def _sum_up(self) -> None:
        """Say what the training took, and that what should be perturbed was."""
        memory = machine.peak_memory()
        rows_RN = self.group.gather([memory, self.rounding.operations])
        memory_R, operations_R = rows_RN.T
        if self.config.engine != "ieee" and self.updated and not operations_R.all():
            raise self.group.error(
                f"engine {self.config.engine} perturbed nothing: no result is written"
            )
        if self.log:
            perturbed = f"; {operations_R.sum():,.0f} operations perturbed"
            print(
                f"trained; peak memory {memory_R.max() / 1e9:.2f} GB in a process, "
                f"{memory_R.sum() / 1e9:.1f} GB in all"
                + (perturbed if self.config.engine != "ieee" else ""),
                flush=True,
            )

    def _agree(
        self, terms: dict[str, Tensor], signalled: int, due: bool, waited: float
    ) -> tuple[int, bool]:
        """Exchange what all ranks have to know: the loss, signals, whether to save."""
        values = [float(terms[name].detach()) for name in TERMS]
        rows_RN = self.group.gather([*values, signalled, due, waited])
        self.terms = dict(zip(TERMS, rows_RN[:, : len(TERMS)].mean(0).tolist(), strict=True))
        signalled_R, due_R, waited_R = rows_RN[:, len(TERMS) :].T
        self.waited = float(waited_R.max())
        if not rows_RN[:, 0].isfinite().all():
            raise self._not_finite("the loss is")
        return int(signalled_R.max()), bool(due_R[0])

    def _not_finite(self, what: str) -> UserError:
        rate = self.config.learning_rate
        return self.group.error(
            f"{what} not finite at step {self.step} of the training: lower learning_rate, which "
            f"is {rate:g}"
        )

    def _average(self, bucket: dist.GradBucket) -> Tensor:
        """The mean of all ranks' gradients, added in the order of the ranks."""
        buffer_N, parameters = bucket.buffer(), bucket.parameters()
        with self.rounding.paused():
            parts_RN = self.group.collect(buffer_N)
        sizes = [parameter.numel() for parameter in parameters]
        rows = zip(*(part.split(sizes) for part in parts_RN), strict=True)
        for parameter, own, row in zip(parameters, buffer_N.split(sizes), rows, strict=True):
            with self.rounding.of_sum(self.step, self.numbers[parameter]):
                own.copy_(mean(row))
        return buffer_N

    def _update(self) -> None:
        """One step by the mean of all ranks' gradients: the same on every rank."""
        self.rate = self.config.rate(self.step)
        optimizers.set_rate(self.optimizer, self.rate, self.config.flow_rate)
        with self.rounding.of_all(self.step):
            self.optimizer.step()
        self.optimizer.zero_grad()
        if self.config.engine == "verrou":  # whose processes cannot share a stream
            for parameter in self.numbers:
                self.group.broadcast(parameter.detach())

    def _log(self, seconds: float) -> None:
        if self.log:
            terms = {"learning_rate": self.rate, **self.terms}
            self.log.add(self.step - 1, terms, seconds, self.waited)

    def _save(self) -> None:
        """A checkpoint, of replicas that are the same; and the model where it is to be kept."""
        weights = {name: x.cpu() for name, x in self.model.state_dict().items()}
        if not all(x.isfinite().all() for x in weights.values()):  # the same on every rank
            raise self._not_finite("the weights are")
        self.group.check_same(checkpoint.digest(weights), f"after step {self.step}")
        if hasattr(self.optimizer, "consolidate_state_dict"):  # of moments that ranks share
            self.optimizer.consolidate_state_dict()
        if not self.log:
            return
        # the checkpoint last: what it says is done is then in the other files
        logs = self.log.write()
        epoch, within = divmod(self.step, self.config.steps)
        if self.run.keep_every and within == 0 and epoch % self.run.keep_every == 0:
            self.model.save(self.folder / f"epoch-{epoch:04d}.h5")
        state = checkpoint.State(self.step, weights, self.optimizer.state_dict(), logs)
        checkpoint.save(self.folder, self.config, self.ranks.size, self.made, state)

    def _stop(self, signalled: int) -> None:
        if self.log:
            name = signal.Signals(signalled).name
            print(
                f"\nstopped by {name} after step {self.step} of {self.config.total_steps}, which "
                f"is saved in {self.folder}; RESUME=1 (--resume) continues from there",
                flush=True,
            )
        raise Stopped(128 + signalled)


def _on(device: torch.device, pair: Pair, layout: torch.memory_format) -> Pair:
    """The pair on `device`, in this layout."""
    return Pair(
        *(
            x.to(device, memory_format=layout)
            for x in (pair.moving, pair.fixed, pair.moving_tissues, pair.fixed_tissues)
        )
    )


@contextmanager
def _signals() -> Iterator[Callable[[], int]]:
    """The number of the signal that asked the training to end, 0 while none has; a second SIGINT
    ends it at once."""
    seen: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and seen:
            raise KeyboardInterrupt
        seen.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: seen[0] if seen else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next step: asking the system for it again, page by
    page, costs a fifth of a step."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        trim_threshold, mmap_threshold = -1, -3  # their numbers in malloc.h
        library.mallopt(trim_threshold, 2**31 - 1)
        library.mallopt(mmap_threshold, 2**25)
