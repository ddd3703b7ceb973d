"""One function per figure: data in, an image out that the page embeds.

A `Figure` comes with its own words for who cannot see it. Colours are those of Okabe and Ito
(image blue, warp vermilion) and matplotlib's cividis, readable with any colour vision.

Shape legend: X Y Z space in RAS order, H W rows and columns of a picture.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import matplotlib.ticker
import nibabel
import numpy as np
from matplotlib.figure import Figure as Canvas
from PIL import Image as Picture

from morphbits.machine import cores
from morphbits.report.experiment import STUDY_SAMPLES, Experiment, select, study, support
from morphbits.stats.intervals import over_subjects
from morphbits.stats.significance import FLOAT32_BITS
from morphbits.wording import numbers

COLOURS = {"image": "#0072B2", "warp": "#D55E00"}
GREY = "#6b7280"
LIGHT = "#d5dae1"
MAP_STEPS = 3  # grey levels of a map per bit: the mean of three whole numbers needs no more
STYLE: dict[Any, Any] = {
    "font.size": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": "#1f2937",
    "xtick.color": "#374151",
    "ytick.color": "#374151",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e5e7eb",
    "svg.fonttype": "none",
    "svg.hashsalt": "morphbits",
}


@dataclass(frozen=True)
class Figure:
    """A picture, and what it shows in words."""

    content: bytes
    extension: str  # .svg or .png
    alt: str
    width: int  # pixels of the page at which it is meant to be seen

    @property
    def source(self) -> str:
        """A data URI, to embed it."""
        kind = {".svg": "svg+xml", ".png": "png"}[self.extension]
        return f"data:image/{kind};base64,{base64.b64encode(self.content).decode()}"


def svg(canvas: Canvas, alt: str) -> Figure:
    text = io.StringIO()
    canvas.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None})
    # the reader's own interface font is narrower than the one measured with
    drawn = text.getvalue().replace("'DejaVu Sans'", "system-ui, sans-serif")
    width = round(canvas.get_size_inches()[0] * 96)
    return Figure(drawn.encode(), ".svg", alt, width)


def _names(subjects: Sequence[str]) -> list[str]:
    return [subject.removeprefix("sub-") for subject in subjects]


def box_plots(experiment: Experiment) -> Figure:
    """Bits of all voxels, a box per subject: quartiles, whiskers 5 % to 95 %, mean as a dot."""
    subjects = experiment.subjects
    with matplotlib.rc_context(STYLE):
        width = min(max(5.5, 1.2 + 0.34 * len(subjects)), 15.0)
        canvas = Canvas(figsize=(width, 5.6), layout="constrained")
        axes = canvas.subplots(2, 1, sharex=True)
        for ax, quantity in zip(axes, ("image", "warp"), strict=True):
            rows = [experiment.bits(quantity)[subject] for subject in subjects]
            boxes = [
                {
                    "med": row["median"],
                    "q1": row["q25"],
                    "q3": row["q75"],
                    "whislo": row["q05"],
                    "whishi": row["q95"],
                    "mean": row["mean"],
                }
                for row in rows
            ]
            colour = COLOURS[quantity]
            ax.bxp(
                boxes,
                showfliers=False,
                showmeans=True,
                patch_artist=True,
                widths=0.6,
                manage_ticks=False,
                boxprops={"facecolor": colour + "40", "edgecolor": colour},
                medianprops={"color": colour, "linewidth": 2},
                whiskerprops={"color": colour},
                capprops={"color": colour},
                meanprops={
                    "marker": "o",
                    "markersize": 4.5,
                    "markerfacecolor": "white",
                    "markeredgecolor": "#111827",
                },
            )
            average = np.mean([row["mean"] for row in rows])
            ax.axhline(float(average), color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
            ax.set_ylabel("significant bits")
            title = f"{quantity}: mean {average:.2f} bits, n = {numbers(experiment.counts)}"
            ax.set_title(title, loc="left", fontsize=11)
            ax.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
        many = len(subjects) > 12
        places = range(1, len(subjects) + 1)
        axes[-1].set_xticks(places, _names(subjects), rotation=90 if many else 0)
        axes[-1].set_xlim(0.3, len(subjects) + 0.7)
        axes[-1].set_xlabel("subject")
        alt = "Box plots of significant bits per subject. " + "; ".join(
            f"{quantity}: mean {experiment.mean_bits(quantity):.2f} bits over "
            f"{len(subjects)} subjects, {support(experiment.counts)}"
            for quantity in ("image", "warp")
        )
        return svg(canvas, alt)


def by_tissue(experiment: Experiment) -> Figure:
    """Mean bits of each tissue: a dot for each subject, a bar at their mean."""
    tissues = experiment.tissues
    rng = np.random.default_rng(0)  # sideways jitter only
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(7.2, 3.1), layout="constrained")
        axes = canvas.subplots(1, 2)
        words = []
        for ax, quantity in zip(axes, ("image", "warp"), strict=True):
            for x, tissue in enumerate(tissues):
                rows = experiment.bits(quantity, tissue).values()
                values = np.array([row["mean"] for row in rows if row["voxels"]])
                if not values.size:
                    continue
                jitter = rng.uniform(-0.16, 0.16, len(values)) if len(values) > 1 else 0
                ax.plot(
                    x + np.zeros(len(values)) + jitter,
                    values,
                    "o",
                    color=COLOURS[quantity],
                    alpha=0.55,
                    markersize=4.5,
                    markeredgewidth=0,
                )
                ax.hlines(values.mean(), x - 0.3, x + 0.3, color="#111827", linewidth=2)
                ax.annotate(
                    f"{values.mean():.2f}",
                    (x, values.max()),
                    xytext=(0, 7),
                    textcoords="offset points",
                    ha="center",
                    fontsize=9.5,
                )
                words.append(f"{quantity} {tissue} {values.mean():.2f}")
            ax.set_xticks(range(len(tissues)), tissues)
            ax.set_xlim(-0.6, len(tissues) - 0.4)
            ax.margins(y=0.2)
            ax.set_title(f"{quantity}, n = {numbers(experiment.counts)}", loc="left", fontsize=11)
        axes[0].set_ylabel("mean significant bits")
        return svg(canvas, "Mean significant bits by tissue: " + ", ".join(words))


def beside_the_study(experiment: Experiment) -> Figure:
    """The study's published means per subject, as published and one bit lower, and ours."""
    published = study()
    lines: list[tuple[str, list[float], str]] = []
    for quantity, column in (("image", "synthmorph_moved_bits"), ("warp", "synthmorph_warp_bits")):
        values = [row[column] for row in published]
        ours = experiment.of_first(STUDY_SAMPLES, quantity)
        n = min(experiment.counts[0], STUDY_SAMPLES)
        lines += [
            (f"{quantity}: study, as published, n = {STUDY_SAMPLES}", values, GREY),
            (f"{quantity}: study, less one bit", [value - 1 for value in values], "#9ca3af"),
            (f"{quantity}: this experiment, n = {n}", ours, COLOURS[quantity]),
        ]
    rng = np.random.default_rng(0)
    with matplotlib.rc_context({**STYLE, "axes.grid.axis": "x"}):
        canvas = Canvas(figsize=(7.2, 3.0), layout="constrained")
        ax = canvas.subplots()
        for y, (_, values, colour) in enumerate(lines):
            jitter = rng.uniform(-0.2, 0.2, len(values))
            ax.plot(values, y + jitter, "o", color=colour, alpha=0.55, ms=4.5, mew=0)
            ax.plot([np.mean(values)] * 2, [y - 0.34, y + 0.34], color="#111827", linewidth=2)
            ax.annotate(
                f"{np.mean(values):.2f}",
                (max(values), y),
                xytext=(7, 0),
                textcoords="offset points",
                va="center",
                fontsize=9.5,
            )
        ax.set_yticks(range(len(lines)), [name for name, _, _ in lines])
        ax.invert_yaxis()
        ax.margins(x=0.12)
        ax.spines["left"].set_visible(False)
        ax.tick_params(axis="y", length=0)
        ax.set_xlabel("mean significant bits of a subject")
        alt = "Mean significant bits per subject: " + ", ".join(
            f"{name} {np.mean(values):.2f}" for name, values, _ in lines
        )
        return svg(canvas, alt)


