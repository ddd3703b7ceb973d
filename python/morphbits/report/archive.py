"""An experiment as a folder to publish: a BIDS derivative that describes itself as an RO-Crate.

    dataset_description.json README.md references.bib ro-crate-metadata.json
    sub-X/…_desc-{image,warp}_bits.nii.gz   maps of significant bits; sidecars at the root
    tables/                                 the CSV files
    provenance/experiment.json              what was asked for, and the configuration
    provenance/sample-NN/sub-X.json         configuration and provenance of each sample
    report.html                             the page, where it is wanted

RO-Crate 1.1 (doi:10.3233/DS-210053) lists every file with its checksum, the software, the inputs
by their checksums, and what to cite. The images themselves are not in it: they may not be the
user's to publish.
"""

from __future__ import annotations

import json
import mimetypes
import re
import shutil
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from morphbits import bids
from morphbits.datasets import derivative
from morphbits.errors import UserError
from morphbits.files import sha256, write_atomically, write_json
from morphbits.report import experiment as reading
from morphbits.report import methods_text
from morphbits.report.experiment import Experiment
from morphbits.report.methods_text import Methods
from morphbits.samples.outputs import staging

CRATE = "ro-crate-metadata.json"
BIBLIOGRAPHY = "references.bib"
PAGE = "report.html"
SOFTWARE = "#morphbits"  # what has written an archive, in its RO-Crate
OTHER = ("tables", "provenance", PAGE, BIBLIOGRAPHY, CRATE)  # what BIDS has no name for
MAPS = {
    "image": "Significant bits of each voxel of the moved image, general method, reference: mean"
    " of the samples; NaN: excluded, as all samples are zero",
    "warp": "Significant bits of the warp, mean of its three components, general method,"
    " reference: mean of the samples; NaN: excluded, as all samples are zero",
}


def build(
    results: Path, name: str, output: Path | None = None, licence: str = "", page: bool = True
) -> Path:
    """Write the archive of an experiment, by default into its folder; returns the archive.

    An archive that is there is replaced, any other folder is refused. licence: an SPDX
    identifier or an address. page: whether report.html, which shows slices of the images, is in
    it.
    """
    if licence and not re.fullmatch(r"[A-Za-z0-9.+-]+|https?://\S+", licence):
        raise UserError(
            f"licence {licence!r}: give an SPDX identifier, such as CC-BY-4.0, or an address"
        )
    content = reading.read(results, name)
    target = output or bids.experiment_file(results, name, "archive")
    if target.exists() and not _is_archive(target):
        raise UserError(f"{target}: is there and no archive; name another folder by --output")
    if added := _added(target):
        raise UserError(
            f"{added[0]}: is not of the archive, which would be replaced; move it away, or name "
            "another folder by --output"
        )
    maps = bids.experiment_file(results, name, "maps")
    if not any(maps.glob("sub-*")):
        raise UserError(f"{maps} holds no maps; run morphbits significance --experiment {name}")
    source = bids.experiment_file(results, name, PAGE)
    if page and not source.is_file():
        raise UserError(
            f"there is no {source}; run morphbits report --experiment {name}, or leave it out by"
            " --without-page"
        )
    methods = methods_text.write(content)
    with staging(target.parent) as partial:
        folder = partial / "archive"
        description = {
            "HowToAcknowledge": f"Please cite the works in {BIBLIOGRAPHY}.",
            **({"License": licence} if licence else {}),
        }
        title = f"Significant bits of the experiment {name}"
        derivative.describe(folder, title, more=description, ignored=OTHER)
        for subject in maps.glob("sub-*"):
            shutil.copytree(subject, folder / subject.name)
        for quantity, words in MAPS.items():
            sidecar = bids.build("bits", ".json", space=content.space, desc=quantity)
            write_json(folder / sidecar, {"Description": words, "Units": "bit"})
        (folder / "tables").mkdir()
        for table in maps.parent.glob("*.csv"):
            shutil.copy(table, folder / "tables")
        if page:
            shutil.copy(source, folder)
        _write_provenance(content, folder / "provenance")
        write_atomically(folder / BIBLIOGRAPHY, methods.bibtex.encode())
        write_atomically(folder / "README.md", _readme(title, content, methods, page).encode())
        write_json(folder / CRATE, _crate(folder, title, content, methods, licence))
        shutil.rmtree(target, ignore_errors=True)
        folder.rename(target)
    return target


def _is_archive(folder: Path) -> bool:
    """Whether this was written here; other RO-Crates have the same file."""
    try:
        entities = json.loads((folder / CRATE).read_text(encoding="utf-8"))["@graph"]
        return SOFTWARE in {one["@id"] for one in entities}
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _added(folder: Path) -> list[Path]:
    """Files in an archive that were not written here."""
    if not folder.exists():
        return []
    entities = json.loads((folder / CRATE).read_text(encoding="utf-8"))["@graph"]
    ours = {folder / one["@id"] for one in entities} | {folder / CRATE}
    return sorted(path for path in folder.rglob("*") if path.is_file() and path not in ours)


