"""The synthesis process: the same bytes for everybody, and no way to go on without it."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import morphbits.synthesis
from morphbits import images
from morphbits.config import to_json
from morphbits.errors import UserError
from morphbits.synthesis import server, stream, wire
from morphbits.synthesis.labels import LabelMaps
from morphbits.synthesis.pair import Pair
from morphbits.synthesis.settings import Ranks, SourceConfig
from morphbits.synthesis.sources import open_source
from morphbits.synthesis.stream import Stream, _channels

STEPS = 2
# as in a trainer's process: `source` for rank `rank` of 2 on this host, which pytest has started
TRAINER = """
import sys
from pathlib import Path
from morphbits.synthesis.settings import Ranks, SourceConfig
from morphbits.synthesis.sources import open_source
from synthesis.test_stream import STEPS, digest

folder, rank = sys.argv[1], int(sys.argv[2])
config = SourceConfig(source="synthmorph", labels=folder, steps=STEPS)
with open_source(config, Ranks(rank, 2, rank, 2), 1) as source:
    for step in range(2 * STEPS):
        print(digest(source.pair(*divmod(step, STEPS), rank)))
"""


def digest(pair: Pair) -> str:
    parts = [getattr(pair, field.name).numpy().tobytes() for field in fields(Pair)]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def trainer(*arguments: str, code: str = TRAINER) -> subprocess.Popen[str]:
    here = Path(__file__).parents[1]
    paths = os.pathsep.join([str(here), str(here.parent / "python")])
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        text=True,
    )


def server_pid(source: Stream) -> int:
    return source._processes[0]._process.pid


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small label maps."""
    folder = tmp_path_factory.mktemp("labels")
    for number, values in enumerate(([0, 2, 3, 2], [0, 3, 2, 41], [3, 0, 2, 41])):
        slabs = np.repeat(np.array(values, np.int32), 8)[:, None, None]
        images.save(folder / f"{number}.nii.gz", np.tile(slabs, (1, 32, 32)), np.eye(4))
    return folder


def test_a_key_gives_the_same_bytes_in_another_process_order_and_batch(folder: Path) -> None:
    """Two trainers share a process; a third with a process of its own asks in another order, and
    for the batches of both ranks at once. Then its process is killed."""
    keys = [divmod(step, STEPS) for step in range(2 * STEPS)]
    trainers = [trainer(str(folder), str(rank)) for rank in (0, 1)]
    config = SourceConfig(source="synthmorph", labels=str(folder), steps=STEPS, batch=2)
    lines: list[str] = []
    with open_source(config, Ranks(), 1, say=lines.append) as source:
        assert lines == [f"3 label maps ({folder}) of 4 labels, 3 of them targets"]
        both = {key: source.pair(*key, 0) for key in (keys[3], keys[0], keys[2], keys[1])}
        assert digest(source.pair(*keys[3], 0)) == digest(both[keys[3]])
        next_rank = source.pair(0, 0, 1)
        assert isinstance(source, Stream)

        source._free = [99]  # a slot that is not there
        with pytest.raises(UserError, match=r"synthesis process failed \(TypeError: buffer"):
            source.pair(7, 0, 0)
        source._free, source._pending = [0], {}
        os.kill(server_pid(source), signal.SIGKILL)
        with pytest.raises(UserError, match=r"has ended \(killed by SIGKILL\).*--resume"):
            source.pair(8, 0, 0)
    outputs = [process.communicate(timeout=120)[0].split() for process in trainers]
    assert [process.returncode for process in trainers] == [0, 0]
    for rank, output in enumerate(outputs):
        halves = [
            Pair(*(getattr(both[key], field.name)[rank : rank + 1] for field in fields(Pair)))
            for key in keys
        ]
        assert output == [digest(half) for half in halves]
    assert len({*outputs[0], *outputs[1], digest(next_rank)}) == 2 * len(keys) + 1
    check_pair(both[keys[0]])


