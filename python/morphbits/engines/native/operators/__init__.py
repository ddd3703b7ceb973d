"""The rules, one module for a kind of operator; importing this fills `rules.RULES`."""

from morphbits.engines.native.operators import (
    convolution,
    elementwise,
    optimizers,
    pooling,
    reductions,
    resampling,
    scattering,
    values,
)

__all__ = [
    "convolution",
    "elementwise",
    "optimizers",
    "pooling",
    "reductions",
    "resampling",
    "scattering",
    "values",
]