def _write_provenance(experiment: Experiment, folder: Path) -> None:
    """The records, without what is only true of the user's machine."""
    asked = bids.experiment_file(experiment.results, experiment.name, "experiment.json")
    if asked.is_file():
        content = json.loads(asked.read_text(encoding="utf-8"))
        write_json(folder / "experiment.json", _without_folders(content))
    for record in experiment.records:
        facts = {k: v for k, v in record.provenance.items() if k not in ("host", "command")}
        content = {
            "sample": record.sample,
            "subject": record.subject.entities,
            "configuration": record.configuration,
            "provenance": facts,
            "outputs": record.outputs,
        }
        name = f"{record.subject.entities}.json"
        write_json(folder / f"sample-{record.sample}" / name, _without_folders(content))


def _without_folders(value: Any) -> Any:
    """The same, with names alone of files that are named by a whole path."""
    if isinstance(value, dict):
        return {key: _without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_folders(inner) for inner in value]
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value


def _readme(title: str, experiment: Experiment, methods: Methods, page: bool) -> str:
    shown = f"- `{PAGE}`: figures and tables on one page; it shows slices of the images\n"
    return f"""# {title}

{methods.text}

- `sub-*/`: maps of significant bits, NIfTI
- `tables/`: significant bits, spread, accuracy and repeatability, as CSV
- `provenance/`: configuration and provenance of the experiment and of each sample
{shown if page else ""}- `{BIBLIOGRAPHY}`: what to cite
- `{CRATE}`: every file with its checksum (RO-Crate 1.1)

The images of the samples are not here. The same configuration and inputs give them again, byte
for byte; `provenance/` has their checksums.
"""


def _crate(
    folder: Path, title: str, experiment: Experiment, methods: Methods, licence: str
) -> dict[str, Any]:
    """RO-Crate 1.1: the root, its files, the software, the inputs, and the works cited."""
    files = [_file(path, folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    maps = [one for one in files if one["@id"].endswith("_bits.nii.gz")]
    software = {
        "@id": SOFTWARE,
        "@type": "SoftwareApplication",
        "name": "morphbits",
        "version": experiment.configuration.get("versions", {}).get("morphbits", "unknown"),
    }
    inputs = list({one["@id"]: one for one in _inputs(experiment)}.values())
    works = [
        {
            "@id": one.link,
            "@type": "ScholarlyArticle",
            "name": one.title,
            "datePublished": one.year,
        }
        for one in methods.cited
        if one.link
    ]
    if licence and "://" not in licence:
        licence = f"https://spdx.org/licenses/{licence}"
    action = {
        "@id": "#analysis",
        "@type": "CreateAction",
        "name": title,
        "description": methods.text,
        "instrument": _ids([software]),
        "object": _ids(inputs),
        "result": _ids(maps),
    }
    root = {
        "@id": "./",
        "@type": "Dataset",
        "name": title,
        "description": methods.text,
        "datePublished": datetime.now(UTC).date().isoformat(),
        **({"license": {"@id": licence}} if licence else {}),
        "hasPart": _ids(files),
        "mentions": _ids([action]),
        "citation": _ids(works),
    }
    descriptor = {
        "@id": CRATE,
        "@type": "CreativeWork",
        "conformsTo": {"@id": "https://w3id.org/ro/crate/1.1"},
        "about": {"@id": "./"},
    }
    licences = [{"@id": licence, "@type": "CreativeWork", "name": licence}] if licence else []
    return {
        "@context": [
            "https://w3id.org/ro/crate/1.1/context",
            {"sha256": "https://schema.org/sha256"},
        ],
        "@graph": [descriptor, root, *files, action, software, *inputs, *works, *licences],
    }


def _file(path: Path, folder: Path) -> dict[str, Any]:
    kind = "application/gzip" if path.suffix == ".gz" else mimetypes.guess_type(path.name)[0]
    return {
        "@id": path.relative_to(folder).as_posix(),
        "@type": "File",
        "name": path.name,
        "contentSize": str(path.stat().st_size),
        "encodingFormat": kind or "text/plain",
        "sha256": sha256(path),
    }


def _inputs(experiment: Experiment) -> Iterable[dict[str, Any]]:
    """Moving images, fixed image and model, by their checksums."""
    named = [
        (f"{role} image{f' of {record.subject.entities}' if role == 'moving' else ''}", checksum)
        for record in experiment.perturbed
        for role in ("moving", "fixed")
        if (checksum := record.configuration.get(role))
    ]
    named += [(f"model {part}".strip(), x) for part, x in experiment.model_checksums.items()]
    for name, checksum in named:
        yield {
            "@id": f"#{checksum}",
            "@type": "CreativeWork",
            "name": name,
            "identifier": checksum,
        }


def _ids(entities: Iterable[dict[str, Any]]) -> list[dict[str, str]]:
    return [{"@id": one["@id"]} for one in entities]
