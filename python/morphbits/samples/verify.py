"""Are the results what their records say, and do they reproduce?

Three questions to an experiment's folder, answered from its files:

- is every ``sample.json`` whole, its hash that of its configuration, and its configuration the
  experiment's (fixed image, model, versions, how images are read and prepared)?
- do the images hold the voxels whose checksums were recorded?
- do a few samples, chosen at random, come out with the same bytes when they are made again?

Timings and the other provenance are not covered by a checksum.
"""

from __future__ import annotations

import gzip
import json
import random
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from morphbits import bids, images, provenance
from morphbits.bids import Subject
from morphbits.config import RegisterConfig, from_mapping
from morphbits.errors import UserError
from morphbits.samples import runner
from morphbits.samples.matrix import Unit

CHECKS = ("record", "configuration", "inputs", "moved", "warp", "made again")
VERDICTS = ("right", "wrong", "unknown")
SHARED = ("fixed", "model", "versions", "align", "framework")  # by all samples of an experiment
SHARED_IF_CHOSEN = ("model_orientation", "orientation", "nan", "crop", "onednn")


@dataclass(frozen=True)
class Finding:
    """One check of one sample: ``right``, ``wrong``, or ``unknown`` where it cannot be told."""

    sample: str
    check: str
    verdict: str
    reason: str = ""


def verify(results: Path, name: str, again: int, seed: int) -> list[Finding]:
    """Check every finished sample of an experiment, and make ``again`` of them once more.

    Which ones, ``seed`` decides. Those whose files are wrong already are not made again.
    """
    folder = bids.experiment_folder(results, name)
    records = sorted(folder.glob("sample-*/sub-*"))
    if not records:
        raise UserError(
            f"{folder}: holds no samples; 'make inference EXPERIMENT={name}' makes them"
        )
    shared = _shared(folder)
    findings, whole = [], []
    for unit_folder in records:
        of_unit = list(_check_files(unit_folder, shared))
        findings += of_unit
        if all(finding.verdict != "wrong" for finding in of_unit):
            whole.append(unit_folder)
    chosen = random.Random(seed).sample(whole, min(again, len(whole)))
    return findings + list(_make_again(chosen))


def table(findings: Sequence[Finding]) -> str:
    """How many samples are right and wrong in each check, and what is wrong with which."""
    lines = [f"{'check':<14}" + "".join(f"{verdict:>9}" for verdict in VERDICTS)]
    for check in CHECKS:
        verdicts = [finding.verdict for finding in findings if finding.check == check]
        counts = "".join(f"{verdicts.count(verdict):>9}" for verdict in VERDICTS)
        lines.append(f"{check:<14}{counts}")
    details = [
        f"{finding.sample}: {finding.check} {finding.verdict}: {finding.reason}"
        for finding in findings
        if finding.reason
    ]
    return "\n".join([*lines, *([""] if details else []), *details])


# ---------------------------------------------------------------------- files


def _shared(folder: Path) -> dict[str, Any]:
    """What all samples of the experiment have in common, from ``experiment.json``."""
    path = folder / "experiment.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))["configuration"]
        chosen = {key: content.get(key) for key in SHARED_IF_CHOSEN}
        return {key: content[key] for key in SHARED} | chosen
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is damaged ({error}); run the experiment again") from None


def _check_files(folder: Path, shared: dict[str, Any]) -> Iterator[Finding]:
    sample = _name(folder)
    try:
        record = json.loads(bids.sample_json(folder).read_text(encoding="utf-8"))
        configuration, outputs = record["configuration"], record["outputs"]
        recorded = {name: (outputs[name]["file"], outputs[name]["sha256"]) for name in _READERS}
        paths = {name: Path(path) for name, path in record["provenance"]["files"].items()}
        expected = provenance.configuration_hash(configuration)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        yield Finding(sample, "record", "wrong", f"sample.json is not whole ({error!r})")
        return
    if configuration["hash"] != expected:
        yield Finding(sample, "record", "wrong", "its hash is not that of its configuration")
    else:
        yield Finding(sample, "record", "right")
    differing = provenance.differing_keys({k: configuration.get(k) for k in shared}, shared)
    if differing:
        reason = f"{', '.join(differing)} differ from experiment.json"
        yield Finding(sample, "configuration", "wrong", reason)
    else:
        yield Finding(sample, "configuration", "right")
    yield _check_inputs(sample, paths, configuration)
    for name, (file, checksum) in recorded.items():
        found = list(folder.rglob(file))
        yield Finding(sample, name, *_check_image(found, name, checksum))


