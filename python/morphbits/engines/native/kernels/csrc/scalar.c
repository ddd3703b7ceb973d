/* Kernels that go element by element on every machine: additions to scattered places, and functions of the C library. */
#include "morphbits.h"

#include <math.h>
#include <string.h>

#include "stochastic.h"

/* ---- scattered additions --------------------------------------------------------------------------------------- */

/* The register is set upward: -RU(-x) rounds x down, so flipping signs (on the integer bits) chooses the direction. */
static inline float add_directed_f32(float a, float b, int up) {
    uint32_t x, y, flip = up ? 0 : 0x80000000u;
    memcpy(&x, &a, 4), memcpy(&y, &b, 4);
    x ^= flip, y ^= flip;
    float s, t, sum;
    memcpy(&s, &x, 4), memcpy(&t, &y, 4);
    sum = s + t;
    memcpy(&x, &sum, 4);
    x ^= flip;
    if (x == 0x80000000u) return a + b; /* an exact zero has the sign that round-to-nearest gives it */
    memcpy(&sum, &x, 4);
    return sum;
}
static inline double add_directed_f64(double a, double b, int up) {
    uint64_t x = word_of_f64(a), y = word_of_f64(b), flip = up ? 0 : UINT64_C(1) << 63;
    const double sum = from_bits_f64(x ^ flip) + from_bits_f64(y ^ flip);
    x = word_of_f64(sum) ^ flip;
    return x == UINT64_C(1) << 63 ? a + b : from_bits_f64(x);
}

/* Adds what goes to places from `begin` to `end`: every thread reads all sources and writes its own places. */
#define SCATTER(T, suffix, wide_add)                                                                                       \
    static void scatter_##suffix(const rounding *r, const scatter_call *c, int64_t o, int64_t begin, int64_t end) {         \
        const int64_t *index = c->index + o * c->index_step;                                                               \
        const T *source = (const T *)c->source + o * c->source_step;                                                       \
        T *output = (T *)c->output + o * c->output_step;                                                                   \
        word_block block = {0, 0, 0};                                                                                      \
        uint32_t power = 1;                                                                                                \
        for (int64_t j = 0; j < c->count; ++j) {                                                                           \
            if ((j & 31) == 0) block = block_constants(r->key, (uint64_t)(j >> 5));                                        \
            power = (j & 31) == 0 ? 1 : power * STEP;                                                                      \
            const int64_t at = index[j];                                                                                   \
            if (at < begin || at >= end) continue;                                                                         \
            T *out = output + at * c->output_place_step;                                                                   \
            const T a = *out, b = source[j * c->source_place_step];                                                        \
            T sum;                                                                                                         \
            if (r->mode == NEAREST || r->mode == TOWARD_ZERO) {                                                            \
                sum = a + b;                                                                                               \
            } else if (r->mode == UPWARD || r->mode == DOWNWARD) {                                                         \
                sum = add_directed_##suffix(a, b, r->mode == UPWARD);                                                      \
            } else {                                                                                                       \
                uint32_t word = random_word(block, (uint32_t)(o * c->size + at));                                          \
                if (r->mode == NEARNESS) word = (word | 1) * power;                                                        \
                sum = r->mode == RANDOM ? add_directed_##suffix(a, b, rounds_up(word, j)) : wide_add;                      \
            }                                                                                                              \
            *out = sum == sum ? sum : (T)NAN;                                                                              \
        }                                                                                                                  \
    }
SCATTER(float, f32, stochastic_f32((double)a + (double)b, word))
SCATTER(double, f64, stochastic_add_f64(a, b, word))

int scatter_naive(const rounding *r, const scatter_call *c) {
    const int64_t parts = c->outer >= r->threads ? 1 : r->threads, each = (c->size + parts - 1) / parts;
#pragma omp parallel num_threads(r->threads) if (c->outer * c->count >= 32768)
    {
        const control saved = control_get();
        control_set(control_with(saved, r->mode == DOWNWARD || r->mode == RANDOM ? UPWARD : r->mode, r->flush));
#pragma omp for schedule(static)
        for (int64_t item = 0; item < c->outer * parts; ++item) {
            const int64_t begin = item % parts * each, end = begin + each;
            if (c->type == FLOAT32) scatter_f32(r, c, item / parts, begin, end);
            else scatter_f64(r, c, item / parts, begin, end);
        }
        control_set(saved);
    }
    return OK;
}

/* ---- functions --------------------------------------------------------------------------------------------------- */

