"""Run a function in several processes of a gloo group, each in one thread."""

from __future__ import annotations

import datetime
import multiprocessing
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from morphbits.engines.native import selftest


def run(size: int, function: Callable[..., Any], folder: Path, *arguments: Any) -> list[Any]:
    """What `function(rank, …)` returns on each rank; an exception comes back as its text.

    The processes are forked: what is loaded and tested here need not be once more.
    """
    selftest.once()
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    store = folder / f"store-{len(list(folder.iterdir()))}"
    workers = [
        context.Process(target=_rank, args=(rank, size, store, answers, function, arguments))
        for rank in range(size)
    ]
    for worker in workers:
        worker.start()
    results = dict(pickle.loads(answers.get()) for _ in workers)
    for worker in workers:
        worker.join(60)
    return [results[rank] for rank in range(size)]


def _rank(rank: int, size: int, store: Path, answers: Any, function: Any, arguments: Any) -> None:
    torch.set_num_threads(1)
    patience = datetime.timedelta(seconds=60)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=patience
    )
    try:
        found = function(rank, *arguments)
    except Exception:
        found = traceback.format_exc()
    try:
        answers.put(pickle.dumps((rank, found)))  # not the tensors' memory, which ends with us
    finally:
        dist.destroy_process_group()
