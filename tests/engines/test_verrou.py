"""The verrou engine: without Verrou its markers do nothing and say what to start."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from morphbits import engines
from morphbits.config import Arithmetic
from morphbits.engines import verrou
from morphbits.engines.verrou import markers
from morphbits.engines.verrou.counters import Table
from morphbits.errors import UserError

ROOT = Path(__file__).parents[2]
needs_verrou = [
    pytest.mark.verrou,
    pytest.mark.skipif(verrou.found() != "machine", reason="Verrou is not on this machine"),
]


@pytest.fixture
def no_verrou(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(markers.VARIABLE, raising=False)
    markers._folder.cache_clear()


def test_markers_do_nothing_outside(no_verrou: None) -> None:
    with markers.perturbed(seed=1) as count:
        pass
    assert (count.table, markers.count()) == (Table(), Table())
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


def test_no_verrou_anywhere_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verrou, "found", lambda: None)
    with pytest.raises(UserError, match="'make docker' builds it, ENGINE=native needs neither"):
        verrou.command(Arithmetic(engine="verrou"), "python3", [], [])


def _sanity(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(root / "python" / "verrou_sanity.py")],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(root / "python")},
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
        source = tmp_path / "verrou" / "markers.c"
        text = source.read_text()
        assert "VERROU_START_INSTRUMENTATION;" in text
        source.write_text(text.replace("VERROU_START_INSTRUMENTATION;", ""))
        result = _sanity(tmp_path)
        assert result.returncode == 2
        assert "FAILED  operations inside the region are perturbed" in result.stdout
        assert "samples made here would mean nothing" in result.stderr

    def test_version_names_verrou_valgrind_and_exclusions(self) -> None:
        assert "verrou-" in verrou.version()
        assert "exclusions:" in verrou.version()
