"""Whether two results of a computation are further apart than rounding puts them.

A and B are two results for the same subjects; X_1 … X_n are the samples of a reference experiment,
perturbed runs of the same computation. As in Chatelain et al., "A numerical variability approach
to results stability tests and its application to neuroimaging" (arXiv 2307.01373), the samples
give each voxel its bounds. Two things are different here. That test asks whether one result lies
among the samples; this one whether two results lie as close together as two samples do, so that
what the samples and both results have in common does not count. And that test counts the voxels
outside, as if they were independent or with corrections for it; here the decision is about the
whole result, and the samples themselves calibrate it.

**Bounds of a voxel.** a − b of two independent samples has variance 2 σ², hence with the standard
deviation s of n samples (a − b) / (√2 s) follows Student's t of n − 1 degrees of freedom, where
roundings add up to a normal distribution. The report counts the voxels beyond its 95 % bounds and
beyond those of Bonferroni. A result that is not perturbed has smaller errors: one rounding of
fraction f (uniform in 0 … 1) errs by min(f, 1 − f), variance 1/12 ulp² in the mean; the random
one by f or 1 − f with probability 1/2 each, mean square (f² + (1 − f)²) / 2, 1/3 ulp² in the mean.
So two plain results differ by σ/√2 where their roundings are unrelated, a plain and a perturbed
one by √(5/4) σ, both below the √2 σ of two samples: the test alarms less for them, never more.

**The distance of a pair** is the root mean square of (a − b) / (√2 s) over the numbers of a
file, about 1 for two of many samples, and the largest of a subject's files. s comes from the
samples that are in neither pair that is compared, and is at least half an ulp of the file's
largest number. Of integers (label maps) it is the share that differs.

**The decision.** A subject is *beyond* when A and B are further apart than X_i and X_j for every
i < j, both measured with the s of the other n − 2 samples. If A and B come from the distribution
of the samples, this happens with a probability of at most 2 / (n + 2), whatever that distribution
is and however its voxels depend on each other: of the pairs among the n + 2 results, those that
beat every pair disjoint from them share a result two by two (of two disjoint pairs only one beats
the other), so all contain one common result, at most n + 1 pairs, or are the three of a triangle;
and any of the (n + 2)(n + 1) / 2 pairs is A and B with the same probability. Subjects have seeds
of their own, so the number beyond is at most binomial; K of S subjects beyond have

    p = P(Binomial(S, 2 / (n + 2)) ≥ K)

`different` is p ≤ α, or fewer bits than a floor that the user sets. `cannot tell` is where not
even K = S would have p ≤ α, or where some subjects are beyond and p > α.

Shape legend: S samples, N the numbers of a file in a row.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import stats

from morphbits.stats.significance import TYPE_BITS, significant_bits

SAME, DIFFERENT, CANNOT_TELL = 0, 1, 2  # exit statuses
VERDICTS = ("same", "different", "cannot tell")
MINIMUM = 4  # samples: two for a pair, two for a spread
MOST = 1_000_000  # samples beyond which no advice is given
BOUND = 0.05  # a voxel's own level
SLAB = 1 << 15  # temporary arrays of this size stay in a processor's cache


@dataclass
class Distances:
    """Sums of the squares of (a − b) / (√2 s), by pair of samples: that pair's and A and B's."""

    pairs: list[tuple[int, int]]
    samples: np.ndarray  # (pairs,)
    results: np.ndarray
    numbers: int = 0

    def root_mean_squares(self) -> tuple[np.ndarray, np.ndarray]:
        """Distances of the pairs of samples, and of A and B, each by the same s."""
        numbers = max(self.numbers, 1)
        return np.sqrt(self.samples / numbers), np.sqrt(self.results / numbers)


@dataclass
class FileResult:
    """How far A and B are apart in one file (or one array of a file that holds several)."""

    file: str
    numbers: int
    differing: int
    distances: Distances
    largest: float  # of |a − b|, in the file's unit
    bits: float = math.nan  # mean significant bits in which A and B agree; NaN of integers
    outside: float = math.nan  # share of numbers beyond the 95 % bounds
    beyond_bonferroni: int = 0
    array: str = ""  # its name in a file that holds several
    shape: tuple[int, ...] = ()
    z_N: np.ndarray | None = field(default=None, repr=False)  # |a − b| / (√2 s)


@dataclass(frozen=True)
class SubjectResult:
    """A subject: its files, and whether A and B are beyond every pair of its samples."""

    subject: str
    files: list[FileResult]
    n: int
    distance: float  # of A and B, the median over the s of all pairs
    usual: float  # of two samples, the median
    largest: float  # of two samples, the largest
    beaten: float  # share of the pairs of samples that are closer than A and B
    identical: bool

    @property
    def beyond(self) -> bool:
        return self.beaten == 1


def compare_file(file: str, a: np.ndarray, b: np.ndarray, samples: np.ndarray) -> FileResult:
    """A file's results (any shape) and samples (one more axis before it), as they were read."""
    n, samples_SN = len(samples), samples.reshape(len(samples), -1)
    a_N, b_N = a.reshape(-1), b.reshape(-1)
    pairs = list(itertools.combinations(range(n), 2))
    distances = Distances(pairs, np.zeros(len(pairs)), np.zeros(len(pairs)))
    if a.dtype.kind in "biu" and b.dtype.kind in "biu":
        apart_N = np.abs(a_N.astype(np.float64) - b_N)
        distances.numbers = a_N.size
        distances.samples += [np.count_nonzero(samples_SN[i] != samples_SN[j]) for i, j in pairs]
        distances.results += np.count_nonzero(apart_N)
        return FileResult(
            file, a_N.size, int(np.count_nonzero(apart_N)), distances, float(apart_N.max()),
            shape=a.shape, z_N=(apart_N > 0).astype(np.float32),
        )  # fmt: skip
    kind = samples.dtype if samples.dtype in TYPE_BITS else np.dtype(np.float64)
    finite_N = np.isfinite(samples_SN).all(axis=0)
    top = float(np.abs(samples_SN[:, finite_N]).max(initial=0))
    floor = max(float(np.spacing(kind.type(top))) / 2, 1e-150)  # whose square is not 0
    z_N = np.zeros(a_N.size, np.float32)
    largest = 0.0
    for start in range(0, a_N.size, SLAB):
        slab = slice(start, start + SLAB)
        # what is NaN or infinite everywhere has no spread; where only A or B is, they differ
        one_N, other_N = a_N[slab].astype(np.float64), b_N[slab].astype(np.float64)
        x_SN = samples_SN[:, slab].astype(np.float64)
        known_N = finite_N[slab] & np.isfinite(one_N) & np.isfinite(other_N)
        lost_N = ~known_N & ~((one_N == other_N) | (np.isnan(one_N) & np.isnan(other_N)))
        apart_N = np.where(known_N, one_N, 0) - np.where(known_N, other_N, 0)
        apart_N[lost_N] = np.inf
        x_SN = np.where(known_N, x_SN, 0)
        x_SN -= x_SN.mean(axis=0)
        z_N[slab] = np.abs(apart_N) / (math.sqrt(2) * np.maximum(x_SN.std(axis=0, ddof=1), floor))
        largest = max(largest, float(np.abs(apart_N).max(initial=0)))
        _add(distances, x_SN, apart_N, floor)
        distances.numbers += int(np.count_nonzero(known_N))
    result = FileResult(
        file, a_N.size, int(np.count_nonzero(z_N)), distances, largest, shape=a.shape, z_N=z_N
    )
    both = np.stack([a_N, b_N]).astype(kind)
    known_N = significant_bits(both, None)
    known_N = known_N[~np.isnan(known_N)]
    result.bits = float(known_N.mean(dtype=np.float64)) if known_N.size else math.nan
    t, count = stats.t(n - 1), max(distances.numbers, 1)
    result.outside = float(np.count_nonzero(z_N > t.isf(BOUND / 2))) / count
    result.beyond_bonferroni = int(np.count_nonzero(z_N > t.isf(BOUND / 2 / count)))
    return result


