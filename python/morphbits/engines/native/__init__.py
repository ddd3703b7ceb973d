"""The native engine: compiled random rounding under torch.

Needs torch, numpy and a C compiler, nothing else.
"""

from morphbits.engines.native.kernels.build import engine_version, kernel_version
from morphbits.engines.native.region import Statistics, random_rounding

__all__ = ["Statistics", "engine_version", "kernel_version", "random_rounding"]
