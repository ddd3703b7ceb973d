/* Fewer bits than float32 has. A format has `precision` significant bits (2 to 24), least normal exponent `least`, and
 * greatest exponent 1 - least; below 2^least its last place stays 2^(least - precision + 1), as in every IEEE format.
 *
 * A directed rounding into a format is the same directed rounding into float32 and then into the format, since the format's
 * numbers are float32's too. Round-to-nearest would round twice; so it starts from the two float32 neighbours of the exact
 * result: what lies strictly between them lies on one side of every midpoint of the format. No result is rounded twice. */
#ifndef MORPHBITS_PRECISION_H
#define MORPHBITS_PRECISION_H

#include "morphbits.h"
#include "stochastic.h"

INLINE int reduced(const rounding *r) { return r->precision < 24 || r->emin != -126; }

enum fit { FIT_TO_ZERO, FIT_AWAY, FIT_NEAREST };

/* The float32 with bits `word` into the format; FIT_NEAREST: the exact result lies beyond it in magnitude where `inexact`
 * is 1, by less than a last place of float32. */
INLINE uint32_t fit(const rounding *r, uint32_t word, int way, uint32_t inexact) {
    const uint32_t sign = word & 0x80000000u, magnitude = word & 0x7fffffffu, field = magnitude >> 23;
    const int exponent = field ? (int)field - 127 : -126;
    const int drop = 24 - r->precision + (exponent < r->emin ? r->emin - exponent : 0);
    const uint32_t largest = ((uint32_t)(128 - r->emin) << 23) | (0x7fffffu & ~((1u << (24 - r->precision)) - 1));
    if (field == 255 || drop == 0 || magnitude == 0) return word;
    if (drop > 23) { /* less than the least number of the format */
        const uint32_t least = (uint32_t)(r->emin - r->precision + 128) << 23;
        const int beyond_half = drop == 24 && field && ((magnitude & 0x7fffffu) | inexact);
        return sign | (way == FIT_AWAY || (way == FIT_NEAREST && beyond_half) ? least : 0);
    }
    const uint32_t mask = (1u << drop) - 1, significand = (magnitude & 0x7fffffu) | (field ? 0x800000u : 0);
    const uint32_t odd = (significand >> drop) & 1;
    const uint32_t add = way == FIT_AWAY ? mask : way == FIT_NEAREST ? (mask >> 1) + (odd | inexact) : 0;
    const uint32_t result = (magnitude + add) & ~mask;
    return sign | (result <= largest ? result : way == FIT_TO_ZERO ? largest : 0x7f800000u);
}

/* Both float32 neighbours of an exact result (equal where it is a float32, but for the sign of a zero) to the nearest. */
INLINE uint32_t fit_nearest(const rounding *r, uint32_t up, uint32_t down) {
    const uint32_t above = up & 0x7fffffffu, below = down & 0x7fffffffu;
    return fit(r, below < above ? down : up, FIT_NEAREST, below != above);
}

/* Mode NEARNESS into the format, from a float64: see stochastic_f32. */
INLINE float fit_stochastic(const rounding *r, double exact, uint32_t word) {
    return stochastic_format(exact, word, r->precision, r->emin);
}

#if !defined(__cplusplus)
/* ---- chunks of elementwise operators -------------------------------------------------------------------------- */

static __attribute__((noinline)) void fit_directed_f32(const rounding *r, int64_t n, int up, float *x) {
    uint32_t *word = (uint32_t *)x;
    if (r->emin == -126) { /* the last place is the same number of bits everywhere: a mask */
        const uint32_t mask = (1u << (24 - r->precision)) - 1, flip = up ? 0 : 0x80000000u;
        for (int64_t i = 0; i < n; ++i) {
            const uint32_t away = (word[i] ^ flip) >> 31 ? 0 : mask, out = (word[i] + away) & ~mask;
            word[i] = (word[i] & 0x7fffffffu) > 0x7f800000u ? word[i] : out;
        }
    } else
        for (int64_t i = 0; i < n; ++i)
            word[i] = fit(r, word[i], (word[i] >> 31) == !up ? FIT_AWAY : FIT_TO_ZERO, 0);
}

static __attribute__((noinline)) void fit_to_zero_f32(const rounding *r, int64_t n, float *x) {
    for (int64_t i = 0; i < n; ++i) ((uint32_t *)x)[i] = fit(r, ((uint32_t *)x)[i], FIT_TO_ZERO, 0);
}

static __attribute__((noinline)) void fit_nearest_f32(const rounding *r, int64_t n, const float *up, const float *down,
                                                      float *out) {
    for (int64_t i = 0; i < n; ++i)
        ((uint32_t *)out)[i] = fit_nearest(r, ((const uint32_t *)up)[i], ((const uint32_t *)down)[i]);
}
#endif

#endif
