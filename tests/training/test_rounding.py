"""Training under the native engine: perturbed everywhere, replicas identical, resumable."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.toy_training import TOY, outputs, train_ranks, train_toy

from morphbits import engines
from morphbits.config import Arithmetic, Perturbation, to_arguments
from morphbits.engines import verrou
from morphbits.engines.native import random_rounding
from morphbits.errors import UserError
from morphbits.models.synthmorph_torch import SynthMorph
from morphbits.report.training import read_log
from morphbits.synthesis.settings import Ranks
from morphbits.training import RunConfig, TrainConfig, loop, optimizers
from morphbits.training.rounding import TrainingEngine

ROOT = Path(__file__).resolve().parents[2]
NATIVE = replace(TOY, engine="native", epochs=2, steps=2)


def weights(folder: Path) -> np.ndarray:
    values = SynthMorph.load(folder / "model.h5").get_weights().values()
    return np.concatenate([value.ravel() for value in values])


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A perturbed training of two ranks; their weights were hashed after each epoch."""
    folder = tmp_path_factory.mktemp("perturbed")
    assert train_ranks(2, folder, NATIVE) == ["", ""]
    return folder


def test_perturbed_replicas_stay_identical_and_resume_to_the_same_bytes(
    two: Path, tmp_path: Path
) -> None:
    assert train_ranks(2, tmp_path, replace(NATIVE, epochs=1)) == ["", ""]
    assert train_ranks(2, tmp_path, NATIVE, RunConfig(resume=True)) == ["", ""]
    assert outputs(tmp_path) == outputs(two)


def test_with_a_stream_per_rank_in_the_optimizer_replicas_would_drift(tmp_path: Path) -> None:
    """What the common stream is for, and that the comparison of hashes sees it."""
    said = train_ranks(2, tmp_path, NATIVE, streams_of_their_own=True)
    assert all("the weights of rank 1 differ" in message for message in said), said


def test_another_rounding_seed_changes_the_last_bits_of_every_layer(
    two: Path, tmp_path: Path
) -> None:
    assert train_ranks(2, tmp_path, replace(NATIVE, rounding_seed=2)) == ["", ""]
    first, second = (SynthMorph.load(f / "model.h5").get_weights() for f in (two, tmp_path))
    for name in first:
        assert (first[name] != second[name]).any(), name
    # four steps of 0.01, each way: 0.08
    assert np.abs(weights(two) - weights(tmp_path)).max() < 0.1


def test_nearest_is_the_unperturbed_training_within_rounding(tmp_path: Path) -> None:
    """Only the order of sums differs: a few ulps of each derivative. Adam turns a derivative into
    a step of the learning rate whatever its size, so those near 0 may come out anywhere."""
    one_step = replace(TOY, epochs=1, steps=1)
    train_toy(tmp_path / "ieee", one_step)
    train_toy(tmp_path / "nearest", replace(one_step, engine="native", mode="nearest"))
    difference = np.abs(weights(tmp_path / "ieee") - weights(tmp_path / "nearest"))
    assert np.median(difference) <= 2**-20 * TOY.learning_rate


def test_streams_differ_by_step_and_rank_and_forward_backward_and_update_are_perturbed() -> None:
    rounding = TrainingEngine(NATIVE, 1)
    x = torch.rand(1000, generator=torch.Generator().manual_seed(1))
    results = []
    for step, rank in ((0, 0), (0, 1), (1, 0), (0, 0)):
        with rounding.of_rank(step, rank):
            results.append((x / 3).numpy().tobytes())
    with rounding.of_all(0):
        results.append((x / 3).numpy().tobytes())
    assert results[0] == results[3]
    assert len(set(results)) == 4
    assert rounding.operations == 5000


def test_the_number_of_threads_changes_no_byte_of_a_perturbed_training(tmp_path: Path) -> None:
    models = []
    for threads in (1, 2):
        path = train_toy(tmp_path / str(threads), replace(NATIVE, threads=threads))
        models.append(path.read_bytes())
    assert models[0] == models[1]


def test_sharded_moments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing can be perturbed"):
        train_toy(tmp_path, NATIVE, RunConfig(zero=True))


