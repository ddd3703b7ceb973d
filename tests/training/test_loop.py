"""The training loop in one process: same configuration, same bytes, interrupted or not."""

from __future__ import annotations

import argparse
import csv
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from support import disks
from support.toy_training import TOY, ToySource, outputs, train_toy
from torch.utils._python_dispatch import TorchDispatchMode

from morphbits import config
from morphbits.errors import UserError
from morphbits.models.synthmorph_torch import SynthMorph, init_model
from morphbits.models.weights import read_architecture
from morphbits.synthesis.prefetch import prefetch
from morphbits.synthesis.settings import Ranks
from morphbits.training import (
    RunConfig,
    TrainConfig,
    checkpoint,
    estimate,
    loop,
    network,
    optimizers,
    options,
)
from morphbits.training.group import Group
from morphbits.training.log import COLUMNS
from morphbits.training.loop import resolve
from morphbits.training.network import TERMS
from morphbits.wording import duration

STEPS = TOY.total_steps
RECIPES = Path(__file__).parents[2] / "python" / "experiments"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train_toy(folder)
    return folder


def test_same_configuration_gives_the_same_bytes(trained: Path, tmp_path: Path) -> None:
    torch.manual_seed(99)
    train_toy(tmp_path, run=RunConfig(save_minutes=0, keep_every=2))
    assert outputs(tmp_path) == outputs(trained)
    kept = sorted(path.name for path in tmp_path.glob("epoch-*.h5"))
    assert kept == ["epoch-0002.h5"]


