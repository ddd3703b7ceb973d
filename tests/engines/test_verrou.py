"""The verrou engine: without Verrou its markers do nothing and say what to start."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from morphbits import engines
from morphbits.bids import Subject
from morphbits.config import Arithmetic, RegisterConfig
from morphbits.engines import verrou
from morphbits.engines.verrou import markers
from morphbits.engines.verrou.counters import OperationTable
from morphbits.errors import UserError
from morphbits.provenance import configuration
from morphbits.samples.matrix import Unit
from morphbits.samples.runner import key_of, seen

ROOT = Path(__file__).parents[2]
needs_verrou = [
    pytest.mark.verrou,
    pytest.mark.skipif(verrou.found() != "machine", reason="Verrou is not on this machine"),
]


@pytest.fixture
def no_verrou(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(markers.VARIABLE, raising=False)
    markers._folder.cache_clear()


@pytest.mark.parametrize("region", ["registration", "process"])
def test_a_pause_switches_only_what_a_region_has_switched_on(
    region: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []

    class Library:
        def __getattr__(self, name: str) -> Callable[..., None]:
            return lambda *_: called.append(name.removeprefix("morphbits_"))

    monkeypatch.setattr(markers, "_folder", lambda: Path())
    monkeypatch.setattr(markers, "_library", lambda folder: Library())
    monkeypatch.setattr(markers, "settings", lambda: {"region": region})
    monkeypatch.setattr(markers, "count", OperationTable)
    with markers.paused():
        pass
    assert called == []
    with markers.perturbed(seed=1), markers.paused():
        called.append("exchange")
    switched = ["seed", "start", "stop", "exchange", "start", "stop"]
    assert called == (switched if region == "registration" else ["exchange"])
    before = list(called)
    with markers.paused():
        pass
    assert called == before


def test_markers_do_nothing_outside(no_verrou: None) -> None:
    with markers.perturbed(seed=1) as count:
        pass
    assert (count.table, markers.count()) == (OperationTable(), OperationTable())
    assert markers.settings() is None
    assert markers.exclusions() == []


def test_a_registration_outside_names_the_script(no_verrou: None) -> None:
    config = Arithmetic(engine="verrou", mode="upward", seed=5)
    message = r"with scripts/with_verrou.sh --mode upward --seed 5 -- before it"
    with pytest.raises(UserError, match=message), engines.get("verrou").region(config, 1):
        pass


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "nearest", "region": "registration"}, "with mode nearest, not random"),
        ({"mode": "random", "region": "process"}, "with region process, not registration"),
    ],
)
def test_a_process_started_for_something_else_is_refused(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], message: str
) -> None:
    monkeypatch.setattr(markers, "settings", lambda: settings)
    with pytest.raises(UserError, match=message), verrou.region(Arithmetic(engine="verrou"), 1):
        pass


def test_nothing_perturbed_is_no_result(monkeypatch: pytest.MonkeyPatch, no_verrou: None) -> None:
    monkeypatch.setattr(markers, "settings", lambda: {"mode": "random", "region": "registration"})
    with (
        pytest.raises(UserError, match="perturbed no operation"),
        verrou.region(Arithmetic(engine="verrou"), 1),
    ):
        pass


def test_a_second_sample_of_a_whole_process_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"mode": "random", "region": "process", "seed": "1"}
    monkeypatch.setattr(markers, "settings", lambda: settings)
    monkeypatch.setattr(markers, "_ended", 1)
    config = Arithmetic(engine="verrou", region="process")
    with pytest.raises(UserError, match="one process makes one sample"), verrou.region(config, 1):
        pass


def test_command_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verrou, "found", lambda: "machine")
    config = Arithmetic(engine="verrou", mode="upward", region="process", seed=8)
    assert verrou.command(config, "python3", [], []) == [
        str(ROOT / "scripts" / "with_verrou.sh"),
        *[
            "--mode",
            "upward",
            "--region",
            "process",
            "--libm",
            "perturbed",
            "--onednn",
            "on",
            "--seed",
            "8",
            "--",
        ],
        "python3",
    ]


def test_command_in_the_image(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(verrou, "found", lambda: "container")
    words = verrou.command(Arithmetic(engine="verrou"), "python3", [tmp_path], [tmp_path / "r"])
    assert words == [
        str(ROOT / "scripts" / "in_container.sh"),
        *f"--read {tmp_path} --write {tmp_path / 'r'} -- scripts/with_verrou.sh".split(),
        *[
            "--mode",
            "random",
            "--region",
            "registration",
            "--libm",
            "perturbed",
            "--onednn",
            "on",
            "--",
            "python",
        ],
    ]


def test_a_prefix_or_image_without_verrou_is_an_error_and_no_reason_to_look_elsewhere(
    monkeypatch: pytest.MonkeyPatch, no_verrou: None, tmp_path: Path
) -> None:
    docker = tmp_path / "docker"
    docker.write_text(
        '#!/bin/sh\n[ "$5" != gone ] || { echo no such image >&2; exit 1; }; echo 1\n'
    )
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(verrou, "_output", lambda words: "")  # of no valgrind
    looked_for = verrou.found.__wrapped__
    for name in ("CONTAINER", "IMAGE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("VERROU_PREFIX", str(tmp_path))
    with pytest.raises(UserError, match=rf"VERROU_PREFIX={tmp_path}: has no bin/valgrind"):
        looked_for()
    monkeypatch.delenv("VERROU_PREFIX")
    assert looked_for() == "container"
    monkeypatch.setenv("IMAGE", "gone")
    with pytest.raises(UserError, match=r"IMAGE=gone: no image .* there \(no such image\)"):
        looked_for()
    monkeypatch.setenv("CONTAINER", "lxc")
    with pytest.raises(UserError, match=r"CONTAINER=lxc IMAGE=gone: .*must be docker, podman or"):
        looked_for()


def test_no_verrou_anywhere_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verrou, "found", lambda: None)
    with pytest.raises(UserError, match="'make docker' builds it, ENGINE=native needs neither"):
        verrou.command(Arithmetic(engine="verrou"), "python3", [], [])


def _unit(sample: str, config: RegisterConfig, root: Path) -> Unit:
    moving = root / "data" / "sub-001" / "anat" / "sub-001_T1w.nii.gz"
    folder = root / "results" / "one" / f"sample-{sample}" / "sub-001"
    fixed, model = root / "t" / "fixed.nii.gz", root / "m.h5"
    return Unit(sample, Subject("001"), config, moving, fixed, model, "MNI152", folder)


def test_a_worker_serves_all_seeds_and_sees_the_dataset_and_its_experiment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(verrou, "found", lambda: "container")
    config = RegisterConfig(engine="verrou", seed=1)
    first = key_of(_unit("01", config, tmp_path))
    assert first == key_of(_unit("02", dataclasses.replace(config, seed=2), tmp_path))
    assert first != key_of(_unit("ieee", dataclasses.replace(config, mode="nearest"), tmp_path))
    words = list(first[0])
    mounts = words[1 : words.index("--")]
    assert mounts == [
        *("--read", str(tmp_path / "data")),
        *("--read", str(tmp_path / "t" / "fixed.nii.gz")),
        *("--read", str(tmp_path / "m.h5")),
        *("--write", str(tmp_path / "results" / "one")),
    ]


def test_what_is_reached_by_links_is_found_in_the_image(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Folders and files that are links, below links and to links; files of git-annex."""
    monkeypatch.setattr(verrou, "found", lambda: "container")
    contents = {
        "disk/set/.git/annex/MD5-1.nii.gz": "annexed",
        "disk/set/derivatives/truth/tpl.nii.gz": "fixed",
        "archive/of/9.nii.gz": "archived",
        "blobs/0123": "model",
    }
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    links = {
        "disk/set/sub-001/anat/sub-001_T1w.nii.gz": "../../.git/annex/MD5-1.nii.gz",
        "disk/set/sub-002/anat/sub-002_T1w.nii.gz": "../../../short/9.nii.gz",
        "disk/short": str(tmp_path / "archive/of"),
        "archive/sub-003/anat/sub-003_T1w.nii.gz": "../../of/9.nii.gz",
        "disk/set/sub-003": "../../archive/sub-003",
        "models/latest.h5": "../blobs/0123",
        "home/models": "../models",
        "home/data": "../disk",
        "home/results": "../disk/results",
    }
    for name, target in links.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(target)
    (tmp_path / "disk/results/one").mkdir(parents=True)
    (tmp_path / "work").mkdir()
    home = tmp_path / "work" / ".." / "home"
    for label, content in {"001": "annexed", "002": "archived", "003": "archived"}.items():
        unit = dataclasses.replace(
            _unit("01", RegisterConfig(engine="verrou"), home),
            moving=home / f"data/set/sub-{label}/anat/sub-{label}_T1w.nii.gz",
            fixed=home / "data/set/derivatives/truth/tpl.nii.gz",
            model=home / "models/latest.h5",
        )
        words = key_of(unit)[0]
        mounts = [Path(words[i + 1]) for i, w in enumerate(words) if w in ("--read", "--write")]
        inside = seen(unit)
        assert inside.moving.name == unit.moving.name and inside.model.name == "latest.h5"
        found = [_in_image(getattr(inside, n), mounts) for n in ("moving", "fixed", "model")]
        assert [path and path.read_text() for path in found] == [content, "fixed", "model"]
        folder = _in_image(inside.folder.parent.parent, mounts)
        assert folder and folder.samefile(tmp_path / "disk/results/one")