/* float32 through float64, float64 through long double. A function whose exact value is finite where its wide value is
 * infinite or zero (exp, sinh, pow, … of large arguments) is given a huge or a tiny number instead, of the same sign. */
#define FUNCTION_OF(W, suffix)                                                             \
    static W value_##suffix(int function, W a, W b) {                                      \
        switch (function) {                                                                \
        case EXP: return exp##suffix(a);                                                   \
        case EXP2: return exp2##suffix(a);                                                 \
        case EXPM1: return expm1##suffix(a);                                               \
        case LOG: return log##suffix(a);                                                   \
        case LOG2: return log2##suffix(a);                                                 \
        case LOG10: return log10##suffix(a);                                               \
        case LOG1P: return log1p##suffix(a);                                               \
        case SIN: return sin##suffix(a);                                                   \
        case COS: return cos##suffix(a);                                                   \
        case TAN: return tan##suffix(a);                                                   \
        case ASIN: return asin##suffix(a);                                                 \
        case ACOS: return acos##suffix(a);                                                 \
        case ATAN: return atan##suffix(a);                                                 \
        case SINH: return sinh##suffix(a);                                                 \
        case COSH: return cosh##suffix(a);                                                 \
        case TANH: return tanh##suffix(a);                                                 \
        case ASINH: return asinh##suffix(a);                                               \
        case ACOSH: return acosh##suffix(a);                                               \
        case ATANH: return atanh##suffix(a);                                               \
        case ERF: return erf##suffix(a);                                                   \
        case ERFC: return erfc##suffix(a);                                                 \
        case POW: return pow##suffix(a, b);                                                \
        case ATAN2: return atan2##suffix(a, b);                                            \
        case HYPOT: return hypot##suffix(a, b);                                            \
        case FMOD: return fmod##suffix(a, b);                                              \
        case LGAMMA: { int sign; return lgamma##suffix##_r(a, &sign); }                    \
        default: return a;                                                                 \
        }                                                                                  \
    }
FUNCTION_OF(double, )
FUNCTION_OF(long double, l)

static int overflows(int function, int finite, int base_is_zero) {
    switch (function) {
    case EXP: case EXP2: case EXPM1: case SINH: case COSH: case ERFC: case HYPOT: return finite;
    case POW: return finite && !base_is_zero;
    default: return 0;
    }
}

/* The next value upward or downward, by the integer bits. */
static inline float step_f32(float x, int up) {
    uint32_t u;
    if (x == 0) return up ? 0x1p-149f : -0x1p-149f;
    memcpy(&u, &x, 4);
    u += (x > 0) == up ? 1 : -1u;
    memcpy(&x, &u, 4);
    return x;
}
static inline double step_bits_f64(double x, int up) {
    if (x == 0) return up ? 0x1p-1074 : -0x1p-1074;
    return from_bits_f64(word_of_f64(x) + ((x > 0) == up ? UINT64_C(1) : -UINT64_C(1)));
}
static inline int goes_up(const rounding *r, word_block block, uint32_t element, int negative) {
    switch (r->mode) {
    case UPWARD: return 1;
    case DOWNWARD: return 0;
    case TOWARD_ZERO: return negative;
    default: return rounds_up(random_word(block, element), 0);
    }
}

/* A value in `precision` bits with the least exponent `emin` and the greatest value `largest`, as a float32. */
static float narrowed(const rounding *r, word_block block, uint32_t element, float x, int precision, int emin, double largest) {
    if (x != x) return NAN;
    if (x == 0 || isinf(x)) return x;
    int exponent;
    const double magnitude = fabs((double)x);
    frexp(magnitude, &exponent); /* magnitude in [2^(exponent - 1), 2^exponent) */
    const int place = exponent - precision > emin - precision + 1 ? exponent - precision : emin - precision + 1;
    const double steps = ldexp(magnitude, -place), below = floor(steps), rest = steps - below;
    double chosen = below;
    if (rest > 0) {
        int outward;
        if (r->mode == NEAREST) outward = rest > 0.5 || (rest == 0.5 && fmod(below, 2) == 1);
        else if (r->mode == NEARNESS) outward = random_word(block, element) * 0x1p-32 < rest;
        else outward = goes_up(r, block, element, x < 0) == (x > 0);
        chosen += outward;
    }
    double value = ldexp(chosen, place);
    if (r->flush && value < ldexp(1, emin)) value = 0;
    if (value > largest) { /* beyond the greatest finite value lies infinity */
        const int nearest = r->mode == NEAREST || r->mode == NEARNESS;
        value = nearest || goes_up(r, block, element, x < 0) == (x > 0) ? INFINITY : largest;
    }
    return (float)copysign(value, x);
}

