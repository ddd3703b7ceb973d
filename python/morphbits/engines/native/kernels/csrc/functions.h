/* Functions of float32 by vectors of float64, then one rounding by the mode. Included by kernels.c.
 *
 * Each core is written once, in operations that are the same on every processor: those of IEEE 754, the fused
 * multiply-add among them (decision 0015), and small tables; no approximate instruction. So all instruction sets give the
 * same bytes. Arguments are reduced and series evaluated in float64 to within 2^-51 of the exact value, relative, erfc
 * within 3·2^-52 (tests/engines/native/test_functions.py measures each function). What is exact comes out exact: exp(0),
 * log2 of a power of two, log10 of a power of ten, powers such as 3^4. Exponentials and logarithms are reduced by a table, as
 * in Tang, ACM Trans. Math. Softw. 15 (1989) and 16 (1990); sines are those of Cody & Waite, Software Manual for the
 * Elementary Functions (1980); erfc is that of Shepherd & Laframboise, Math. Comp. 36 (1981): exp(x^2)·erfc(x)·(x + 3) as a
 * polynomial in (x - 3) / (x + 3); erf is a polynomial for each sixteenth of its range. The terms are Chebyshev fits
 * (mpmath's chebyfit) of the function that the comment beside them names.
 *
 * Lanes outside of a core's range, such as a sine of more than 2^19 or a power of a negative number, and the functions that
 * have no core, are computed by the C library (wide_value in scalar.c). */
#ifndef MORPHBITS_FUNCTIONS_H
#define MORPHBITS_FUNCTIONS_H

#if defined(__aarch64__)
#include <arm_neon.h>
#endif
#include <string.h>

#include "elementwise.h"
#include "morphbits.h"
#include "narrow.h"
#include "precision.h"
#include "variant.h"

#define CORE static inline __attribute__((always_inline)) dvec
#define INF __builtin_inf()
#define TO_INTEGER 0x1.8p52 /* added: the low bits hold the nearest whole number */

/* (e^r - 1 - r) / r^2 for |r| <= ln(2) / 16 */
static const double EXP_TERMS[] = {0x1.0000000000000p-1,  0x1.555555555559ep-3,  0x1.5555555555572p-5, 0x1.1111110c60f21p-7,
                                   0x1.6c16c16856a9cp-10, 0x1.a01ee0121d9bcp-13, 0x1.a01de6c734237p-16};
/* 2^(j / 8) with j·2^49 taken from its bits, and how much greater than 2^(j / 8) its exact value is, relative */
static const double POWERS[8] = {0x1.0000000000000p+0, 0x1.f72b83c7d517bp-1, 0x1.f06fe0a31b715p-1, 0x1.ebfdad5362a27p-1,
                                 0x1.ea09e667f3bcdp-1, 0x1.eace5422aa0dbp-1, 0x1.ee89f995ad3adp-1, 0x1.f5818dcfba487p-1};
static const double POWERS_LOW[8] = {0, -0x1.01b15eaa59348p-55, 0x1.34d754db0abb6p-55, 0x1.690cebb7aafb0p-56,
                                     -0x1.3b3efbf5e2228p-54, 0x1.db72fc1f0eab4p-55, 0x1.c1a7792cb3387p-55,
                                     0x1.4a385a63d07a7p-56};
/* Numbers m in [0.698, 1.396) in sixteen parts: 1 / m of nine bits, and minus its logarithm in two parts, the first a
 * multiple of 2^-42. The part in which 1 lies has 1. */
static const double LOG_INVERSE[16] = {
    0x1.6700000000000p+0, 0x1.5780000000000p+0, 0x1.4a00000000000p+0, 0x1.3d00000000000p+0,
    0x1.3180000000000p+0, 0x1.2680000000000p+0, 0x1.1c00000000000p+0, 0x1.1280000000000p+0,
    0x1.0980000000000p+0, 0x1.0000000000000p+0, 0x1.e700000000000p-1, 0x1.cb00000000000p-1,
    0x1.b300000000000p-1, 0x1.9d00000000000p-1, 0x1.8900000000000p-1, 0x1.7700000000000p-1};
static const double LOG_HIGH[16] = {
    -0x1.5a42ab0f4d000p-2, -0x1.2d10dec508000p-2, -0x1.0402594b4d000p-2, -0x1.b5b519e8fc000p-3,
    -0x1.6a079d0f7a000p-3, -0x1.1eed90e2dc000p-3, -0x1.a926d3a4ac000p-4, -0x1.1dcb263db0000p-4,
    -0x1.2a7ec22150000p-5, 0, 0x1.9a187b5740000p-5, 0x1.bf968769fc000p-4, 0x1.4dc7b897bc000p-3,
    0x1.b811730b82000p-3, 0x1.0edd060b78000p-2, 0x1.3edf463c17000p-2};
static const double LOG_LOW[16] = {
    0x1.e63af2df7ba69p-50, -0x1.60c61f7088353p-44, -0x1.036b89ef42d7fp-48, 0x1.4b722ec011f31p-44,
    -0x1.5a3f8448d14f5p-44, -0x1.615637097648fp-46, -0x1.563650bd22a9cp-44, -0x1.9444f5e9e8981p-44,
    0x1.78ce77a9163fep-45, 0, -0x1.0c22e4ec4d90dp-44, 0x1.4218c8d824283p-45, 0x1.c79b60ae1ff0fp-47,
    0x1.e90683b9cd768p-46, 0x1.019b52d8435f5p-47, -0x1.f067c297f2c3fp-44};
/* (log(1 + r) - r + r^2 / 2) / r^3 for |r| <= 0.0305 */
static const double LOG_TERMS[] = {
    0x1.555555555554cp-2, -0x1.fffffffffffefp-3, 0x1.9999999a39b6dp-3, -0x1.55555555e81b9p-3,
    0x1.24923bfbdfbd3p-3, -0x1.ffffe7dff0f51p-4, 0x1.c7cd98c2ea99cp-4, -0x1.9a3bfdeb19cc5p-4};
