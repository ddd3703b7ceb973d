/* Directed rounding of a chunk in one loop, where the instruction itself holds the direction (AVX-512): both neighbours of
 * the exact result, and one of them picked by the highest bit of the element's random word. Included by kernels.c before
 * elementwise.h. What it writes is what `chunk` of elementwise.h writes in several loops. */
#ifndef MORPHBITS_DIRECTED_H
#define MORPHBITS_DIRECTED_H

#include "morphbits.h"

/* Whether instructions round an operation of this mode in both directions. */
static inline int by_instruction(const rounding *r) {
#if defined(__AVX512F__)
    return r->mode == RANDOM || r->mode == UPWARD || r->mode == DOWNWARD;
#else
    (void)r;
    return 0;
#endif
}

#if defined(__AVX512F__)
#define TO_UP (_MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC)
#define TO_DOWN (_MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)

/* A vector whose highest bits are those of random_word, for 16 elements; `x` is element·multiplier + increment. */
static inline __m512i highest_bits(word_block c, __m512i x) {
    const uint32_t inner = c.inner ^ (c.inner >> 15); /* a shift of an exclusive or is one of both: three in one instruction */
    x = _mm512_mullo_epi32(_mm512_xor_si512(x, _mm512_srli_epi32(x, 16)), _mm512_set1_epi32(0x7feb352d));
    x = _mm512_ternarylogic_epi32(x, _mm512_srli_epi32(x, 15), _mm512_set1_epi32((int)inner), 0x96);
    return _mm512_mullo_epi32(x, _mm512_set1_epi32((int)0x846ca68bu));
}
static inline __m512i first_products(word_block c, uint32_t element) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i number = _mm512_add_epi32(_mm512_set1_epi32((int)element), lane);
    return _mm512_add_epi32(_mm512_mullo_epi32(number, _mm512_set1_epi32((int)c.multiplier)),
                            _mm512_set1_epi32((int)c.increment));
}
/* Bit l is set where element l of 16 is rounded upward. */
static inline __mmask16 ups_of(int mode, word_block c, __m512i x) {
    return mode == RANDOM ? _mm512_movepi32_mask(highest_bits(c, x)) : mode == UPWARD ? 0xffff : 0;
}

/* Where a sum rounds down to -0 the exact result is a zero, whose sign is that of the upward one (see PICK in elementwise.h);
 * other operations' zeros have one sign in both directions. */
static inline __mmask16 zeros_up_f32(__m512 down) {
    return _mm512_cmpeq_epi32_mask(_mm512_castps_si512(down), _mm512_set1_epi32((int)0x80000000u));
}
static inline __mmask8 zeros_up_f64(__m512d down) {
    return _mm512_cmpeq_epi64_mask(_mm512_castpd_si512(down), _mm512_set1_epi64(INT64_MIN));
}
static inline __m512 one_nan_ps(__m512 x) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), x, _mm512_castsi512_ps(_mm512_set1_epi32(0x7fc00000)));
}
static inline __m512d one_nan_pd(__m512d x) {
    return _mm512_mask_blend_pd(_mm512_cmp_pd_mask(x, x, _CMP_UNORD_Q), x,
                                _mm512_castsi512_pd(_mm512_set1_epi64(INT64_C(0x7ff8000000000000))));
}

/* x + y for the sums of rows.h: all upward, then those that go downward; a zero stays as it is upward. */
#define KEEP_ALL_BUT_ZEROS 0x11111011 /* for vfixupimm: the sum, but for kind 2 of numbers, zeros, what was rounded upward */
static inline __m512 directed_sum_f32(__m512 x, __m512 y, __mmask16 downs) {
    const __m512 up = _mm512_add_round_ps(x, y, TO_UP);
    return _mm512_fixupimm_ps(up, _mm512_mask_add_round_ps(up, downs, x, y, TO_DOWN), _mm512_set1_epi32(KEEP_ALL_BUT_ZEROS), 0);
}
static inline __m512d directed_sum_f64(__m512d x, __m512d y, __mmask8 downs) {
    const __m512d up = _mm512_add_round_pd(x, y, TO_UP);
    return _mm512_fixupimm_pd(up, _mm512_mask_add_round_pd(up, downs, x, y, TO_DOWN), _mm512_set1_epi64(KEEP_ALL_BUT_ZEROS), 0);
}

/* Loops over n elements. `step` is computed with `here` as a constant for whole vectors, and once more for what is left; it
 * has the results rounded down, and writes over them, where `ups` is set, those that are rounded up. */
