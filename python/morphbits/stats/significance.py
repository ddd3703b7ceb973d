"""How many bits of a result are significant, voxel by voxel.

The method is that of Sohier, De Oliveira Castro, Févotte, Lathuilière, Petit and Jamond,
"Confidence intervals for stochastic arithmetic", ACM TOMS 47(2), 2021, as the package
`significantdigits` computes it. With Z = sample / reference − 1 (relative error, in float32):

    general   s = max{k : |Z_i| ≤ 2^-k for every sample i}; no assumption on the distribution of Z
    cnh       s = −log2 std(Z) − ½ log2((n−1)/χ²) − log2 F⁻¹((p+1)/2); Z normal, p = 0.95

Two things are ours, because a float32 has 24 significant bits (23 stored, one implied). The
package stops at the number of *stored* bits, 23 for float32, and at 50 or so when a float64
reference slips in; here a voxel whose samples all equal the reference has all 24 bits, and none
has more. And a negative number of bits (an error larger than the value itself) is zero bits.

Two things are the package's. Z in float32 is a multiple of 2^-24, so an error a little over 2^-k
counts as 2^-k, and `general` is higher than with Z in float64: 0.1 bit at 20 bits; each experiment
measures its own (`sample_size`). And std divides by n, which gives `cnh` ½ log2(n/(n−1)) bits more
than a division by n − 1, 0.08 at n = 10; with the two-sided χ² it keeps its confidence all the
same.

Shape legend: X Y Z space (voxels of the fixed grid), S samples, N voxels in a row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import reduce
from typing import Any, Literal, get_args

import numpy as np
import significantdigits

Reference = Literal["mean", "ieee"]
Method = Literal["general", "cnh"]
REFERENCES: tuple[Reference, ...] = get_args(Reference)
METHODS: tuple[Method, ...] = get_args(Method)

FLOAT32_BITS = 24
TYPE_BITS = {np.dtype(np.float32): FLOAT32_BITS, np.dtype(np.float64): 53}
CONFIDENCE = 0.95
CNH_PROBABILITY = 0.95
STORED_BITS = 52  # of a float64's mantissa: the most that the package gives
MINIMUM_SAMPLES = 2  # a spread needs two
SLAB_VOXELS = 1 << 15  # temporary arrays of this size stay in a processor's cache


def general_probability(n: int, confidence: float = CONFIDENCE) -> float:
    """The probability that one more sample keeps the `general` bits of n samples.

    n successes out of n trials support p with p^n = 1 − confidence (Sohier et al. 2021, the
    relation behind their n = ⌈ln α / ln p⌉): n = 10 supports p ≈ 0.74 at 95 %, and p = 0.95 takes
    n = 59.
    """
    return float((1.0 - confidence) ** (1.0 / n))


def mean_reference(samples_SXYZ: np.ndarray) -> np.ndarray:
    """The mean of the samples, summed in the next wider type (float64, or the processor's
    extended one), rounded once to their type; shape without S."""
    wide = np.float64 if samples_SXYZ.dtype == np.float32 else np.longdouble
    total_XYZ = np.zeros(samples_SXYZ.shape[1:], wide)
    for sample_XYZ in samples_SXYZ:
        total_XYZ += sample_XYZ
    return (total_XYZ / len(samples_SXYZ)).astype(samples_SXYZ.dtype)


def significant_bits(
    samples_SXYZ: np.ndarray,
    ieee_XYZ: np.ndarray | None,
    reference: Reference = "mean",
    method: Method = "general",
    most: int | None = None,
) -> np.ndarray:
    """Significant bits of every voxel, float32 (X, Y, Z) in [0, most]; NaN for background, where
    reference and samples are all 0. An array of samples may have any number of axes.

        >>> samples = np.array([[1, 8, 0], [1 + 2**-10, 8, 0]], np.float32)
        >>> significant_bits(samples, None).round(1)
        array([11., 24., nan], dtype=float32)

    - `samples_SXYZ`: float32 or float64, n ≥ 2 perturbed results of one computation, any unit.
    - `ieee_XYZ`: of the same type, the unperturbed result; needed for `reference="ieee"` only.
    - `method`: `general` makes no assumption on the distribution, `cnh` assumes a normal one.
    - `most`: the bits of identical samples: 24 or 53 by their type, fewer where results hold fewer
      (`bits_held`).

    A voxel has 0 bits where a sample or the reference is not finite, and where the reference is 0
    and a sample is not.
    """
    if samples_SXYZ.dtype not in TYPE_BITS or len(samples_SXYZ) < MINIMUM_SAMPLES:
        raise ValueError(
            f"need {MINIMUM_SAMPLES} or more samples of float32 or float64, got"
            f" {len(samples_SXYZ)} of {samples_SXYZ.dtype}"
        )
    most = TYPE_BITS[samples_SXYZ.dtype] if most is None else most
    reference_XYZ = mean_reference(samples_SXYZ) if reference == "mean" else ieee_XYZ
    if reference_XYZ is None or reference_XYZ.dtype != samples_SXYZ.dtype:
        raise ValueError("a reference of another type than the samples changes the bits")
    if reference_XYZ.shape != samples_SXYZ.shape[1:]:
        raise ValueError(
            f"samples {samples_SXYZ.shape[1:]} and reference {reference_XYZ.shape} differ"
        )

    samples_SN = samples_SXYZ.reshape(len(samples_SXYZ), -1)
    reference_N = reference_XYZ.reshape(-1)
    bits_N = np.empty(reference_N.shape, np.float32)
    slabs = [slice(n, n + SLAB_VOXELS) for n in range(0, reference_N.size, SLAB_VOXELS)]
    if method == "general":
        # x / reference − 1 is monotone, rounded or not: the largest error is that of the smallest
        # or of the largest sample, and the others need not be looked at
        low_N, high_N = reduce(np.minimum, samples_SN), reduce(np.maximum, samples_SN)
        for slab in slabs:
            bits_N[slab] = general_bits(low_N[slab], high_N[slab], reference_N[slab], most)
    else:
        for slab in slabs:
            bits_N[slab] = _cnh_bits(samples_SN[:, slab], reference_N[slab], most)
    return bits_N.reshape(reference_XYZ.shape)


def bits_held(configuration: Mapping[str, Any]) -> int:
    """How many bits a sample's results hold: float32's, or the fewer that everything was rounded
    to (tf32 rounds what a convolution reads, not what it writes)."""
    if configuration.get("perturb", "all") != "all":
        return FLOAT32_BITS
    precision = str(configuration.get("precision", FLOAT32_BITS))
    named = {"float16": 11, "bfloat16": 8, "tf32": FLOAT32_BITS}
    return named[precision] if precision in named else int(precision)


def general_bits(
    low_N: np.ndarray, high_N: np.ndarray, reference_N: np.ndarray, most: int = FLOAT32_BITS
) -> np.ndarray:
    """`significant_bits` of method general, float32 (N,), from the smallest and the largest sample
    and the reference, each (N,) in float32 or float64.

    Z, the relative error, has the arrays' precision. The package compares it with each 2^-k; here
    its exponent gives the same: |Z| = m · 2^e with ½ ≤ m < 1 is at most 2^-k for k ≤ −e, and for
    k = 1 − e where m is ½. As in the package, float64 samples have more than STORED_BITS only
    where they equal the reference.
    """
    with np.errstate(all="ignore"):
        error_N = np.maximum(np.abs(low_N / reference_N - 1), np.abs(high_N / reference_N - 1))
    mantissa_N, exponent_N = np.frexp(error_N)
    bits_N = np.clip((mantissa_N == 0.5) - exponent_N, 0, most).astype(np.float32)
    bits_N[error_N == 0] = most
    if most > STORED_BITS:
        differs_N = (low_N != reference_N) | (high_N != reference_N)
        np.minimum(bits_N, STORED_BITS, out=bits_N, where=differs_N)
    bits_N[~np.isfinite(error_N)] = 0
    bits_N[(low_N == 0) & (high_N == 0) & (reference_N == 0)] = np.nan
    return bits_N


def _cnh_bits(samples_SN: np.ndarray, reference_N: np.ndarray, most: int) -> np.ndarray:
    """`significant_bits` of method cnh, by the package; float32 (N,)."""
    finite_N = np.isfinite(samples_SN).all(axis=0) & np.isfinite(reference_N)
    equal_N = (samples_SN == reference_N).all(axis=0)  # the package gives these 52 bits
    bits_N = np.where(equal_N & finite_N, most, 0).astype(np.float32)
    bits_N[equal_N & (reference_N == 0)] = np.nan
    found_of_N = finite_N & ~equal_N & (reference_N != 0)
    if found_of_N.any():
        if not found_of_N.all():
            samples_SN, reference_N = samples_SN[:, found_of_N], reference_N[found_of_N]
        with np.errstate(over="ignore"):  # a huge ratio is an infinite error: no significant bit
            found_N = significantdigits.significant_digits(
                samples_SN,
                reference=reference_N,
                axis=0,
                basis=2,
                error=significantdigits.Error.Relative,
                method=significantdigits.Method.CNH,
                probability=CNH_PROBABILITY,
                confidence=CONFIDENCE,
                dtype=np.float64,  # lifts the package's stop at 23, Z itself stays float32
            )
        bits_N[found_of_N] = np.clip(np.nan_to_num(found_N, nan=0.0), 0, most)
    return bits_N


def quantiles(bits: np.ndarray) -> dict[str, float]:
    """mean, q05, q25, median, q75, q95 of the bits that are not NaN (NaN if there are none)."""
    valid = bits[np.isfinite(bits)].astype(np.float64)
    names = ("mean", "q05", "q25", "median", "q75", "q95")
    if valid.size == 0:
        return dict.fromkeys(names, math.nan)
    return dict(
        zip(names, [valid.mean(), *np.quantile(valid, (0.05, 0.25, 0.5, 0.75, 0.95))], strict=True)
    )
