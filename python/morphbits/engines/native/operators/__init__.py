"""The rules, one module for a kind of operator; importing this fills `rules.RULES`."""

from morphbits.engines.native.operators import (
    activations,
    convolution,
    decomposed,
    elementwise,
    losses,
    matrices,
    normalization,
    optimizers,
    pooling,
    reductions,
    resampling,
    scattering,
    values,
)

__all__ = [
    "activations",
    "convolution",
    "decomposed",
    "elementwise",
    "losses",
    "matrices",
    "normalization",
    "optimizers",
    "pooling",
    "reductions",
    "resampling",
    "scattering",
    "values",
]