def over_n(experiment: Experiment) -> Figure | None:
    """Mean bits of the first n samples: a line for each subject, and their mean."""
    sizes = sorted({row["n"] for row in experiment.bits_over_n})
    if len(sizes) < 2:
        return None
    words = []
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(7.2, 3.1), layout="constrained")
        for ax, quantity in zip(canvas.subplots(1, 2), ("image", "warp"), strict=True):
            rows = select(experiment.bits_over_n, quantity=quantity)
            for subject in experiment.subjects:
                points = [(row["n"], row["mean"]) for row in rows if row["subject"] == subject]
                ax.plot(
                    *zip(*points, strict=True), color=COLOURS[quantity], alpha=0.35, linewidth=1
                )
            of_size = [[row["mean"] for row in rows if row["n"] == n] for n in sizes]
            means = [np.mean(values) for values in of_size]
            ax.plot(sizes, means, "-o", color="#111827", linewidth=2, markersize=4.5)
            found = {
                n: over_subjects([row["mean"] for row in rows if row["n"] == n]) for n in sizes
            }
            ends = [(n, *interval) for n, interval in found.items() if interval]
            if ends:
                ax.fill_between(*zip(*ends, strict=True), color="#111827", alpha=0.15, linewidth=0)
            ax.set_title(quantity, loc="left", fontsize=11)
            ax.set_xlabel("samples, n")
            ax.set_xscale("log")
            ax.set_xticks(sizes, list(map(str, sizes)))
            ax.minorticks_off()
            if quantity == "image":
                ax.set_ylabel("mean significant bits")
            named = (f"{n}: {mean:.2f}" for n, mean in zip(sizes, means, strict=True))
            words.append(f"{quantity} {', '.join(named)}")
        return svg(canvas, "Mean significant bits by number of samples: " + "; ".join(words))