def _add(distances: Distances, x_SN: np.ndarray, apart_N: np.ndarray, floor: float) -> None:
    """Add some numbers of a file; x_SN: the samples, less their mean."""
    rest = len(x_SN) - 2
    squares_SN = np.square(x_SN)
    total_N, apart_N = squares_SN.sum(axis=0), np.square(apart_N)
    for p, (i, j) in enumerate(distances.pairs):
        # the n − 2 others sum to −(x_i + x_j), for all sum to 0
        spread_N = total_N - squares_SN[i] - squares_SN[j]
        spread_N -= np.square(x_SN[i] + x_SN[j]) / rest
        spread_N /= rest - 1
        weights_N = 0.5 / np.maximum(spread_N, floor * floor)
        # einsum, not BLAS, which would wake a team of threads for so little
        distances.samples[p] += np.einsum("n,n", weights_N, np.square(x_SN[i] - x_SN[j]))
        distances.results[p] += np.einsum("n,n", weights_N, apart_N)


def judge_subject(subject: str, files: Sequence[FileResult], n: int) -> SubjectResult:
    """A subject by its files: the largest distance of a file counts."""
    each = [file.distances.root_mean_squares() for file in files]
    samples = np.max([of_samples for of_samples, _ in each], axis=0)
    results = np.max([of_results for _, of_results in each], axis=0)
    return SubjectResult(
        subject,
        list(files),
        n,
        float(np.median(results)),
        float(np.median(samples)),
        float(samples.max()),
        float(np.mean(results > samples)),
        all(file.differing == 0 for file in files),
    )


