/* Functions of float32 by vectors of float64, then one rounding by the mode. Included by kernels.c.
 *
 * Each core is written once, in operations that every processor has (no fused multiply-add, no approximate instruction), so
 * that all instruction sets give the same bytes. Arguments are reduced and series evaluated in float64 to within 2^-51 of
 * the exact value, relative, erfc within 3·2^-52 (tests/engines/native/test_functions.py measures each function). What is exact comes out exact:
 * exp(0), log2 of a power of two, log10 of a power of ten. The methods are those of Cody & Waite, Software Manual for the
 * Elementary Functions (1980), and, for erfc, of Shepherd & Laframboise, Math. Comp. 36 (1981): exp(x^2)·erfc(x)·(x + 3) as
 * a polynomial in (x - 3) / (x + 3). The terms are Chebyshev fits (mpmath's chebyfit) of the function that the comment
 * beside them names.
 *
 * Lanes outside of a core's range, such as a sine of more than 2^19 or the logarithm of zero, and the functions that have no
 * core, are computed by the C library (wide_value in scalar.c). */
#ifndef MORPHBITS_FUNCTIONS_H
#define MORPHBITS_FUNCTIONS_H

#include <string.h>

#include "elementwise.h"
#include "morphbits.h"
#include "narrow.h"
#include "precision.h"
#include "variant.h"

#define CORE static inline __attribute__((always_inline)) dvec
#define INF __builtin_inf()
#define TO_INTEGER 0x1.8p52 /* added: the low bits hold the nearest whole number */

/* (e^r - 1 - r) / r^2 for |r| <= ln(2) / 2 */
static const double EXP_TERMS[] = {
    0x1.0000000000000p-1, 0x1.5555555555557p-3, 0x1.5555555555556p-5, 0x1.11111111100cep-7, 0x1.6c16c16c162ccp-10,
    0x1.a01a01abef415p-13, 0x1.a01a01a6dcaffp-16, 0x1.71de021a90822p-19, 0x1.27e4db57442fbp-22, 0x1.af4e196027428p-26,
    0x1.1f731ea5352cap-29};
/* (log((1 + s) / (1 - s)) / s - 2) / z of z = s^2, |s| <= 0.1716 */
static const double LOG_TERMS[] = {
    0x1.5555555555558p-1, 0x1.99999999952abp-2, 0x1.2492492df7663p-2, 0x1.c71c62ddb431bp-3, 0x1.7462b6e311a89p-3,
    0x1.39fe16ad885a7p-3, 0x1.2b5bd9a316a24p-3};
/* (sin(r) / r - 1) / z of z = r^2, |r| <= pi / 4 */
static const double SIN_TERMS[] = {
    -0x1.5555555555555p-3, 0x1.1111111111110p-7, -0x1.a01a01a019933p-13, 0x1.71de3a54600cap-19,
    -0x1.ae645411d76a9p-26, 0x1.61217e4ef55f8p-33, -0x1.ab1764e7b2047p-41};
/* (cos(r) - 1 + z / 2) / z^2 of z = r^2, |r| <= pi / 4 */
static const double COS_TERMS[] = {
    0x1.5555555555555p-5, -0x1.6c16c16c16965p-10, 0x1.a01a019f4e480p-16, -0x1.27e4fa17532cap-22,
    0x1.1eeb685cba14cp-29, -0x1.907d3e3374a42p-37};
/* (sinh(x) / x - 1) / z of z = x^2, |x| <= 1 */
static const double SINH_TERMS[] = {
    0x1.5555555555555p-3, 0x1.11111111110fdp-7, 0x1.a01a01a01ee70p-13, 0x1.71de3a4e14f40p-19, 0x1.ae6460fae3728p-26,
    0x1.611cb330c1fe8p-33, 0x1.b41232cf9950fp-41};