/* (sin(r) / r - 1) / z of z = r^2, |r| <= pi / 4 */
static const double SIN_TERMS[] = {
    -0x1.5555555555555p-3, 0x1.1111111111110p-7, -0x1.a01a01a019933p-13, 0x1.71de3a54600cap-19,
    -0x1.ae645411d76a9p-26, 0x1.61217e4ef55f8p-33, -0x1.ab1764e7b2047p-41};
/* (cos(r) - 1 + z / 2) / z^2 of z = r^2, |r| <= pi / 4 */
static const double COS_TERMS[] = {
    0x1.5555555555555p-5, -0x1.6c16c16c16965p-10, 0x1.a01a019f4e480p-16, -0x1.27e4fa17532cap-22,
    0x1.1eeb685cba14cp-29, -0x1.907d3e3374a42p-37};
/* exp(x^2)·erfc(x)·(x + 3) of (x - 3) / (x + 3), 0.5 <= x <= 11 */
static const double ERFCX_TERMS[] = {
    0x1.12f21ddd9f5e2p+0, -0x1.c44c471baa376p-1, 0x1.2e326945de2b6p-1, -0x1.3deb21415dc52p-2, 0x1.e995f11b172e5p-4,
    -0x1.b78993d6c2775p-6, -0x1.3dd3e7127da77p-10, 0x1.8dae3a30d4dd6p-9, -0x1.1f78e0deac8c5p-11,
    -0x1.2239010f656b2p-12, 0x1.c3250e9f3a7d7p-14, 0x1.fe00acd32d2e7p-16, -0x1.25165ed8a1748p-16,
    -0x1.3ecaf564ee60cp-18, 0x1.7289c9eb790e3p-19, 0x1.0c88c696f011ap-20, -0x1.a9f9f75f12bcbp-22,
    -0x1.f138c3b15ef32p-23, 0x1.09c8d23ff7dbcp-25, 0x1.680e785c0330bp-25, 0x1.f091d5342777dp-28};

