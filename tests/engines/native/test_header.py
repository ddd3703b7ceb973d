"""The names that Python reads from the kernels' header."""

from __future__ import annotations

import pytest

from morphbits import choices
from morphbits.engines.native.kernels.header import names


def test_the_modes_of_the_command_line_are_the_kernels() -> None:
    assert names("mode") == choices.MODES


def test_names_are_the_constants_in_their_order() -> None:
    assert names("variant") == ("portable", "avx2", "avx512", "avx512_ifma", "variants")
    assert names("function")[:3] == ("exp", "exp2", "expm1")  # over several lines
    assert names("function")[-3:] == ("to_float16", "to_bfloat16", "functions")


@pytest.mark.parametrize("enum", ["opcode", "nothing"])
def test_an_enum_that_does_not_only_list_names_is_refused(enum: str) -> None:
    """Its numbers would not be the places."""
    with pytest.raises(AssertionError, match=f"no enum {enum} that only lists"):
        names(enum)
