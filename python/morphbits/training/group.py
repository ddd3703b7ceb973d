"""The processes of one training and what they exchange.

Sums over ranks are taken in the order of the ranks, whatever the number of machines and the way
messages go: the same ranks give the same bytes everywhere, and replicas are identical. A process
that dies ends the others: their next exchange fails.
"""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from morphbits.errors import ReportedElsewhere, UserError, disk_full, in_words
from morphbits.parent import end_with_parent
from morphbits.synthesis.settings import Ranks

PATIENCE = datetime.timedelta(minutes=10)  # for a rank that is there but does not answer
T = TypeVar("T")
Average = Callable[[dist.GradBucket], Tensor]


class Group:
    """The ranks of a training; with one rank, every exchange is nothing."""

    def __init__(self, ranks: Ranks, device: torch.device) -> None:
        self.ranks, self.device = ranks, device
        self.first = ranks.rank == 0

    def parallel(self, module: nn.Module, average: Average) -> nn.Module:
        """`module`; with several ranks, backward passes through it leave what `average` makes of
        each bucket of gradients."""
        if self.ranks.size == 1:
            return module
        parallel = DistributedDataParallel(module, gradient_as_bucket_view=True)
        parallel.register_comm_hook(None, lambda _, bucket: _done(average(bucket)))
        return parallel

    def collect(self, own_N: Tensor) -> list[Tensor]:
        """Every rank's numbers, as many as this one's."""
        parts = [torch.empty_like(own_N) for _ in range(self.ranks.size)]
        dist.all_gather(parts, own_N)
        return parts

    def gather(self, row: list[float]) -> Tensor:
        """Every rank's row of numbers, (ranks, numbers), float64."""
        row_N = torch.tensor(row, dtype=torch.float64, device=self.device)
        if self.ranks.size == 1:
            return row_N[None].cpu()
        return torch.stack(self.collect(row_N)).cpu()

    def broadcast(self, values: Tensor) -> None:
        """Give every rank the first one's values."""
        if self.ranks.size > 1:
            dist.broadcast(values, 0)

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` returns on the first rank, on all of them; its UserError ends all."""
        box: list[Any] = [None]
        if self.first:
            try:
                box = [make()]
            except UserError as error:
                box = [error]
        if self.ranks.size > 1:
            dist.broadcast_object_list(box, 0)
        if isinstance(box[0], UserError):
            raise self.error(str(box[0]))
        return box[0]  # type: ignore[no-any-return]

    def of_machines(self, make: Callable[[], T]) -> dict[int, T]:
        """What `make` returns on the first rank of each machine, by that rank, on all ranks; a
        UserError of any ends all."""
        mine: list[Any] = []
        if self.ranks.host_rank == 0:
            try:
                mine = [make()]
            except UserError as error:
                mine = [error]
        found = [mine] * self.ranks.size
        if self.ranks.size > 1:
            dist.all_gather_object(found, mine)
        made = {rank: value for rank, values in enumerate(found) for value in values}
        for value in made.values():
            if isinstance(value, UserError):
                raise self.error(str(value))
        return made

    def error(self, message: str) -> UserError:
        """What every rank has found: the first one says it."""
        return UserError(message) if self.first else ReportedElsewhere(message)

    def check_same(self, digest: str, when: str) -> None:
        """Replicas that differ end the training."""
        digests: list[Any] = [digest]
        if self.ranks.size > 1:
            digests = [None] * self.ranks.size
            dist.all_gather_object(digests, digest)
        differing = [rank for rank, other in enumerate(digests) if other != digests[0]]
        if differing:
            raise self.error(
                f"the weights of rank {', '.join(map(str, differing))} differ from those of rank "
                f"0 {when}: nothing of this was saved; look for faulty memory or a machine of "
                "another kind, and resume from the last checkpoint"
            )


def mean(parts_RN: Sequence[Tensor]) -> Tensor:
    """The mean over ranks, summed in their order, (N,)."""
    total = parts_RN[0].clone()
    for part in parts_RN[1:]:
        total += part
    return total / float(len(parts_RN))


def _done(result: Tensor) -> Future[Tensor]:
    future: Future[Tensor] = Future()
    future.set_result(result)
    return future


@contextmanager
def processes() -> Iterator[Ranks]:
    """The ranks that torchrun has started this process as one of; one rank without torchrun.

    A UserError is said here, before torchrun can end this process because of another one. When
    torchrun dies, this process saves and ends, as at SIGTERM.
    """
    if "RANK" not in os.environ:
        yield Ranks()
        return
    end_with_parent()
    rank, size, host_rank, host_size = (
        int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    )
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if 0 < gpus < host_size:
        raise UserError(
            f"{host_size} processes on a machine with {gpus} GPUs: give NPROC={gpus}, or hide the "
            "GPUs (CUDA_VISIBLE_DEVICES=) to train on the CPU"
        )
    if gpus:
        torch.cuda.set_device(host_rank)
    dist.init_process_group("nccl" if gpus else "gloo", timeout=PATIENCE)
    try:
        yield Ranks(rank, size, host_rank, host_size)
    except UserError as error:
        if not isinstance(error, ReportedElsewhere):
            print(f"error: {error}", file=sys.stderr, flush=True)
        raise ReportedElsewhere(*error.args) from None
    except OSError as error:
        if not (full := disk_full(error)):
            raise
        print(f"error: {in_words(full)}", file=sys.stderr, flush=True)
        raise ReportedElsewhere(in_words(full)) from None
    except RuntimeError as error:  # also torch's DistError
        words = ("onnection", "ProcessGroup", "Timed out")
        if not isinstance(error, dist.DistError) and not any(word in str(error) for word in words):
            raise
        lost = UserError(f"rank {rank}: {_lost(error)}")
        print(f"error: {lost}", file=sys.stderr, flush=True)
        raise ReportedElsewhere(*lost.args) from error
    finally:
        dist.destroy_process_group()


def _lost(error: Exception) -> str:
    reason = str(error).strip().splitlines()[0]
    what = "does not answer" if "Timed out" in reason else "has ended"
    return (
        f"another process of the training {what} ({reason}); its own error, if any, is "
        "printed above. RESUME=1 continues from the last checkpoint"
    )