/* erf(x) / x of x - (49 / 128)·i, for the pieces i of half that width to each side; a row for each power */
#define ERF_STEP 0x1.88p-2 /* 49 / 128 */
#define ERF_STEPS 0x1.4e5e0a72f0539p+1 /* 1 / ERF_STEP */
static const double ERF_TERMS[13][16] = {
    {0x1.20dd750429b6dp+0, 0x1.135a90163a44cp+0, 0x1.e236b9694226cp-1, 0x1.8f4d8b5e2f76bp-1,
     0x1.4438490e8bb5dp-1, 0x1.09ad5a8fa2641p-1, 0x1.bd4e34b1a2f07p-2, 0x1.7e139307a0800p-2,
     0x1.4e5cc53a497bbp-2, 0x1.293710421f89dp-2, 0x1.0b7e6dad6d736p-2, 0x1.e65a3da941c1cp-3,
     0x1.bdd2b898a310cp-3, 0x1.9b876f525f6a2p-3, 0x1.7e225515a4e34p-3, 0x1.64a893adcd25dp-3},
    {0, -0x1.0e4305aade33ap-2, -0x1.a3e26b8524ff6p-2, -0x1.aa52848aa78f3p-2,
     -0x1.5f2046bcef4fdp-2, -0x1.0620c2bea3d9fp-2, -0x1.7e9a5f1a12148p-3, -0x1.1c82315844716p-3,
     -0x1.b49738c74c90ap-4, -0x1.590e8171f7a2cp-4, -0x1.1780d628269fbp-4, -0x1.cdfd5e2ddf7ccp-5,
     -0x1.8433218471b43p-5, -0x1.4ac6138c029f0p-5, -0x1.1d353d43a49d2p-5, -0x1.f0e549bd8bcebp-6},
    {-0x1.812746b0379e5p-2, -0x1.23f7261b8f27ep-2, -0x1.7a21c7c816747p-4, 0x1.f1bed9d7ff992p-5,
     0x1.da1d99c3a0d6ep-4, 0x1.ad4b3fd209d7bp-4, 0x1.3582f5046129bp-4, 0x1.a1a75628a5d9bp-5,
     0x1.1c56e8a8cf576p-5, 0x1.907b0cef7f1f7p-6, 0x1.240b5e22ce069p-6, 0x1.b6d8bd6633a13p-7,
     0x1.520633e866969p-7, 0x1.09dd7fcb53e59p-7, 0x1.a9bbb14772818p-8, 0x1.5a2307d47d205p-8},
    {0, 0x1.28ceb5c37f924p-3, 0x1.5770e65d5f360p-3, 0x1.72dc6ed499c6bp-4,
     0x1.720e3f8df5550p-7, -0x1.76d6fe599fe81p-6, -0x1.97f1dd92ff1b7p-6, -0x1.2054ca865bd79p-6,
     -0x1.6d581fa42f849p-7, -0x1.cfd1a4862f9dfp-8, -0x1.3113ecc8da940p-8, -0x1.a0db064bf0519p-9,
     -0x1.26556eb2e8f57p-9, -0x1.ab63427b5de71p-10, -0x1.3dbf9574e3b18p-10, -0x1.e23ca58d9022dp-11},
    {0x1.ce2f21a04138fp-4, 0x1.f47f771f59e29p-5, -0x1.c70c0a22c3caap-6, -0x1.f0a2290d603acp-5,
     -0x1.35f4c00be095fp-5, -0x1.240a1d3c5d4a8p-7, 0x1.d4d483d8380afp-9, 0x1.43d12eee79038p-8,
     0x1.bc5df607983e5p-9, 0x1.09ab717a2244ap-9, 0x1.3e36f7e30b479p-10, 0x1.8be90ee79c40ap-11,
     0x1.0049b680651f5p-11, 0x1.578530e998333p-12, 0x1.da4e7d98d957ep-13, 0x1.4fecf218de6ccp-13},
    {0, -0x1.80ada433ac412p-5, -0x1.2a73414708b22p-5, 0x1.6b5b5395f5825p-10,
     0x1.1b77253578bb9p-6, 0x1.6aa985fda032ep-7, 0x1.64013067dcc61p-9, -0x1.1556914265e84p-11,
     -0x1.c09348afbe4aap-11, -0x1.23751560bdfdbp-11, -0x1.497271d09a31dp-12, -0x1.77aff29c375c6p-13,
     -0x1.be49e1569f5cep-14, -0x1.141bfa5c82d34p-14, -0x1.620059e8e0506p-15, -0x1.d402b5cfa6d0ap-16},
    {-0x1.b82ce30d585a8p-6, -0x1.2571a8d7d809dp-7, 0x1.f00cd4320b0bfp-7, 0x1.be12e886b88c2p-7,
     0x1.3d68667108de3p-11, -0x1.1a611c2bd5600p-8, -0x1.49f602cb349bdp-9, -0x1.1cec2f8cb6a94p-11,
     0x1.774789759107cp-14, 0x1.139e6fcf3eb91p-13, 0x1.4b09946868e7cp-14, 0x1.62f2125f8ffffp-15,
     0x1.84683f2eac2d8p-16, 0x1.bbd7433f55764p-17, 0x1.0835e6938bdd8p-17, 0x1.4603f951552b7p-18},
    {0, 0x1.677876ba90d36p-7, 0x1.2fde03c56fe71p-8, -0x1.2574371b62f22p-8,
     -0x1.f744bdf372dc7p-9, -0x1.5497653c19f68p-14, 0x1.f47667a65db0cp-11, 0x1.df23553df2c7fp-12,
     0x1.4350919b7e3e6p-14, -0x1.132352272da45p-16, -0x1.2bc86c80675c8p-16, -0x1.4966fcf40593fp-17,
     -0x1.514dad9064ed7p-18, -0x1.64abd720dd2e5p-19, -0x1.8a62c3b7c3578p-20, -0x1.c63429afbba4dp-21},
    {0x1.565bc576b90dcp-8, 0x1.822648094dabap-11, -0x1.eed5cc4d867c7p-9, -0x1.6d883407cd039p-10,
     0x1.4e4349980812bp-10, 0x1.b9d51fc54bc88p-11, -0x1.954e2765e61dbp-15, -0x1.7db9692db1328p-13,
     -0x1.143fe1b50ead4p-14, -0x1.fb35a9ed9554ep-18, 0x1.6bebd02a690afp-19, 0x1.1ecda47bd27c4p-19,
     0x1.223e521be767ap-20, 0x1.1e5d32046019ap-21, 0x1.2654ebaca60c9p-22, 0x1.3c659413ab723p-23},
    {0, -0x1.07474754ce787p-9, -0x1.aa703b8224c67p-13, 0x1.286f4fa48314fp-10,
     0x1.0cdf0823944a3p-12, -0x1.570fb154c4911p-12, -0x1.2360593300420p-13, 0x1.a966ab803f88cp-16,
     0x1.deb3f5602286ap-16, 0x1.f0600c228d207p-18, 0x1.c45034936bc33p-22, -0x1.8ddc9f8fc2018p-22,
     -0x1.e2cd3dcd1c6c2p-23, -0x1.c9fef3337a358p-24, -0x1.b72eb9b6d8a37p-25, -0x1.b8cae60b06e83p-26},
    {-0x1.c022e55748c61p-11, 0x1.e0776707baeffp-16, 0x1.52c3854fc3c15p-11, -0x1.9b49fb7d1816ep-16,
     -0x1.2788a948b2b3ep-12, -0x1.eb85956cf93b6p-17, 0x1.20071160b2dc8p-14, 0x1.02545e853c48ap-16,
     -0x1.ac72774aaef20p-18, -0x1.db63e2b5e56b7p-19, -0x1.50bbe9c6dc841p-21, 0x1.ef82fa906e5dep-28,
     0x1.64cc41fc6e360p-25, 0x1.6898bb4def2c4p-26, 0x1.472f85a7c5787p-27, 0x1.3305b7cfb7080p-28},
    {0, 0x1.382d555af97bap-12, -0x1.cbed06dff8f59p-15, -0x1.571ee54d206b8p-13,
     0x1.309beecb24850p-15, 0x1.bfd1c55bd9a8fp-15, -0x1.c52df1335b771p-18, -0x1.6bf3ee2bfbc09p-17,
     -0x1.93ad3b5a426bbp-21, 0x1.177a76918ff1cp-20, 0x1.6f505972135eep-22, 0x1.4e9c346e9ea3dp-25,
     -0x1.306731da896e7p-28, -0x1.0cdaee8ad582bp-28, -0x1.e6553fe2674efp-30, -0x1.ad09e1c58b2f7p-31},
    {0x1.f23e436715dd0p-14, -0x1.767e096d23222p-16, -0x1.5b942bcd12673p-14, 0x1.19b53317e4a60p-15,
     0x1.f6020e0e793e1p-16, -0x1.e15a2deff8833p-17, -0x1.cce0133455f57p-18, 0x1.5538ff41f8bf3p-19,
     0x1.44a3e2ef11579p-20, -0x1.afe5b1e05b976p-24, -0x1.05aea99ca02bcp-23, -0x1.a96eb2d96ba23p-26,
     -0x1.7824e5ee5dc8bp-30, 0x1.457bf171bee1ap-31, 0x1.5fd352be5db45p-32, 0x1.2a184442885c9p-33},};
#define LOG2_E 0x1.71547652b82fep+0
#define LN2 0x1.62e42fefa39efp-1
#define LN2_LOW 0x1.abc9e3b39803fp-56 /* the logarithm of 2 is LN2 + LN2_LOW */
#define LN2_42 0x1.62e42fefa3800p-1   /* 42 bits: times a whole number below 2^11 it is exact */
#define LN2_REST 0x1.ef35793c76730p-45
#define LOG10_2_HIGH 0x1.34413509f7800p-2
#define LOG10_2_LOW 0x1.fef311f12b358p-46
#define LOG10_E 0x1.bcb7b1526e50ep-2
#define TWO_OVER_PI 0x1.45f306dc9c883p-1
#define HALF_PI_1 0x1.921fb54400000p+0 /* pi / 2 in three parts, the first two of 33 bits */
#define HALF_PI_2 0x1.0b4611a600000p-34
#define HALF_PI_3 0x1.3198a2e037073p-69

