"""Is perturbation on where it should be, and off elsewhere? Proof in seconds, under Verrou.

`check` runs a probe (this module as a program: `main`) several times under
``scripts/with_verrou.sh`` and holds what it reports against what must be. The probe computes
before, inside and after the markers of a region:

- a sum of 1,000 tenths in double precision, which random rounding moves, and of 100 tenths
  rounded to single precision at every step;
- a sum of 1,000 eighths, every step of which is exact, which no rounding may move;
- libm's sine, which Interlibmath rounds, and sincosf, which an Interlibmath that was compiled as
  Verrou 2.7 comes never returns from.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from morphbits.engines.verrou import markers, script_path
from morphbits.errors import UserError

ADDITIONS = 1000  # of tenths in the region; as many of eighths


def _sum(term: float, count: int) -> float:
    total = 0.0
    for _ in range(count):
        total += term
    return total


def _sum_single(term: float, count: int) -> float:
    """Each partial sum rounded to single precision: a conversion is an operation too."""
    total = 0.0
    for _ in range(count):
        total = struct.unpack("f", struct.pack("f", total + term))[0]
    return total


def _sums() -> dict[str, str]:
    sums = {
        "tenths": _sum(0.1, ADDITIONS),
        "eighths": _sum(0.125, ADDITIONS),
        "single": _sum_single(0.1, 100),
    }
    return {name: value.hex() for name, value in sums.items()}


def _libm() -> list[str]:
    """The different sines of 1 among a hundred, after a call of sincosf."""
    sine, cosine = ctypes.c_float(), ctypes.c_float()
    ctypes.CDLL(None).sincosf(ctypes.c_float(1.0), ctypes.byref(sine), ctypes.byref(cosine))
    return sorted({math.sin(1.0).hex() for _ in range(100)})


def main() -> None:
    """The probe: prints, as JSON, the sums before, inside and after the region, what Verrou
    counted in it, and how many operations were perturbed outside. With ``libm`` as its argument:
    the sines."""
    if sys.argv[1] == "libm":
        with markers.perturbed(seed=7):
            sines = _libm()
        print(json.dumps(sines))
        return
    seed = int(sys.argv[1])
    before = _sums()
    with markers.perturbed(seed) as count:
        inside = _sums()
    after = _sums()
    outside = markers.count().total - count.table.total
    report = {"before": before, "inside": inside, "after": after, "outside": outside}
    print(json.dumps(report | {"perturbed": count.table.perturbed}))


def _probe(mode: str, what: str) -> Any:
    words = [script_path("with_verrou.sh"), "--mode", mode, "--seed", "1", "--"]
    words += [sys.executable, "-m", "morphbits.engines.verrou.sanity", what]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    answer = subprocess.run(words, capture_output=True, text=True, env=environment)
    if answer.returncode:
        raise UserError(answer.stderr.strip().removeprefix("error: "))
    return json.loads(answer.stdout.splitlines()[-1])


def check() -> Iterator[tuple[str, bool, str]]:
    """What must be so, whether it is, and the evidence; one after the other."""
    native = _sums()
    random, again, other, nearest = (
        _probe(mode, seed)
        for mode, seed in (("random", "7"), ("random", "7"), ("random", "8"), ("nearest", "7"))
    )
    counted = random["perturbed"]
    yield (
        "operations inside the region are perturbed",
        counted.get("add dbl", 0) >= 2 * ADDITIONS and counted.get("conv dbl=>flt", 0) > 0,
        ", ".join(f"{name} {count:,}" for name, count in counted.items()) or "none counted",
    )
    yield (
        "operations outside are not",
        random["outside"] == 0 and random["before"] == random["after"] == native,
        f"{random['outside']} counted",
    )
    yield (
        "exact operations stay exact",
        random["inside"]["eighths"] == native["eighths"],
        f"1,000 eighths are {float.fromhex(random['inside']['eighths'])}",
    )
    yield (
        "inexact operations do not",
        all(random["inside"][name] != native[name] for name in ("tenths", "single")),
        f"1,000 tenths are {float.fromhex(random['inside']['tenths'])!r}",
    )
    yield "equal seeds agree", random == again, "seed 7 twice"
    yield "two seeds differ", random["inside"] != other["inside"], "seeds 7 and 8"
    yield (
        "mode nearest is the unperturbed result",
        nearest["inside"] == native and sum(nearest["perturbed"].values()) > 0,
        "same bits",
    )
    try:
        sines = _probe("random", "libm")
    except UserError:
        yield (
            "libm's results are perturbed",
            False,
            "Interlibmath crashed: build it as the Dockerfile does, or give --libm excluded",
        )
        return
    values = " and ".join(repr(float.fromhex(sine)) for sine in sines)
    yield "libm's results are perturbed", len(sines) == 2, f"sines of 1 are {values}"


if __name__ == "__main__":
    main()