def chance(beyond: int, subjects: int, n: int) -> float:
    """At most this probability have so many subjects beyond, or more, from rounding alone."""
    return float(stats.binom.sf(beyond - 1, subjects, 2 / (n + 2)))


def enough(beyond: int, subjects: int, alpha: float) -> int | None:
    """The smallest n for which so many subjects beyond have p ≤ alpha; None above MOST."""
    low, high = MINIMUM, MOST
    if beyond < 1 or chance(beyond, subjects, high) > alpha:
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (
            (low, middle) if chance(beyond, subjects, middle) <= alpha else (middle + 1, high)
        )
    return low


@dataclass(frozen=True)
class Verdict:
    """The answer, and why, in a sentence."""

    status: int
    why: str
    n: int
    alpha: float
    beyond: int
    subjects: list[SubjectResult]
    p: float
    samples_needed: int | None = None

    @property
    def word(self) -> str:
        return VERDICTS[self.status]


def judge(subjects: Sequence[SubjectResult], alpha: float, floor: float | None = None) -> Verdict:
    """The verdict over all subjects. floor: bits in which A and B must agree in the mean."""
    count, n = len(subjects), min(subject.n for subject in subjects)
    beyond = sum(subject.beyond for subject in subjects)
    p = chance(beyond, count, n)

    def verdict(status: int, why: str, needed: int | None = None) -> Verdict:
        return Verdict(status, why, n, alpha, beyond, list(subjects), p, needed)

    of = f"{beyond} of {count} subject{'s' if count > 1 else ''}"
    below = [
        (file.bits, subject.subject, file.file)
        for subject in subjects
        for file in subject.files
        if floor is not None and file.bits < floor
    ]
    if below:
        bits, subject, file = min(below)
        return verdict(
            DIFFERENT, f"A and B agree in {bits:.2f} bits of {file} of {subject}, below {floor:g}"
        )
    if all(subject.identical for subject in subjects):
        return verdict(SAME, "A and B are the same numbers, every one")
    if beyond and p <= alpha:
        return verdict(
            DIFFERENT,
            f"in {of} A and B are further apart than any two of the {n} samples; rounding alone "
            f"does that with a probability of at most {p:.2g}",
        )
    if chance(count, count, n) > alpha:
        needed = enough(count, count, alpha)
        return verdict(
            CANNOT_TELL,
            f"{n} samples of {count} subject{'s' if count > 1 else ''} cannot hold a false-alarm "
            f"level of {alpha:g}: {needed} samples would do",
            needed,
        )
    if beyond:
        needed = enough(beyond, count, alpha)
        return verdict(
            CANNOT_TELL,
            f"in {of} A and B are further apart than any two of the {n} samples, but rounding "
            f"alone can do that with a probability of {p:.2g}: with {needed} samples it would be "
            f"at most {alpha:g}",
            needed,
        )
    return verdict(
        SAME, f"in every subject some two of the {n} samples are as far apart as A and B"
    )
