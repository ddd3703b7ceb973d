/* Mode NEARNESS (stochastic rounding): away from zero with a probability equal to the distance, in units in the last
 * place, to the neighbour nearer zero. Included by kernels.c and naive.c; round-to-nearest is in force. */
#ifndef MORPHBITS_STOCHASTIC_H
#define MORPHBITS_STOCHASTIC_H

#include "morphbits.h"

INLINE uint64_t word_of_f64(double x) { uint64_t u; __builtin_memcpy(&u, &x, 8); return u; }
INLINE double from_bits_f64(uint64_t u) { double x; __builtin_memcpy(&x, &u, 8); return x; }

/* float32: the operation is done in float64, and 29 random bits are added to the 29 that fall off. The float64 result is
 * itself rounded, which moves a probability by 2^-30 at most. Below 2^-126 the last place is 2^-149 whatever the exponent. */
INLINE float stochastic_f32(double exact, uint32_t word) {
    const uint64_t low = (UINT64_C(1) << 29) - 1, u = word_of_f64(exact);
    const uint64_t normal = (u + (word >> 3)) & ~low;
    const double magnitude = __builtin_fabs(exact * 0x1p149), sum = magnitude + (word >> 3) * 0x1p-29;
    const double steps = sum < 0x1p24 ? (double)(int32_t)sum : 0;
    const double subnormal = __builtin_copysign(steps * 0x1p-149, exact);
    const int is_normal = !(magnitude < 0x1p23);
    return exact - exact == 0 ? (float)(is_normal ? from_bits_f64(normal) : subnormal) : (float)exact;
}

/* The same into a format of precision.h: 53 - precision bits fall off, of which the leading 29 are compared. */
INLINE float stochastic_format(double exact, uint32_t word, int precision, int emin) {
    const uint64_t low = (UINT64_C(1) << (53 - precision)) - 1, u = word_of_f64(exact);
    const double place = from_bits_f64((uint64_t)(1023 + emin - precision + 1) << 52); /* of subnormal numbers */
    const double largest = (2 - 2 / (double)(1 << precision)) * from_bits_f64((uint64_t)(1024 - emin) << 52);
    const double sum = __builtin_fabs(exact) / place + (word >> 3) * 0x1p-29;
    double out = __builtin_copysign((double)(int32_t)(sum < 0x1p24 ? sum : 0) * place, exact);
    if (exact - exact != 0) return (float)exact;
    if (!(__builtin_fabs(exact) / place < (double)(1 << (precision - 1))))
        out = from_bits_f64((u + ((uint64_t)(word >> 3) << (24 - precision))) & ~low);
    return __builtin_fabs(out) <= largest ? (float)out : (float)__builtin_copysign(__builtin_inf(), exact);
}

/* float64: round to nearest, then step across by the exact remainder (error-free transformations of Dekker, Knuth and
 * Boldo & Muller), of which only the leading float64 is kept. */
INLINE double step_f64(double nearest, double remainder, uint32_t word) {
    if (remainder == 0 || remainder != remainder || nearest - nearest != 0) return nearest;
    const int outward = (remainder > 0) == (nearest > 0 || (nearest == 0 && remainder > 0));
    const uint64_t u = word_of_f64(nearest);
    double other = nearest == 0 ? __builtin_copysign(0x1p-1074, remainder) : from_bits_f64(outward ? u + 1 : u - 1);
    const double gap = other - nearest, ratio = remainder / gap; /* in (0, 1/2] */
    return (word * 0x1p-32) < ratio ? other : nearest;
}
INLINE double stochastic_add_f64(double a, double b, uint32_t word) {
    const double s = a + b, t = s - a;
    return step_f64(s, (a - (s - t)) + (b - t), word);
}
INLINE double stochastic_mul_f64(double a, double b, uint32_t word) {
    const double p = a * b;
    return step_f64(p, __builtin_fma(a, b, -p), word);
}
INLINE double stochastic_fma_f64(double a, double b, double c, uint32_t word) {
    const double s = __builtin_fma(a, b, c), p = a * b, low = __builtin_fma(a, b, -p);
    const double q = p + c, t = q - p, rest = (p - (q - t)) + (c - t);
    return step_f64(s, (q - s) + (rest + low), word);
}
INLINE double stochastic_div_f64(double a, double b, uint32_t word) {
    const double q = a / b;
    return step_f64(q, __builtin_fma(-q, b, a) / b, word);
}
INLINE double stochastic_sqrt_f64(double a, uint32_t word) {
    const double q = __builtin_sqrt(a);
    return step_f64(q, q == 0 ? 0 : __builtin_fma(-q, q, a) / (q + q), word);
}

#endif
