"""Verrou's tables, as recorded from a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from morphbits.engines.verrou.counters import OperationTable, last_table

LOG = (Path(__file__).parent / "verrou-2.7.log").read_text(encoding="utf-8")


def test_last_table_counts_by_type_and_precision() -> None:
    table = last_table(LOG)
    assert table.perturbed == {
        "add flt": 41,
        "add dbl": 1000,
        "mAdd flt": 188_300_000_000,
        "cmp dbl": 0,
        "conv dbl=>flt": 101,
        "conv dbl=>int": 0,
    }
    assert table.executed["add dbl"] == 1012
    assert table.total == 41 + 1000 + 188_300_000_000 + 101


def test_difference_is_what_a_region_added() -> None:
    first = last_table(LOG[: LOG.index("New seed")])
    assert first.perturbed == {"add dbl": 0}
    assert first.total == 0
    region = last_table(LOG) - first
    assert region.perturbed["add dbl"] == 1000
    assert region.executed["add dbl"] == 1000
    assert "conv dbl=>int" not in region.perturbed
    assert (first - first) == OperationTable()


def test_a_table_without_rows_is_empty() -> None:
    head = "".join(line for line in LOG.splitlines(True) if "Operation" in line)
    assert last_table(head) == OperationTable()


def test_a_log_without_a_table_is_refused() -> None:
    with pytest.raises(ValueError, match="no table"):
        last_table("==1== Verrou, Check floating-point rounding errors\n")


def test_processes_of_any_number_and_older_headings_are_read() -> None:
    older = LOG.replace("==5806==", "==20169==").replace("Instruction count", "Instructions count")
    assert last_table(older) == last_table(LOG)