#define DIRECTED_AT static inline __attribute__((always_inline)) void
#define DIRECTED_F32(name, sums, down, up, last)                                                                              \
    DIRECTED_AT name##_f32_at(int mode, word_block c, __m512i product, const __mmask16 here, const float *a, const float *b,  \
                              float *out) {                                                                                  \
        const __m512 x = here == 0xffff ? _mm512_loadu_ps(a) : _mm512_maskz_loadu_ps(here, a);                                \
        const __m512 y = !b ? x : here == 0xffff ? _mm512_loadu_ps(b) : _mm512_maskz_loadu_ps(here, b);                       \
        __m512 result = down;                                                                                                \
        const __mmask16 ups = ups_of(mode, c, product) | (sums ? zeros_up_f32(result) : 0);                                   \
        (void)y;                                                                                                             \
        result = up;                                                                                                         \
        result = one_nan_ps(last);                                                                                           \
        if (here == 0xffff) _mm512_storeu_ps(out, result);                                                                   \
        else _mm512_mask_storeu_ps(out, here, result);                                                                       \
    }                                                                                                                        \
    static __attribute__((noinline)) void directed_##name##_f32(int mode, word_block c, uint32_t element, int64_t n,         \
                                                                const float *a, const float *b, float *out) {                \
        const __m512i step = _mm512_set1_epi32((int)(16 * c.multiplier));                                                    \
        __m512i product = first_products(c, element);                                                                        \
        int64_t i = 0;                                                                                                       \
        for (; i + 16 <= n; i += 16, product = _mm512_add_epi32(product, step))                                              \
            name##_f32_at(mode, c, product, 0xffff, a + i, b ? b + i : b, out + i);                                          \
        if (i < n) name##_f32_at(mode, c, product, (__mmask16)((1u << (n - i)) - 1), a + i, b ? b + i : b, out + i);         \
    }
#define DIRECTED_F64(name, sums, down, up, last)                                                                             \
    DIRECTED_AT name##_f64_at(__mmask8 ups, const __mmask8 here, const double *a, const double *b, double *out) {             \
        const __m512d x = here == 0xff ? _mm512_loadu_pd(a) : _mm512_maskz_loadu_pd(here, a);                                 \
        const __m512d y = !b ? x : here == 0xff ? _mm512_loadu_pd(b) : _mm512_maskz_loadu_pd(here, b);                        \
        __m512d result = down;                                                                                               \
        if (sums) ups |= zeros_up_f64(result);                                                                               \
        (void)y;                                                                                                             \
        result = up;                                                                                                         \
        result = one_nan_pd(last);                                                                                           \
        if (here == 0xff) _mm512_storeu_pd(out, result);                                                                     \
        else _mm512_mask_storeu_pd(out, here, result);                                                                       \
    }                                                                                                                        \
    static __attribute__((noinline)) void directed_##name##_f64(int mode, word_block c, uint32_t element, int64_t n,         \
                                                                const double *a, const double *b, double *out) {             \
        const __m512i step = _mm512_set1_epi32((int)(16 * c.multiplier));                                                    \
        __m512i product = first_products(c, element);                                                                        \
        for (int64_t j = 0; j < n; j += 16, product = _mm512_add_epi32(product, step)) {                                     \
            const __mmask16 ups = ups_of(mode, c, product);                                                                  \
            for (int64_t i = j; i < j + 16 && i < n; i += 8) {                                                               \
                const __mmask8 some = (__mmask8)(ups >> (i - j));                                                                        \
                if (n - i >= 8) name##_f64_at(some, 0xff, a + i, b ? b + i : b, out + i);                                    \
                else name##_f64_at(some, (__mmask8)((1u << (n - i)) - 1), a + i, b ? b + i : b, out + i);                    \
            }                                                                                                                \
        }                                                                                                                    \
    }
#define DIRECTED_OF_TWO(name, sums)                                                                                         \
    DIRECTED_F32(name, sums, _mm512_##name##_round_ps(x, y, TO_DOWN), _mm512_mask_##name##_round_ps(result, ups, x, y, TO_UP),  \
                 result)                                                                                                      \
    DIRECTED_F64(name, sums, _mm512_##name##_round_pd(x, y, TO_DOWN), _mm512_mask_##name##_round_pd(result, ups, x, y, TO_UP),  \
                 result)
