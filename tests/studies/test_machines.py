"""What moves a result: which ways of computing there are, and that each is what it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from morphbits.config import ExperimentConfig
from morphbits.engines.native.kernels.library import available_variants
from morphbits.engines.native.orders import recorded
from morphbits.files import csv_of
from morphbits.stats.analysis import read_table
from morphbits.studies.stability_test import machines

ROOT = Path(__file__).resolve().parents[2]


def test_torch_as_installed_comes_first_and_every_variant_is_there() -> None:
    ways = list(machines.ways(Path("other"), [Path("1"), Path("2")]))
    assert (ways[0].computes, ways[0].how) == ("torch", "as installed")
    variants = [way.environment.get("MORPHBITS_VARIANT") for way in ways]
    assert {name for name in variants if name} == set(available_variants()) - {"avx512_ifma"}
    assert {way.options["threads"] for way in ways} == {1, 2}
    assert {way.options.get("onednn", "on") for way in ways} == {"on", "off"}
    batches = [way.computes for way in ways if "batch-with" in way.files]
    assert batches == ["torch", "TensorFlow", "native, nearest", "native, nearest"]


def test_another_machines_orders_have_a_row_alone_and_in_a_batch(tmp_path: Path) -> None:
    file = tmp_path / "orders.json.gz"
    recorded.write(file)
    ways = list(machines.ways(Path("other"), [Path("1"), Path("2")], file))
    followed = [way for way in ways if way.files.get("orders") == file]
    assert [way.files.get("batch-with") for way in followed] == [None, Path("other")]
    assert all(recorded.read(file).words in way.how for way in followed)
    assert all(way.options["accumulation"] == "probe" for way in followed)


@pytest.mark.parametrize("how", ["portable at most", "without oneDNN"])
def test_torch_computes_as_the_way_says(how: str) -> None:
    """What torch itself reports in that environment."""
    ways = machines.ways(Path("other"), [Path("1"), Path("2")])
    way = next(way for way in ways if (way.computes, way.how) == ("torch", how))
    code = (
        f"{way.before}import torch; print(torch.backends.cpu.get_cpu_capability(), "
        "torch.backends.mkldnn.enabled)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=dict(way.environment), capture_output=True, text=True
    )
    capability, onednn = done.stdout.split()
    assert onednn == str("without oneDNN" not in way.how), done.stderr
    if asked := way.environment.get("ATEN_CPU_CAPABILITY"):
        assert capability == asked.upper()


def test_a_way_that_fails_has_its_row() -> None:
    """The others are still shown, and so is why this one is not there."""
    rows = [
        {"computes": "torch", "how": "as installed", "image_bits": 24.0, "warp_bits": 24.0,
         "rms_mm": 0.0, "max_mm": 0.0, "dice": None, "ratio": 0.0, "same_as": "torch"},
        {"computes": "TensorFlow", "how": "with oneDNN", "failed": "no TensorFlow here"},
    ]  # fmt: skip
    table = machines.table(rows, "torch")
    assert [len(row) for row in table.rows] == [len(table.header)] * 2
    assert table.rows[1][-1] == "failed: no TensorFlow here"
    assert csv_of(rows[:1])
    rows.append({**rows[0], "how": "torch's orders here", "orders": "9 of 11"})
    text = machines.in_markdown(machines.table(rows, "torch"), "m", ExperimentConfig(runs=6))
    assert "`make machines EXPERIMENT=m NOTES=1` at commit" in text and "torch 2." in text
    assert text.count("\n| ") == 4 and "torch's orders here (9 of 11 proven) | 24.00 |" in text


@pytest.mark.slow
def test_the_native_engine_gives_the_same_bytes_by_every_variant(tmp_path: Path) -> None:
    """A minute or two: an experiment on a phantom, then all ways."""
    options = ["--experiment", "m", "--results", str(tmp_path / "results")]
    samples = ["--data", str(tmp_path / "data"), "--engine", "native", "--dataset", "phantom"]
    samples += ["--size", "4mm", "--subjects", "1", "--runs", "6", "--yes"]
    folder = tmp_path / "results/m/machines"
    orders = ["--orders", str(folder / machines.ORDERS)]
    for words in (["inference", *options, *samples], ["machines", *options],
                  ["machines", *options, *orders]):  # fmt: skip
        subprocess.run([sys.executable, str(ROOT / "python/morphbits"), *words], check=True)
    rows = read_table(folder / "machines.csv")
    native = [row for row in rows if row["computes"] == "native, nearest"]
    own = [row for row in native if "torch's orders" not in row["how"]]
    assert len({row["same_as"] for row in own}) == 1
    assert len(own) == len(set(available_variants()) - {"avx512_ifma"}) + 2
    # recorded and followed, of one image and of a batch; torch's bytes where all are proven
    torchs = [row for row in native if row not in own]
    assert len(torchs) == 4
    for here, there in (torchs[:2], torchs[2:]):
        assert (here["same_as"], here["orders"]) == (there["same_as"], there["orders"])
    as_torch = {row["how"]: row["same_as"] for row in rows if row["computes"] == "torch"}
    for row, how in ((torchs[0], "as installed"), (torchs[2], "in a batch of two")):
        proven, of = row["orders"].split(" of ")
        assert row["same_as"] == as_torch[how] or proven != of
    assert not [row for row in rows if row.get("failed")]
    # nothing moves by more than random rounding does
    assert all(row["ratio"] < 3 for row in rows)
    assert rows[-1]["computes"] == "two perturbed samples" and rows[-1]["ratio"] == 1