CORE choose(lvec where, dvec a, dvec b) { return (dvec)(((lvec)a & where) | ((lvec)b & ~where)); }
CORE where_less(dvec a, dvec b, dvec yes, dvec no) {
#if defined(__AVX512F__)
    return (dvec)_mm512_mask_blend_pd(_mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_LT_OQ), (__m512d)no, (__m512d)yes);
#else
    return choose(a < b, yes, no);
#endif
}
CORE smaller(dvec a, dvec b) {
#if defined(__AVX512F__)
    return (dvec)_mm512_min_pd((__m512d)a, (__m512d)b);
#else
    return choose(a < b, a, b);
#endif
}
CORE with_sign_of(dvec x, dvec sign) { return (dvec)((lvec)x | ((lvec)sign & INT64_MIN)); } /* of x >= 0 */
CORE constant(double x) { return (dvec){0} + x; }

CORE fused(dvec a, dvec b, dvec c) { /* a·b + c, rounded once */
#if defined(__AVX512F__)
    return (dvec)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__AVX2__)
    return (dvec)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif defined(__aarch64__)
    return (dvec)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#else
    return (dvec){__builtin_fma(a[0], b[0], c[0]), __builtin_fma(a[1], b[1], c[1])};
#endif
}
/* The entries of a table that the low three or four bits of `at` name. */
CORE entry8(const double *table, lvec at) {
#if defined(__AVX512F__)
    return (dvec)_mm512_permutexvar_pd((__m512i)at, _mm512_loadu_pd(table));
#else
    dvec found;
    for (int l = 0; l < WIDE_LANES; ++l) found[l] = table[at[l] & 7];
    return found;
#endif
}
CORE entry16(const double *table, lvec at) {
#if defined(__AVX512F__)
    return (dvec)_mm512_permutex2var_pd(_mm512_loadu_pd(table), (__m512i)at, _mm512_loadu_pd(table + 8));
#else
    dvec found;
    for (int l = 0; l < WIDE_LANES; ++l) found[l] = table[at[l] & 15];
    return found;
#endif
}

/* Several vectors at once, step by step, so that one need not wait for another; their number is a constant. */
#define VECTORS static inline __attribute__((always_inline)) void
#define EACH for (int v = 0; v < vectors; ++v)
#define MOST_VECTORS 4
VECTORS series_of(const double *terms, int count, const int vectors, const dvec *z, dvec *sum) {
    EACH sum[v] = constant(terms[count - 1]);
    for (int i = count - 2; i >= 0; --i) EACH sum[v] = fused(sum[v], z[v], constant(terms[i]));
}
#define TERMS(name) name##_TERMS, sizeof(name##_TERMS) / sizeof(double)
#define SERIES(name, z) series(TERMS(name), z)
CORE series(const double *terms, int count, dvec z) {
    dvec sum;
    series_of(terms, count, 1, &z, &sum);
    return sum;
}

/* What lies beyond the limits is given the limit: there the function no longer changes its float32, in any mode. */
CORE within(dvec x, double low, double high) { return choose(x < low, constant(low), choose(x > high, constant(high), x)); }
/* A function's values at the infinities, and a NaN for a NaN. */
CORE ends(dvec x, dvec value, double at_low, double at_high) {
    value = choose(x == -INF, constant(at_low), choose(x == INF, constant(at_high), value));
    return choose(x == x, value, x);
}

/* A core of one vector. */
#define ONE(name)                 \
    CORE core_##name(dvec x) {    \
        dvec value;               \
        name##_of(1, &x, &value); \
        return value;             \
    }

/* ---- exponentials: e^x = power·(1 + rest), and more exactly power·(1 + rest + low) */

typedef struct {
    dvec power[MOST_VECTORS], rest[MOST_VECTORS];
    lvec eighths[MOST_VECTORS]; /* the low three bits: the place in the tables */
} exponential;
VECTORS exponential_of_rest(const int vectors, const dvec *r, exponential *e) { /* of 2^(eighths / 8)·e^r, |r| <= ln(2) / 16 */
    dvec sum[MOST_VECTORS];
    EACH e->power[v] = (dvec)((lvec)entry8(POWERS, e->eighths[v]) + (e->eighths[v] << 49));
    series_of(TERMS(EXP), vectors, r, sum);
    EACH e->rest[v] = fused(r[v] * r[v], sum[v], r[v]);
}
VECTORS exponential_of(const int vectors, const dvec *x, const dvec *low, exponential *e) { /* of x, or x + low; |x| <= 700, |low| small */
    dvec shifted[MOST_VECTORS], whole[MOST_VECTORS], r[MOST_VECTORS];
    EACH shifted[v] = fused(x[v], constant(8 * LOG2_E), constant(TO_INTEGER)), e->eighths[v] = (lvec)shifted[v];
    EACH whole[v] = shifted[v] - TO_INTEGER;
    EACH r[v] = fused(whole[v], constant(-LN2 / 8), x[v]);
    EACH r[v] = fused(whole[v], constant(-LN2_LOW / 8), r[v]);
    if (low) EACH r[v] += low[v];
    exponential_of_rest(vectors, r, e);
}
CORE value_of(const exponential *e, int v) { return fused(e->power[v], e->rest[v], e->power[v]); }

VECTORS exp_of(const int vectors, const dvec *x, dvec *value) { /* |x| <= 200 */
    exponential e;
    exponential_of(vectors, x, NULL, &e);
    EACH value[v] = value_of(&e, v);
}
ONE(exp)
CORE core_exp2(dvec x) { /* |x| <= 300 */
    const dvec shifted = x + TO_INTEGER / 8, r = (x - (shifted - TO_INTEGER / 8)) * LN2;
    exponential e;
    e.eighths[0] = (lvec)shifted;
    exponential_of_rest(1, &r, &e);
    return value_of(&e, 0);
}
VECTORS expm1_of(const int vectors, const dvec *x, dvec *value) {
    exponential e;
    exponential_of(vectors, x, NULL, &e);
    EACH e.rest[v] += entry8(POWERS_LOW, e.eighths[v]);
    EACH value[v] = fused(e.power[v], e.rest[v], e.power[v] - 1);
}
CORE core_expm1(dvec x) { /* |x| <= 200 */
    dvec value;
    expm1_of(1, &x, &value);
    return choose(x == 0, x, value);
}