def accuracy(experiment: Experiment) -> Figure | None:
    """Dice of each tissue and distance to the true warp: a line per subject, before to after."""
    rows = experiment.accuracy
    dice = list(dict.fromkeys(r["tissue"] for r in select(rows, measure="dice")))
    panels = [("dice", tissue, f"Dice {tissue}") for tissue in dice]
    if select(rows, measure="warp_error"):
        panels.append(("warp_error", "brain", "distance to true warp, mm"))
    if not panels:
        return None
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(max(1.75 * len(panels) + 0.4, 4), 2.9), layout="constrained")
        words = []
        for ax, (measure, tissue, title) in zip(
            canvas.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
        ):
            pairs = [
                (row["before"], row["after"])
                for row in select(rows, measure=measure, tissue=tissue)
                if row["before"] is not None
            ]
            for before, after in pairs:
                ax.plot((0, 1), (before, after), "-o", color="#009E73", alpha=0.4, ms=3.5, lw=1)
            middle = np.mean(pairs, axis=0)
            ax.plot((0, 1), middle, "-o", color="#111827", linewidth=2, markersize=5)
            for x, value in enumerate(middle):
                ax.annotate(
                    f"{value:.2f}",
                    (x, value),
                    xytext=(-8 if x == 0 else 8, 0),
                    textcoords="offset points",
                    ha="right" if x == 0 else "left",
                    va="center",
                    fontsize=9.5,
                )
            ax.set_xticks((0, 1), ("before", "after"))
            ax.set_xlim(-0.75, 1.75)
            ax.margins(y=0.15)
            ax.set_title(title, loc="left", fontsize=10.5)
            words.append(f"{title} from {middle[0]:.3f} to {middle[1]:.3f}")
        return svg(canvas, "Accuracy before and after registration: " + ", ".join(words))


# ----------------------------------------------------------------------------- maps


def map_scale(experiment: Experiment) -> tuple[int, int]:
    """Bits at the ends of the one colour scale: 5 % of the worst subject, 95 % of the best."""
    rows = [
        row
        for quantity in ("image", "warp")
        for row in experiment.bits(quantity, "brain").values()
        if row["voxels"]
    ]
    low = math.floor(min((row["q05"] for row in rows), default=0))
    high = math.ceil(max((row["q95"] for row in rows), default=FLOAT32_BITS))
    return min(low, high - 1), high


def at_once() -> int:
    """How many subjects' images are read at a time: one on each core, but four at most, since a
    subject takes half a GB at 1 mm."""
    return min(cores(), 4)


