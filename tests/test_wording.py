"""Durations, sizes and counts in words."""

from __future__ import annotations

import pytest

from morphbits import wording


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s"), (59, "59 s"), (600, "10 min"), (9000, "2.5 h"), (864000, "10 days")],
)
def test_durations(seconds: float, words: str) -> None:
    assert wording.duration(seconds) == words
    assert wording.measured_duration(seconds) == ("0.20 s" if seconds < 1 else words)


def test_sizes_and_numbers() -> None:
    assert wording.gigabytes(9.44e9) == "9.4 GB"
    assert wording.numbers([3, 2, 3]) == "2 or 3" and wording.numbers([10, 2, 5]) == "2 to 10"
    assert [wording.alternatives("abc"[:n]) for n in (1, 2, 3)] == ["a", "a or b", "a, b or c"]