def test_torchs_own_sampling_gives_the_same_bytes(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(network.plain, "takes", lambda *tensors: asked.append(tensors))
    train_toy(tmp_path)
    assert asked and outputs(tmp_path) == outputs(trained)


def test_the_model_says_the_axes_and_the_shape_of_its_pairs(trained: Path) -> None:
    architecture = read_architecture(trained / "model.h5")
    assert architecture.orientation == ToySource.orientation
    assert architecture.inshape == ToySource.shape


@pytest.mark.tensorflow
def test_voxelmorph_loads_the_model_at_the_shape_it_was_trained_at(tmp_path: Path) -> None:
    """Trained in another process: torch's optimizers load its compiler."""
    code = (
        "import sys; from pathlib import Path; from support.toy_training import train_toy; "
        "train_toy(Path(sys.argv[1]))"
    )
    paths = [str(Path(__file__).parents[1]), str(Path(loop.__file__).parents[2])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=environment)
    import morphbits.models.synthmorph_tf  # noqa: F401  # isort: skip, sets TensorFlow up
    import voxelmorph as vxm

    network = vxm.networks.VxmDense.load(str(tmp_path / "model.h5"))
    images = np.random.default_rng(1).random((2, 1, *ToySource.shape, 1), np.float32)
    moved, warp = network.predict(list(images), verbose=0)
    assert moved.shape == (1, *ToySource.shape, 1)
    assert np.isfinite(warp).all()


@pytest.mark.parametrize("change", ["seed", "init_seed"])
def test_another_seed_gives_another_model(change: str, trained: Path, tmp_path: Path) -> None:
    train_toy(tmp_path, replace(TOY, **{change: 2}))
    assert outputs(tmp_path)[0] != outputs(trained)[0]


KILLED = "import sys; from pathlib import Path; from support import toy_training as t; \
t.train_toy(Path(sys.argv[1]), run=t.RunConfig(save_minutes=int(sys.argv[3])), \
die=(0, int(sys.argv[2])))"


def test_killed_at_any_step_and_resumed_equals_uninterrupted(
    trained: Path, tmp_path: Path
) -> None:
    step = int.from_bytes(os.urandom(4), "big") % STEPS
    paths = [str(Path(__file__).parents[1]), str(Path(loop.__file__).parents[2])]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), str(step), "10"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    resume = step >= TOY.steps  # before the end of the first epoch there is nothing to resume
    assert (tmp_path / "checkpoint.pt").exists() == resume, step
    train_toy(tmp_path, run=RunConfig(resume=resume))
    assert outputs(tmp_path) == outputs(trained), step


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_step_and_ends_with_its_status(
    number: signal.Signals,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    draw = ToySource.pair

    def signalled(source: ToySource, epoch: int, step: int, rank: int) -> object:
        if (epoch, step) == (1, 2):
            os.kill(os.getpid(), number)
        return draw(source, epoch, step, rank)

    monkeypatch.setattr(ToySource, "pair", signalled)
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stopped:
        train_toy(tmp_path)
    assert stopped.value.code == 128 + number
    assert f"stopped by {number.name} after step" in capsys.readouterr().out
    assert signal.getsignal(number) == before
    assert not (tmp_path / "model.h5").exists()
    monkeypatch.undo()
    train_toy(tmp_path, run=RunConfig(resume=True))
    assert outputs(tmp_path) == outputs(trained)


def test_more_epochs_go_on_where_fewer_ended(trained: Path, tmp_path: Path) -> None:
    train_toy(tmp_path, replace(TOY, epochs=1))
    train_toy(tmp_path, TOY, RunConfig(resume=True))
    assert outputs(tmp_path) == outputs(trained)


def test_the_loss_is_that_of_the_reference_put_together_from_other_parts() -> None:
    """1 − Dice(labels 2, labels 1 moved by the full-resolution warp) + λ‖∇warp‖²: the warp of the
    exact port, moved and compared in float64.

    Port and training integrate in other orders: warps of a voxel or so part by some 2^-20. A label
    of blobs of 4 voxels has a slope of at most 1 per voxel, so Dice and roughness part by less
    than 2^-18 each; allowed is four times that.
    """
    config = replace(TOY, loss="dice", smoothness=0.3)
    model = init_model(config.architecture(), 3, flow_std=0.3)
    pair = ToySource(config, Ranks()).pair(0, 0, 0)
    with torch.no_grad():
        found = network.registration_loss(model, pair, config)
        warp = model(pair.moving, pair.fixed)[1][0].double().numpy()
    assert np.abs(warp).max() > 1
    at = np.indices(warp.shape[1:]) + warp
    moved = np.stack(
        [ndimage.map_coordinates(label, at, order=1, mode="nearest")
         for label in pair.moving_tissues[0].double().numpy()]
    )  # fmt: skip
    fixed = pair.fixed_tissues[0].double().numpy()
    dice = 2 * (moved * fixed).sum((1, 2, 3)) / (moved + fixed).sum((1, 2, 3))
    slopes = [np.square(np.diff(warp, axis=axis)).mean() for axis in (1, 2, 3)]
    expected = 1 - dice.mean(), np.mean(slopes)
    assert [float(found[name]) for name in TERMS[1:]] == pytest.approx(expected, abs=2**-16)
    assert float(found["loss"]) == pytest.approx(expected[0] + 0.3 * expected[1], abs=2**-16)


@pytest.mark.parametrize("loss, rate, better", [("dice", 2e-3, 0.05), ("tissues", 3e-3, 0.04)])
def test_a_training_learns_what_it_has_not_seen(
    loss: str, rate: float, better: float, tmp_path: Path
) -> None:
    """150 steps on blobs: the loss of pairs that no step has drawn falls, from 0.68 to 0.59 and
    from 0.28 to 0.20 when this was written; half of that is asked for."""
    config = replace(
        TOY, enc="8 8", dec="8 8 8", loss=loss, learning_rate=rate, epochs=15, steps=10
    )
    source = ToySource(config, Ranks())

    @torch.no_grad()
    def held_out(model: SynthMorph) -> float:
        pairs = (source.pair(config.epochs, step, 0) for step in range(8))
        losses = [network.registration_loss(model, pair, config)["loss"] for pair in pairs]
        return float(torch.stack(losses).mean())

    start = init_model(config.architecture(), config.seed, loop.FLOW_STD)
    assert held_out(SynthMorph.load(train_toy(tmp_path, config))) < held_out(start) - better


def test_log_has_one_row_per_step(trained: Path) -> None:
    with (trained / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [int(row["step"]) for row in rows] == list(range(STEPS))
    assert [int(row["epoch"]) for row in rows] == [step // TOY.steps for step in range(STEPS)]
    assert len((trained / "times.csv").read_text().splitlines()) == STEPS + 1


def test_a_row_is_in_the_log_when_its_step_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update, seen = loop._Training._update, []

    def looking(training: loop._Training) -> None:
        rows = [(tmp_path / n).read_text().count("\n") for n in ("log.csv", "times.csv")]
        seen.append((*rows, sum(p.stat().st_size for p in (tmp_path / "tensorboard").iterdir())))
        update(training)

    monkeypatch.setattr(loop._Training, "_update", looking)
    train_toy(tmp_path, replace(TOY, epochs=1))
    assert [row[:2] for row in seen] == [(step + 1, step + 1) for step in range(TOY.steps)]
    events = [row[2] for row in seen]
    assert events == sorted(set(events))


def test_tensorboard_reads_the_events_and_tensorflow_stays_out(trained: Path) -> None:
    script = (
        "import sys, types; sys.modules['tensorboard.compat.notf'] = types.ModuleType('notf'); "
        "from tensorboard.backend.event_processing.event_file_loader import "
        "EventFileLoader as L; "
        "events = [e for e in L(sys.argv[1]).Load() if e.HasField('summary')]; "
        "print(len(events), events[-1].step, sorted(v.tag for v in events[-1].summary.value))"
    )
    (events,) = (trained / "tensorboard").iterdir()
    done = subprocess.run(
        [sys.executable, "-c", script, str(events)], check=True, text=True, capture_output=True
    )
    tags = ["learning_rate", "loss", "mismatch", "pairs per second", "roughness"]
    assert done.stdout.strip() == f"{STEPS} {STEPS - 1} {tags}"
    assert "tensorflow" not in sys.modules or not hasattr(sys.modules["tensorflow"], "constant")


def test_a_finished_folder_is_not_overwritten(trained: Path) -> None:
    with pytest.raises(UserError, match="holds a training already"):
        train_toy(trained)


def test_resume_refuses_another_configuration(trained: Path) -> None:
    with pytest.raises(UserError, match=r"started with smoothness 0\.1"):
        train_toy(trained, replace(TOY, smoothness=0.5), RunConfig(resume=True))
    with pytest.raises(UserError, match="at step 12 already"):
        train_toy(trained, replace(TOY, epochs=2), RunConfig(resume=True))


def test_resume_refuses_other_versions_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_toy(tmp_path, replace(TOY, epochs=1))
    made = checkpoint.made_with
    monkeypatch.setattr(checkpoint, "made_with", lambda config: made(config) | {"torch": "9.9"})
    with pytest.raises(UserError, match=r"started with torch \S+ \(now 9\.9\)"):
        train_toy(tmp_path, TOY, RunConfig(resume=True))


def test_resume_refuses_a_training_in_another_memory_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of 0.2.0 with one pair a step were channels last, and their records do not say so."""
    config, made = replace(TOY, epochs=1, batch=1), checkpoint.made_with
    assert "memory layout" not in made(replace(config, batch=2))
    monkeypatch.setattr(
        checkpoint,
        "made_with",
        lambda config: {k: v for k, v in made(config).items() if k != "memory layout"},
    )
    train_toy(tmp_path, config)
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"memory layout None \(now contiguous\)"):
        train_toy(tmp_path, replace(config, epochs=2), RunConfig(resume=True))


def test_label_maps_are_part_of_what_a_training_was_made_with(tmp_path: Path) -> None:
    config = replace(TOY, source="synthmorph", labels=str(tmp_path))
    (tmp_path / "a.nii.gz").write_bytes(b"one")
    before = checkpoint.made_with(config)
    (tmp_path / "a.nii.gz").write_bytes(b"another")
    after = checkpoint.made_with(config)
    assert {key for key in before if before[key] != after[key]} == {"label maps"}
    assert "neurite" in before and "neurite" not in checkpoint.made_with(TOY)
    native = checkpoint.made_with(replace(TOY, engine="native"))
    assert "engine native" in native


def test_a_second_training_in_the_same_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, said = ToySource.pair, []

    def nested(source: ToySource, epoch: int, step: int, rank: int) -> object:
        if not said:
            said.append("")
            with pytest.raises(UserError, match="another training is at work here"):
                train_toy(tmp_path)
            said.append("refused")
        return draw(source, epoch, step, rank)

    monkeypatch.setattr(ToySource, "pair", nested)
    train_toy(tmp_path)
    assert said == ["", "refused"]


def test_killed_between_a_kept_model_and_its_checkpoint_nothing_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PowerLost(Exception):
        pass

    save = checkpoint.save

    def lost(folder: Path, *arguments: object) -> None:
        if (folder / "checkpoint.pt").exists():
            raise PowerLost
        save(folder, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoint, "save", lost)
    with pytest.raises(PowerLost):
        train_toy(tmp_path, run=RunConfig(keep_every=1))
    monkeypatch.undo()
    train_toy(tmp_path, run=RunConfig(keep_every=1, resume=True))
    assert sorted(path.name for path in tmp_path.glob("epoch-*")) == [
        f"epoch-{n:04d}.h5" for n in range(1, TOY.epochs + 1)
    ]


def test_a_log_that_lacks_steps_and_a_folder_that_cannot_be_written_are_named(
    trained: Path, tmp_path: Path
) -> None:
    train_toy(tmp_path, replace(TOY, epochs=1))
    log = tmp_path / "log.csv"
    log.write_text("\n".join(log.read_text().splitlines()[:3]) + "\n")
    with pytest.raises(UserError, match=r"log\.csv: lacks steps"):
        train_toy(tmp_path, TOY, RunConfig(resume=True))
    log.unlink()
    with pytest.raises(UserError, match=r"log\.csv: cannot be read"):
        train_toy(tmp_path, TOY, RunConfig(resume=True))
    with pytest.raises(UserError, match="cannot be written to"):
        train_toy(Path("/sys/kernel"))


def test_a_training_that_cannot_fit_into_memory_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^BATCH \(--batch\) 1000000: .* GB are free"):
        train_toy(tmp_path, replace(TOY, batch=1_000_000))


def test_options_that_are_younger_than_a_recorded_recipe_had_their_defaults() -> None:
    younger = ("precision", "optimizer")  # all was torch's Adam
    recorded = {k: v for k, v in config.to_mapping(TOY).items() if k not in younger}
    assert TrainConfig.recorded(recorded) == config.to_mapping(TOY)


def test_resume_needs_a_checkpoint_that_is_whole(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no training to resume"):
        train_toy(tmp_path / "none", run=RunConfig(resume=True))
    (tmp_path / "checkpoint.pt").write_bytes(b"half")
    with pytest.raises(UserError, match="is damaged or no checkpoint"):
        train_toy(tmp_path, run=RunConfig(resume=True))
    for content, said in (
        ({"weights": torch.zeros(3)}, "is damaged or no checkpoint"),
        ({"weights": torch.zeros(3), "moments": torch.zeros(2, 3)}, "by an earlier version"),
    ):
        torch.save(content, tmp_path / "checkpoint.pt")
        with pytest.raises(UserError, match=said):
            train_toy(tmp_path, run=RunConfig(resume=True))


def test_a_flipped_bit_anywhere_in_a_checkpoint_is_seen_or_changes_nothing(
    tmp_path: Path,
) -> None:
    config = resolve(replace(TOY, epochs=1), Ranks())
    made = checkpoint.made_with(config)
    train_toy(tmp_path, replace(TOY, epochs=1))
    path = tmp_path / "checkpoint.pt"
    whole = path.read_bytes()
    state = checkpoint.load(tmp_path, config, 1, made)
    refused = 0
    for place in range(0, len(whole), 31):  # pickle, weights, moments and the zip's own bytes
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        try:
            found = checkpoint.load(tmp_path, config, 1, made)
        except UserError:
            refused += 1
            continue
        assert checkpoint.digest(vars(found)) == checkpoint.digest(vars(state))
    assert refused >= 3 * 4 * config.architecture().parameters() // 31  # weights and moments


FILLED = """
import resource, sys
from dataclasses import replace
from pathlib import Path
from support.toy_training import TOY, train_toy
from morphbits.errors import run_cli
from morphbits.training import RunConfig
folder, bytes = Path(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (bytes, bytes))
run_cli(lambda: train_toy(folder, TOY, RunConfig(keep_every=1)) and None)
"""


def train_where_files_end(folder: Path, limit: int) -> str:
    """Train in a process whose files may have `limit` bytes; what it says is one sentence."""
    paths = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "python")]
    done = subprocess.run(
        [sys.executable, "-c", FILLED, str(folder), str(limit)], text=True,
        capture_output=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    said = [line for line in done.stderr.splitlines() if "pairs/s" not in line]
    assert len(said) == 1 and said[0].startswith("error: ") and "make room" in said[0], said
    assert not list(folder.rglob("*part*"))
    return said[0]


def train_on_full_disk(folder: Path, resume: bool = False) -> None:
    with pytest.raises(UserError, match="make room"):
        train_toy(folder, TOY, RunConfig(keep_every=1, resume=resume))
    assert not list(folder.rglob("*part*"))


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system that a test may fill."""
    with disks.small_disk(tmp_path_factory.mktemp("small") / "disk", "1m") as folder:
        yield folder


def test_a_disk_that_fills_leaves_the_last_checkpoint(trained: Path, small_disk: Path) -> None:
    """Wherever in the training it fills: what is there goes on to the same bytes."""
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    config, made = resolve(TOY, Ranks()), checkpoint.made_with(resolve(TOY, Ranks()))
    written, whole = [], sum(path.stat().st_size for path in trained.rglob("*.*"))
    for share in (0.4, 1.4):
        folder = small_disk / f"{share}"
        filler = small_disk / "filler"
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free - int(share * whole))
        train_on_full_disk(folder)
        written.append((folder / "checkpoint.pt").exists())
        if written[-1]:
            state = checkpoint.load(folder, config, 1, made)
            train_on_full_disk(folder, resume=True)
            again = checkpoint.load(folder, config, 1, made)
            assert again.step >= state.step and filler.unlink() is None
            train_toy(folder, run=RunConfig(resume=True))
            assert outputs(folder) == outputs(trained)
        filler.unlink(missing_ok=True)
        shutil.rmtree(folder)
    assert written == [False, True]


@pytest.mark.parametrize("limit", [100, 9000])
def test_files_that_may_not_grow_are_named(limit: int, tmp_path: Path) -> None:
    assert "File too large" in train_where_files_end(tmp_path, limit)


def test_a_log_that_was_changed_is_named(tmp_path: Path) -> None:
    for name in ("log.csv", "times.csv"):
        folder = tmp_path / name
        train_toy(folder, replace(TOY, epochs=1))
        log = folder / name
        text = log.read_text()
        place = text.index(".") + 1  # a digit of the first row
        digit = "1" if text[place] != "1" else "2"
        log.write_text(text[:place] + digit + text[place + 1 :])
        with pytest.raises(UserError, match=rf"{name}: was changed or damaged"):
            train_toy(folder, TOY, RunConfig(resume=True))


def test_what_is_not_finite_ends_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="the loss is not finite"):
        train_toy(tmp_path, infinite=(0, 1))
    monkeypatch.setattr(
        torch.optim.Adam, "step", lambda adam: adam.param_groups[1]["params"][0].data.fill_(np.inf)
    )
    with pytest.raises(UserError, match="the weights are not finite at step 1"):
        train_toy(tmp_path / "last", replace(TOY, epochs=1, steps=1))
    assert not (tmp_path / "last" / "model.h5").exists()


def test_a_source_that_fails_ends_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_pair(*key: object) -> None:
        raise UserError("no label maps")

    monkeypatch.setattr(ToySource, "pair", no_pair)
    with pytest.raises(UserError, match="no label maps"):
        train_toy(tmp_path)


def test_prefetched_pairs_come_in_order_and_no_more_than_asked_for_are_drawn() -> None:
    asked: list[tuple[int, int, int]] = []

    class Counting(ToySource):
        def pair(self, epoch: int, step: int, rank: int):  # type: ignore[no-untyped-def]
            asked.append((epoch, step, rank))
            return super().pair(epoch, step, rank)

    source = Counting(TOY, Ranks())
    keys = [(0, step, 0) for step in range(20)]
    with prefetch(source, keys, depth=2) as pairs:
        for key in keys[:3]:
            assert torch.equal(pairs.next().moving, ToySource(TOY, Ranks()).pair(*key).moving)
    assert asked == keys[: len(asked)] and len(asked) <= 3 + 2 + 1


def test_products_on_a_gpu_are_asked_to_add_in_one_order(monkeypatch: pytest.MonkeyPatch) -> None:
    for set_before, found in ((None, ":4096:8"), (":16:8", ":16:8")):
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", set_before or "")
        if set_before is None:
            monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
        with network.deterministic(1):
            assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == found


def test_settings_of_torch_come_back() -> None:
    memory = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    before = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    with pytest.raises(RuntimeError), network.deterministic(before[1] + 1):
        raise RuntimeError
    assert before == (torch.are_deterministic_algorithms_enabled(), torch.get_num_threads())
    assert torch.utils.deterministic.fill_uninitialized_memory == memory  # type: ignore[attr-defined]


class Elsewhere(TorchDispatchMode):
    """Notes each operator that makes a tensor on the CPU; numbers by themselves may lie there."""

    def __init__(self) -> None:
        super().__init__()
        self.on_cpu: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        results = func(*args, **(kwargs or {}))
        for result in results if isinstance(results, tuple | list) else [results]:
            if isinstance(result, torch.Tensor) and result.is_cpu and result.ndim:
                self.on_cpu.append(str(func))
        return results


@pytest.mark.parametrize(
    "changes", [{}, {"loss": "tissues", "batch": 2}, {"optimizer": "keras-adam"}]
)
def test_a_step_is_computed_where_the_model_is(changes: dict[str, Any], tmp_path: Path) -> None:
    """On the device `meta`, which computes nothing, and refuses what lies elsewhere as a GPU
    does."""
    device, config = torch.device("meta"), resolve(replace(TOY, **changes), Ranks())
    group = Group(Ranks(), device)
    training = loop._Training(config, tmp_path, RunConfig(), group)
    pair = loop._on(device, ToySource(config, Ranks()).pair(0, 0, 0), loop.layout(config))
    fast = network.OneDnnConvolution(), network.CompiledSampling()
    with network.deterministic(1), fast[0], fast[1], Elsewhere() as seen:
        loss = training.objective(pair)["loss"]
        loss.backward()
        training._update()
    training.close()
    assert seen.on_cpu == []
    moments = [row["exp_avg"] for row in training.optimizer.state.values()]
    assert len(moments) == len(list(training.model.parameters()))
    for tensor in (loss, *training.model.parameters(), *moments):
        assert tensor.device == device


@pytest.mark.parametrize("batch", [1, 2])
def test_one_dnn_convolutions_are_torchs_within_rounding(batch: int) -> None:
    """Values and derivatives, where torch itself would leave oneDNN and where not."""
    random = torch.Generator().manual_seed(1)
    image = torch.rand(batch, 4, 16, 16, 16, generator=random).requires_grad_()
    weight = torch.randn(8, 4, 3, 3, 3, generator=random).requires_grad_()
    bias = torch.randn(8, generator=random).requires_grad_()
    gradient = torch.randn(batch, 8, 16, 16, 16, generator=random)

    def derived() -> list[torch.Tensor]:
        out = torch.nn.functional.conv3d(image, weight, bias, padding=1)
        return [out, *torch.autograd.grad(out, (image, weight, bias), gradient)]

    with network.OneDnnConvolution():
        fast = derived()
    # sums of at most this many products, of absolute values below these, in another order
    terms = (27 * 4, 27 * 8, batch * 16**3, batch * 16**3)
    largest = (5.0, 25.0, 5.0, 5.0)
    for ours, torchs, n, size in zip(fast, derived(), terms, largest, strict=True):
        assert (ours - torchs).abs().max() <= n * 2**-24 * size * n**0.5


def test_the_last_layer_learns_at_its_share_of_the_rate() -> None:
    """Adam's first step is the learning rate in the direction of the derivative, for all of one
    size."""
    model = init_model(TOY.architecture(), 1)
    before = {name: x.clone() for name, x in model.named_parameters()}
    adam = optimizers.build(model, TOY)
    optimizers.set_rate(adam, 1e-2, 0.1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    adam.step()
    for name, parameter in model.named_parameters():
        rate = 1e-3 if "_flow" in name else 1e-2
        # of numbers below 1, each known to 2^-24; epsilon is a hundred-millionth of the derivative
        assert (before[name] - parameter - rate).abs().max() <= 2**-23 + 1e-8 * rate, name


def test_estimates_are_of_the_right_size() -> None:
    """The published network at its size: 1.1 TFLOP forward, counted layer by layer."""
    cost = estimate.network(TrainConfig().architecture(), (160, 192, 224))
    full = 160 * 192 * 224
    flops = 2 * 27 * 2 * 64 * full  # the first convolution
    flops += 2 * 27 * 64 * 64 * full * (1 / 8 + 1 / 64 + 1 / 512)  # the encoder's others
    flops += 2 * 27 * 64 * 64 * full / 4096  # the decoder: at the lowest level,
    flops += 2 * 27 * 128 * 64 * full * (1 / 512 + 1 / 64 + 1 / 8)  # with skip connections,
    flops += 2 * 27 * 64 * (64 + 64 + 3) * full / 8  # and three at half resolution
    assert cost.operations == pytest.approx(flops, rel=1e-12)
    text = estimate.describe(replace(TOY, threads=1), Ranks(host_size=99), (16, 16, 16), 0)
    assert "warning: 99 processes of 1 thread(s) share" in text
    demo = config.from_toml(TrainConfig, RECIPES / "train-demo.toml")
    seconds = [
        estimate.seconds_per_step(replace(demo, engine=engine), (48, 48, 48), Ranks())
        for engine in ("ieee", "verrou")
    ]
    assert seconds == pytest.approx([0.155, 105], rel=0.2)  # as measured
    native = replace(demo, engine="native")
    for enc, dec, least, most in (
        (demo.enc, demo.dec, 0.9, 1.2),
        ("8 16 16 16", "16 16 16 16 8 8", 0.45, 0.6),
        ("64 64 64 64", "64 64 64 64 64 64", 2.5, 4),
    ):
        wide = replace(native, enc=enc, dec=dec)
        found = estimate.seconds_per_step(wide, (48, 48, 48), Ranks())
        assert least / 1.25 < found < 1.25 * most, enc
    tiny = replace(demo, enc="2 2", dec="2 2", engine="verrou")
    assert estimate.seconds_per_step(tiny, (48, 48, 48), Ranks()) == pytest.approx(15, rel=0.2)


def test_estimates_count_the_coarse_epochs_as_such() -> None:
    """The demo model's: 20 epochs of pairs of 48³ voxels, then 6 of 80 x 96 x 80."""
    demo = config.from_toml(TrainConfig, RECIPES / "demo-model.toml")
    shape, small = (80, 96, 80), (48, 48, 48)
    assert estimate.stages(demo, shape) == [(2000, small), (600, shape)]
    assert estimate.stages(demo, shape, 1999) == [(1, small), (600, shape)]
    assert estimate.stages(demo, shape, 2300) == [(300, shape)]
    assert estimate.stages(demo, shape, demo.total_steps) == []
    assert estimate.stages(replace(demo, epochs=5), shape) == [(500, small)]
    said = estimate.describe(demo, Ranks(), shape, 1500)
    coarse, fine = (estimate.seconds_per_step(demo, at, Ranks()) for at in (small, shape))
    assert f"500 steps of about {coarse:.2g} s, then 600 steps of about {fine:.2g} s" in said
    assert f"about {duration(500 * coarse + 600 * fine)};" in said


def test_estimates_count_the_gradients_of_all_ranks() -> None:
    """Of one bucket at most: 25 MiB, and the kernel that fills it."""
    config, shape = replace(TOY, threads=1), (16, 16, 16)
    wide = replace(config, enc="256 256 256 256", dec="256 256 256 256 256 256")
    for recipe, each in (
        (config, 4 * config.architecture().parameters()),
        (wide, 25 * 2**20 + 4 * 27 * 512 * 256),
    ):
        alone = estimate.process_bytes(recipe, shape)
        together = estimate.process_bytes(recipe, shape, processes=100)
        assert together - alone == pytest.approx(100 * each)
        said = estimate.describe(recipe, Ranks(size=100, host_size=1), shape, 0)
        assert f"about {together / 1e9:.1f} GB per process" in said


def test_more_synthesis_processes_are_suggested_where_they_would_help(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    tiny = TrainConfig(source="synthmorph", enc="2 2", dec="2 2", threads=1)
    ranks, shape = Ranks(host_size=4), (80, 96, 80)
    said = estimate.describe(tiny, ranks, shape, 0)
    found = re.search(r"SYNTH_PROCS=(\d+) \(--synth-procs\) would make it about (\S+) s", said)
    assert found and float(found[2]) < 0.6 * estimate.seconds_per_step(tiny, shape, ranks)
    assert "SYNTH_PROCS" not in estimate.describe(tiny, ranks, shape, 0, synth_procs=int(found[1]))
    slow = replace(tiny, enc="64 64 64 64", dec="64 64 64 64 64 64")
    assert "SYNTH_PROCS" not in estimate.describe(slow, Ranks(), shape, 0)


def test_labels_train_what_synthmorph_trains_unless_a_recipe_is_named() -> None:
    published, asked = (
        options.recipe("paper-training"),
        options.parse(None, ["--labels", "shapes"]),
    )
    assert asked.experiment == "train-synthmorph"
    for name in ("source", "loss", "smoothness", "optimizer", "learning_rate", "schedule",
                 "warm_up", "flow_rate", "int_steps"):  # fmt: skip
        assert getattr(asked.config, name) == getattr(published, name), name
        assert getattr(published, name) == getattr(TrainConfig(source="synthmorph"), name), name
    named = options.parse(
        None, "--experiment train-demo --labels shapes --source synthmorph".split()
    )
    assert (named.experiment, named.config.loss) == ("train-demo", "tissues")
    assert options.parse(None, []).experiment == "train-demo"


def test_the_first_lines_say_by_what_a_training_learns() -> None:
    demo = replace(options.recipe("train-demo"), threads=1)
    said = estimate.headline("train-demo", demo, Ranks())
    assert said.splitlines()[1] == (
        "loss tissues + 0.05 x roughness of the warp; torch-adam, learning rate 0.001 cosine "
        "after 100 steps of warm-up, 0.1 of it in the last layer"
    )
    said = estimate.headline(
        "paper", replace(options.recipe("paper-training"), threads=1), Ranks()
    )
    assert said.splitlines()[1] == (
        "loss dice + 1 x roughness of the warp; keras-adam, learning rate 0.0001 constant"
    )


def test_estimates_of_synthmorphs_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 26 labels, with a synthesis process: GB as measured (notes/findings/synthesis.md)."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    tiny = TrainConfig(source="synthmorph", enc="2 2", dec="2 2", threads=1)
    demo = replace(tiny, enc="16 32 32 32", dec="32 32 32 32 16 16")
    small, large = (48, 48, 48), (80, 96, 80)
    for recipe, shape, channels, trainer in (
        (tiny, small, 26, 0.68), (tiny, large, 26, 1.22), (tiny, large, 3, 0.78),
        (replace(tiny, batch=2), large, 26, 2.02), (demo, small, 26, 0.75),
        (demo, large, 26, 1.42),
    ):  # fmt: skip
        found = estimate.process_bytes(recipe, shape, channels) / 1e9
        assert trainer < found < 1.25 * trainer
    native = estimate.process_bytes(replace(demo, engine="native"), small, 26) / 1e9
    assert 1.11 < native < 1.25 * 1.11
    for shape, process in ((small, 1.10), (large, 1.36)):
        assert process < estimate.synthesis_bytes(tiny, shape) / 1e9 < 1.25 * process

    said = estimate.describe(demo, Ranks(host_size=2), large, 0, channels=26, synth_procs=2)
    assert "1.7 GB per process, 1.4 GB for synthesis, 6.2 GB on this machine" in said
    # the synthesis needs cores too, and a trainer that computes less waits for it
    alone = estimate.seconds_per_step(replace(demo, source="phantom-pairs"), small, Ranks(), 26)
    two = estimate.seconds_per_step(demo, small, Ranks(host_size=2), 26)
    assert estimate.seconds_per_step(demo, small, Ranks(), 26) == alone
    assert two == pytest.approx(alone + 0.1, rel=0.05)
    assert estimate.seconds_per_step(tiny, large, Ranks(), 1) == pytest.approx(0.5, rel=0.05)


def test_a_recipe_and_the_command_line_take_numbers(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("learning_rate = 1e-3\nsmoothness = 1\n")
    assert config.from_toml(TrainConfig, recipe) == TrainConfig(learning_rate=1e-3, smoothness=1.0)
    parser = argparse.ArgumentParser()
    config.add_arguments(parser, TrainConfig)
    arguments = parser.parse_args(["--learning-rate", "1e-3"])
    assert config.from_arguments(TrainConfig, arguments).learning_rate == 1e-3
    with pytest.raises(SystemExit):
        parser.parse_args(["--smoothness", "much"])


def test_defaults_are_those_of_the_published_training() -> None:
    assert TrainConfig().rate(0) == TrainConfig().rate(149_999) == 1e-4
    assert TrainConfig().total_steps == 150_000
    falling = TrainConfig(schedule="cosine", warm_up=10, learning_rate=1e-3)
    assert falling.rate(0) == 1e-4 and falling.rate(149_999) < 1e-10
