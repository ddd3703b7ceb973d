"""Samples as a Slurm array: what is asked for, and a real Slurm of one node under fire."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.toy_experiment import Toy

from morphbits.engines.verrou import script_path
from morphbits.errors import UserError
from morphbits.samples import experiment, runner, slurm
from morphbits.samples.matrix import Unit

Wait = Callable[[Callable[[], bool]], None]


@pytest.fixture
def by_slurm(toy: Toy) -> Toy:
    """The toy for Slurm: 2 subjects × (8 + 4) samples, a task each, four at a time."""
    return toy.but(runs=8, executor="slurm", task_samples=1, jobs=4)


def units_of(toy: Toy) -> list[Unit]:
    return experiment.make_plan(toy.settings, toy.but(dry_run=True).execution, print).units


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts a program of that name and shell text first on the PATH."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def put(name: str, text: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)

    return put


# ---------------------------------------------------------------------- what is asked for


def asked(toy: Toy, seconds: float = 1.0, **changes: object) -> slurm.Request:
    execution = dataclasses.replace(toy.execution, **changes)  # type: ignore[arg-type]
    each = {"ieee": 1.0, "native": seconds}
    return slurm.request(units_of(toy), each, 16**3, execution)


def test_a_task_is_ten_minutes_of_samples_unless_told_otherwise(by_slurm: Toy) -> None:
    native = by_slurm.but(engine="native")
    short = asked(native, 60.0, task_samples=None)
    assert [len(task) for task in short.tasks] == [10, 10, 4]
    assert short.minutes == 2 * 10 + 15
    long = asked(native, 7200.0, task_samples=None)
    assert len(long.tasks) == 24 and long.minutes == 2 * 120 + 15
    assert [len(task) for task in asked(native, task_samples=7).tasks] == [7, 7, 7, 3]


def test_every_sample_is_in_one_task(by_slurm: Toy) -> None:
    units = units_of(by_slurm)
    assert sorted(str(unit) for task in asked(by_slurm).tasks for unit in task) == sorted(
        map(str, units)
    )


def test_an_array_has_no_more_tasks_than_slurm_takes(by_slurm: Toy) -> None:
    many = by_slurm.but(runs=1000)
    request = asked(many, task_samples=1)
    assert len(request.tasks) < slurm.ARRAY_SIZE
    assert sum(map(len, request.tasks)) == 2 * 1004


def test_an_array_has_no_more_tasks_than_this_slurm_takes(
    by_slurm: Toy, programs: Callable[..., None]
) -> None:
    """Its numbers are below MaxArraySize."""
    programs("scontrol", "echo 'MaxArraySize            = 11'; echo 'MaxJobCount = 10000'")
    slurm._most_tasks.cache_clear()
    try:
        request = asked(by_slurm, task_samples=1)
    finally:
        slurm._most_tasks.cache_clear()
    assert [len(task) for task in request.tasks] == [3] * 8
    assert "--array=1-8%4" in request.options(Path("r"))


@pytest.mark.parametrize("own", ["--mem=9G", "--mem-per-cpu=2G", "--mem-per-gpu 8G"])
def test_memory_that_the_user_asks_for_is_all_that_is_asked_for(by_slurm: Toy, own: str) -> None:
    options = asked(by_slurm, slurm_options=own).options(Path("r"))
    assert [word for word in options if word.startswith("--mem")] == [own.split()[0]]
    assert any(word.startswith("--mem=") for word in asked(by_slurm).options(Path("r")))


@pytest.mark.parametrize(
    "own", ["--array=1-3", "-a 1-3", "--job-name=x", "-Jx", "--outp=x", "-M other", "--wait"]
)
def test_options_by_which_the_suite_finds_its_array_are_refused(by_slurm: Toy, own: str) -> None:
    with pytest.raises(UserError, match=rf"SLURM_OPTIONS: {own.split()[0]} is set by the suite"):
        asked(by_slurm, slurm_options=f"--partition=long {own}")


def test_the_users_options_come_last(by_slurm: Toy) -> None:
    options = asked(by_slurm, slurm_options="--partition=long --comment='a b'").options(Path("r"))
    assert options[-2:] == ["--partition=long", "--comment=a b"]
    assert "--array=1-24%4" in options and "--cpus-per-task=1" in options


def test_each_experiments_array_has_a_name_of_its_own(tmp_path: Path) -> None:
    names = {slurm.job_name(tmp_path / place / "smoke") for place in ("one", "other")}
    assert len(names) == 2 and all(name.startswith("morphbits-smoke-") for name in names)


def test_a_task_in_the_image_finds_what_is_reached_by_links(by_slurm: Toy, tmp_path: Path) -> None:
    """The dataset's folder is a link, and so is the one of a subject."""
    (task, *_) = asked(by_slurm).tasks
    moving = task[0].moving
    subject = moving.parents[1]
    (tmp_path / "archive").mkdir()
    shutil.copytree(subject, tmp_path / "archive" / subject.name)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / subject.name).symlink_to(tmp_path / "archive" / subject.name)
    (tmp_path / "link").symlink_to("set")
    here = tmp_path / "link" / moving.relative_to(subject.parent)
    unit = dataclasses.replace(task[0], moving=here)
    words = slurm.command(by_slurm.folder, [[unit]], "docker")
    mounts = [Path(words[i + 1]) for i, word in enumerate(words) if word == "--read"]
    inside = runner.without_links(unit).moving
    assert inside.read_bytes() == moving.read_bytes()
    assert not any(folder.is_symlink() for folder in inside.parents)
    assert any(inside.is_relative_to(mount) for mount in mounts)