def test_a_training_in_which_nothing_was_perturbed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    none = property(lambda self: 0, lambda self, number: None)
    monkeypatch.setattr(TrainingEngine, "operations", none, raising=False)
    with pytest.raises(UserError, match="perturbed nothing"):
        train_toy(tmp_path, NATIVE)


# ------------------------------------------------------------ Verrou, what needs none


def test_under_verrou_replicas_take_the_first_ones_weights_after_each_step(
    tmp_path: Path,
) -> None:
    """Ranks whose updates round differently, as they do under Verrou: broadcast, they stay one."""
    config = replace(NATIVE, engine="verrou")
    assert train_ranks(2, tmp_path, config, updates_of_their_own=True) == ["", ""]
    said = train_ranks(
        2, tmp_path / "drift", replace(config, engine="ieee"), updates_of_their_own=True
    )
    assert all("the weights of rank 1 differ" in message for message in said), said


def test_engine_verrou_outside_verrou_says_how_to_start(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"with_verrou\.sh --mode random"):
        train_toy(tmp_path, replace(NATIVE, engine="verrou"))


def test_under_verrou_a_process_has_one_thread(tmp_path: Path) -> None:
    config = replace(NATIVE, engine="verrou")
    assert loop.resolve(replace(config, threads=None), Ranks()).threads == 1
    with pytest.raises(UserError, match="add --threads 1"):
        train_toy(tmp_path, replace(config, threads=2))


def test_the_script_starts_each_rank_under_verrou(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "morphbits-markers.so").touch()
    shutil.copy(ROOT / "tests" / "support" / "verrou_stand_in.sh", tmp_path / "bin" / "valgrind")
    done = subprocess.run(
        [ROOT / "scripts" / "train_ddp.sh", "--engine=verrou", "--mode", "nearness"],
        env={**os.environ, "VERROU_PREFIX": str(tmp_path), "TMPDIR": str(tmp_path), "NPROC": "2"},
        text=True, capture_output=True, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines.count("--tool=verrou") == lines.count("--rounding-mode=nearness") == 2
    assert lines.count("train-ddp") == 2


# ------------------------------------------------------------ under Verrou

needs_verrou = [
    pytest.mark.verrou,
    pytest.mark.skipif(verrou.found() != "machine", reason="Verrou is not on this machine"),
]
# torchrun would swallow a `--` that comes first
WITH_VERROU = (
    str(ROOT / "scripts" / "with_verrou.sh"), "--mode", "random", "--", sys.executable
)  # fmt: skip
TOY_PROGRAM = str(ROOT / "tests" / "support" / "toy_training.py")
TORCHRUN = (
    sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
    "--shutdown-timeout", "600", "--no-python",
)  # fmt: skip


def under_verrou(starter: tuple[str, ...], folder: Path, config: TrainConfig, *words: str):  # type: ignore[no-untyped-def]
    paths = os.pathsep.join(str(ROOT / name) for name in ("tests", "python"))
    command = [*starter, TOY_PROGRAM, str(folder), *to_arguments(config), *words]
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


class TestUnderVerrou:
    pytestmark = needs_verrou
    VERROU = replace(TOY, engine="verrou", steps=1)

    def test_two_steps_differ_from_ieee_in_their_last_bits(self, tmp_path: Path) -> None:
        config = replace(self.VERROU, epochs=2)
        said, _ = under_verrou(WITH_VERROU, tmp_path / "verrou", config).communicate()
        assert "operations perturbed" in said
        train_toy(tmp_path / "ieee", replace(config, engine="ieee"))
        difference = np.abs(weights(tmp_path / "verrou") - weights(tmp_path / "ieee"))
        assert (difference > 0).mean() > 0.9
        assert np.median(difference) < 0.1 * TOY.learning_rate
        losses = [read_log(tmp_path / name / "log.csv")["loss"] for name in ("verrou", "ieee")]
        assert 0 < abs(losses[0] - losses[1])[1] < 1e-3  # after Adam's first step
        assert abs(losses[0] - losses[1])[0] < 2**-20  # before it

    @pytest.mark.slow
    def test_ranks_stay_identical_and_resume_to_the_same_bytes(self, tmp_path: Path) -> None:
        """The weights are hashed after each epoch, which here is a step."""
        config, starter = replace(self.VERROU, epochs=4), (*TORCHRUN, *WITH_VERROU)
        whole = under_verrou(starter, tmp_path / "whole", config)
        whole.communicate()
        assert whole.returncode == 0
        stopped = under_verrou(starter, tmp_path / "stopped", config)
        while stopped.poll() is None and not (tmp_path / "stopped" / "checkpoint.pt").exists():
            time.sleep(0.1)
        stopped.terminate()
        said, _ = stopped.communicate()
        assert "stopped by SIGTERM after step" in said
        under_verrou(starter, tmp_path / "stopped", config, "--resume").communicate()
        assert outputs(tmp_path / "stopped") == outputs(tmp_path / "whole")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"precision": "8"}, "--precision 8 is for registrations"),
        ({"perturb": "only:flow"}, "--perturb only:flow is for registrations"),
        ({"accumulation": "probe"}, "--accumulation probe is for registrations"),
        ({"accumulation": "gemm"}, "accumulation must be sequential, direct, blocked:K"),
    ],
)
def test_what_a_training_cannot_do_is_refused_by_name(
    options: dict[str, str], sentence: str
) -> None:
    with pytest.raises(UserError, match=f"^{sentence}"):
        replace(NATIVE, **options)


