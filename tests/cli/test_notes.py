"""The Markdown files: links lead somewhere, the index is complete, how-to notes are short."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTES = ROOT / "notes"
PAGES = sorted([*ROOT.glob("*.md"), *NOTES.rglob("*.md")])
LINK = re.compile(r"\]\(([^)#:]+?)(?:#[^)]*)?\)")
WIDTH, TWO_SCREENS = 120, 100


def links(page: Path) -> list[Path]:
    """The files of this repository that a page links to."""
    return [(page.parent / name).resolve() for name in LINK.findall(page.read_text())]


@pytest.mark.parametrize("page", PAGES, ids=[str(p.relative_to(ROOT)) for p in PAGES])
def test_every_link_leads_to_a_file(page: Path) -> None:
    assert [path for path in links(page) if not path.exists()] == []


def test_every_test_that_a_note_names_is_there() -> None:
    files = {path.name: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    tests = re.findall(r"def (test_\w+)", "\n".join(files.values()))
    named = re.findall(r"(?<![-\w])(test_\w+)(…|\.py)?", "\n".join(p.read_text() for p in PAGES))
    assert len(named) > 50
    for name, how in named:
        if how == ".py":
            assert f"{name}.py" in files, name
        else:
            matching = [test for test in tests if test.startswith(name)]
            assert name in matching or (how and matching), name


def test_the_index_names_every_note() -> None:
    listed = {*links(NOTES / "README.md")}
    notes = {p for p in NOTES.rglob("*.md") if p.parent.name not in ("decisions", "benchmarks")}
    assert {p.resolve() for p in notes} - listed == {(NOTES / "README.md").resolve()}


def test_the_table_of_layers_is_the_contract_of_imports() -> None:
    project = tomllib.loads((ROOT / "python" / "pyproject.toml").read_text(encoding="utf-8"))
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    table = (NOTES / "architecture.md").read_text().partition("| layer | what it does |")[2]
    rows = re.findall(r"^\| ([^|]*) \|", table.partition("\n\n")[0], re.M)
    written = [set(re.findall(r"`(\w+)`", row)) for row in rows if "`" in row]
    assert written == [set(re.findall(r"\w+", layer)) for layer in layers if layer != "__main__"]


def test_a_how_to_note_has_two_screens_at_most() -> None:
    lengths = {page.name: len(page.read_text().splitlines()) for page in NOTES.glob("*.md")}
    del lengths["operators.md"]  # generated
    assert {name: n for name, n in lengths.items() if n > TWO_SCREENS} == {}


def test_prose_wraps_at_one_width() -> None:
    for page in PAGES:
        if page.parent.name in ("benchmarks", "model_summary") or page.name == "operators.md":
            continue  # written by programs
        generated = r"```.*?```|<!-- begin .*?<!-- end"
        text = re.sub(generated, "", page.read_text(), flags=re.S)
        for line in text.splitlines():
            prose = not line.lstrip().startswith(("|", "![", "<")) and line[:4] != "    "
            assert not prose or len(line) <= WIDTH or " " not in line.strip(), (page, line)