DIRECTED_OF_TWO(add, 1)
DIRECTED_OF_TWO(sub, 1)
DIRECTED_OF_TWO(mul, 0)
DIRECTED_OF_TWO(div, 0)
DIRECTED_F32(sqrt, 0, _mm512_sqrt_round_ps(x, TO_DOWN), _mm512_mask_sqrt_round_ps(result, ups, x, TO_UP), result)
DIRECTED_F64(sqrt, 0, _mm512_sqrt_round_pd(x, TO_DOWN), _mm512_mask_sqrt_round_pd(result, ups, x, TO_UP), result)
#define POSITIVE_F32 _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ)
#define POSITIVE_F64 _mm512_cmp_pd_mask(x, _mm512_setzero_pd(), _CMP_GT_OQ)
DIRECTED_F32(leaky_relu, 0, _mm512_mul_round_ps(x, y, TO_DOWN), _mm512_mask_mul_round_ps(result, ups, x, y, TO_UP),
             _mm512_mask_blend_ps(POSITIVE_F32, result, x))
DIRECTED_F64(leaky_relu, 0, _mm512_mul_round_pd(x, y, TO_DOWN), _mm512_mask_mul_round_pd(result, ups, x, y, TO_UP),
             _mm512_mask_blend_pd(POSITIVE_F64, result, x))

/* Products that are all exact; returns 0 if one is not. */
static __attribute__((noinline)) int directed_exact_mul(int64_t n, const float *a, const float *b, float *out) {
    __mmask16 inexact = 0;
    for (int64_t i = 0; i < n && !inexact; i += 16) {
        const __mmask16 here = n - i < 16 ? (__mmask16)((1u << (n - i)) - 1) : 0xffff;
        const __m512 x = _mm512_maskz_loadu_ps(here, a + i), y = _mm512_maskz_loadu_ps(here, b + i);
        const __m512 down = _mm512_mul_round_ps(x, y, TO_DOWN);
        inexact = _mm512_cmp_ps_mask(down, _mm512_mul_round_ps(x, y, TO_UP), _CMP_NEQ_OQ);
        _mm512_mask_storeu_ps(out + i, here, one_nan_ps(down));
    }
    return !inexact;
}

/* 16 float64 as float32. */
static inline __m512 narrowed_by(__mmask16 ups, __m512d low, __m512d high) {
    const __m256 first = _mm512_cvt_roundpd_ps(low, TO_DOWN), second = _mm512_cvt_roundpd_ps(high, TO_DOWN);
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_mask_cvt_roundpd_ps(first, (__mmask8)ups, low, TO_UP)),
                              _mm512_mask_cvt_roundpd_ps(second, (__mmask8)(ups >> 8), high, TO_UP), 1);
}
static __attribute__((noinline)) void directed_narrow(int mode, word_block c, uint32_t element, int64_t n, const double *a,
                                                      float *out) {
    const __m512i step = _mm512_set1_epi32((int)(16 * c.multiplier));
    __m512i product = first_products(c, element);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16, product = _mm512_add_epi32(product, step)) {
        const __m512 result = narrowed_by(ups_of(mode, c, product), _mm512_loadu_pd(a + i), _mm512_loadu_pd(a + i + 8));
        _mm512_storeu_ps(out + i, one_nan_ps(result));
    }
    if (i == n) return;
    const __mmask16 here = (__mmask16)((1u << (n - i)) - 1);
    const __m512d low = _mm512_maskz_loadu_pd((__mmask8)here, a + i), high = _mm512_maskz_loadu_pd((__mmask8)(here >> 8), a + i + 8);
    _mm512_mask_storeu_ps(out + i, here, one_nan_ps(narrowed_by(ups_of(mode, c, product), low, high)));
}

/* One elementary operation on n elements, from output element `element` on, in mode RANDOM, UPWARD or DOWNWARD. `out` may
 * be an operand. */
static void directed(int mode, int operation, int type, word_block c, uint32_t element, int64_t n, const void *a,
                     const void *b, void *out) {
#define DIRECTED_CASE(NAME, name)                                                     \
    case NAME:                                                                        \
        if (type == FLOAT32) directed_##name##_f32(mode, c, element, n, a, b, out);   \
        else directed_##name##_f64(mode, c, element, n, a, b, out);                   \
        break;
    switch (operation) {
        DIRECTED_CASE(ADD, add)
        DIRECTED_CASE(SUB, sub)
        DIRECTED_CASE(MUL, mul)
        DIRECTED_CASE(DIV, div)
        DIRECTED_CASE(SQRT, sqrt)
        DIRECTED_CASE(LEAKY_RELU, leaky_relu)
    case NARROW: directed_narrow(mode, c, element, n, a, out); break;
    }
#undef DIRECTED_CASE
}
#undef TO_UP
#undef TO_DOWN
#endif

#endif