/* (tanh(x) / x - 1) / z of z = x^2, |x| <= 0.7 */
static const double TANH_TERMS[] = {
    -0x1.5555555555555p-2, 0x1.11111111110dbp-3, -0x1.ba1ba1ba15861p-5, 0x1.664f48809992fp-6, -0x1.226e34f916b95p-7,
    0x1.d6d3baa4f206ap-9, -0x1.7da1d1b0939d9p-10, 0x1.3544f163cd1e5p-11, -0x1.f439b0c865fe5p-13,
    0x1.8f1028dcb4e22p-14, -0x1.2b412c35ca2c6p-15, 0x1.6f0c66e997b72p-17, -0x1.03bf3634a7169p-19};
/* (erf(x) / x - 2 / sqrt(pi)) / z of z = x^2, |x| <= 1 */
static const double ERF_TERMS[] = {
    -0x1.812746b0379e7p-2, 0x1.ce2f21a042bd7p-4, -0x1.b82ce312882f8p-6, 0x1.565bcd0e434bbp-8, -0x1.c02db3f4735cbp-11,
    0x1.f9a324ddf0f34p-14, -0x1.f4d21efdafc7dp-17, 0x1.b9e2333703249p-20, -0x1.5f39372686202p-23,
    0x1.f8d476ab1a455p-27, -0x1.3c1e91b012003p-30, 0x1.0f8a27a51ad26p-34};
/* exp(x^2)·erfc(x)·(x + 3) of (x - 3) / (x + 3), 0.5 <= x <= 11 */
static const double ERFCX_TERMS[] = {
    0x1.12f21ddd9f5e2p+0, -0x1.c44c471baa376p-1, 0x1.2e326945de2b6p-1, -0x1.3deb21415dc52p-2, 0x1.e995f11b172e5p-4,
    -0x1.b78993d6c2775p-6, -0x1.3dd3e7127da77p-10, 0x1.8dae3a30d4dd6p-9, -0x1.1f78e0deac8c5p-11,
    -0x1.2239010f656b2p-12, 0x1.c3250e9f3a7d7p-14, 0x1.fe00acd32d2e7p-16, -0x1.25165ed8a1748p-16,
    -0x1.3ecaf564ee60cp-18, 0x1.7289c9eb790e3p-19, 0x1.0c88c696f011ap-20, -0x1.a9f9f75f12bcbp-22,
    -0x1.f138c3b15ef32p-23, 0x1.09c8d23ff7dbcp-25, 0x1.680e785c0330bp-25, 0x1.f091d5342777dp-28};

#define LOG2_E 0x1.71547652b82fep+0
#define LN2 0x1.62e42fefa39efp-1
#define LN2_HIGH 0x1.62e42fefa3800p-1 /* 42 bits: times a whole number below 2^11 it is exact */
#define LN2_LOW 0x1.ef35793c76730p-45
#define LOG10_2_HIGH 0x1.34413509f7800p-2
#define LOG10_2_LOW 0x1.fef311f12b358p-46
#define LOG10_E 0x1.bcb7b1526e50ep-2
#define TWO_OVER_PI 0x1.45f306dc9c883p-1
#define HALF_PI_1 0x1.921fb54400000p+0 /* pi / 2 in three parts, the first two of 33 bits */
#define HALF_PI_2 0x1.0b4611a600000p-34
#define HALF_PI_3 0x1.3198a2e037073p-69
#define TWO_OVER_ROOT_PI 0x1.20dd750429b6dp+0

CORE choose(lvec where, dvec a, dvec b) { return (dvec)(((lvec)a & where) | ((lvec)b & ~where)); }
CORE with_sign_of(dvec x, dvec sign) { return (dvec)((lvec)x | ((lvec)sign & INT64_MIN)); } /* of x >= 0 */
CORE constant(double x) { return (dvec){0} + x; }

