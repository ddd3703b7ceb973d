"""A run under fire: killed, starved, refused; nothing is lost but the sample in flight."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import disks
from support.toy_experiment import PYTHON, Toy

from morphbits import engines, provenance
from morphbits.errors import UserError
from morphbits.samples import estimate, experiment, runner
from morphbits.samples.matrix import Unit, read_state
from morphbits.samples.worker import to_task

Wait = Callable[[Callable[[], bool]], None]


def children(pid: int) -> list[int]:
    """Processes started by a process."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [int(word) for word in task.read_text().split()]
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_run_makes_every_sample_once(toy: Toy) -> None:
    first = toy.but(jobs=2).run()
    assert first.returncode == 0, first.stderr
    finished = toy.finished()
    assert len(finished) == 2 * (2 + 4)
    assert sorted(p.name for p in toy.folder.iterdir() if not p.is_dir()) == [
        ".lock",
        "experiment.json",
    ]
    again = toy.run()
    assert again.returncode == 0 and "12 are done" in again.stdout
    assert toy.finished() == finished


def test_a_run_grows_with_more_runs_and_subjects(made_toy: Toy) -> None:
    before = made_toy.finished()
    larger = made_toy.but(runs=3, subjects=3)
    assert larger.run().returncode == 0
    after = larger.finished()
    assert len(after) == 3 * (3 + 4)
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("engine", ["ieee", pytest.param("native", marks=pytest.mark.slow)])
def test_killed_half_way_it_goes_on_where_it_was(toy: Toy, wait_for: Wait, engine: str) -> None:
    runs = {"ieee": 40, "native": 8}[engine]
    long = toy.but(runs=runs, engine=engine, jobs=2)
    process = long.start()
    wait_for(lambda: len(long.finished()) >= 5)
    workers = children(process.pid)
    assert len(workers) == 2
    process.kill()
    process.wait()
    wait_for(lambda: not any(map(alive, workers)))
    kept = long.finished()
    total = 2 * (runs + 4)
    assert 5 <= len(kept) < total
    assert long.run().returncode == 0
    finished = long.finished()
    assert len(finished) == total
    assert {name: finished[name] for name in kept} == kept
    assert not list(long.folder.glob(".partial-*"))


def test_native_samples_are_the_same_bytes_however_they_are_made(toy: Toy) -> None:
    bytes_of = []
    for name, jobs, threads in (("one", 1, 3), ("other", 2, 1)):
        run = toy.but(engine="native", experiment=name, jobs=jobs, threads=threads)
        assert run.run().returncode == 0
        images = sorted(run.folder.glob("sample-*/sub-*/anat/*.nii.gz"))
        assert len(images) == 24
        bytes_of.append({path.relative_to(run.folder): path.read_bytes() for path in images})
    assert bytes_of[0] == bytes_of[1]
    assert len(set(bytes_of[0].values())) > 12  # samples and subjects differ


def test_an_interrupt_ends_the_workers_too(toy: Toy, wait_for: Wait) -> None:
    process = toy.but(runs=400, jobs=2).start()
    wait_for(lambda: len(toy.finished()) >= 1)
    workers = children(process.pid)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert not any(map(alive, workers))


