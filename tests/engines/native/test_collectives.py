"""Sums over ranks, in two and three gloo processes: what the engine adds, and in which order."""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from support import ranks
from torch import Tensor, nn

from morphbits import random_rounding
from morphbits.errors import UserError

OPERATIONS = {"SUM": torch.add, "AVG": torch.add, "PRODUCT": torch.mul}


def part(rank: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(rank)
    return (torch.rand(6, 5, generator=generator) + 0.5).to(dtype)


def expected(mode: str, how: str, size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """In one process: the parts joined in the order of the ranks."""
    parts = [part(rank, dtype) for rank in range(size)]
    with random_rounding(mode):
        total = reduce(OPERATIONS[how], parts)
        return total / size if how == "AVG" else total


# ------------------------------------------------------------ what ranks do


def every_way(rank: int, how: str, mode: str, dtype: torch.dtype) -> dict[str, list[Tensor]]:
    """Each way to a sum: its result, or this rank's rows of it."""
    size, op = dist.get_world_size(), getattr(dist.ReduceOp, how)
    found: dict[str, Tensor] = {}
    mine = part(rank, dtype)
    with random_rounding(mode) as stats:
        whole = mine.clone()
        dist.all_reduce(whole, op)
        strided = mine.t().contiguous().t()
        work = dist.all_reduce(strided, op, async_op=True)
        assert work.wait() and work.is_completed()
        at_root = mine.clone()
        dist.reduce(at_root, 1, op)
        if rank != 1:
            assert torch.equal(at_root, mine)
            at_root = None
        pair = [mine.clone(), mine.clone()]
        dist.all_reduce_coalesced(pair, op)
        rows, listed = torch.empty(2, len(mine) // size, 5, dtype=dtype)
        dist.reduce_scatter_tensor(rows, mine, op)
        dist.reduce_scatter(listed, list(mine.chunk(size)), op)
        functional_all = functional.all_reduce(mine, how.lower(), dist.group.WORLD)
        functional_rows = functional.reduce_scatter_tensor(mine, how.lower(), 0, dist.group.WORLD)
        found = {
            "all": [whole, strided, *pair, functional_all.wait()],
            "root": [] if at_root is None else [at_root],
            "rows": [rows, listed, functional_rows.wait()],
        }
        operations = stats.operations
    additions = 5 * 30 + 30 * (rank == 1) + 3 * 30 // size
    conversions = 2 if dtype == torch.bfloat16 else 1  # each sum is rounded to its type
    assert operations == additions * (size - 1 + (how == "AVG")) * conversions
    return found


def moves(rank: int) -> int:
    """Operators that only move, and sums of integers and greatest values."""
    size, mine = dist.get_world_size(), part(rank)
    parts = [part(r) for r in range(size)]
    with random_rounding() as stats:
        everything = [torch.empty_like(mine) for _ in range(size)]
        dist.all_gather(everything, mine)
        assert all(map(torch.equal, everything, parts))
        sent, got = mine.clone(), torch.empty(size, 6, 5)
        dist.broadcast(sent, 0)
        dist.all_gather_into_tensor(got.view(-1, 5), mine)
        dist.all_to_all_single(torch.empty_like(mine), mine)
        dist.scatter(torch.empty_like(mine), everything if rank == 0 else None, 0)
        dist.gather(mine, everything if rank == 0 else None, 0)
        if rank == 0:
            dist.send(mine, 1)
        elif rank == 1:
            dist.recv(got[0], 0)
        dist.barrier()
        count, most = torch.tensor([rank + 1]), mine.clone()
        dist.all_reduce(count)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        gathered = functional.all_gather_tensor(mine, 0, dist.group.WORLD)
        objects: list[Any] = [None] * size
        dist.all_gather_object(objects, rank)
        assert objects == list(range(size))
    assert torch.equal(sent, part(0)) and torch.equal(gathered.wait(), got.new_tensor(gathered))
    assert count.item() == sum(range(1, size + 1))
    assert torch.equal(most, torch.stack(parts).amax(0))
    return stats.operations


def train(rank: int, mode: str, seeds: list[int], steps: int = 3) -> tuple[list[Tensor], dict]:
    """A user's own data-parallel training; ranks that did other things are in step after a sum."""
    torch.manual_seed(rank)
    net = nn.Sequential(nn.Linear(5, 40), nn.BatchNorm1d(40), nn.ReLU(), nn.Linear(40, 2))
    with random_rounding(mode, seed=seeds[rank]) as stats:
        if rank:  # another number of operators
            part(rank) * 0.1
        model = nn.parallel.DistributedDataParallel(net, bucket_cap_mb=0.0005)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        for _ in range(steps):
            optimizer.zero_grad()
            model(part(rank)).square().mean().backward()
            optimizer.step()
    return [p.detach().clone() for p in net.parameters()], dict(stats.operators)


def gradients(rank: int, seeds: list[int]) -> list[Tensor]:
    """Of ranks with streams of their own: the sum is the first one's."""
    net = nn.Linear(5, 3)
    torch.nn.init.constant_(net.weight, 0.3)
    model = nn.parallel.DistributedDataParallel(net)
    with random_rounding(seed=seeds[rank]):
        model(part(rank)).square().mean().backward()
    return [p.grad for p in net.parameters()]


def other_options(rank: int) -> str:
    mine = part(rank)
    with random_rounding("upward" if rank else "downward"):
        try:
            dist.all_reduce(mine)
        except UserError as error:
            return str(error)
    return "nothing"


def complex_numbers(rank: int) -> Tensor:
    both = torch.complex(part(rank), part(rank))
    with random_rounding("upward"):
        dist.all_reduce(both)
    return both


def distributed_tensor(rank: int) -> tuple[Tensor, dict]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    x = distribute_tensor(part(0), mesh, [Shard(1)])
    w = distribute_tensor(part(1).t().contiguous(), mesh, [Shard(0)])
    with random_rounding("upward") as stats:
        y = (x @ w).redistribute(mesh, [Replicate()]).to_local()
    return y, dict(stats.operators)


# ------------------------------------------------------------ tests


@pytest.fixture(scope="module", autouse=True)
def loaded() -> None:
    """What functional collectives import is imported once, not by each process."""
    import torch._dynamo  # noqa: F401


@pytest.mark.parametrize(
    "how, size, mode, dtype",
    [
        ("SUM", 2, "upward", torch.float32),
        ("AVG", 3, "downward", torch.float32),
        ("PRODUCT", 2, "upward", torch.float32),
        ("AVG", 2, "upward", torch.bfloat16),
    ],
)
def test_sums_are_joined_in_the_order_of_the_ranks(
    how: str, size: int, mode: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    results = ranks.run(size, every_way, tmp_path, how, mode, dtype)
    total = expected(mode, how, size, dtype)
    assert not torch.equal(total, expected("nearest", how, size, dtype))
    for rank, found in enumerate(results):
        assert isinstance(found, dict), found
        rows = total.chunk(size)[rank]
        wrong = [torch.equal(x, total) for x in (*found["all"], *found["root"])]
        wrong += [torch.equal(x, rows) for x in found["rows"]]
        assert all(wrong), wrong
    assert [len(found["root"]) for found in results] == [0, 1, 0][:size]


def test_what_moves_between_ranks_passes(tmp_path: Path) -> None:
    assert ranks.run(2, moves, tmp_path) == [0, 0]


def test_a_users_data_parallel_training_has_identical_replicas(tmp_path: Path) -> None:
    one, two = ranks.run(2, train, tmp_path, "random", [3, 3])
    assert all(map(torch.equal, one[0], two[0])), (one, two)
    parameters = 5 * 40 + 40 + 40 + 40 + 40 * 2 + 2
    assert one[1]["allreduce_"] == two[1]["allreduce_"] == 3 * parameters
    again = ranks.run(2, train, tmp_path, "random", [3, 3])
    other = ranks.run(2, train, tmp_path, "random", [4, 4])
    assert all(map(torch.equal, again[0][0], one[0]))
    assert not all(map(torch.equal, other[0][0], one[0]))


def test_ranks_with_seeds_of_their_own_draw_the_first_ones_roundings_for_sums(
    tmp_path: Path,
) -> None:
    one, two = ranks.run(2, gradients, tmp_path, [1, 2**64 - 1])
    assert all(map(torch.equal, one, two)), (one, two)


def test_ranks_in_other_regions_are_told(tmp_path: Path) -> None:
    for said in ranks.run(2, other_options, tmp_path):
        assert "with other modes, precisions or stages" in said


def test_complex_numbers_are_added_as_two_real_ones(tmp_path: Path) -> None:
    total = expected("upward", "SUM", 2)
    for found in ranks.run(2, complex_numbers, tmp_path):
        assert torch.equal(found.real, total) and torch.equal(found.imag, total)


def test_the_parts_and_the_sum_of_a_distributed_tensor_are_perturbed(tmp_path: Path) -> None:
    found = ranks.run(2, distributed_tensor, tmp_path)
    assert not isinstance(found[0], str), found[0]
    (one, operators), (two, _) = found
    exact = part(0).double() @ part(1).t().double()
    assert torch.equal(one, two) and (one.double() >= exact).all()
    assert set(operators) == {"mm", "all_reduce"}