def maps(experiment: Experiment, subject: str, scale: tuple[int, int]) -> Figure | None:
    """Bits of image (top) and warp (bottom) on three slices through the middle of the brain."""
    paths = [experiment.map_path(subject, quantity) for quantity in ("image", "warp")]
    if not all(path.is_file() for path in paths):
        return None
    image_XYZ, warp_XYZ = (
        nibabel.as_closest_canonical(nibabel.load(path)).get_fdata(dtype=np.float32)
        for path in paths
    )
    inside_XYZ = np.isfinite(image_XYZ)
    middle = [int(np.mean(axis)) for axis in np.nonzero(inside_XYZ)]
    edge_XYZ = inside_XYZ & ~_eroded(inside_XYZ)
    image_XYZ, warp_XYZ = (_indices(bits_XYZ, scale) for bits_XYZ in (image_XYZ, warp_XYZ))
    rows = [strip(image_XYZ, middle), strip(np.where(edge_XYZ, 1, warp_XYZ), middle)]
    means = [experiment.bits(quantity)[subject]["mean"] for quantity in ("image", "warp")]
    alt = (
        f"Maps of significant bits of {subject} on sagittal, coronal and axial slices; image (top,"
        f" mean {means[0]:.2f}) and warp (bottom, mean {means[1]:.2f})"
    )
    return png(np.concatenate(rows), _palette(scale), alt)


def png(indices_HW: np.ndarray, palette: np.ndarray, alt: str) -> Figure:
    """Places in a palette, (256, 3) uint8, as a picture; small ones are enlarged."""
    picture = Picture.fromarray(indices_HW.astype(np.uint8), mode="P")
    picture.putpalette(palette.tobytes())
    low, high = 320, 960
    zoom = max(1, round(high / picture.width / 2)) if picture.width < low * 2 else 1
    picture = picture.resize(
        (picture.width * zoom, picture.height * zoom), Picture.Resampling.NEAREST
    )
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return Figure(buffer.getvalue(), ".png", alt, picture.width)


def _indices(bits_XYZ: np.ndarray, scale: tuple[int, int]) -> np.ndarray:
    """Place of each voxel in the palette: 0 nothing, 1 white line, then the scale; uint8."""
    low, high = scale
    steps = np.rint((np.clip(bits_XYZ, low, high) - low) * MAP_STEPS)
    return np.where(np.isfinite(bits_XYZ), steps + 2, 0).astype(np.uint8)


def _palette(scale: tuple[int, int]) -> np.ndarray:
    """RGB of `_indices`, (256, 3) uint8."""
    low, high = scale
    steps = (high - low) * MAP_STEPS + 1
    colours = np.zeros((256, 3), np.uint8)
    colours[0] = 0xF3, 0xF4, 0xF6
    colours[1] = 0xFF, 0xFF, 0xFF
    cividis = matplotlib.colormaps["cividis"](np.linspace(0, 1, steps))
    colours[2 : steps + 2] = np.rint(cividis[:, :3] * 255)
    return colours


def strip(array_XYZ: np.ndarray, middle: list[int], beyond: float = 0) -> np.ndarray:
    """Three orthogonal slices side by side, feet down, nose right or up, (H, W); `beyond` is the
    value between them."""
    slices = [np.flipud(array_XYZ.take(middle[axis], axis).T) for axis in range(3)]
    height = max(cut.shape[0] for cut in slices) + 2
    framed = []
    for cut in slices:
        above = (height - cut.shape[0]) // 2
        around = (above, height - cut.shape[0] - above), (1, 1)
        framed.append(np.pad(cut, around, constant_values=beyond))
    return np.concatenate(framed, axis=1)


def _eroded(inside_XYZ: np.ndarray) -> np.ndarray:
    """Voxels whose six neighbours are inside too."""
    eroded = inside_XYZ.copy()
    for axis in range(3):
        for step in (1, -1):
            eroded &= np.roll(inside_XYZ, step, axis)
    return eroded


def map_colours(scale: tuple[int, int]) -> Figure:
    """The colour scale of all maps."""
    alt = f"Colour scale of the maps: dark blue {scale[0]} bits, yellow {scale[1]} bits"
    return colour_scale("cividis", scale, "significant bits", alt)


def colour_scale(colours: str, ends: tuple[float, float], label: str, alt: str) -> Figure:
    """A horizontal scale of one of matplotlib's colour maps."""
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(4.6, 0.62), layout="constrained")
        bar = canvas.colorbar(
            matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(*ends), colours),
            cax=canvas.subplots(),
            orientation="horizontal",
        )
        bar.outline.set_visible(False)  # type: ignore[operator]
        bar.set_label(label)
        bar.ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
        return svg(canvas, alt)
