"""Delta debugging: the scripts for Verrou's tools, the judgement, the summary."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from morphbits.errors import UserError
from morphbits.studies import localization


def save(folder: Path, warp: np.ndarray) -> Path:
    folder.mkdir()
    np.save(folder / localization.WARP, warp.astype(np.float32))
    return folder


def test_bits_of_agreement() -> None:
    one = np.ones((4, 4, 4, 3), np.float32)
    assert localization.bits(one, one) == 24
    assert localization.bits(one, one * (1 + 2.0**-10)) == pytest.approx(10)


def test_a_run_is_judged_and_its_bits_are_kept(tmp_path: Path) -> None:
    one = np.ones((4, 4, 4, 3))
    reference, run = save(tmp_path / "ref", one), save(tmp_path / "run", one * (1 + 2.0**-10))
    assert localization.is_good(reference, run, 9.5)
    assert not localization.is_good(reference, run, 10.5)
    assert (run / localization.BITS).read_text() == "10.000\n"


def test_scripts_quote_and_can_be_called(tmp_path: Path) -> None:
    one = np.ones((4, 4, 4, 3))
    reference, run = save(tmp_path / "ref", one), save(tmp_path / "run", one * (1 + 2.0**-10))
    case = (tmp_path / "a b.nii.gz", tmp_path / "f.nii.gz", tmp_path / "m.h5")
    run_script, compare_script = localization._write_scripts(tmp_path, case)
    text = Path(run_script).read_text()
    assert "with_verrou.sh --localize --mode random -- " in text
    assert f"run \"$1\" '{case[0]}'" in text
    for threshold, status in (("9.5", 0), ("10.5", 1)):
        answer = subprocess.run(
            [compare_script, str(reference), str(run)], env={"MORPHBITS_THRESHOLD": threshold}
        )
        assert answer.returncode == status


def test_summary_names_the_parts_to_blame(tmp_path: Path) -> None:
    found = tmp_path / "ddmin0"
    for number, value in enumerate(("12.5", "11.25")):
        (found / f"dd.run{number}").mkdir(parents=True)
        (found / f"dd.run{number}" / localization.BITS).write_text(f"{value}\n")
    (found / "dd.task.include").write_text("vxm_unet_dec_conv_0\t0\nintegration\t0\n")
    assert localization._summary(tmp_path, 11.0).splitlines() == [
        "all parts perturbed: 11.0 bits of the warp agree",
        "ddmin0: vxm_unet_dec_conv_0, integration alone: 11.2 bits",
    ]


def test_without_verrous_tools_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERROU_PREFIX", str(tmp_path))
    case = (tmp_path / "a", tmp_path / "b", tmp_path / "c")
    with pytest.raises(UserError, match="verrou_dd_task is not in"):
        localization.localize("task", 3, case, tmp_path / "out")
