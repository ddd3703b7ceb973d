"""One registration from files to files: what ``morphbits register`` does."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from morphbits import images, provenance, wording
from morphbits.bids import sidecar
from morphbits.config import RegisterConfig
from morphbits.datasets.derivative import describe_warp
from morphbits.errors import UserError, disk_full
from morphbits.files import write_json
from morphbits.images import Prepared
from morphbits.registration import Result, prepare, register, seconds_estimate
from morphbits.samples.outputs import replace_all, save_result, staging
from morphbits.transforms import check_format, check_grids


@dataclass(frozen=True)
class Files:
    """Files that are read (moving, fixed, model, batch_with, orders) and written (moved, warp,
    resampled, record_orders).

    batch_with: another moving image, which the network registers in the same batch. orders: of
    additions, for accumulation=probe to follow; record_orders: for those that it measured.
    """

    moving: Path
    fixed: Path
    model: Path
    moved: Path
    warp: Path
    resampled: Path | None = None
    batch_with: Path | None = None
    orders: Path | None = None
    record_orders: Path | None = None

    @property
    def images(self) -> dict[str, Path]:
        """The images that are read, by their names in the record."""
        more = {"batch_with": self.batch_with} if self.batch_with else {}
        return {"moving": self.moving, "fixed": self.fixed, **more}

    @property
    def read(self) -> dict[str, Path]:
        """All files that are read, by their names in the record."""
        more = {"orders": self.orders} if self.orders else {}
        return {**self.images, "model": self.model, **more}

    @property
    def written(self) -> list[Path]:
        """The images that are written."""
        return [path for path in (self.moved, self.warp, self.resampled) if path]

    @property
    def outputs(self) -> list[Path]:
        """All files that are written."""
        return [*self.written, *([self.record_orders] if self.record_orders else [])]


def register_files(
    files: Files, config: RegisterConfig, say: Callable[[str], object] = lambda line: None
) -> str:
    """Register and write moved, warp and sample.json, all or none; returns what to print at the
    end. ``say`` takes a line for each step before it."""
    _check_outputs(files, config)
    started = provenance.Start()
    given = {role: path for role, path in files.read.items() if role != "model"}
    inputs = provenance.inputs(given, files.model, config)
    with ExitStack() as stack:
        beside = {path: stack.enter_context(staging(path.parent)) for path in files.outputs}
        say(f"reading {' and '.join(map(str, files.images.values()))}")
        moving, fixed, *others = (
            images.load(path, config.orientation, config.nan) for path in files.images.values()
        )
        check_grids(config.warp_format, fixed, moving)
        say("preparing")
        prepared = prepare(moving, fixed, files.model, config)
        for step in prepared.steps:
            say(f"  {step}")
        say(_expectation(files.model, prepared, config))
        batch = [prepare(other, fixed, files.model, config) for other in others]
        if any(other.fixed.shape != prepared.fixed.shape for other in batch):
            raise UserError(f"{files.batch_with}: is cropped to another grid; leave out --crop")
        with _orders(files) as recording:
            result = register(prepared, files.model, config, others=batch)
        if recording:
            result.record["order"] = f"torch's own on {recording.words}, as recorded there"
        made = {path: folder / path.name for path, folder in beside.items()}
        record_path = record_file(files)
        try:
            outputs = save_result(
                result,
                made[files.moved],
                made[files.warp],
                config.warp_format,
                files.resampled and made[files.resampled],
                moving,
            )
            if config.warp_format != "voxels":
                sources = (files.moving, files.fixed)
                describe_warp(made[files.warp], config.warp_format, sources)
                made[sidecar(files.warp)] = sidecar(made[files.warp])
            if files.record_orders:
                from morphbits.engines.native.orders import recorded

                recorded.write(made[files.record_orders])
            record = {
                "configuration": provenance.configuration(config, inputs),
                "provenance": provenance.provenance(config, started, result.record)
                | {"files": {role: str(path) for role, path in files.read.items()}},
                "outputs": outputs,
            }
            made[record_path] = beside[files.moved] / record_path.name
            write_json(made[record_path], record)
            replace_all({source: target for target, source in made.items()})
        except OSError as error:
            raise UserError(_cannot_write(files, error)) from error
        except UserError as error:
            if disk_full(error):
                raise UserError(_cannot_write(files, error)) from error
            raise
    return _summary(files, config, result, record_path)


def _orders(files: Files) -> AbstractContextManager[Any]:
    """A context in which `probe` follows the orders of `files.orders`, if given."""
    if not files.orders:
        return nullcontext()
    from morphbits.engines.native.orders import recorded

    return recorded.replay(files.orders)


def record_file(files: Files) -> Path:
    """``sample.json`` beside the moved image; with the image's name before it where that file
    already describes another registration."""
    path = files.moved.parent / "sample.json"
    try:
        other = json.loads(path.read_text(encoding="utf-8"))["outputs"]["moved"]["file"]
    except (OSError, ValueError, KeyError, TypeError):
        return path
    stem = files.moved.name.removesuffix(images.extension_of(files.moved))
    return path if other == files.moved.name else path.with_name(f"{stem}.sample.json")


def _check_outputs(files: Files, config: RegisterConfig) -> None:
    check_format(files.warp, config.warp_format)
    for path in files.written:
        images.extension_of(path)
    for path in files.outputs:
        if path.is_dir():
            raise UserError(f"{path}: is a folder; give the name of a file")
    probes = config.engine == "native" and config.accumulation == "probe"
    if (files.orders or files.record_orders) and not probes:
        raise UserError("--orders and --record-orders need --engine native --accumulation probe")
    if files.orders and files.record_orders:
        raise UserError("--record-orders measures this machine's orders: leave out --orders")
    named = [path.resolve() for path in files.outputs]
    if len(set(named)) < len(named) or {path.resolve() for path in files.read.values()} & set(
        named
    ):
        raise UserError(
            f"{', '.join(map(str, files.outputs))}: outputs must not replace each other or an "
            "input"
        )


def _cannot_write(files: Files, error: BaseException) -> str:
    reason = "the disk is full" if disk_full(error) else str(error)
    return f"{files.moved.parent}: cannot write the results ({reason}); nothing was left there"


def _expectation(model: Path, prepared: Prepared, config: RegisterConfig) -> str:
    voxels = int(prepared.fixed.size)
    seconds = seconds_estimate(model, voxels, config)
    duration = "" if seconds is None else f": about {wording.duration(seconds)}"
    return f"registering {voxels:,} voxels with {config.threads} thread(s){duration}"


def _summary(files: Files, config: RegisterConfig, result: Result, record: Path) -> str:
    facts = result.record
    rounding = "nothing perturbed"
    if config.engine != "ieee":
        rounding = f"mode {config.mode}, {facts['operations']:,} operations rounded"
    lines = [
        f"engine {config.engine}, {rounding}; order of operations: {facts['order']}",
        f"registered in {facts['seconds']:.2f} s with {config.threads} thread(s)",
        f"moved  {files.moved}",
        f"warp   {files.warp} ({_in_words(config.warp_format)})",
        *([f"moving image in its own intensities  {files.resampled}"] if files.resampled else []),
        *([f"orders of additions  {files.record_orders}"] if files.record_orders else []),
        f"record {record}",
    ]
    return "\n".join(lines)


def _in_words(warp_format: str) -> str:
    if warp_format == "voxels":
        return "voxels; --warp-format, or morphbits warp --export, for other programs"
    return f"format {warp_format}"