def test_a_task_in_the_image_sees_its_inputs_and_writes_to_the_experiment(by_slurm: Toy) -> None:
    request = asked(by_slurm)
    words = slurm.command(by_slurm.folder, request.tasks, "apptainer")
    data, model = Path(by_slurm.settings.dataset), by_slurm.settings.model
    assert words[:3] == ["env", "CONTAINER=apptainer", script_path("in_container.sh")]
    assert [words[i + 1] for i, word in enumerate(words) if word == "--read"] == [
        str(data),
        str(model),
    ]
    assert [words[i + 1] for i, word in enumerate(words) if word == "--write"] == [
        str(by_slurm.folder)
    ]
    tasks = by_slurm.folder / ".slurm" / "tasks.jsonl"
    inside = ["python", "-m", "morphbits.samples.array_task", str(tasks)]
    assert words[words.index("--") + 1 :] == inside
    line = subprocess.run(
        [*words[:3], "--dry-run", *words[3:], "7"], capture_output=True, text=True
    ).stdout
    assert line.startswith("apptainer exec") and line.rstrip().endswith("tasks.jsonl 7")


def test_where_there_is_no_slurm_it_says_so(
    by_slurm: Toy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="EXECUTOR=slurm needs sbatch, which is not on this"):
        experiment.make_plan(by_slurm.settings, by_slurm.execution, print)
    assert not by_slurm.folder.exists()
    words = ["/bin/bash", script_path("submit_slurm.sh"), "--array=1-2", "--", "true"]
    answer = subprocess.run(words, capture_output=True, text=True)
    assert answer.returncode == 2 and "sbatch is not on this machine" in answer.stderr