#define SERIES(name, z) series(name##_TERMS, sizeof(name##_TERMS) / sizeof(double), z)
CORE series(const double *terms, int count, dvec z) {
    dvec sum = constant(terms[count - 1]);
    for (int i = count - 2; i >= 0; --i) sum = sum * z + terms[i];
    return sum;
}

/* What lies beyond the limits is given the limit: there the function no longer changes its float32, in any mode. */
CORE within(dvec x, double low, double high) { return choose(x < low, constant(low), choose(x > high, constant(high), x)); }
/* A function's values at the infinities, and a NaN for a NaN. */
CORE ends(dvec x, dvec value, double at_low, double at_high) {
    value = choose(x == -INF, constant(at_low), choose(x == INF, constant(at_high), value));
    return choose(x == x, value, x);
}

/* ---- exponentials */

/* x = k·ln(2) + r with |r| <= ln(2) / 2; the low bits of `k` hold k. */
CORE exponential_rest(dvec x, lvec *k) {
    const dvec shifted = x * LOG2_E + TO_INTEGER, whole = shifted - TO_INTEGER;
    *k = (lvec)shifted;
    return (x - whole * LN2_HIGH) - whole * LN2_LOW;
}
CORE exponential_less_one(dvec r) { return r + r * r * SERIES(EXP, r); } /* |r| <= ln(2) / 2 */
CORE times_power(dvec x, lvec k) { return (dvec)((lvec)x + (k << 52)); }
CORE exponential(dvec x) { /* |x| <= 700 */
    lvec k;
    const dvec r = exponential_rest(x, &k);
    return times_power(1 + exponential_less_one(r), k);
}
CORE core_exp(dvec x) { return ends(x, exponential(within(x, -200, 200)), 0, INF); }
CORE core_exp2(dvec x) {
    const dvec inside = within(x, -300, 300), shifted = inside + TO_INTEGER;
    const dvec r = (inside - (shifted - TO_INTEGER)) * LN2;
    return ends(x, times_power(1 + exponential_less_one(r), (lvec)shifted), 0, INF);
}
CORE core_expm1(dvec x) {
    lvec k;
    const dvec rest = exponential_less_one(exponential_rest(within(x, -200, 200), &k));
    const dvec power = times_power(constant(1), k);
    return choose(x == 0, x, ends(x, power * rest + (power - 1), -1, INF));
}
CORE core_sinh(dvec x) {
    const dvec a = magnitude(x), z = a * a, e = exponential(within(a, 0, 200));
    const dvec value = choose(a < 1, a + a * (z * SERIES(SINH, z)), 0.5 * e - 0.5 / e);
    return ends(x, with_sign_of(value, x), -INF, INF);
}
CORE core_cosh(dvec x) {
    const dvec e = exponential(within(magnitude(x), 0, 200));
    return ends(x, 0.5 * e + 0.5 / e, INF, INF);
}
CORE core_tanh(dvec x) {
    const dvec a = magnitude(x), z = a * a, e = exponential(within(2 * a, 0, 200));
    const dvec value = choose(a < 0.7, a + a * (z * SERIES(TANH, z)), 1 - 2 / (e + 1));
    return ends(x, with_sign_of(value, x), -1, 1);
}

/* ---- logarithms */

