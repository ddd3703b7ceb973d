"""What the page of layers shows of one run and its shadow, and of decisions that flip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.colors
import nibabel
import numpy as np
from matplotlib.figure import Figure as Canvas

from morphbits import images
from morphbits.engines.decisions import KINDS
from morphbits.report.figures import STYLE, Figure, strip, svg
from morphbits.report.tables import Table, number, small
from morphbits.stats.analysis import Row
from morphbits.stats.one_run import MANY
from morphbits.studies.layers.computation import Case
from morphbits.studies.layers.flips import LABELS

Rows = Mapping[str, Sequence[Row]]


def save_maps(where: Path, kind: str, maps: Mapping[str, np.ndarray], case: Case) -> None:
    """Volumes on the fixed grid as `KIND_NAME.nii.gz`, in the place of those that are there."""
    for path in where.glob(f"{kind}_*.nii.gz"):
        path.unlink()
    for name, volume_XYZ in maps.items():
        path = where / f"{kind}_{_word(name)}.nii.gz"
        codes = case.prepared.fixed_codes
        images.save(path, volume_XYZ.astype(np.float32), case.prepared.fixed_affine, codes)


def _word(name: str) -> str:
    """The name as part of a file name."""
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def _maps(where: Path, kind: str) -> dict[str, np.ndarray]:
    """The volumes that `save_maps` wrote, (X, Y, Z) in RAS order."""
    found = {}
    for path in sorted(where.glob(f"{kind}_*.nii.gz")):
        image: Any = nibabel.as_closest_canonical(nibabel.load(path))
        name = path.name.removesuffix(".nii.gz").removeprefix(f"{kind}_")
        found[name] = image.get_fdata(dtype=np.float32)
    return found


def _percent(share: float, digits: int = 1) -> str:
    return number(100 * share, digits) + " %" if share == share else "–"


def one_run_table(rows: Rows) -> Table:
    """Bits by stage from one run, next to those of samples where they were made."""
    found = rows["one_run"]
    runs = found[0].get("runs") if found else None
    return Table(
        caption="Significant bits of each stage’s result, estimated from one run"
        + (f" and found in {runs} samples" if runs else ""),
        header=[
            *("result of", "shape", "one run", f"{runs or 'no'} samples", "difference"),
            *("mean (RMS)", "largest", "without error"),
        ],
        rows=[
            [
                str(row["stage"]),
                str(row["shape"]),
                number(row["one_run"]),
                *(number(row.get(key)) for key in ("samples", "difference")),
                *(small(row[f"error_{key}"]) for key in ("rms", "max")),
                _percent(row["without_error"]),
            ]
            for row in found
        ],
        groups=[("", 2), ("bits", 3), ("error of this run", 3)],
        text_columns=2,
    )


def one_run_words(rows: Rows) -> str:
    """What the table says."""
    found = {row["stage"]: row for row in rows["one_run"]}
    if not found:
        return ""
    image, warp = found["result: image"], found["result: warp"]
    words = (
        f"From one run: {number(image['one_run'])} bits of the image and "
        f"{number(warp['one_run'])} of the warp are significant."
    )
    if "samples" not in image:
        return words
    worst = max(found.values(), key=lambda row: abs(row["difference"]))
    return (
        f"{words} {image['runs']} samples have {number(image['samples'])} and "
        f"{number(warp['samples'])}. Over all stages the two differ by at most "
        f"{number(abs(worst['difference']))} bits ({worst['stage']})."
    )


def one_run_figure(rows: Sequence[Row]) -> Figure:
    """Bits by stage: one run and samples."""
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(9.6, 3.6), layout="constrained")
        ax = canvas.subplots()
        places = range(len(rows))
        label = "one run, with a float64 shadow"
        ax.plot(places, [row["one_run"] for row in rows], "o", color="#00664b", label=label)
        if "samples" in rows[0]:
            label = f"{rows[0]['runs']} samples"
            values = [row["samples"] for row in rows]
            ax.plot(places, values, "_", color="#111827", markersize=14, label=label)
            ax.vlines(
                places, [v - 1 for v in values], [v + 1 for v in values], color="#d5dae1",
                linewidth=6, zorder=0, label="one bit around them",
            )  # fmt: skip
        ax.set_xticks(places, [str(row["stage"]) for row in rows], rotation=60, ha="right")
        ax.set_ylabel("significant bits")
        ax.legend(frameon=False, fontsize=9.5)
        alt = "Bits of each stage's result from one run: " + ", ".join(
            f"{row['stage']} {row['one_run']:.1f}" for row in rows
        )
        return svg(canvas, alt)


def bits_figure(where: Path) -> Figure | None:
    """Maps of bits on three slices: from one run, and from samples where they were made."""
    maps = _maps(where, "bits")
    if not maps:
        return None
    middle = [int(np.mean(axis)) for axis in np.nonzero(np.isfinite(maps["image-one-run"]))]
    shown = np.concatenate([v[np.isfinite(v)] for v in maps.values()])
    low, high = np.floor(np.quantile(shown, 0.02)), np.ceil(np.quantile(shown, 0.98))
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        columns = len(maps) // 2
        canvas = Canvas(figsize=(4.8 * columns, 4.4), layout="constrained")
        axes = canvas.subplots(2, columns, squeeze=False)
        for ax, (name, bits_XYZ) in zip(axes.flat, maps.items(), strict=True):
            picture = strip(bits_XYZ, middle, np.nan)
            shades = ax.imshow(picture, cmap="cividis", vmin=low, vmax=high)
            quantity, _, source = name.partition("-")
            ax.set_title(f"{quantity}, {source.replace('-', ' ')}", loc="left", fontsize=10)
            ax.set_axis_off()
        canvas.colorbar(shades, ax=axes, label="significant bits", shrink=0.7)
        return svg(canvas, "Maps of significant bits on three slices: " + ", ".join(maps))


def counters_table(rows: Rows) -> Table:
    """Cancellation, subnormals and exact operations by stage."""
    lines = [
        [
            str(row["stage"]),
            *(
                cell
                for kind in ("additions", "sums")
                for cell in (
                    number(row[kind] / 1e6) if row[kind] else "–",
                    number(row[f"{kind}_lost_mean"]),
                    _percent(row[f"{kind}_lost_{MANY}"], 2),
                    _percent(row[f"{kind}_lost_all"], 2),
                )
            ),
            f"{row['subnormal']:,}",
            number(row["operations"] / 1e6) if row["operations"] else "–",
            _percent(row["exact"]),
        ]
        for row in rows["counters"]
    ]
    lost = ["millions", "mean lost", f"{MANY} or more", "all"]
    return Table(
        caption="Bits that cancel, subnormal results and exact operations, by stage",
        header=["stage", *lost, *lost, "subnormal", "millions", "exact"],
        rows=lines,
        groups=[
            *(("", 1), ("single additions: bits", 4), ("sums of many terms: bits", 4)),
            *(("results", 1), ("+ − × ÷ √", 2)),
        ],
    )


def counters_words(rows: Rows) -> str:
    """What the counters say."""
    found = rows["counters"]
    if not found:
        return ""
    subnormal = sum(row["subnormal"] for row in found)
    summed = [row for row in found if row["sums"]]
    worst = max(summed, key=lambda row: row["sums_lost_mean"], default=None)
    words = f"{subnormal:,} results are subnormal."
    if worst is not None:
        words += (
            f" Sums lose most in {worst['stage']}: {number(worst['sums_lost_mean'])} bits in the "
            "mean between the sum of the terms’ magnitudes and the sum."
        )
    return words


def flips_table(rows: Rows) -> Table:
    """Decisions that flip, by stage and kind."""
    shadow = {(row["stage"], row["kind"]): row for row in rows["decisions"]}
    sampled = {(row["stage"], row["kind"]): row for row in rows["flips"]}
    runs = rows["flips"][0]["runs"] if rows["flips"] else "no"
    lines = []
    for key in dict.fromkeys([*sampled, *shadow]):
        flip, one = sampled.get(key), shadow.get(key)
        shares = ("flipped", "flipped_brain", "unsettled")
        lines.append(
            [
                *map(str, key),
                f"{(flip or one or {})['decisions']:,}",
                *(small(flip[share]) if flip else "–" for share in shares),
                small(one["float64"] / one["decisions"]) if one else "–",
            ]
        )
    return Table(
        caption=f"Shares of decisions that flip, {runs} samples",
        header=[
            *("stage", "decision", "number", "in a sample", "in the brain", "between samples"),
            "in float64",
        ],
        rows=lines,
        groups=[("", 3), ("perturbed", 3), ("one run", 1)],
        text_columns=2,
    )


def flips_words(rows: Rows) -> str:
    """What the table says."""
    found = rows["flips"]
    if not found:
        return ""
    parts = []
    for kind in dict.fromkeys(row["kind"] for row in found):
        of = [row for row in found if row["kind"] == kind]
        number_of = sum(row["decisions"] for row in of)
        flips = sum(row["flipped"] * row["decisions"] for row in of)
        parts.append(f"{kind} {flips:,.1f} of {number_of:,}")
    return f"Decisions of one sample that are not the unperturbed run’s: {', '.join(parts)}."


def flips_figure(where: Path) -> Figure | None:
    """Where decisions flip: shares in the mean along each axis, a row for each kind."""
    maps = {
        kind: share_XYZ for kind, share_XYZ in _maps(where, "flips").items() if share_XYZ.any()
    }
    if not maps:
        return None
    titles = {_word(kind): kind for kind in (*KINDS, LABELS)}
    means = {k: [np.flipud(v.mean(axis=a).T) for a in range(3)] for k, v in maps.items()}
    smallest = min(m[m > 0].min() for views in means.values() for m in views)
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        canvas = Canvas(figsize=(7.2, 2.3 * len(maps)), layout="constrained")
        axes = canvas.subplots(len(maps), 3, squeeze=False)
        norm = matplotlib.colors.LogNorm(smallest, 1)
        for line, (kind, views) in zip(axes, means.items(), strict=True):
            for ax, view in zip(line, views, strict=True):
                shades = ax.imshow(view, cmap="magma", norm=norm)
                ax.set_facecolor("black")
                ax.set_xticks([])
                ax.set_yticks([])
            line[0].set_title(titles.get(kind, kind), loc="left", fontsize=10)
        canvas.colorbar(shades, ax=axes, label="share of decisions that flip", shrink=0.6)
        return svg(canvas, "Where decisions flip, along three axes: " + ", ".join(maps))