def test_a_dry_run_says_what_would_be_asked_for(
    by_slurm: Toy, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = experiment.make_plan(by_slurm.settings, by_slurm.but(dry_run=True).execution, print)
    experiment.seconds_left(plan, print)
    said = capsys.readouterr().out
    assert "slurm    24 tasks of up to 1 samples, 4 at a time; each 1 cores" in said


def test_an_array_that_is_refused_is_one_sentence(
    by_slurm: Toy, programs: Callable[..., None]
) -> None:
    programs("sbatch", "cat >/dev/null; echo 'sbatch: error: invalid partition: lnog' >&2; exit 1")
    programs("squeue", "exit 0")
    plan = experiment.make_plan(by_slurm.settings, by_slurm.execution, print)
    with pytest.raises(UserError, match="invalid partition: lnog; SLURM_OPTIONS= changes it"):
        experiment.run(plan)


def test_while_an_array_is_at_work_nothing_else_is(
    toy: Toy, programs: Callable[..., None]
) -> None:
    (toy.folder / ".slurm").mkdir(parents=True)
    leftover = toy.folder / ".partial-abc"
    leftover.mkdir()
    programs("squeue", "echo 77; echo 77")
    programs("sbatch", "exit 1")
    plan = experiment.make_plan(toy.settings, toy.execution, print)
    with pytest.raises(UserError, match=r"array 77 is working here; EXECUTOR=slurm waits"):
        experiment.run(plan)
    later = toy.but(executor="slurm", wait=False)
    plan = experiment.make_plan(later.settings, later.execution, print)
    assert experiment.run(plan) == ""
    assert leftover.exists()
    programs("squeue", "echo 'slurm_load_jobs error: Unable to contact controller' >&2; exit 1")
    with pytest.raises(UserError, match="squeue does not answer"):
        experiment.run(plan)


def test_waiting_outlasts_a_controller_that_does_not_answer(
    by_slurm: Toy, programs: Callable[..., None], tmp_path: Path
) -> None:
    programs("sbatch", "cat >/dev/null; echo '5;one'")
    asked_before = tmp_path / "asked"
    programs("squeue", f"test -e {asked_before} && exit 0; touch {asked_before}; exit 1")
    plan = experiment.make_plan(by_slurm.settings, by_slurm.execution, print)
    said = experiment.run(plan)  # the second answer: there is no such array any more
    assert "0 of 24 samples are finished" in said and "its task left no log" in said
    assert asked_before.exists()


# ---------------------------------------------------------------------- a real one


@pytest.fixture
def on_cluster(cluster: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in cluster.items():
        monkeypatch.setenv(name, value)


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, out + err
    return out


def processes(module: str, task: int | None = None) -> list[int]:
    """Processes that run a module of ours, of one task of an array or of any."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0")
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        wanted = b"SLURM_ARRAY_TASK_ID=" + (str(task).encode() if task else b"")
        mine = any(v == wanted if task else v.startswith(wanted) for v in environment)
        if mine and module.encode() in command:
            found.append(int(folder.name))
    return found


def kill_when_seen(module: str, task: int, done: list[str]) -> threading.Thread:
    """Kills that process of that task as soon as there is one, and notes it in ``done``."""

    def work() -> None:
        end = time.monotonic() + 300
        while time.monotonic() < end:
            for pid in processes(module, task):
                os.kill(pid, signal.SIGKILL)
                done.append(module)
                return
            time.sleep(0.02)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


@pytest.mark.slow
@pytest.mark.usefixtures("on_cluster")
def test_24_samples_under_fire_are_completed_by_the_same_command(
    by_slurm: Toy, tmp_path: Path, wait_for: Wait
) -> None:
    disk = tmp_path / "small"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)]
    subprocess.run(mount, check=True)
    try:
        here = by_slurm.but(results=disk)
        # a worker is killed: its task makes the sample again
        # a task is killed: its sample is lost; the parent is killed: the array goes on
        # the disk is full: the samples that find no room are lost
        killed: list[str] = []
        for module, task in (("morphbits.samples.worker", 2), ("morphbits.samples.array_task", 3)):
            kill_when_seen(module, task, killed)
        parent = here.start()
        wait_for(lambda: len(here.finished()) >= 4)
        parent.kill()
        parent.communicate()
        wait_for(lambda: len(killed) == 2)
        second = finish(here.start())
        assert "is at work on this experiment" in second
        kept = here.finished()
        assert 4 <= len(kept) < 24
        assert f"{len(kept)} of 24 samples are finished" in second
        assert "these failed" in second and "the last words of its task" in second
        subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)
        third = finish(here.start())
        finished = here.finished()
        assert len(finished) == 24, third
        assert {name: finished[name] for name in kept} == kept
        assert sorted(p.name for p in here.folder.iterdir() if p.name.startswith(".")) == [".lock"]
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.slow
@pytest.mark.usefixtures("on_cluster")
def test_without_waiting_the_same_command_tells_and_collects(by_slurm: Toy) -> None:
    here = by_slurm.but(wait=False, runs=2, task_samples=6, slurm_options="--mem-per-cpu=900M")
    first = finish(here.start())
    assert "array    " in first and "2 tasks of up to 6 samples, 4 at a time" in first
    local = here.but(executor="local").run()
    if slurm.at_work(here.folder):  # it was when that run began
        assert "EXECUTOR=slurm waits for it" in local.stderr
    while slurm.at_work(here.folder):
        time.sleep(0.5)
    assert len(here.finished()) == 12
    finish(here.start())
    assert not (here.folder / ".slurm").exists()
