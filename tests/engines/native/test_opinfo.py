"""torch's database of operators under the engine: all agree with torch, or are listed as refused
or different in `opinfo_known`, where nothing else is listed."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from support import opinfo
from support.opinfo_known import DIFFERS, REFUSED, UNSET, VALUES

pytest.importorskip("expecttest", reason="torch's tests ask for it")

PARTS = 12
ran: dict[int, list[opinfo.Outcome]] = {}


def listed(outcome: opinfo.Outcome) -> list[tuple[str, ...]]:
    """The lines of `opinfo_known` that an outcome needs, as they are there."""
    if outcome.kind == "refused" and outcome.type == "complex64":
        return [("complex numbers",)] if outcome.what else []
    if outcome.kind == "refused":
        return [
            (reason, outcome.what)
            for reason, names in REFUSED.items()
            if outcome.what in names.split()
        ]
    sample = (outcome.entry, outcome.form, outcome.type)
    return [
        line
        for line in DIFFERS
        if outcome.kind == "differs"
        and all(a in ("*", b) for a, b in zip(line, sample, strict=True))
    ]


def unlisted(outcomes: list[opinfo.Outcome]) -> list[opinfo.Outcome]:
    return [o for o in outcomes if o.kind != "same" and not listed(o)]


def test_a_sample_of_the_database() -> None:
    """Every sixtieth entry, in two types."""
    types = (torch.float32, torch.int64)
    found = [o for entry in opinfo.database()[7::60] for o in opinfo.outcomes(entry, types)]
    assert not unlisted(found) and len(found) > 100


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_every_operator_is_torchs_or_listed(part: int) -> None:
    ran[part] = [o for entry in opinfo.database()[part::PARTS] for o in opinfo.outcomes(entry)]
    assert not unlisted(ran[part])


@pytest.mark.slow
def test_nothing_is_listed_that_is_not_so() -> None:
    if len(ran) < PARTS:
        pytest.skip("needs the outcomes of all parts")
    found = [outcome for part in ran.values() for outcome in part]
    needed = {line for outcome in found for line in listed(outcome)}
    refused = {(reason, name) for reason, names in REFUSED.items() for name in names.split()}
    assert {*DIFFERS, *refused, ("complex numbers",)} == needed
    assert {o.entry for o in found} >= UNSET | VALUES
    kinds = Counter(outcome.kind for outcome in found)
    entries = {kind: len({o.entry for o in found if o.kind == kind}) for kind in kinds}
    print(f"\n{len(found)} samples: {dict(kinds)}; entries: {entries}")