/* The float64 that a float32 function is rounded from. */
double wide_value(int function, float a, float b) {
    double wide = value_(function, a, b);
    if ((isinf(wide) || wide == 0) && overflows(function, isfinite(a) && isfinite(b), a == 0)) {
        if (isinf(wide)) wide = copysign(0x1p1023, wide);
        else if (function != EXPM1 && function != SINH && function != HYPOT) wide = copysign(0x1p-1000, wide);
    }
    return wide;
}

int wide_naive(const rounding *r, const wide_call *c) {
#pragma omp parallel for schedule(static) num_threads(r->threads)
    for (int64_t i = 0; i < c->count; ++i)
        ((double *)c->out)[i] = wide_value(c->function, ((const float *)c->a)[i], c->b ? ((const float *)c->b)[i] : 0);
    return OK;
}

static float function_f32(const rounding *r, word_block block, uint32_t element, int function, float a, float b) {
    if (r->flush && fabsf(a) < 0x1p-126f) a = copysignf(0, a);
    if (r->flush && fabsf(b) < 0x1p-126f) b = copysignf(0, b);
    const double wide = wide_value(function, a, b);
    if (wide != wide) return NAN;
    float out = (float)wide;
    if (r->mode == NEARNESS) {
        out = stochastic_f32(wide, random_word(block, element));
    } else if (r->mode != NEAREST && (double)out != wide) {
        const int up = goes_up(r, block, element, wide < 0);
        if (up != ((double)out > wide)) out = isinf(out) ? copysignf(3.40282346638528859812e38f, out) : step_f32(out, up);
        if (out == 0) out = copysignf(0, (float)wide);
    }
    if (r->flush && fabsf(out) < 0x1p-126f) out = copysignf(0, out);
    return out;
}

static double function_f64(const rounding *r, word_block block, uint32_t element, int function, double a, double b) {
    if (r->flush && fabs(a) < 0x1p-1022) a = copysign(0, a);
    if (r->flush && fabs(b) < 0x1p-1022) b = copysign(0, b);
    long double wide = value_l(function, a, b);
    if (wide != wide) return NAN;
    if ((isinf(wide) || wide == 0) && overflows(function, isfinite(a) && isfinite(b), a == 0)) {
        if (isinf(wide)) wide = copysignl(0x1p1024L, wide);
        else if (function != EXPM1 && function != SINH && function != HYPOT) wide = copysignl(0x1p-1075L / 2, wide);
    }
    double out = (double)wide;
    const long double rest = isinf(out) ? 0 : wide - out;
    if (r->mode == NEARNESS) {
        out = step_f64(out, (double)rest, random_word(block, element));
    } else if (r->mode != NEAREST && (long double)out != wide) {
        const int up = goes_up(r, block, element, wide < 0);
        if (up != (out > wide)) out = isinf(out) ? copysign(1.79769313486231570815e308, out) : step_bits_f64(out, up);
        if (out == 0) out = copysign(0, (double)wide);
    }
    if (r->flush && fabs(out) < 0x1p-1022) out = copysign(0, out);
    return out;
}

/* One element at a time, by the C library: what functions.h computes by vectors, and all that it leaves. */
int function_naive(const rounding *r, const function_call *c) {
    const word_block block = block_constants(r->key, 0);
#pragma omp parallel for schedule(static) num_threads(r->threads) if (c->count >= 4096)
    for (int64_t i = 0; i < c->count; ++i) {
        const uint32_t element = (uint32_t)i;
        if (c->function == TO_FLOAT16)
            ((float *)c->out)[i] = narrowed(r, block, element, ((const float *)c->a)[i], 11, -14, 65504);
        else if (c->function == TO_BFLOAT16)
            ((float *)c->out)[i] = narrowed(r, block, element, ((const float *)c->a)[i], 8, -126, 0x1.fep127);
        else if (c->type == FLOAT32)
            ((float *)c->out)[i] = function_f32(r, block, element, c->function, ((const float *)c->a)[i],
                                                c->b ? ((const float *)c->b)[i] : 0);
        else
            ((double *)c->out)[i] = function_f64(r, block, element, c->function, ((const double *)c->a)[i],
                                                 c->b ? ((const double *)c->b)[i] : 0);
    }
    return OK;
}
