"""The measuring programs' harness: a process for a measurement, a report that can be repeated."""

import re
from pathlib import Path

import pytest

from benchmarks import kernel_orders
from benchmarks.harness import Report, measured, note, processor, result, start
from morphbits.errors import UserError


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The measuring process finds the programs where make does."""
    monkeypatch.setenv("PYTHONPATH", str(Path(kernel_orders.__file__).parents[1]))


def test_a_measurement_is_what_the_function_returns() -> None:
    orders = ["in pairs: the same bytes", "a chain: the same bytes"]
    found = measured(kernel_orders.together, orders)
    assert found == kernel_orders.together(set(orders))


def test_a_failed_measurement_is_a_sentence() -> None:
    with pytest.raises(UserError, match=r"together.*failed: TypeError"):
        measured(kernel_orders.together, 7)


def test_a_measurement_that_does_not_end_gives_none() -> None:
    assert result(start(kernel_orders.together, ["a chain"]), seconds=0.001) is None


def test_a_report_says_how_to_repeat_it(tmp_path: Path) -> None:
    report = Report(tmp_path / "new" / "report.md", "Times", "make bench", "numpy")
    report.table("case", "seconds")
    report.row("a", 1.5)
    title, _, how, *rest = report.path.read_text().splitlines()
    assert re.fullmatch(r"# Times, \d{4}-\d\d-\d\d", title)
    assert re.fullmatch(r"`make bench` at commit .+, on .+, \d+ cores; numpy [\d.]+\.", how)
    assert rest == ["", "| case | seconds |", "|---|---|", "| a | 1.5 |"]


def test_a_note_is_named_by_kind_hardware_and_date() -> None:
    assert re.fullmatch(r"orders_[a-z0-9-]+_\d{4}-\d\d-\d\d\.md", note("orders", processor()).name)
