"""What Verrou must leave unperturbed, as real paths of this machine.

    python -m morphbits.engines.verrou.exclusions verrou/exclusions/common.tsv

Verrou compares a library's real path letter by letter, and that path differs between
distributions and environments; the files in verrou/exclusions therefore name libraries as the
dynamic linker knows them, and this module finds them. It prints Verrou's own format: a symbol, a
tab, a path. Standard library only: it runs before every sample.
"""

from __future__ import annotations

import ctypes
import os
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from morphbits.errors import UserError, run_cli

_RTLD_DI_LINKMAP = 2


@dataclass(frozen=True)
class Exclusion:
    """A line of an exclusion file: symbol (``*`` is every one), library, and why."""

    symbol: str
    library: str
    reason: str


def read(path: Path) -> list[Exclusion]:
    """The lines of an exclusion file; each must give its reason."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    exclusions = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        fields = line.split("\t")
        if len(fields) != 3 or not all(field.strip() for field in fields):
            raise UserError(f"{path}, line {number}: must be symbol, tab, library, tab, reason")
        symbol, library, reason = fields
        # to Verrou anything that begins with a star is everything
        if symbol != "*" and symbol.startswith("*"):
            raise UserError(f"{path}, line {number}: '{symbol}' would exclude every symbol")
        if symbol == library == "*":
            raise UserError(f"{path}, line {number}: would exclude everything")
        exclusions.append(Exclusion(symbol, library, reason))
    return exclusions


def resolve(library: str, site_packages: Iterable[Path] | None = None) -> list[str]:
    """Real paths of a library: ``*`` itself; a pattern with a slash in the environment's
    packages; else what the dynamic linker loads under that name. Empty where there is none."""
    if library == "*":
        return ["*"]
    if "/" in library:
        folders = site_packages
        if folders is None:
            folders = {Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")}
        found = {os.path.realpath(file) for folder in folders for file in folder.glob(library)}
        return sorted(found)
    try:
        return [_loaded_from(ctypes.CDLL(library))]
    except OSError:
        return []


class _LinkMap(ctypes.Structure):
    """The beginning of what the dynamic linker knows of a library (``man dlinfo``)."""

    _fields_: ClassVar = [("address", ctypes.c_void_p), ("name", ctypes.c_char_p)]


def _loaded_from(library: ctypes.CDLL) -> str:
    """The real path of a loaded library."""
    link_map = ctypes.POINTER(_LinkMap)()
    handle = ctypes.c_void_p(library._handle)
    if ctypes.CDLL(None).dlinfo(handle, _RTLD_DI_LINKMAP, ctypes.byref(link_map)) != 0:
        raise OSError(f"{library._name}: dlinfo failed")
    return os.path.realpath(os.fsdecode(link_map.contents.name))


def lines(files: Iterable[Path]) -> list[str]:
    """Verrou's exclusion file, each rule after a comment that gives its reason."""
    result = []
    for exclusion in (one for file in files for one in read(file)):
        paths = resolve(exclusion.library)
        result.append(f"# {exclusion.library}: {'not here' if not paths else exclusion.reason}")
        result += [f"{exclusion.symbol}\t{path}" for path in paths]
    return result


def main() -> None:
    print("\n".join(lines(Path(name) for name in sys.argv[1:])))


if __name__ == "__main__":
    run_cli(main)
