"""Orders of one machine's kernels, written to a file and followed on another machine."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.exact_replay import same_bytes

from morphbits.engines.native import random_rounding
from morphbits.engines.native.orders import probe, recorded, store
from morphbits.engines.native.orders.accumulation import terms
from morphbits.engines.native.orders.probe_sums import Products
from morphbits.engines.native.orders.trees import TreeOrder
from morphbits.errors import UserError

PYTHON = Path(__file__).parents[3] / "python"
AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}


def program() -> list[torch.Tensor]:
    """Convolutions, products of matrices, with and without something added, and sums."""
    draw = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw)

    with torch.no_grad():
        return [
            torch.conv3d(normal(2, 32, 6, 7, 8), normal(16, 32, 3, 3, 3), normal(16), padding=1),
            torch.conv3d(normal(1, 16, 6, 7, 8), normal(32, 16, 3, 3, 3), normal(32), padding=1),
            normal(40, 300) @ normal(300, 24),
            torch.nn.functional.linear(normal(20, 256), normal(32, 256), normal(32)),
            normal(40, 300).sum(1),
        ]


def measured() -> tuple[list[torch.Tensor], dict[str, str]]:
    with random_rounding("nearest", accumulation="probe") as stats:
        found = program()
    return found, stats.orders


ELSEWHERE = """
import pathlib, sys, torch
sys.path[:0] = {paths!r}
import test_recorded_orders as here
torch.set_num_threads(2)
plain = here.program()
ours, orders = here.measured()
here.recorded.write(pathlib.Path({file!r}))
torch.save((plain, ours, list(orders.values())), {results!r})
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A file of a process with AVX2 at most and two threads; and what torch gave there, what the
    engine gave, and the orders in words."""
    folder = tmp_path_factory.mktemp("elsewhere")
    file, results = folder / "orders.json.gz", folder / "results.pt"
    paths = [str(PYTHON), str(Path(__file__).parent), str(PYTHON.parent / "tests")]
    code = ELSEWHERE.format(paths=paths, file=str(file), results=str(results))
    environment = {"PATH": "/usr/bin:/bin", "OMP_WAIT_POLICY": "PASSIVE", **AVX2}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    return file, torch.load(results)


def test_orders_of_another_machine_give_its_bytes(
    elsewhere: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch's, where the order was proven there; with one thread, and this machine's instructions.
    Nothing is measured here."""
    file, (plain, ours, orders) = elsewhere
    monkeypatch.setattr(store, "measured", {})
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with recorded.replay(file) as recording:
            found, words = measured()
        assert not store.measured
        own, _ = measured()
        assert store.measured
    finally:
        torch.set_num_threads(before)
    assert list(words.values()) == orders and len(orders) == 5
    assert recording.threads == 2 and recording.torch == torch.__version__
    assert all(map(same_bytes, found, ours))
    proven = [order.endswith(store.PROVEN) for order in orders]
    assert sum(proven) >= 2  # oneDNN's kernels, and MKL's of few columns
    for mine, theirs, sure in zip(found, plain, proven, strict=True):
        assert same_bytes(mine, theirs) or not sure
    # this machine's orders are others, where it has other instructions
    if "avx512" in torch.backends.cpu.get_cpu_capability().lower():
        assert not all(map(same_bytes, found, own))


def test_a_perturbed_run_follows_them_too(elsewhere: tuple[Path, Any]) -> None:
    with recorded.replay(elsewhere[0]):
        found = []
        for _ in range(2):
            with random_rounding("random", accumulation="probe", seed=3):
                found.append(program())
        nearest, _ = measured()
    assert all(map(same_bytes, *found))
    assert not any(map(torch.equal, found[0], nearest))


def test_what_the_file_does_not_have_is_refused(elsewhere: tuple[Path, Any]) -> None:
    with (
        recorded.replay(elsewhere[0]),
        random_rounding("nearest", accumulation="probe"),
        pytest.raises(UserError, match=r"orders\.json\.gz: has no order .* another size"),
    ):
        torch.conv3d(torch.ones(1, 2, 5, 5, 5), torch.ones(3, 2, 3, 3, 3))


def first_list(value: Any, long: int = 2) -> list:
    """The first list of numbers in an order."""
    if isinstance(value, list) and len(value) >= long and isinstance(value[0], int):
        return value
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return next((found for one in parts if (found := first_list(one, long))), [])


def far(orders: dict[str, Any]) -> None:
    for order in orders.values():
        first_list(order["terms"] if "terms" in order else order["parts"])[0] = 10**9


def twice(orders: dict[str, Any]) -> None:
    for order in orders.values():
        numbers = first_list(order["terms"] if "terms" in order else order["parts"], 8)
        numbers[0] = numbers[-1]


def empty(orders: dict[str, Any]) -> None:
    for order in orders.values():
        order.pop("kind")


@pytest.mark.parametrize("damage", [far, twice, empty])
def test_a_damaged_file_reads_no_memory(
    damage: Callable[[dict[str, Any]], None],
    elsewhere: tuple[Path, Any],
    tmp_path: Path,
) -> None:
    """Each term is there once, or the order is refused before a kernel sees it."""
    content = json.loads(gzip.decompress(elsewhere[0].read_bytes()))
    damage(content["orders"])
    file = tmp_path / "orders.json.gz"
    file.write_bytes(gzip.compress(json.dumps(content).encode()))
    with recorded.replay(file), pytest.raises(UserError, match="damaged"):
        measured()


@pytest.mark.parametrize("content", [b"", b"a", gzip.compress(b"[1"), gzip.compress(b"[]")[:-9]])
def test_another_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(UserError, match="x: has no recorded orders"):
        recorded.read(tmp_path / "x")
    with pytest.raises(UserError, match="y: cannot be read"):
        recorded.read(tmp_path / "y")


def test_files_of_one_machine_become_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [tmp_path / "1", tmp_path / "2"]
    for length, file in enumerate(files, 3):
        monkeypatch.setattr(store, "measured", {})
        with random_rounding("nearest", accumulation="probe"):
            torch.ones(length).sum()
        recorded.write(file)
    recorded.merge(files, tmp_path / "both")
    both = recorded.read(tmp_path / "both").orders
    assert len(both) == 2
    assert both == recorded.read(files[0]).orders | recorded.read(files[1]).orders


def test_an_order_that_is_not_whole_reaches_no_kernel() -> None:
    """One channel for all terms would be read beyond its end; a chain of none never ends."""
    steps = probe.Steps((1,) * 3, (0,) * 3, (1,) * 3)
    geometry = probe.Geometry((1, 1, 5, 5, 5), (1, 1, 3, 3, 3), steps)
    whole = terms("direct", 27, 1)
    for order, fits in ((whole, True), (replace(whole, channel=whole.channel[:1]), False)):
        assert probe.Found(order, "", True).fits(geometry, bias=True) == fits

    def product(*chains: tuple[int, ...]) -> Products:
        return Products(2, chains, TreeOrder(len(chains), (np.arange(len(chains))[:, None],)))

    assert product((0,), (1,)).fits(2, addend=False)
    assert not product((0,), (), (1,)).fits(2, addend=False)
