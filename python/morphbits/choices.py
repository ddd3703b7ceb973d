"""What the options of the arithmetic may be: one list or parser of each, for the engine and for
the command line alike.

A parser gives the value's meaning, or raises ValueError with what is allowed in words.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from morphbits import axes
from morphbits.errors import UserError
from morphbits.wording import alternatives

Value = TypeVar("Value")
MODES = ("nearest", "random", "nearness", "upward", "downward", "toward_zero")
STOCHASTIC_MODES = ("random", "nearness")
SUBNORMALS = ("keep", "flush")
ORDERS = ("sequential", "direct", "probe")
FORMATS = ("float16", "bfloat16", "tf32")
WARP_FORMATS = ("voxels", "ras", "itk", "fsl")


def one_of(choices: Sequence[str], value: str) -> str:
    """The value, which is one of these."""
    if value not in choices:
        known = ", ".join(choices)
        raise ValueError(f"must be one of {known}, not {value!r}{did_you_mean(value, choices)}")
    return value


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """What a user may have meant, for the end of a sentence; empty where nothing is like it."""
    close = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.7)
    return f"; did you mean {close[0]!r}?" if close else ""


def accumulation(value: str) -> tuple[str, int]:
    """An order of accumulation as (kind, length of a block or 0)."""
    if value in ORDERS:
        return value, 0
    match = re.fullmatch(r"blocked:([1-9]\d{0,8})", value)
    if match:
        return "blocked", int(match[1])
    raise ValueError(
        f"must be sequential, direct, blocked:K (such as blocked:192) or probe, not {value!r}"
    )


def precision(value: str) -> int | str:
    """A number of bits, or the name of a format."""
    if value in FORMATS:
        return value
    if re.fullmatch(r"[1-9]\d?", value) and 2 <= int(value) <= 24:
        return int(value)
    raise ValueError(f"must be 2 to 24 bits, or {alternatives(FORMATS)}, not {value!r}")


def model_orientation(value: str) -> str:
    """Axes that a model was trained in, or where they are to be found."""
    if value not in ("auto", "fixed", *axes.NAMES):
        raise ValueError(
            "must be auto, fixed, or where the first, second and third axis point, such as RAS or "
            f"LIA, not {value!r}"
        )
    return value


def extent(value: int) -> int:
    """Voxels along an edge of a cube that a network of five halvings takes."""
    if value % 32:
        raise ValueError(f"must be a multiple of 32 from 64 to 512, not {value}")
    return value


def stages(value: str) -> tuple[str, frozenset[str]]:
    """A selection of stages as (all, only or except; names)."""
    name = r"[A-Za-z0-9][A-Za-z0-9._-]*"
    if not re.fullmatch(rf"all|(only|except):{name}(,{name})*", value):
        raise ValueError(
            "must be all, only:NAME,… or except:NAME,… with names of stages, such as only:flow, "
            f"not {value!r}"
        )
    kind, _, names = value.partition(":")
    return kind, frozenset(names.split(",") if names else ())


def orientation(value: str) -> str:
    """Where three axes point to, as LAS (left, anterior, superior), or nothing."""
    if value and sorted(next((p for p in ("LR", "AP", "IS") if x in p), x) for x in value) != [
        "AP", "IS", "LR",
    ]:  # fmt: skip
        raise ValueError(
            "must be three letters, where the axes point to: one of L R, one of A P, one of I S, "
            f"such as LAS, not {value!r}"
        )
    return value


def numbers(
    kind: type[int] | type[float], minimum: float, maximum: float, names: Sequence[str] = ()
) -> Callable[[str], object]:
    """A parser of numbers separated by blanks, each from `minimum` to `maximum`, or of a name."""
    what = "whole numbers" if kind is int else "numbers"
    words = f"{what} from {minimum} to {maximum}, separated by blanks"
    allowed = alternatives([*names, words])

    def parse(value: str) -> object:
        if value in names:
            return value
        try:
            found = [kind(word) for word in value.split(" ")]
        except ValueError:
            found = []
        if not found or not all(minimum <= number <= maximum for number in found):
            raise ValueError(f"must be {allowed}, such as '16 32', not {value!r}")
        return found

    return parse


def parsed(name: str, parser: Callable[[str], Value], value: str) -> Value:
    """What `parser` makes of the value of the option `name`; UserError where it is none."""
    try:
        return parser(value)
    except ValueError as error:
        raise UserError(f"{name} {error}") from None
