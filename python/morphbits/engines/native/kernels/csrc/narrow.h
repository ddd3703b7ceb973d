/* Vectors of float64, and one rounding of them to float32. Included by kernels.c. */
#ifndef MORPHBITS_NARROW_H
#define MORPHBITS_NARROW_H

#include "morphbits.h"
#include "variant.h"

typedef double dvec __attribute__((vector_size(VECTOR_BYTES), may_alias));
typedef int64_t lvec __attribute__((vector_size(VECTOR_BYTES), may_alias));
typedef uint64_t uvec __attribute__((vector_size(VECTOR_BYTES), may_alias));
typedef float narrow_vec __attribute__((vector_size(VECTOR_BYTES / 2), aligned(4), may_alias));
#define WIDE_LANES (VECTOR_BYTES / 8)

/* As many float32 as float64, and back. The compiler converts eight in two halves. */
static inline dvec widened(const float *x) {
#if defined(__AVX512F__)
    return (dvec)_mm512_cvtps_pd(_mm256_loadu_ps(x));
#else
    return __builtin_convertvector(*(const narrow_vec *)x, dvec);
#endif
}
static inline narrow_vec narrowed(dvec x) { /* by the control register */
#if defined(__AVX512F__)
    return (narrow_vec)_mm512_cvtpd_ps((__m512d)x);
#else
    return __builtin_convertvector(x, narrow_vec);
#endif
}
static inline dvec magnitude(dvec x) { return (dvec)((lvec)x & INT64_MAX); }

/* Rounds n float64 to float32 by the mode, on their integer bits: 29 bits fall off, and what is added to them before decides
 * whether they carry. Returns 0, with nothing rounded, where a value is no normal float32 and no zero. */
static __attribute__((noinline)) int narrow_normal(const rounding *r, word_block block, uint32_t element, int64_t n,
                                                   const double *wide, float *out) {
    typedef uint32_t word_vec __attribute__((vector_size(VECTOR_BYTES / 2)));
    const uvec falls = (uvec){0} + ((UINT64_C(1) << 29) - 1);
    const int64_t least = INT64_C(0x3810000000000000), beyond = INT64_C(0x47f0000000000000); /* 2^-126, 2^128 */
    lvec odd = {0};
    word_vec number;
    for (int l = 0; l < WIDE_LANES; ++l) number[l] = element + (uint32_t)l;
    for (int64_t i = 0; i < n; i += WIDE_LANES, number += WIDE_LANES) {
        const dvec x = *(const dvec *)(wide + i);
        const lvec size = (lvec)magnitude(x), negative = (lvec)x < 0;
        odd |= ((size < least) & (size != 0)) | (size >= beyond);
        word_vec word = number * block.multiplier + block.increment; /* random_word */
        SCRAMBLE(word, block.inner);
        uvec add = {0};
        if (r->mode == NEARNESS) add = __builtin_convertvector(word >> 3, uvec); /* the first draw of a block */
        else if (r->mode == UPWARD) add = (uvec)~negative & falls;
        else if (r->mode == DOWNWARD) add = (uvec)negative & falls;
        else if (r->mode == RANDOM) add = ((uvec){0} - __builtin_convertvector(word >> 31, uvec)) ^ (uvec)negative, add &= falls;
        const dvec rounded = r->mode == NEAREST ? x : (dvec)(((uvec)x + add) & ~falls);
        *(narrow_vec *)(out + i) = narrowed(rounded);
    }
    int64_t any = 0;
    for (int l = 0; l < WIDE_LANES; ++l) any |= odd[l];
    return !any;
}

#endif
