"""Native against Verrou: one table and one figure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from morphbits.studies.agreement.comparison import BITS, RATIO, Comparison, compare

Stacks = Mapping[str, np.ndarray]  # "image" (S, X, Y, Z) and "warp" (S, X, Y, Z, V), float32
HEAD = (
    "| native arm | quantity | Verrou bits | native bits | difference ± s.e. "
    "| log2 of std native/Verrou: q05, q25, median, q75, q95 | agrees |"
)


def comparisons(arms: Mapping[str, Stacks]) -> dict[tuple[str, str], Comparison]:
    """Every later arm against the first, by (arm, quantity)."""
    first, *others = arms
    return {
        (name, quantity): compare(arms[name][quantity], arms[first][quantity])
        for name in others
        for quantity in ("image", "warp")
    }


def table(arms: Mapping[str, Stacks], facts: Mapping[str, tuple[float, int]]) -> tuple[str, bool]:
    """Markdown, and whether the second arm (the matching order) agrees with the first.

    ``facts`` are seconds per sample and perturbed operations of each arm.
    """
    first, second, *_ = arms
    found = comparisons(arms)
    n = len(arms[first]["image"])
    lines = [
        f"{first} against native, {n} samples of each; agreement is a difference "
        f"of mean bits within {BITS} and a median ratio of standard deviations within 2^±{RATIO}.",
        "",
        HEAD,
        "|---|---|---|---|---|---|---|",
    ]
    for (name, quantity), one in found.items():
        lines.append(
            f"| {name} | {quantity} | {one.bits[1]:.2f} | {one.bits[0]:.2f} "
            f"| {one.difference:+.3f} ± {one.error:.3f} "
            f"| {', '.join(f'{q:+.2f}' for q in one.ratio)} | {'yes' if one.agrees else 'no'} |"
        )
    lines += ["", "| arm | operations perturbed | s per sample | Verrou's time over it |"]
    lines += ["|---|---|---|---|"]
    for name, (seconds, operations) in facts.items():
        ratio = facts[first][0] / seconds
        lines.append(f"| {name} | {operations:,} | {seconds:.3g} | {ratio:.0f} |")
    agrees = all(one.agrees for (name, _), one in found.items() if name == second)
    return "\n".join(lines), agrees


def write_maps(arms: Mapping[str, Stacks], folder: Path) -> Path:
    """A figure: for every native arm (rows) the three middle slices of log2(std native/Verrou) of
    the image and of the warp's mean over components; blue: native varies less."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    first, *others = arms
    found = comparisons(arms)
    figure, axes = plt.subplots(
        len(others), 6, figsize=(12, 2.3 * len(others)), squeeze=False, layout="constrained"
    )
    shown = None
    for row, name in zip(axes, others, strict=True):
        for k, quantity in enumerate(("image", "warp")):
            ratio = found[name, quantity].ratio_map
            if ratio.ndim == 4:
                ratio = ratio.mean(axis=-1)
            for axis in range(3):
                cell = row[3 * k + axis]
                middle = np.take(ratio, ratio.shape[axis] // 2, axis=axis)
                shown = cell.imshow(middle.T, origin="lower", cmap="RdBu_r", vmin=-1, vmax=1)
                cell.set_xticks([])
                cell.set_yticks([])
                cell.set_title(f"{quantity}, {'xyz'[axis]}", fontsize=8)
        row[0].set_ylabel(name, fontsize=8)
    if shown is not None:
        figure.colorbar(shown, ax=axes, label=f"log2 of std: native over {first}", shrink=0.8)
    path = folder / f"{first}.png"
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