def _check_inputs(sample: str, paths: dict[str, Path], configuration: dict) -> Finding:
    changed = []
    for name, path in paths.items():
        if not path.is_file():
            return Finding(sample, "inputs", "unknown", f"{path} is not there")
        if provenance.file_sha256(path) != configuration.get(name):
            changed.append(f"{path} is not the {name} that was used")
    return Finding(sample, "inputs", "wrong" if changed else "right", "; ".join(changed))


_READERS: dict[str, Callable[[Path], images.Image]] = {
    "moved": images.load,
    "warp": images.load_warp,
}


def _check_image(found: Sequence[Path], name: str, checksum: str) -> tuple[str, str]:
    if len(found) != 1:
        return "wrong", "its file is missing"
    try:
        voxels = _READERS[name](found[0]).data
    except UserError as error:
        return "wrong", str(error)
    if provenance.data_sha256(voxels) != checksum:
        return "wrong", f"{found[0]}: other voxels than were recorded"
    return "right", ""


# ---------------------------------------------------------------------- made again


def _unit(folder: Path, record: dict[str, Any], target: Path) -> Unit:
    """The unit that a record describes, into another folder."""
    facts, configuration = record["provenance"], record["configuration"]
    names = {field.name for field in fields(RegisterConfig)}
    values = {key: value for key, value in configuration.items() if key in names}
    config = from_mapping(
        RegisterConfig, values | {"threads": facts["threads"]}, str(bids.sample_json(folder))
    )
    warp = record["outputs"]["warp"]["file"]
    return Unit(
        sample=record["sample"],
        subject=Subject.parse(record["subject"]),
        config=config,
        space=bids.parse(warp)["to"],
        folder=target / folder.parent.name / folder.name,
        **{name: Path(path).absolute() for name, path in facts["files"].items()},
    )


def _make_again(folders: Sequence[Path]) -> Iterator[Finding]:
    """Make these samples elsewhere, in one worker, and compare each with what there is."""
    with tempfile.TemporaryDirectory(prefix="morphbits-verify-") as name:
        units = {}
        for folder in folders:
            record = json.loads(bids.sample_json(folder).read_text(encoding="utf-8"))
            try:
                unit = _unit(folder, record, Path(name))
            except UserError as error:  # what is no longer made, such as Verrou on two threads
                reason = f"cannot be made again: {error}"
                yield Finding(_name(folder), "made again", "wrong", reason)
                continue
            configuration = unit.configuration()
            differing = provenance.differing_keys(record["configuration"], configuration)
            if differing:
                reason = f"cannot be made again here: {', '.join(differing)} differ"
                yield Finding(_name(folder), "made again", "wrong", reason)
            else:
                units[unit] = folder
        outcome = runner.run(list(units), 1, len(units))
        for unit, folder in units.items():
            reason = outcome.failed.get(unit) or outcome.stopped
            if bids.sample_json(unit.folder).exists():
                reason = _difference(folder, unit.folder)
            yield Finding(_name(folder), "made again", "wrong" if reason else "right", reason)


def _name(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"


def _difference(one: Path, other: Path) -> str:
    """Which images of two units have other bytes (header or voxels); empty where none has."""
    files = [path.relative_to(one) for path in sorted(one.rglob("*.nii.gz"))]
    names = [path.name for path in files if _content(one / path) != _content(other / path)]
    return f"{', '.join(names)}: other bytes than the first time" if names else ""


def _content(path: Path) -> bytes:
    """The bytes of an image file, header and voxels, decompressed."""
    try:
        return gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
