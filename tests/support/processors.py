"""What tests know of the processor that they run on."""

from morphbits.engines.native.kernels.library import available_variants
from morphbits.machine import cpu

# On AMD's processors with AVX-512 every order of the tests below was read and proven. MKL and
# oneDNN choose other kernels on Intel's, some of which add in trees that are not read; there the
# tests still ask that what is called proven has the kernel's bytes.
ORDERS_ARE_READ = "avx512" in available_variants() and "AMD" in str(cpu()["name"])