/* Small arguments have two terms, so that no value lies beyond x, which is a float32. */
CORE core_sinh(dvec x) { /* |x| <= 200 */
    const dvec a = magnitude(x), small = fused(a * a, a * 0x1.5555555555555p-3, a); /* 1 / 6 */
    dvec e;
    expm1_of(1, &a, &e);
    return with_sign_of(where_less(a, constant(0x1p-13), small, 0.5 * (e + e / (e + 1))), x);
}
CORE core_cosh(dvec x) { /* |x| <= 200 */
    const dvec e = core_exp(magnitude(x));
    return 0.5 * e + 0.5 / e;
}
VECTORS tanh_of(const int vectors, const dvec *x, dvec *value) { /* |x| <= 20, where it is 1 */
    dvec a[MOST_VECTORS], twice[MOST_VECTORS], small[MOST_VECTORS], e[MOST_VECTORS];
    EACH a[v] = magnitude(x[v]);
    EACH twice[v] = 2 * a[v];
    expm1_of(vectors, twice, e);
    EACH small[v] = fused(a[v] * a[v], a[v] * -0x1.5555555555555p-2, a[v]); /* 1 / 3 */
    EACH value[v] = with_sign_of(where_less(a[v], constant(0x1p-13), small[v], e[v] / (e[v] + 2)), x[v]);
}
ONE(tanh)

/* ---- logarithms */

/* log(x) = k·ln(2) + high + low + log(1 + r), r exact for a float32. 0 < x < infinity. */
typedef struct {
    dvec k, high, low, r;
} logarithm;
static inline __attribute__((always_inline)) logarithm logarithm_of(dvec x) {
    const uint64_t least = UINT64_C(0x3fe6555500000000); /* the bits of 0.698 */
    const lvec above = (lvec)((uvec)x - least), part = (lvec)((uvec)above >> 48);
    const uvec field = ((uvec)above + (UINT64_C(1023) << 52)) >> 52; /* k + 1023 */
    logarithm l;
    l.k = (dvec)(field | UINT64_C(0x4330000000000000)) - (0x1p52 + 1023);
    l.r = fused((dvec)((uvec)x - ((field - 1023) << 52)), entry16(LOG_INVERSE, part), constant(-1));
    l.high = entry16(LOG_HIGH, part), l.low = entry16(LOG_LOW, part);
    return l;
}
/* high + low + log(1 + r), and a small number more, where |high| is 0 or more than |r| */
CORE logarithm_sum(dvec high, dvec low, dvec r) {
    const dvec sum = high + r, rest = fused(r * r, fused(r, SERIES(LOG, r), constant(-0.5)), low);
    return sum + (((high - sum) + r) + rest);
}
CORE core_log(dvec x) {
    const logarithm l = logarithm_of(x);
    return logarithm_sum(fused(l.k, constant(LN2_42), l.high), fused(l.k, constant(LN2_REST), l.low), l.r);
}
CORE core_log2(dvec x) {
    const logarithm l = logarithm_of(x);
    return fused(logarithm_sum(l.high, l.low, l.r), constant(LOG2_E), l.k);
}
CORE core_log10(dvec x) { /* a value that close to a whole number is one: the argument was a power of ten */
    const logarithm l = logarithm_of(x);
    const dvec part = fused(logarithm_sum(l.high, l.low, l.r), constant(LOG10_E), l.k * LOG10_2_LOW);
    const dvec value = fused(l.k, constant(LOG10_2_HIGH), part), whole = (value + TO_INTEGER) - TO_INTEGER;
    return choose(magnitude(value - whole) < 0x1p-40 * magnitude(whole), whole, value);
}
CORE core_log1p(dvec x) {
    const dvec u = 1 + x, lost = (x - (u - 1)) / u;
    const logarithm l = logarithm_of(u);
    const dvec low = fused(l.k, constant(LN2_REST), l.low) + lost;
    return choose(x == 0, x, logarithm_sum(fused(l.k, constant(LN2_42), l.high), low, l.r));
}

CORE exp_of_sum(dvec x, dvec low) {
    exponential e;
    exponential_of(1, &x, &low, &e);
    return value_of(&e, 0);
}

/* x^y of 0 < x < infinity and finite y: the logarithm in two numbers, to about 2^-62, times y. The value is within 2^-52;
 * one that close to a float32 is that number: the power was exact, as 3^4, or nearly so. */