/* log(u) = k·ln(2) + log(1 + f) with 1 + f in [sqrt(1/2), sqrt(2)); the latter is f - (half - rest). 0 < u < infinity. */
typedef struct {
    dvec k, f, half, rest;
} logarithm;
static inline __attribute__((always_inline)) logarithm logarithm_of(dvec u) {
    const uint64_t root = UINT64_C(0x3fe6a09e667f3bcd), one = UINT64_C(0x3ff0000000000000);
    const uvec field = ((uvec)u + (one - root)) >> 52; /* k + 1023 */
    logarithm l;
    l.k = (dvec)(field | UINT64_C(0x4330000000000000)) - (0x1p52 + 1023);
    l.f = (dvec)((uvec)u - ((field - 1023) << 52)) - 1;
    const dvec s = l.f / (2 + l.f), z = s * s;
    l.half = 0.5 * l.f * l.f;
    l.rest = s * (l.half + z * SERIES(LOG, z));
    return l;
}
CORE core_log(dvec x) {
    const logarithm l = logarithm_of(x);
    return l.k * LN2_HIGH + (l.f - (l.half - (l.rest + l.k * LN2_LOW)));
}
CORE core_log2(dvec x) {
    const logarithm l = logarithm_of(x);
    return l.k + (l.f - (l.half - l.rest)) * LOG2_E;
}
CORE core_log10(dvec x) { /* a value that close to a whole number is one: the argument was a power of ten */
    const logarithm l = logarithm_of(x);
    const dvec value = l.k * LOG10_2_HIGH + (l.k * LOG10_2_LOW + (l.f - (l.half - l.rest)) * LOG10_E);
    const dvec whole = (value + TO_INTEGER) - TO_INTEGER;
    return choose(magnitude(value - whole) < 0x1p-40 * magnitude(whole), whole, value);
}
CORE core_log1p(dvec x) {
    const dvec u = 1 + x, lost = (x - (u - 1)) / u;
    const logarithm l = logarithm_of(u);
    return choose(x == 0, x, l.k * LN2_HIGH + (l.f - (l.half - (l.rest + (l.k * LN2_LOW + lost)))));
}

/* ---- sines; |x| <= 2^19, so that k·HALF_PI_1 and k·HALF_PI_2 are exact */

static inline __attribute__((always_inline)) lvec sine_and_cosine(dvec x, dvec *sine, dvec *cosine) {
    const dvec shifted = x * TWO_OVER_PI + TO_INTEGER, k = shifted - TO_INTEGER;
    const dvec t = x - k * HALF_PI_1, w = k * HALF_PI_2; /* r + low = t - w - k·HALF_PI_3 */
    const dvec y = t - w, back = y - t, lost = (t - (y - back)) - (w + back);
    const dvec third = k * HALF_PI_3 - lost, r = y - third, low = (y - r) - third;
    const dvec z = r * r, half = 0.5 * z, near_one = 1 - half;
    *sine = r + (r * (z * SERIES(SIN, z)) + low * near_one);
    *cosine = near_one + (((1 - near_one) - half) + (z * z * SERIES(COS, z) - r * low));
    return (lvec)shifted; /* the low bits hold k */
}
CORE core_sin(dvec x) {
    dvec sine, cosine;
    const lvec k = sine_and_cosine(magnitude(x), &sine, &cosine);
    return (dvec)((lvec)choose(-(k & 1), cosine, sine) ^ (k >> 1 << 63) ^ ((lvec)x & INT64_MIN));
}
CORE core_cos(dvec x) {
    dvec sine, cosine;
    const lvec k = sine_and_cosine(magnitude(x), &sine, &cosine);
    return (dvec)((lvec)choose(-(k & 1), sine, cosine) ^ ((k + 1) >> 1 << 63));
}
CORE core_tan(dvec x) {
    dvec sine, cosine;
    const lvec k = sine_and_cosine(magnitude(x), &sine, &cosine), odd = -(k & 1);
    const dvec value = choose(odd, -cosine, sine) / choose(odd, sine, cosine);
    return (dvec)((lvec)value ^ ((lvec)x & INT64_MIN));
}

/* ---- error functions */