def test_a_training_hands_every_option_of_the_arithmetic_to_the_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = {"mode": "nearness", "accumulation": "direct", "precision": "tf32"}
    rounding = TrainingEngine(replace(NATIVE, **asked), threads=1)
    seen: list[Arithmetic] = []

    @contextmanager
    def region(arithmetic: Arithmetic, threads: int) -> Iterator[engines.Counts]:
        seen.append(arithmetic)
        yield engines.Counts()

    monkeypatch.setattr(rounding.engine, "region", region)
    with rounding.of_all(1):
        pass
    for name in (field.name for field in fields(Perturbation)):
        assert getattr(seen[0], name) == getattr(rounding.config, name)
    assert {name: getattr(seen[0], name) for name in asked} == asked


def test_tf32_in_a_training_rounds_what_convolutions_multiply(tmp_path: Path) -> None:
    short = replace(NATIVE, mode="nearest", epochs=1, steps=2)
    train_toy(tmp_path / "float32", short)
    train_toy(tmp_path / "tf32", replace(short, precision="tf32"))
    one, other = weights(tmp_path / "float32"), weights(tmp_path / "tf32")
    assert 0 < np.abs(one - other).max() < 0.1


class InParts(optimizers.KerasAdam):
    """Keras' Adam, an operator after the other."""

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.ops.morphbits, "keras_adam_", optimizers._keras_adam)
            super().step()


@pytest.mark.parametrize("mode", ["random", "nearness", "nearest"])
@pytest.mark.parametrize(
    ("whole", "parts"),
    [(optimizers.KerasAdam, InParts), (optimizers.NativeAdam, torch.optim.Adam)],
)
def test_an_optimizer_in_one_pass_has_the_bytes_of_its_operators(
    mode: str, whole: type, parts: type
) -> None:
    """And the numbers of its operations and draws."""
    found = []
    for kind in (whole, parts):
        generator = torch.Generator().manual_seed(1)
        start = torch.randn(5, 3, 3, generator=generator)
        weights = [torch.nn.Parameter(start.clone()), torch.nn.Parameter(start[0].clone())]
        optimizer = kind([{"params": weights}])
        with random_rounding(mode, seed=3) as stats:
            for step in range(6):
                optimizer.param_groups[0]["lr"] = 0.1 if step < 2 else 0.01  # calls are repeated
                for weight in weights:
                    weight.grad = torch.randn(weight.shape, generator=generator)
                optimizer.step()
            following = torch.ones(9) / 3
        moments = [optimizer.state[weights[0]][name] for name in ("exp_avg", "exp_avg_sq")]
        count = torch.tensor(stats.operations)
        found.append([*(w.detach() for w in weights), *moments, following, count])
    assert all(map(torch.equal, *found))
    assert (found[0][0] != start).all()