CORE core_pow(dvec x, dvec y) {
    const logarithm l = logarithm_of(x);
    const dvec first = fused(l.k, constant(LN2_42), l.high), second = first + l.r, square = l.r * l.r;
    const dvec third = fused(square, constant(-0.5), second), half = 0.5 * square;
    const dvec lost = ((first - second) + l.r) + ((second - third) - half);
    const dvec tail = fused(l.r * square, SERIES(LOG, l.r), fused(l.k, constant(LN2_REST), l.low));
    const dvec low = (lost - 0.5 * fused(l.r, l.r, (dvec)((lvec)square ^ INT64_MIN))) + tail;
    const dvec sum = third + low, rest = (third - sum) + low;
    const dvec product = y * sum, left = fused(y, rest, fused(y, sum, (dvec)((lvec)product ^ INT64_MIN)));
    const dvec inside = within(product, -200, 200), more = choose(inside == product, left, constant(0));
    const dvec value = exp_of_sum(inside, more);
    const narrow_vec rounded = narrowed(value);
    const dvec single = widened((const float *)&rounded);
    return choose(magnitude(value - single) < 0x1p-52 * magnitude(single), single, value);
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

VECTORS erf_of(const int vectors, const dvec *x, dvec *value) { /* |x| <= 5.93, where it is 1 */
    dvec a[MOST_VECTORS], shifted[MOST_VECTORS], d[MOST_VECTORS], sum[MOST_VECTORS];
    EACH a[v] = magnitude(x[v]);
    EACH shifted[v] = fused(a[v], constant(ERF_STEPS), constant(TO_INTEGER));
    EACH d[v] = fused(shifted[v] - TO_INTEGER, constant(-ERF_STEP), a[v]);
    EACH sum[v] = entry16(ERF_TERMS[12], (lvec)shifted[v]);
    for (int i = 11; i >= 0; --i) EACH sum[v] = fused(sum[v], d[v], entry16(ERF_TERMS[i], (lvec)shifted[v]));
    EACH sum[v] = a[v] * sum[v];
    EACH value[v] = with_sign_of(smaller(constant(1), sum[v]), x[v]);
}
ONE(erf)
CORE large_erfc(dvec a) { /* a >= 0.5; the square of a float32 is exact */
    const dvec inside = within(a, 0.5, 11);
    const dvec value = core_exp((dvec)((lvec)(inside * inside) ^ INT64_MIN)) *
                       SERIES(ERFCX, (inside - 3) / (inside + 3)) / (inside + 3);
    return choose(a > 11, constant(0x1p-300), value);
}
CORE core_erfc(dvec x) {
    const dvec a = magnitude(x), large = large_erfc(a);
    const dvec inner = 1 - core_erf(with_sign_of(within(a, 0, 0.5), x));
    return choose(a < 0.5, inner, choose(x < 0, 2 - large, large));
}

/* ---- chunks */

/* Whether all n arguments, with the bits of `mask`, lie from `low` to `high` as numbers of 32 bits. */
static __attribute__((noinline)) int all_between(int64_t n, const float *x, uint32_t mask, uint32_t low, uint32_t high) {
    uint32_t outside = 0;
    for (int64_t i = 0; i < n; ++i) outside |= (((const uint32_t *)x)[i] & mask) - low > high - low;
    return !outside;
}
#define SIZES 0x7fffffffu /* the bits of |x| */
#define SIZE_OF(x) ((union { float f; uint32_t u; }){x}.u)

/* `wide` of n arguments; n is a multiple of the lanes. Where all lie between limits, the core takes them as they are; else
 * its value is `value` in the lanes `takes`, and the C library's in others. */
#define LOAD(from) widened((from) + i)
#define WIDE_LOOP(name, NAME, mask, low, high, value, takes)                                                \
    static __attribute__((noinline)) void wide_##name(int64_t n, const float *argument, double *wide) {     \
        if (all_between(n, argument, mask, low, high)) {                                                    \
            for (int64_t i = 0; i < n; i += WIDE_LANES) *(dvec *)(wide + i) = core_##name(LOAD(argument));   \
            return;                                                                                         \
        }                                                                                                   \
        for (int64_t i = 0; i < n; i += WIDE_LANES) {                                                       \
            const dvec x = LOAD(argument);                                                                  \
            *(dvec *)(wide + i) = value;                                                                    \
            rest_by_library(NAME, takes, argument + i, NULL, wide + i);                                     \
        }                                                                                                   \
    }
static void rest_by_library(int function, lvec takes, const float *a, const float *b, double *wide) {
    for (int l = 0; l < WIDE_LANES; ++l)
        if (!takes[l]) wide[l] = wide_value(function, a[l], b ? b[l] : 0);
}
#define EVERYWHERE ((lvec){0} - 1)
#define LIMITED(name, NAME, limit, at_low, at_high)                                                        \
    WIDE_LOOP(name, NAME, SIZES, 0, SIZE_OF(limit), ends(x, core_##name(within(x, -limit, limit)), at_low, at_high), EVERYWHERE)
LIMITED(exp, EXP, 200.f, 0, INF)
LIMITED(exp2, EXP2, 300.f, 0, INF)
LIMITED(expm1, EXPM1, 200.f, -1, INF)
LIMITED(sinh, SINH, 200.f, -INF, INF)
LIMITED(cosh, COSH, 200.f, INF, INF)
LIMITED(tanh, TANH, 20.f, -1, 1)
LIMITED(erf, ERF, 5.93f, -1, 1)
LIMITED(erfc, ERFC, 30.f, 2, 0)
#define FINITE(name, NAME, above) \
    WIDE_LOOP(name, NAME, ~0u, 1, 0x7f7fffffu, core_##name(x), (x > above) & (x < INF))
FINITE(log, LOG, 0)
FINITE(log2, LOG2, 0)
FINITE(log10, LOG10, 0)
FINITE(log1p, LOG1P, -1)
#define SMALL(name, NAME) WIDE_LOOP(name, NAME, SIZES, 0, SIZE_OF(0x1p19f), core_##name(x), magnitude(x) <= 0x1p19)
SMALL(sin, SIN)
SMALL(cos, COS)
SMALL(tan, TAN)

static __attribute__((noinline)) void wide_pow(int64_t n, const float *argument, const float *exponent, double *wide) {
    const int all = all_between(n, argument, ~0u, 1, 0x7f7fffffu) && all_between(n, exponent, SIZES, 0, 0x7f7fffffu);
    for (int64_t i = 0; i < n; i += WIDE_LANES) {
        const dvec x = LOAD(argument), y = LOAD(exponent);
        *(dvec *)(wide + i) = core_pow(x, y);
        if (!all) rest_by_library(POW, (x > 0) & (x < INF) & (magnitude(y) < INF), argument + i, exponent + i, wide + i);
    }
}

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
    case POW: wide_pow(whole, a, b, wide); break;
    default:
        for (int64_t i = 0; i < n; ++i) wide[i] = wide_value(function, a[i], b ? b[i] : 0);
    }
}

/* n arguments, where they fill no whole vectors or are changed, and the float64 values of the function. */
typedef struct {
    float first[CHUNK], second[CHUNK];
    double wide[CHUNK] __attribute__((aligned(VECTOR_BYTES)));
} function_chunk;

static const float *whole_vectors(int flush, int64_t n, const float *x, float *room) {
    if (!x || (n % WIDE_LANES == 0 && !flush)) return x;
    memcpy(room, x, sizeof(float) * (size_t)n);
    for (int64_t i = n; i % WIDE_LANES; ++i) room[i] = 1;
    if (flush) flush_subnormals(n, room);
    return room;
}
static void compute_wide(const rounding *r, control base, int function, int64_t n, const float *a, const float *b, function_chunk *f) {
    for (int64_t i = n & -WIDE_LANES; i < CHUNK && i < n + WIDE_LANES; ++i) f->wide[i] = 1;
    a = whole_vectors(r->flush, n, a, f->first), b = whole_vectors(r->flush, n, b, f->second);
    control_set(control_with(base, NEAREST, 0));
    wide_chunk(function, n, a, b, f->wide);
}

/* Where instructions round (directed.h), values and their rounding in one loop: up to the first of 32 arguments, or fewer,
 * that do not all lie between limits. Returns how many it has computed. */
#if defined(__AVX512F__)
#define DIRECTED_FUNCTION(name, limit)                                                                                        \
    static __attribute__((noinline)) int64_t directed_##name(int mode, word_block c, uint32_t element, int64_t n,            \
                                                             const float *argument, float *out) {                            \
        const __m512i step = _mm512_set1_epi32((int)(16 * c.multiplier)), sizes = _mm512_set1_epi32((int)SIZES);             \
        __m512i product = first_products(c, element);                                                                        \
        int64_t i = 0;                                                                                                       \
        for (; i + 32 <= n; i += 32) {                                                                                       \
            const __m512i one = _mm512_and_si512(_mm512_loadu_si512(argument + i), sizes);                                   \
            const __m512i two = _mm512_and_si512(_mm512_loadu_si512(argument + i + 16), sizes);                              \
            if (_mm512_cmpgt_epu32_mask(_mm512_max_epu32(one, two), _mm512_set1_epi32((int)SIZE_OF(limit)))) break;          \
            dvec x[4], value[4];                                                                                             \
            for (int v = 0; v < 4; ++v) x[v] = widened(argument + i + 8 * v);                                                \
            name##_of(4, x, value);                                                                                          \
            for (int v = 0; v < 4; v += 2, product = _mm512_add_epi32(product, step))                                        \
                _mm512_storeu_ps(out + i + 8 * v, narrowed_by(ups_of(mode, c, product), (__m512d)value[v], (__m512d)value[v + 1])); \
        }                                                                                                                    \
        return i;                                                                                                            \
    }
