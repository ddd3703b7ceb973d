"""The command `morphbits`: its table of verbs, and what it answers where there is no such verb."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from morphbits import __version__, cli

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """Runs the command in this process; gives the exit status, standard output and error."""

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["morphbits", *words])
        status = 0
        try:
            cli.main()
        except SystemExit as ended:
            status = int(ended.code or 0)
        return status, *capsys.readouterr()

    return call


def test_every_verb_has_a_main_and_a_docstring_that_begins_with_a_command() -> None:
    for name, verb in cli.VERBS.items():
        module = importlib.util.find_spec(f"morphbits.{verb.module}")
        tree = ast.parse(Path(str(module and module.origin)).read_text(encoding="utf-8"))
        assert "main" in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
        assert f"morphbits {name}" in str(ast.get_docstring(tree)), name
        assert len(f"  {name:<20}{verb.summary}") <= 80


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",)])
def test_help_lists_the_verbs(answer, words: tuple[str, ...]) -> None:  # type: ignore[no-untyped-def]
    status, out, _ = answer(*words)
    assert status == 0 and "morphbits[suite]" in out
    assert [name for name in cli.VERBS if f"\n  {name} " not in out] == []


def test_version(answer) -> None:  # type: ignore[no-untyped-def]
    assert answer("--version") == (0, f"morphbits {__version__}\n", "")
    citation, changes = ((ROOT / n).read_text() for n in ("CITATION.cff", "CHANGELOG.md"))
    assert f"\nversion: {__version__}\n" in citation
    released = re.findall(r"^## (\S+) \((.*)\)$", changes, re.M)[0]
    assert released[0] == __version__ and f"\ndate-released: {released[1]}\n" in citation


def test_an_unknown_verb_is_one_sentence(answer) -> None:  # type: ignore[no-untyped-def]
    status, out, error = answer("registre")
    assert (status, out) == (2, "")
    assert error == (
        "error: there is no verb registre; did you mean 'register'?; morphbits --help lists them\n"
    )


@pytest.mark.parametrize("package, extra", [("nibabel", "suite"), ("tf_keras", "tensorflow")])
def test_a_missing_package_is_one_sentence_that_names_its_extra(  # type: ignore[no-untyped-def]
    answer, monkeypatch: pytest.MonkeyPatch, package: str, extra: str
) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named '{package}.x'", name=f"{package}.x")

    monkeypatch.setattr(importlib, "import_module", missing)
    status, _, error = answer("register", "--help")
    assert status == 2 and error.count("\n") == 1
    assert f"needs the package {package}" in error and f"'morphbits[{extra}]'" in error


def test_run_as_a_folder_and_as_a_module_from_anywhere(tmp_path: Path) -> None:
    """The folder's own modules (report, stats, …) are not top-level modules then."""
    code = "import importlib.util as u; print([n for n in ('cli', 'stats') if u.find_spec(n)])"
    folder = Path(cli.__file__).parents[1]
    for words in ([str(folder)], ["-m", "morphbits"]):
        done = subprocess.run(
            [sys.executable, *words, "report", "--help"],
            cwd=tmp_path, env={"PYTHONPATH": str(folder.parent)}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("usage: morphbits report [-h]")
    (tmp_path / "morphbits").mkdir()
    main = (folder / "__main__.py").read_text(encoding="utf-8").partition("from morphbits.cli")[0]
    (tmp_path / "morphbits" / "__main__.py").write_text(main + code)
    (tmp_path / "morphbits" / "stats.py").touch()
    words = [sys.executable, str(tmp_path / "morphbits")]
    assert subprocess.run(words, env={}, capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize("fault", [ZeroDivisionError("a fault"), PermissionError(13, "a fault")])
def test_a_fault_has_a_status_that_no_verb_answers_with(  # type: ignore[no-untyped-def]
    answer, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    """Python's is 1, by which stability-test says that results differ, verify that files do."""

    def main() -> int:
        raise fault

    monkeypatch.setattr("morphbits.cli.stability_test.main", main)
    status, _, error = answer("stability-test")
    assert status == 70 and "Traceback" in error and "a fault" in error