CORE small_erf(dvec a) { /* 0 <= a <= 1 */
    const dvec z = a * a;
    return a * TWO_OVER_ROOT_PI + a * (z * SERIES(ERF, z));
}
CORE large_erfc(dvec a) { /* a >= 0.5; the square of a float32 is exact */
    const dvec inside = within(a, 0.5, 11);
    const dvec value = exponential(-(inside * inside)) * SERIES(ERFCX, (inside - 3) / (inside + 3)) / (inside + 3);
    return choose(a > 11, constant(0x1p-300), value);
}
CORE core_erf(dvec x) {
    const dvec a = magnitude(x);
    return ends(x, with_sign_of(choose(a < 1, small_erf(a), 1 - large_erfc(a)), x), -1, 1);
}
CORE core_erfc(dvec x) {
    const dvec a = magnitude(x), large = large_erfc(a), small = small_erf(a);
    const dvec inner = 1 - with_sign_of(small, x);
    return ends(x, choose(a < 0.5, inner, choose(x < 0, 2 - large, large)), 2, 0);
}

/* ---- chunks */

/* `wide` of n float32 arguments; n is a multiple of the lanes. `ordinary`: the lanes of x that the core takes. */
#define WIDE_LOOP(name, NAME, ordinary)                                                                      \
    static __attribute__((noinline)) void wide_##name(int64_t n, const float *argument, double *wide) {     \
        for (int64_t i = 0; i < n; i += WIDE_LANES) {                                                       \
            const dvec x = __builtin_convertvector(*(const narrow_vec *)(argument + i), dvec);              \
            const lvec takes = ordinary;                                                                    \
            *(dvec *)(wide + i) = core_##name(x);                                                           \
            int64_t all = -1;                                                                               \
            for (int l = 0; l < WIDE_LANES; ++l) all &= takes[l];                                           \
            for (int l = 0; !all && l < WIDE_LANES; ++l)                                                    \
                if (!takes[l]) wide[i + l] = wide_value(NAME, argument[i + l], 0);                          \
        }                                                                                                   \
    }
#define EVERYWHERE ((lvec){0} - 1)
WIDE_LOOP(exp, EXP, EVERYWHERE)
WIDE_LOOP(exp2, EXP2, EVERYWHERE)
WIDE_LOOP(expm1, EXPM1, EVERYWHERE)
WIDE_LOOP(sinh, SINH, EVERYWHERE)
WIDE_LOOP(cosh, COSH, EVERYWHERE)
WIDE_LOOP(tanh, TANH, EVERYWHERE)
WIDE_LOOP(erf, ERF, EVERYWHERE)
WIDE_LOOP(erfc, ERFC, EVERYWHERE)
WIDE_LOOP(log, LOG, (x > 0) & (x < INF))
WIDE_LOOP(log2, LOG2, (x > 0) & (x < INF))
WIDE_LOOP(log10, LOG10, (x > 0) & (x < INF))
WIDE_LOOP(log1p, LOG1P, (x > -1) & (x < INF))
WIDE_LOOP(sin, SIN, magnitude(x) <= 0x1p19)
WIDE_LOOP(cos, COS, magnitude(x) <= 0x1p19)
WIDE_LOOP(tan, TAN, magnitude(x) <= 0x1p19)

static void flush_subnormals(int64_t n, float *x) {
    for (int64_t i = 0; i < n; ++i) x[i] = __builtin_fabsf(x[i]) < 0x1p-126f ? __builtin_copysignf(0, x[i]) : x[i];
}

static void wide_chunk(int function, int64_t n, const float *a, const float *b, double *wide) {
    const int64_t whole = (n + WIDE_LANES - 1) / WIDE_LANES * WIDE_LANES;
    switch (function) {
    case EXP: wide_exp(whole, a, wide); break;
    case EXP2: wide_exp2(whole, a, wide); break;
    case EXPM1: wide_expm1(whole, a, wide); break;
    case SINH: wide_sinh(whole, a, wide); break;
    case COSH: wide_cosh(whole, a, wide); break;
    case TANH: wide_tanh(whole, a, wide); break;
    case ERF: wide_erf(whole, a, wide); break;
    case ERFC: wide_erfc(whole, a, wide); break;
    case LOG: wide_log(whole, a, wide); break;
    case LOG2: wide_log2(whole, a, wide); break;
    case LOG10: wide_log10(whole, a, wide); break;
    case LOG1P: wide_log1p(whole, a, wide); break;
    case SIN: wide_sin(whole, a, wide); break;
    case COS: wide_cos(whole, a, wide); break;
    case TAN: wide_tan(whole, a, wide); break;
    default:
        for (int64_t i = 0; i < n; ++i) wide[i] = wide_value(function, a[i], b ? b[i] : 0);
    }
}

