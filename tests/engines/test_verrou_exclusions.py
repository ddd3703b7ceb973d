"""Exclusion files: each line with its reason, names turned into this machine's paths."""

from __future__ import annotations

from pathlib import Path

import pytest

from morphbits.engines.verrou import exclusions
from morphbits.errors import UserError

FILES = Path(__file__).parents[2] / "verrou" / "exclusions"


def test_every_line_of_ours_has_a_reason() -> None:
    found = [one for file in FILES.glob("*.tsv") for one in exclusions.read(file)]
    assert {"libm.so.6", "libquadmath.so.0"} <= {one.library for one in found}
    assert all(len(one.reason.split()) > 3 for one in found)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("*\tlibm.so.6", "line 1: must be symbol, tab, library, tab, reason"),
        ("*\tlibm.so.6\t ", "must be"),
        ("* libm.so.6 because", "must be"),
        ("*sin\tlibm.so.6\tbecause", "every symbol"),
        ("*\t*\tbecause", "everything"),
    ],
)
def test_a_line_that_excludes_too_much_or_gives_no_reason(
    tmp_path: Path, line: str, message: str
) -> None:
    path = tmp_path / "mine.tsv"
    path.write_text(line + "\n")
    with pytest.raises(UserError, match=message) as error:
        exclusions.read(path)
    assert str(path) in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.tsv: cannot be read"):
        exclusions.read(tmp_path / "none.tsv")


def test_the_linker_says_where_a_library_lies() -> None:
    (path,) = exclusions.resolve("libm.so.6")
    assert Path(path).is_file()
    assert Path(path) == Path(path).resolve()
    assert "libm" in Path(path).name
    assert exclusions.resolve("libnosuchthing.so.9") == []


def test_patterns_find_what_packages_bring(tmp_path: Path) -> None:
    library = tmp_path / "numpy.libs" / "libquadmath-96973f99.so.0.0.0"
    library.parent.mkdir()
    library.touch()
    link = tmp_path / "scipy.libs"
    link.symlink_to(library.parent)
    assert exclusions.resolve("*.libs/libquadmath-*.so*", [tmp_path]) == [str(library)]


def test_verrous_own_format(tmp_path: Path) -> None:
    path = tmp_path / "mine.tsv"
    path.write_text(
        "# a comment\n*\tlibm.so.6\tnot ours\nf\t*\tany library's f\n*\tlibno.so.1\tgone\n"
    )
    (libm,) = exclusions.resolve("libm.so.6")
    assert exclusions.lines([path]) == [
        "# libm.so.6: not ours",
        f"*\t{libm}",
        "# *: any library's f",
        "f\t*",
        "# libno.so.1: not here",
    ]