def _in_image(path: Path, mounts: list[Path]) -> Path | None:
    """The file of this machine that a path is in a container with these mounts, which the kernel
    looks for name by name; None where it finds nothing."""
    at, names, host = Path("/"), list(path.parts[1:]), None
    while names:
        name = names.pop(0)
        at = at.parent if name == ".." else at / name
        below = [mount for mount in mounts if at.is_relative_to(mount)]
        if not below:
            if not any(mount.is_relative_to(at) for mount in mounts):
                return None
            continue
        mount = max(below, key=lambda found: len(found.parts))
        host = mount.resolve() / at.relative_to(mount)
        if at != mount and host.is_symlink():
            target = host.readlink()
            at = Path("/") if target.is_absolute() else at.parent
            names = [part for part in target.parts if part != "/"] + names
    return host


def test_a_whole_process_makes_one_sample(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(verrou, "found", lambda: "machine")
    config = RegisterConfig(engine="verrou", region="process", mode="nearest")
    assert key_of(_unit("01", config, tmp_path)) != key_of(_unit("02", config, tmp_path))


def test_the_configuration_holds_what_verrou_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verrou, "version", lambda: "valgrind-3.26.0.verrou-2.7.0 exclusions:1")
    config = RegisterConfig(engine="verrou", framework="tensorflow", libm="excluded", seed=4)
    chosen = configuration(config, {})
    expected = {
        "kernel": "valgrind-3.26.0.verrou-2.7.0 exclusions:1",
        "libm": "excluded",
        "mode": "random",
        "onednn": "on",
        "region": "registration",
        "seed": 4,
    }
    assert expected.items() <= chosen.items()
    assert "accumulation" not in chosen
    assert (
        chosen["hash"] != configuration(dataclasses.replace(config, libm="perturbed"), {})["hash"]
    )