/* n arguments and the float64 values of the function. */
typedef struct {
    float first[CHUNK], second[CHUNK];
    double wide[CHUNK] __attribute__((aligned(VECTOR_BYTES)));
} function_chunk;

static void compute_wide(const rounding *r, control base, const function_call *c, int64_t start, int64_t n, function_chunk *f) {
    for (int64_t i = n & -WIDE_LANES; i < CHUNK && i < n + WIDE_LANES; ++i) f->first[i] = 1, f->wide[i] = 1;
    memcpy(f->first, (const float *)c->a + start, sizeof(float) * (size_t)n);
    if (c->b) memcpy(f->second, (const float *)c->b + start, sizeof(float) * (size_t)n);
    if (r->flush) flush_subnormals(n, f->first);
    if (r->flush && c->b) flush_subnormals(n, f->second);
    control_set(control_with(base, NEAREST, 0));
    wide_chunk(c->function, n, f->first, c->b ? f->second : NULL, f->wide);
}

/* ---- float32 to 16 bits: `narrowed` of scalar.c, on the integer bits --------------------------------------------------- */

/* What a fraction of 32 bits must exceed to be rounded away from zero. */
static void thresholds(const rounding *r, word_block block, uint32_t element, int64_t n, const uint32_t *restrict x,
                       uint32_t *restrict threshold) {
    if (r->mode == NEAREST) memset(threshold, 0, sizeof(uint32_t) * (size_t)n); /* and `fit16` adds the half */
    if (r->mode == TOWARD_ZERO) memset(threshold, 0xff, sizeof(uint32_t) * (size_t)n);
    if (r->mode == RANDOM || r->mode == NEARNESS) element_words(n, block, element, threshold);
    if (r->mode == RANDOM) for (int64_t i = 0; i < n; ++i) threshold[i] = ((threshold[i] ^ x[i]) >> 31) - 1;
    if (r->mode == UPWARD) for (int64_t i = 0; i < n; ++i) threshold[i] = 0 - (x[i] >> 31);
    if (r->mode == DOWNWARD) for (int64_t i = 0; i < n; ++i) threshold[i] = (x[i] >> 31) - 1;
}

/* `least`: the exponent field of the least normal number; the last place of those below stays. */
static inline __attribute__((always_inline)) void fit16(const rounding *r, int64_t n, const uint32_t *restrict x,
                                                        const uint32_t *restrict threshold, uint32_t *restrict out,
                                                        const uint32_t drop, const uint32_t least, const uint32_t largest) {
    const uint32_t halves = r->mode == NEAREST ? ~0u : 0, infinity = 0x7f800000u, smallest = (least + drop - 23) << 23;
    const int beyond = r->mode == NEAREST || r->mode == NEARNESS; /* what is too large becomes infinite */
    for (int64_t i = 0; i < n; ++i) {
        const uint32_t magnitude = x[i] & 0x7fffffffu, field = magnitude >> 23, exponent = field > 1 ? field : 1;
        const uint32_t significand = (magnitude & 0x7fffffu) | (field ? 0x800000u : 0);
        const uint32_t falls = exponent < least ? drop + (least - exponent) : drop; /* so many bits fall off */
        const uint32_t bits = falls < 24 ? falls : 24, step = 1u << bits, low = significand & (step - 1);
        const uint32_t excess = falls < 32 ? 0 : falls - 32 < 24 ? falls - 32 : 24, shift = falls < 32 ? 32 - falls : 0;
        const uint32_t fraction = ((low << shift) + ((1u << excess) - 1)) >> excess; /* rounded up: zero only if exact */
        const uint32_t odd = (significand >> bits) & 1, limit = threshold[i] + (halves & (0x80000000u - odd));
        const uint32_t away = fraction > limit, inner = falls < 24 ? magnitude & ~(step - 1) : 0;
        const uint32_t next = falls < 24 ? inner + step : smallest;
        uint32_t result = away ? next : inner;
        result = result > largest ? (beyond || threshold[i] == 0 ? infinity : largest) : result;
        result = r->flush && result < least << 23 ? 0 : result;
        result = magnitude >= infinity ? infinity : result;
        out[i] = magnitude > infinity ? 0x7fc00000u : (x[i] & 0x80000000u) | result;
    }
}
static __attribute__((noinline)) void fit_float16(const rounding *r, int64_t n, const uint32_t *x, const uint32_t *threshold,
                                                  uint32_t *out) {
    fit16(r, n, x, threshold, out, 13, 113, 0x477fe000u); /* 65504 */
}
static __attribute__((noinline)) void fit_bfloat16(const rounding *r, int64_t n, const uint32_t *x, const uint32_t *threshold,
                                                   uint32_t *out) {
    fit16(r, n, x, threshold, out, 16, 1, 0x7f7f0000u);
}