DIRECTED_FUNCTION(exp, 200.f)
DIRECTED_FUNCTION(tanh, 20.f)
DIRECTED_FUNCTION(erf, 5.93f)
#endif

/* A function of n elements, a CHUNK at most, from output element `element` on. */
static void function_of(const rounding *r, control base, int function, word_block block, uint32_t element, int64_t n,
                        const float *a, const float *b, float *out, function_chunk *f) {
    const elementwise_call narrow = {.operation = NARROW, .type = FLOAT32};
#if defined(__AVX512F__)
    int64_t done = 0;
    if (by_instruction(r) && !reduced(r)) {
        control_set(control_with(base, NEAREST, r->flush)); /* the values themselves are never subnormal */
        if (function == EXP) done = directed_exp(r->mode, block, element, n, a, out);
        if (function == TANH) done = directed_tanh(r->mode, block, element, n, a, out);
        if (function == ERF) done = directed_erf(r->mode, block, element, n, a, out);
    }
    if (done == n) return;
    element += (uint32_t)done, n -= done, a += done, b = b ? b + done : NULL, out += done;
#endif
    compute_wide(r, base, function, n, a, b, f);
    if (!by_instruction(r) && !reduced(r) && narrow_normal(r, block, element, n, f->wide, f->first)) {
        memcpy(out, f->first, sizeof(float) * (size_t)n);
        return;
    }
    control_set(control_with(base, r->mode, r->flush));
    chunk(r, base, &narrow, block, element, n, f->wide, NULL, out);
}

/* ---- float32 to 16 bits: `narrowed` of scalar.c, on the integer bits --------------------------------------------------- */

typedef uint32_t wordvec __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));
#define WORD_LANES (VECTOR_BYTES / 4)

static inline wordvec either(wordvec where, wordvec yes, wordvec no) { return (yes & where) | (no & ~where); }
static inline int any_lane(wordvec x) {
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask((__m512i)x, (__m512i)x) != 0;
#elif defined(__AVX2__)
    return !_mm256_testz_si256((__m256i)x, (__m256i)x);
#else
    uint32_t any = 0;
    for (int l = 0; l < WORD_LANES; ++l) any |= x[l];
    return any != 0;
#endif
}

/* What a fraction of 32 bits must exceed to be rounded away from zero; `linear`: element·multiplier + increment. */
static inline wordvec threshold_of(const int mode, word_block c, wordvec linear, wordvec x) {
    wordvec word = linear;
    SCRAMBLE(word, c.inner);
    switch (mode) {
    case RANDOM: return ((word ^ x) >> 31) - 1;
    case NEARNESS: return word;
    case UPWARD: return 0 - (x >> 31);
    case DOWNWARD: return (x >> 31) - 1;
    case TOWARD_ZERO: return (wordvec){0} - 1;
    default: return (wordvec){0}; /* NEAREST: and `fit16` adds the half */
    }
}

