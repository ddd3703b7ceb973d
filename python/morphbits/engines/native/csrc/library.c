/* What Python calls: picks the kernels of one variant. `variant` VARIANTS stands for the naive reference. */
#include "morphbits.h"

int elementwise_naive(const rounding *, const elementwise_call *);
int convolution_naive(const rounding *, const convolution_call *);

/* Bit v is set where this processor can run variant v. */
int morphbits_variants(void) {
    int variants = 1 << PORTABLE;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) variants |= 1 << AVX2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma"))
        variants |= 1 << AVX512;
#endif
    return variants;
}

/* The floating-point control register of the calling thread: what the tests compare before and after. */
uint64_t morphbits_control(void) { return control_get(); }

int morphbits_elementwise(const rounding *r, const elementwise_call *c) {
    switch (r->variant) {
    case PORTABLE: return elementwise_portable(r, c);
#if defined(__x86_64__)
    case AVX2: return elementwise_avx2(r, c);
    case AVX512: return elementwise_avx512(r, c);
#endif
    case VARIANTS: return elementwise_naive(r, c);
    default: return UNSUPPORTED;
    }
}

int morphbits_convolution(const rounding *r, const convolution_call *c) {
    switch (r->variant) {
    case PORTABLE: return convolution_portable(r, c);
#if defined(__x86_64__)
    case AVX2: return convolution_avx2(r, c);
    case AVX512: return convolution_avx512(r, c);
#endif
    case VARIANTS: return convolution_naive(r, c);
    default: return UNSUPPORTED;
    }
}