static int to_16_bits(const rounding *r, const function_call *c) {
    const word_block block = block_constants(r->key, 0);
#pragma omp parallel for schedule(static) num_threads(r->threads) if (c->count >= 32 * CHUNK)
    for (int64_t start = 0; start < c->count; start += CHUNK) {
        const int64_t n = c->count - start < CHUNK ? c->count - start : CHUNK;
        const uint32_t *x = (const uint32_t *)c->a + start;
        uint32_t threshold[CHUNK], *out = (uint32_t *)c->out + start;
        thresholds(r, block, (uint32_t)start, n, x, threshold);
        if (c->function == TO_FLOAT16) fit_float16(r, n, x, threshold, out);
        else fit_bfloat16(r, n, x, threshold, out);
    }
    return OK;
}

int FN(function)(const rounding *r, const function_call *c) {
    if (c->type != FLOAT32) return function_naive(r, c);
    if (c->function >= TO_FLOAT16) return to_16_bits(r, c);
    const word_block block = block_constants(r->key, 0);
    const elementwise_call narrow = {.operation = NARROW, .type = FLOAT32};
#pragma omp parallel num_threads(r->threads) if (c->count >= 8 * CHUNK)
    {
        const control saved = control_get();
        function_chunk f;
        float rounded[CHUNK];
#pragma omp for schedule(static)
        for (int64_t start = 0; start < c->count; start += CHUNK) {
            const int64_t n = c->count - start < CHUNK ? c->count - start : CHUNK;
            float *out = (float *)c->out + start;
            compute_wide(r, saved, c, start, n, &f);
            if (!by_instruction(r) && !reduced(r) && narrow_normal(r, block, (uint32_t)start, n, f.wide, rounded)) {
                memcpy(out, rounded, sizeof(float) * (size_t)n);
            } else {
                control_set(control_with(saved, r->mode, r->flush));
                chunk(r, saved, &narrow, block, (uint32_t)start, n, f.wide, NULL, out);
            }
        }
        control_set(saved);
    }
    return OK;
}

int FN(wide)(const rounding *r, const wide_call *c) {
#pragma omp parallel num_threads(r->threads)
    {
        const control saved = control_get();
        function_chunk f;
#pragma omp for schedule(static)
        for (int64_t start = 0; start < c->count; start += CHUNK) {
            const int64_t n = c->count - start < CHUNK ? c->count - start : CHUNK;
            compute_wide(r, saved, c, start, n, &f);
            memcpy((double *)c->out + start, f.wide, sizeof(double) * (size_t)n);
        }
        control_set(saved);
    }
    return OK;
}

#endif