def check_pair(pair: Pair) -> None:
    """What the contract of `Pair` says, for a batch of 2 and labels 2, 3 and 41."""
    for image, labels in (
        (pair.moving, pair.moving_tissues),
        (pair.fixed, pair.fixed_tissues),
    ):
        assert image.shape == (2, 1, 32, 32, 32) and labels.shape == (2, 3, 32, 32, 32)
        assert image.dtype == labels.dtype == torch.float32
        assert image.amin() == 0 and image.amax() == 1
        assert set(labels.unique().tolist()) == {0, 1} and labels.sum(1).amax() == 1
    assert not torch.equal(pair.moving, pair.fixed)
    assert not torch.equal(pair.moving[0], pair.moving[1])


def test_what_is_wrong_with_label_maps_reaches_the_trainer(tmp_path: Path) -> None:
    def opened() -> None:
        config = SourceConfig(source="synthmorph", labels=str(tmp_path))
        with open_source(config, Ranks(), 1):
            pass

    with pytest.raises(UserError, match="holds no label maps"):
        opened()
    images.save(tmp_path / "one.nii.gz", np.arange(4096).reshape(16, 16, 16) % 3, np.eye(4))
    with pytest.raises(UserError, match="pairs from different subjects need two label maps"):
        opened()


def test_all_ranks_of_a_host_and_nobody_else_have_one_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever their parent is, as long as torchrun started them."""
    told = dict(zip(stream.TORCHRUN, ("run", "127.0.0.1", "29400", "0", "0"), strict=True))
    for name in stream.TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    ranks = [Ranks(rank, 4, rank, 4) for rank in range(2)]
    alone = stream._session(Ranks())
    by_parent = {stream._session(one) for one in ranks}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "getppid", iter(range(2, 99)).__next__)
    by_torchrun = {stream._session(one) for one in ranks}
    assert len(by_parent) == len(by_torchrun) == 1
    others = {alone, *by_parent, *by_torchrun}
    for name in told:  # another job, machine of the job, or start of it
        monkeypatch.setenv(name, "7")
        others.add(stream._session(ranks[0]))
        monkeypatch.setenv(name, told[name])
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    others.add(stream._session(ranks[0]))
    assert len(others) == 3 + len(told) + 1
    assert max(map(len, others)) < 100 - len("-123-99")  # names of sockets have 107 bytes


def test_drawn_maps_are_there_before_the_first_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that no trainer waits for them with its first pairs."""
    drawn: list[LabelMaps] = []

    def generator(config: SourceConfig, maps: LabelMaps) -> SimpleNamespace:
        drawn.append(maps)
        return SimpleNamespace(image=lambda *_: None)

    instead = SimpleNamespace(set_threads=lambda threads: None, Generator=generator)
    monkeypatch.setitem(sys.modules, "morphbits.synthesis.generator_tf", instead)
    monkeypatch.setattr(morphbits.synthesis, "generator_tf", instead, raising=False)
    config = SourceConfig(source="synthmorph", size="4mm", maps=3)
    made = server._prepare(to_json(config), 1, 2)
    assert drawn[0]._map.cache_info().currsize == 3
    assert made.description == drawn[0].describe()
    assert made.layout == wire.Layout((48, 48, 48), 26, 1)


def test_the_process_dies_with_its_trainer() -> None:
    code = """
import time
from morphbits.synthesis import stream
from morphbits.synthesis.settings import SourceConfig
process = stream._Process("morphbits-test-orphan", 1, SourceConfig(source="synthmorph"))
print(process._process.pid, flush=True)
time.sleep(600)
"""
    process = trainer(code=code)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    os.kill(pid, 0)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and alive(pid):
        time.sleep(0.05)
    assert not alive(pid)


def alive(pid: int) -> bool:
    """Whether it runs; one that has ended and that nobody has asked about is a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_channels(kind: type) -> None:
    targets = np.array([0, 1, 3, 2], kind).reshape(1, 4, 1, 1)
    expected = [[0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]]
    assert _channels(targets, 3)[0, :, :, 0, 0].tolist() == expected
