"""How often the stability test alarms for rounding alone, and what faults it finds; into notes/.

PYTHONPATH=python python -m benchmarks.stability

The demo model on two pairs of 16³ voxels. False alarms: pairs of perturbed results whose seeds no
reference used. Power: a perturbed result, and one of a network with a fault, at the same level.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage, stats

from benchmarks import harness
from morphbits.config import DEMO_MODEL
from morphbits.engines.native.region import random_rounding
from morphbits.errors import run_cli
from morphbits.models import synthmorph_torch
from morphbits.models.synthmorph_torch import SynthMorph
from morphbits.studies.stability_test.verdict import (
    DIFFERENT,
    SubjectResult,
    Verdict,
    compare_file,
    judge,
    judge_subject,
)

SUBJECTS, SAMPLES, ALPHA = 2, 8, 0.05  # (2 / 10)² = 0.04
REFERENCES, PAIRS = 10, 24  # pairs of results for each reference
FAULTY = 10  # trials of each fault
Output = tuple[np.ndarray, np.ndarray]


class Case:
    """Two subjects, and results of the network on them."""

    def __init__(self) -> None:
        random = np.random.default_rng(1)
        self._pairs = [[_smooth_image(random) for _ in range(2)] for _ in range(SUBJECTS)]
        self.network = SynthMorph.load(DEMO_MODEL)
        self._seeds = iter(range(1, 10**6))

    @torch.no_grad()
    def results(self, mode: str = "random") -> list[Output]:
        """Image and warp of each subject, each with a seed that was not used before."""
        results = []
        for pair in self._pairs:
            with random_rounding(mode=mode, seed=next(self._seeds), threads=1):
                moved, warp = self.network(*pair)
            results.append((moved.numpy().copy(), warp.numpy().copy()))
        return results

    def reference(self) -> list[list[Output]]:
        """The samples of a new reference experiment, by subject."""
        return list(zip(*(self.results() for _ in range(SAMPLES)), strict=True))  # type: ignore[arg-type]


def _smooth_image(random: np.random.Generator) -> torch.Tensor:
    """Smooth noise in [0, 1] (B, C, X, Y, Z), float32."""
    noise = ndimage.gaussian_filter(random.standard_normal((16, 16, 16)), 2, mode="wrap")
    scaled = ((noise - noise.min()) / np.ptp(noise)).astype(np.float32)
    return torch.from_numpy(scaled)[None, None]


def verdict(a: list[Output], b: list[Output], reference: list[list[Output]]) -> Verdict:
    """The stability test of two results."""
    return judge([_subject(*one) for one in zip(a, b, reference, strict=True)], ALPHA)


def _subject(a: Output, b: Output, samples: list[Output]) -> SubjectResult:
    stacked = [np.stack(arrays) for arrays in zip(*samples, strict=True)]
    names = ("image", "warp")
    files = [compare_file(*one) for one in zip(names, a, b, stacked, strict=True)]
    return judge_subject("sub", files, SAMPLES)


@contextmanager
def wrong_constant(ulps: int) -> Iterator[None]:
    """The slope of every LeakyReLU, 0.2, off by so many float32 ulps."""
    slope = float(np.float32(0.2) + ulps * np.spacing(np.float32(0.2)))

    def leaky_relu(x: torch.Tensor, _slope: float, inplace: bool) -> torch.Tensor:
        return F.leaky_relu(x, slope, inplace)

    wrapped = mock.Mock(wraps=F, leaky_relu=leaky_relu)
    with mock.patch.object(synthmorph_torch, "F", wrapped):
        yield


@contextmanager
def wrong_weight(network: SynthMorph, relative: float) -> Iterator[None]:
    """The largest weight of the first convolution, changed by so much of itself."""
    weight = next(p for p in network.parameters() if p.ndim == 5)
    flat = weight.data.view(-1)
    place = int(flat.abs().argmax())
    right = float(flat[place])
    flat[place] = right * (1 + relative)
    try:
        yield
    finally:
        flat[place] = right


def share(count: int, of: int) -> str:
    """A share with its exact (Clopper–Pearson) 95 % confidence interval."""
    interval = stats.binomtest(count, of).proportion_ci()
    return f"{count} of {of}: {count / of:.1%} ({interval.low:.1%} to {interval.high:.1%})"


def main() -> None:
    case = Case()
    report = harness.Report(
        harness.note("stability-test", harness.processor()), "The stability test",
        "python -m benchmarks.stability", "torch", "numpy",
    )  # fmt: skip
    level = 2 / (SAMPLES + 2)
    report.add(
        f"The demo model, {SUBJECTS} subjects of 16³ voxels, {SAMPLES} samples in each of "
        f"{REFERENCES} references, α = {ALPHA:g}. A and B are perturbed with seeds of their own, "
        f"which no reference used. Stated: at most {level:.0%} of subjects beyond, and at most "
        f"{level**SUBJECTS:.0%} of pairs called different. In parentheses: exact 95 % intervals, "
        "as if pairs that share a reference were independent.",
    )
    references = [case.reference() for _ in range(REFERENCES)]
    false = [
        verdict(case.results(), case.results(), reference)
        for reference in references
        for _ in range(PAIRS)
    ]
    report.table("A and B differ by rounding alone", "share")
    beyond = sum(one.beyond for one in false)
    report.row("subjects beyond every pair of samples", share(beyond, SUBJECTS * len(false)))
    for status, words in enumerate(("same", "different (false alarms)", "cannot tell")):
        report.row(words, share(sum(one.status == status for one in false), len(false)))
    report.table("fault in B", "called different", "distance over the largest of two samples")
    for ulps in (1, 4, 16, 64):
        _power(report, case, references, f"constant 0.2 off by {ulps} ulp", ulps=ulps)
    for relative in (1e-5, 1e-3, -2.0):
        words = "with the wrong sign" if relative == -2 else f"off by {relative:g} of itself"
        _power(report, case, references, f"one weight {words}", relative=relative)


def _power(
    report: harness.Report,
    case: Case,
    references: list[list[list[Output]]],
    words: str,
    ulps: int = 0,
    relative: float = 0.0,
) -> None:
    found = []
    for k in range(FAULTY):
        right = case.results()
        with wrong_constant(ulps), wrong_weight(case.network, relative):
            faulty = case.results()
        found.append(verdict(right, faulty, references[k % REFERENCES]))
    ratios = [s.distance / s.largest for one in found for s in one.subjects]
    caught = share(sum(one.status == DIFFERENT for one in found), FAULTY)
    report.row(words, caught, f"{np.median(ratios):.3g}")


if __name__ == "__main__":
    run_cli(main)