def test_an_installed_package_has_no_scripts_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verrou, "SCRIPTS", tmp_path / "scripts")
    with pytest.raises(UserError, match=r"with_verrou\.sh is not part of the installed package"):
        verrou.script_path("with_verrou.sh")


def test_only_verrou_perturbs_a_whole_process() -> None:
    with pytest.raises(UserError, match="region process does nothing with engine native"):
        RegisterConfig(engine="native", region="process")


def _sanity(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(root / "python" / "morphbits"), "verrou-sanity"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(root / "python")},
        cwd=root,  # a module is looked for in the working folder first
    )


class TestUnderVerrou:
    pytestmark = needs_verrou

    def test_sanity_is_green(self) -> None:
        result = _sanity(ROOT)
        assert result.returncode == 0, result.stdout + result.stderr
        assert result.stdout.count("ok") == 8

    def test_sanity_is_red_without_markers(self, tmp_path: Path) -> None:
        for name in ("python", "scripts", "verrou"):
            ignored = shutil.ignore_patterns("__pycache__", "_build")
            shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
        source = tmp_path / "python" / "morphbits" / "engines" / "verrou" / "markers.py"
        text = source.read_text()
        assert "library.morphbits_start()" in text
        source.write_text(text.replace("library.morphbits_start()", "pass"))
        result = _sanity(tmp_path)
        assert result.returncode == 2
        assert "FAILED  operations inside the region are perturbed" in result.stdout
        assert "samples made here would mean nothing" in result.stderr

    def test_version_names_verrou_valgrind_and_exclusions(self) -> None:
        assert "verrou-" in verrou.version()
        assert "exclusions:" in verrou.version()
