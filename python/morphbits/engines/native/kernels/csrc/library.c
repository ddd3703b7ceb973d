/* What Python calls: picks the kernels of one variant. `variant` VARIANTS stands for the naive reference. */
#include "morphbits.h"

int elementwise_naive(const rounding *, const elementwise_call *);
int convolution_naive(const rounding *, const convolution_call *);
int reduction_naive(const rounding *, const reduction_call *);
int contraction_naive(const rounding *, const contraction_call *);

/* Bit v is set where this processor can run variant v. */
int morphbits_variants(void) {
    int variants = 1 << PORTABLE;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) variants |= 1 << AVX2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma"))
        variants |= __builtin_cpu_supports("avx512ifma") ? 1 << AVX512 | 1 << AVX512_IFMA : 1 << AVX512;
#endif
    return variants;
}

/* The floating-point control register of the calling thread: what the tests compare before and after. */
uint64_t morphbits_control(void) { return control_get(); }

#if defined(__x86_64__)
#define VECTOR_VARIANTS(name)                     \
    case AVX2: return name##_avx2(r, c);          \
    case AVX512: case AVX512_IFMA: return name##_avx512(r, c);
#else
#define VECTOR_VARIANTS(name)
#endif
#define PICK_VARIANT(name, naive)                                       \
    int morphbits_##name(const rounding *r, const name##_call *c) {     \
        switch (r->variant) {                                           \
        case PORTABLE: return name##_portable(r, c);                    \
            VECTOR_VARIANTS(name)                                       \
        case VARIANTS: return naive;                                    \
        default: return UNSUPPORTED;                                    \
        }                                                               \
    }
PICK_VARIANT(elementwise, elementwise_naive(r, c))
PICK_VARIANT(convolution, convolution_naive(r, c))
PICK_VARIANT(reduction, reduction_naive(r, c))
PICK_VARIANT(contraction, contraction_naive(r, c))
PICK_VARIANT(function, function_naive(r, c))
PICK_VARIANT(wide, wide_naive(r, c))
PICK_VARIANT(sampling, UNSUPPORTED) /* its naive form is the rule of `grid_sample` */
PICK_VARIANT(spread, UNSUPPORTED) /* its naive form is the rule of the gradients of `interpolate` */
PICK_VARIANT(scatter, scatter_naive(r, c))
PICK_VARIANT(program, UNSUPPORTED) /* its naive form are the separate kernels */