def test_an_interrupt_between_two_samples_ends_the_workers_too(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[runner.Worker] = []
    send_for_real = runner.Worker.send

    def send(worker: runner.Worker, unit: Unit) -> None:
        if worker in sent:  # it has made a sample and is about to start on its second
            raise KeyboardInterrupt
        sent.append(worker)
        send_for_real(worker, unit)

    monkeypatch.setattr(runner.Worker, "send", send)
    plan = experiment.make_plan(toy.settings, toy.but(jobs=2).execution, print)
    with pytest.raises(KeyboardInterrupt):
        experiment.run(plan)
    assert len(sent) == 2
    assert not any(alive(worker._process.pid) for worker in sent)


def test_a_killed_worker_loses_only_its_sample_which_is_made_again(
    toy: Toy, wait_for: Wait
) -> None:
    long = toy.but(runs=40, jobs=2)
    process = long.start()
    wait_for(lambda: len(long.finished()) >= 3)
    os.kill(children(process.pid)[0], signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert len(long.finished()) == 88


def test_workers_that_always_die_end_the_run_with_the_reason(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    last_words = ["sh", "-c", "echo the last words >&2; kill -9 $$", "sh"]
    monkeypatch.setattr(engines.get("ieee"), "command", lambda *_: last_words)
    plan = experiment.make_plan(toy.settings, toy.but(jobs=2).execution, print)
    with pytest.raises(UserError) as caught:
        experiment.run(plan)
    for words in (
        "4 workers in a row died",
        "SIGKILL",
        "the last words",
        "0 of 12 samples",
    ):
        assert words in str(caught.value)


def test_a_unit_whose_worker_dies_twice_is_given_up_and_the_run_goes_on(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    send_for_real = runner.Worker.send

    def send(worker: runner.Worker, unit: Unit) -> None:
        send_for_real(worker, unit)
        if str(unit) == "sample-02/sub-002":
            worker._process.kill()

    monkeypatch.setattr(runner.Worker, "send", send)
    said = experiment.run(experiment.make_plan(toy.settings, toy.execution, print))
    assert "11 of 12 samples" in said
    assert "sample-02/sub-002: its worker was killed (SIGKILL" in said


def test_a_unit_that_fails_is_named_and_the_others_are_kept(toy: Toy, toy_files: Path) -> None:
    broken = toy_files / "data/sub-003/anat/sub-003_T1w.nii.gz"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    try:
        result = toy.but(subjects=3).run()
    finally:
        broken.write_bytes(whole)
    assert len(toy.finished()) == 12
    assert "12 of 18 samples are finished" in result.stdout
    assert "sub-003 and 3 more:" in result.stdout and "damaged" in result.stdout


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 kB."""
    with disks.small_disk(tmp_path / "small", "256k") as folder:
        yield folder


def test_on_a_full_disk_it_stops_and_goes_on_when_there_is_room(
    toy: Toy, small_disk: Path
) -> None:
    here = toy.but(results=small_disk)
    result = here.run()
    assert result.returncode == 2
    assert "the disk is full" in result.stderr and "are finished and kept" in result.stderr
    kept = here.finished()
    assert 0 < len(kept) < 12
    assert not list(here.folder.glob(".partial-*"))
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    assert here.run().returncode == 0
    assert len(here.finished()) == 12
    assert {name: here.finished()[name] for name in kept} == kept


def test_a_file_size_limit_is_a_full_disk_too(toy: Toy) -> None:
    limit = 20_000  # bytes: less than a warp of 16³ voxels, more than a record
    result = toy.run(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert result.returncode == 2 and "the disk is full" in result.stderr
    assert not toy.finished()


def test_a_results_folder_that_cannot_be_written_is_one_sentence(toy: Toy, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    result = toy.but(results=tmp_path / "file" / "results").run()
    assert result.returncode == 2
    assert "cannot be written to" in result.stderr and "Traceback" not in result.stderr


def test_another_configuration_in_the_same_folder_is_refused(made_toy: Toy) -> None:
    before = made_toy.finished()
    result = made_toy.but(align="centre", seed=5).run()
    assert result.returncode == 2
    assert "align auto → centre" in result.stderr and "EXPERIMENT=another-name" in result.stderr
    assert made_toy.finished() == before


def test_two_runs_at_once_are_refused(toy: Toy) -> None:
    with (
        runner.opened(toy.folder, {}, {}),
        pytest.raises(UserError, match="another run is working here"),
        runner.opened(toy.folder, {}, {}),
    ):
        pass


def test_power_lost_just_before_a_sample_is_renamed_loses_that_sample(toy: Toy) -> None:
    end_there = "import os, pathlib; pathlib.Path.rename = lambda path, target: os._exit(9)\n"
    plan = experiment.make_plan(toy.settings, toy.execution, print)
    toy.folder.mkdir(parents=True)
    task = json.dumps(to_task(plan.todo[0]))
    code = f"{end_there}from morphbits.samples.worker import *\n"
    code += f"run_unit(from_task(json.loads({task!r})))"
    words = [sys.executable, "-c", code]
    ended = subprocess.run(words, env=os.environ | {"PYTHONPATH": str(PYTHON)})
    assert ended.returncode == 9
    (partial,) = toy.folder.glob(".partial-*")
    assert (partial / "unit" / "sample.json").exists()  # whole, and under no name that counts
    assert not toy.finished()
    assert toy.run().returncode == 0
    assert len(toy.finished()) == 12 and not partial.exists()


def test_leftovers_of_a_killed_run_are_removed(toy: Toy) -> None:
    leftover = toy.folder / ".partial-abc"
    leftover.mkdir(parents=True)
    with runner.opened(toy.folder, {}, {}):
        assert not leftover.exists()


def test_damaged_samples_are_made_again(made_toy: Toy) -> None:
    toy = made_toy
    before = toy.finished()
    warp = next(toy.folder.glob("sample-01/sub-001/anat/*_xfm.nii.gz"))
    whole = warp.read_bytes()
    warp.write_bytes(whole[:100])
    note = toy.folder / "sample-01/sub-001/note.txt"
    note.write_text("a user's own")
    assert toy.run().returncode == 0
    assert warp.read_bytes() == whole
    (aside,) = toy.folder.glob("damaged-01-sub-001-*")
    assert (aside / "anat" / warp.name).read_bytes() == whole[:100]
    assert (aside / "note.txt").read_text() == "a user's own"
    changed = {name for name, time in toy.finished().items() if time != before[name]}
    assert changed == {"sample-01/sub-001"}


def test_a_sample_that_is_not_where_it_belongs_is_a_failure(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As where a container writes into its memory."""

    def astray(unit: Unit) -> dict[str, Any]:
        other = tmp_path / "other" / unit.folder.relative_to(toy.execution.results)
        return to_task(replace(unit, folder=other) if unit.sample == "01" else unit)

    monkeypatch.setattr(runner, "to_task", astray)
    plan = experiment.make_plan(toy.settings, toy.execution, print)
    said = experiment.run(plan)
    assert "10 of 12 samples are finished and kept; these failed" in said
    assert "its worker reports that it is finished, but in" in said and "it is missing" in said
    assert len(list((tmp_path / "other").rglob("sample.json"))) == 2


def test_a_sample_of_other_libraries_ends_the_run(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = experiment.make_plan(toy.settings, toy.execution, print)
    monkeypatch.setattr(provenance, "versions", lambda framework: {"torch": "99"})
    with pytest.raises(UserError, match=r"than this one \(.*versions\.torch.*make docker"):
        experiment.run(plan)


# ---------------------------------------------------------------------- before the run


def test_a_dry_run_lists_and_writes_nothing(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    plan = experiment.make_plan(toy.settings, toy.but(dry_run=True).execution, print)
    seconds = experiment.seconds_left(plan, print)
    assert "sub-002: 01 02 ieee plain again threads" in experiment.listing(plan)
    assert seconds > 0
    said = capsys.readouterr().out
    for word in (
        "engine   ieee",
        "dataset  data",
        "model ",
        "samples  12",
        "time     about",
    ):
        assert word in said
    assert not toy.execution.results.exists()


def test_a_dry_run_makes_no_phantoms(toy: Toy, tmp_path: Path) -> None:
    execution = toy.but(dry_run=True, data=tmp_path / "data").execution
    settings = toy.but(dataset="phantom", size="4mm").settings
    plan = experiment.make_plan(settings, execution, print)
    assert len(plan.todo) == 12
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("alone", [False, True])
def test_a_trial_starts_a_process_for_each_unit_only_where_a_run_does(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, alone: bool
) -> None:
    """A process that is perturbed from its start makes one sample: it could not make four."""
    started: list[runner.Worker] = []
    sent: list[int] = []

    class Counted(runner.Worker):
        def __init__(self, unit: Unit) -> None:
            super().__init__(unit)
            started.append(self)

        def send(self, unit: Unit, **extra: Any) -> None:
            super().send(unit, **extra)
            sent.append(extra["probe"])

    monkeypatch.setattr(estimate, "Worker", Counted)
    monkeypatch.setattr(estimate, "alone", lambda unit: alone)
    plan = experiment.make_plan(toy.settings, toy.execution, print)
    cost = estimate.costs(plan.todo, [], plan.voxels)["ieee"]
    # a process that makes one unit starts for each of them, so that its start is in the unit
    assert cost.each > 0 and (cost.start == 0) == alone
    assert (len(started), sent) == ((2, [16, 32]) if alone else (1, [16, 32, 16, 32]))
    assert not any(alive(worker._process.pid) for worker in started)


def test_more_subjects_than_there_are_is_one_sentence(toy: Toy) -> None:
    with pytest.raises(UserError, match=r"images to take of 3 subjects, not of 4"):
        experiment.make_plan(toy.but(subjects=4).settings, toy.execution, print)


def test_the_estimate_comes_from_finished_samples_where_there_are_some(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert toy.but(subjects=1).run().returncode == 0
    plan = experiment.make_plan(toy.settings, toy.but(jobs=2).execution, print)
    done = [unit for unit in plan.units if read_state(unit).kind == "done"]
    each = estimate._recorded(done)
    assert each is not None
    found = estimate.costs(plan.todo, done, plan.voxels)
    assert found == {"ieee": estimate.EngineCost(estimate.STARTS["torch"], each)}
    jobs = min(2, estimate.cores())
    monkeypatch.setattr(estimate, "_seconds_of_bits", lambda: 2 * estimate.BITS_SECONDS)
    after = estimate.analysing(2, 2, plan.voxels, 2)
    expected = (each * 6 + jobs * estimate.STARTS["torch"]) / jobs + after
    assert experiment.seconds_left(plan, print) == pytest.approx(expected)


def test_an_estimate_counts_starts_by_kind_and_divides_by_cores_not_by_jobs(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorFlow's number of threads belongs to the process: the samples with two need others."""
    monkeypatch.setattr(estimate, "cores", lambda: 4)
    settings = toy.but(framework="tensorflow").settings
    plan = experiment.make_plan(settings, toy.but(jobs=4, threads=1).execution, print)
    found = {"ieee": estimate.EngineCost(start=10.0, each=2.0)}
    # 12 units; 4 processes of one thread and 2 of two (as many units have two)
    assert estimate.sampling(plan.todo, found, 4, local=True) == (12 * 2 + 6 * 10) / 4
    assert estimate.sampling(plan.todo, found, 99, local=True) == (12 * 2 + 6 * 10) / 4
    assert estimate.sampling(plan.todo, found, 12, local=False) == (12 * 2 + 12 * 10) / 12
    wide = [dataclasses.replace(unit, config=dataclasses.replace(unit.config, threads=4))
            for unit in plan.todo]  # fmt: skip
    assert estimate.sampling(wide, found, 4, local=True) == 12 * 2 + 10
    assert estimate.sampling([], found, 4, local=True) == 0
    monkeypatch.setattr(estimate, "_seconds_of_bits", lambda: 2 * estimate.BITS_SECONDS)
    assert estimate.analysing(10, 1, 10**6, 4) == 0
    assert estimate.analysing(8, 10, 10**6, 99) == pytest.approx(
        2 * (2.5 + 0.8 + 2 * (5.1 + 10 * 0.15))
    )  # 8 subjects by 4 cores, on a machine half as fast
