/* The fast kernels, compiled once for each instruction set: -DVARIANT=portable|avx2|avx512. */
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "elementwise.h"
#include "functions.h"
#include "morphbits.h"
#include "variant.h"

typedef uint32_t bits_f32;
typedef uint64_t bits_f64;

/* Memory for vectors, which then cross no line of the cache. */
static inline void *aligned(int64_t bytes) { return aligned_alloc(64, ((size_t)bytes + 63) / 64 * 64); }

#define SLICE 1024 /* terms of a sum over which weights stay in the cache; a multiple of 32, the operations of a random word */
#define SAFE_EXPONENT (2 * MANTISSA + 1 - BIAS) /* see `least` in vector.h */

/* float32 */
#define T float
#define S(name) name##_f32
#define SINGLE
#define LANES (VECTOR_BYTES / 4)
#define QUIET_NAN 0x7fc00000
#define MANTISSA 23
#define BIAS 127
#define FMA_SCALAR __builtin_fmaf
#define FLOOR __builtin_floorf
#define STOCHASTIC_SUM(a, b, word) stochastic_f32((double)(a) + (double)(b), word)
#if defined(__AVX512F__)
#define DIRECTED
#define SPLAT _mm512_set1_ps
#define FMA_VECTOR(a, b, c) _mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c))
#elif defined(__AVX2__)
#define SPLAT _mm256_set1_ps
#define FMA_VECTOR(a, b, c) _mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c))
#endif
#include "vector.h"

#include "convolution.h"
#include "contraction.h"
#include "reduction.h"
#include "rows.h"
#include "sampling.h"
#include "spread.h"
#include "scatter.h"
#include "reduced.h"
#undef V
#undef I
#undef W
#undef MINUS_ZERO
#undef BY_IFMA
#undef T
#undef S
#undef SINGLE
#undef LANES
#undef QUIET_NAN
#undef MANTISSA
#undef BIAS
#undef FMA_SCALAR
#undef FLOOR
#undef STOCHASTIC_SUM
#undef FMA_VECTOR
#undef SPLAT
#undef DIRECTED

/* float64 */
#define T double
#define S(name) name##_f64
#define LANES (VECTOR_BYTES / 8)
#define QUIET_NAN INT64_C(0x7ff8000000000000)
#define MANTISSA 52
#define BIAS 1023
#define FMA_SCALAR __builtin_fma
#define FLOOR __builtin_floor
#define STOCHASTIC_SUM stochastic_add_f64
#if defined(__AVX512F__)
#define SPLAT _mm512_set1_pd
#define FMA_VECTOR(a, b, c) _mm512_fmadd_pd((__m512d)(a), (__m512d)(b), (__m512d)(c))
#elif defined(__AVX2__)
#define SPLAT _mm256_set1_pd
#define FMA_VECTOR(a, b, c) _mm256_fmadd_pd((__m256d)(a), (__m256d)(b), (__m256d)(c))
#endif
#include "vector.h"

#include "convolution.h"
#include "contraction.h"
#include "reduction.h"
#include "rows.h"
#include "sampling.h"
#include "spread.h"
#include "scatter.h"

int FN(convolution)(const rounding *r, const convolution_call *c) {
    if (c->type == FLOAT64) return convolve_f64(r, c);
    return reduced(r) || c->bias_first == START ? convolve_reduced(r, c) : convolve_f32(r, c);
}

int FN(reduction)(const rounding *r, const reduction_call *c) {
    return c->type == FLOAT32 ? reduce_f32(r, c) : reduce_f64(r, c);
}

int FN(contraction)(const rounding *r, const contraction_call *c) {
    return c->type == FLOAT32 ? contract_f32(r, c) : contract_f64(r, c);
}

int FN(sampling)(const rounding *r, const sampling_call *c) {
    return c->type == FLOAT32 ? sample_f32(r, c) : sample_f64(r, c);
}

int FN(spread)(const rounding *r, const spread_call *c) {
    return c->type == FLOAT32 ? spread_f32(r, c) : spread_f64(r, c);
}

int FN(scatter)(const rounding *r, const scatter_call *c) {
    const int together = c->index_step == 0 && c->source_step == 1 && c->output_step == 1 && c->outer >= 16;
    if (!together) return scatter_naive(r, c);
    return c->type == FLOAT32 ? scatter_side_by_side_f32(r, c) : scatter_side_by_side_f64(r, c);
}

#include "program.h"