/* `least`: the exponent field of the least normal number; the last place of those below stays. */
static inline __attribute__((always_inline)) wordvec fit16(const int mode, int flush, wordvec x, wordvec threshold,
                                                           const uint32_t drop, const uint32_t least, const uint32_t largest) {
    const wordvec zero = {0}, infinity = zero + 0x7f800000u, magnitude = x & 0x7fffffffu;
    const wordvec nearest = zero - (uint32_t)(mode == NEAREST);
    /* what is too large becomes infinite, or in a direction the largest */
    const wordvec beyond = zero - (uint32_t)(mode == NEAREST || mode == NEARNESS);
    wordvec fraction = magnitude << (32 - drop), odd = (magnitude >> drop) & 1;
    wordvec inner = magnitude & (0 - (1u << drop)), next = inner + (1u << drop);
    if (least > 1 && any_lane((wordvec)(magnitude - 1 < (least << 23) - 1))) { /* more bits fall off of what is below */
        const wordvec field = magnitude >> 23, exponent = either((wordvec)(field > 1), field, zero + 1);
        const wordvec significand = (magnitude & 0x7fffffu) | ((wordvec)(field != 0) & 0x800000u);
        const wordvec falls = either((wordvec)(exponent < least), drop + least - exponent, zero + drop), some = (wordvec)(falls < 24);
        const wordvec bits = either(some, falls, zero + 24), step = (zero + 1) << bits, low = significand & (step - 1);
        const wordvec many = (wordvec)(falls > 31), lost = (falls - 32) & many;
        const wordvec excess = either((wordvec)(lost < 24), lost, zero + 24), shift = (32 - falls) & ~many;
        fraction = ((low << shift) + ((zero + 1) << excess) - 1) >> excess; /* rounded up: zero only if exact */
        odd = (significand >> bits) & 1;
        inner = magnitude & (0 - step) & some;
        next = either(some, inner + step, zero + ((least + drop - 23) << 23));
    }
    const wordvec limit = threshold + (nearest & (0x80000000u - odd));
    wordvec result = either((wordvec)(fraction > limit), next, inner);
    if (largest >> 23 < 254) { /* float32 has more beyond it than infinity, which is next */
        result = either((wordvec)(result > largest), either(beyond | (wordvec)(threshold == 0), infinity, zero + largest), result);
        result = either((wordvec)(magnitude < infinity), result, infinity);
    }
    if (flush) result &= (wordvec)(result >= least << 23);
    return either((wordvec)(magnitude > infinity), zero + 0x7fc00000u, result | (x & 0x80000000u));
}

static inline __attribute__((always_inline)) void fit_some(const int mode, int flush, word_block block, uint32_t element,
                                                           int64_t n, const uint32_t *x, uint32_t *out, const uint32_t drop,
                                                           const uint32_t least, const uint32_t largest) {
    wordvec linear;
    for (int l = 0; l < WORD_LANES; ++l) linear[l] = (element + (uint32_t)l) * block.multiplier + block.increment;
    for (; n >= WORD_LANES; n -= WORD_LANES, x += WORD_LANES, out += WORD_LANES, linear += WORD_LANES * block.multiplier) {
        const wordvec given = *(const wordvec *)x;
        *(wordvec *)out = fit16(mode, flush, given, threshold_of(mode, block, linear, given), drop, least, largest);
    }
    if (n == 0) return;
    wordvec given = {0};
    memcpy(&given, x, 4 * (size_t)n);
    given = fit16(mode, flush, given, threshold_of(mode, block, linear, given), drop, least, largest);
    memcpy(out, &given, 4 * (size_t)n);
}
#define FIT_MODE(mode, ...)                                                                         \
    case mode: fit_some(mode, r->flush, block, element, n, x, out, __VA_ARGS__); break;
#define TO_16_BITS(name, ...)                                                                       \
    static __attribute__((noinline)) void name(const rounding *r, word_block block, uint32_t element, int64_t n, \
                                               const uint32_t *x, uint32_t *out) {                  \
        switch (r->mode) {                                                                          \
            FIT_MODE(NEAREST, __VA_ARGS__)                                                          \
            FIT_MODE(RANDOM, __VA_ARGS__)                                                           \
            FIT_MODE(NEARNESS, __VA_ARGS__)                                                         \
            FIT_MODE(UPWARD, __VA_ARGS__)                                                           \
            FIT_MODE(DOWNWARD, __VA_ARGS__)                                                         \
            FIT_MODE(TOWARD_ZERO, __VA_ARGS__)                                                      \
        }                                                                                           \
    }
TO_16_BITS(fit_float16, 13, 113, 0x477fe000u) /* 65504 */
TO_16_BITS(fit_bfloat16, 16, 1, 0x7f7f0000u)

static int to_16_bits(const rounding *r, const function_call *c) {
    const word_block block = block_constants(r->key, 0);
#pragma omp parallel for schedule(static) num_threads(r->threads) if (c->count >= 32 * CHUNK)
    for (int64_t start = 0; start < c->count; start += CHUNK) {
        const int64_t n = c->count - start < CHUNK ? c->count - start : CHUNK;
        const uint32_t *x = (const uint32_t *)c->a + start;
        uint32_t *out = (uint32_t *)c->out + start;
        if (c->function == TO_FLOAT16) fit_float16(r, block, (uint32_t)start, n, x, out);
        else fit_bfloat16(r, block, (uint32_t)start, n, x, out);
    }
    return OK;
}

int FN(function)(const rounding *r, const function_call *c) {
    if (c->type != FLOAT32) return function_naive(r, c);
    if (c->function >= TO_FLOAT16) return to_16_bits(r, c);
    const word_block block = block_constants(r->key, 0);
#pragma omp parallel num_threads(r->threads) if (c->count >= 8 * CHUNK)
    {
        const control saved = control_get();
        function_chunk f;
#pragma omp for schedule(static)
        for (int64_t start = 0; start < c->count; start += CHUNK) {
            const int64_t n = c->count - start < CHUNK ? c->count - start : CHUNK;
            const float *a = (const float *)c->a + start, *b = c->b ? (const float *)c->b + start : NULL;
            function_of(r, saved, c->function, block, (uint32_t)start, n, a, b, (float *)c->out + start, &f);
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
            const float *a = (const float *)c->a + start, *b = c->b ? (const float *)c->b + start : NULL;
            compute_wide(r, saved, c->function, n, a, b, &f);
            memcpy((double *)c->out + start, f.wide, sizeof(double) * (size_t)n);
        }
        control_set(saved);
    }
    return OK;
}

#endif
