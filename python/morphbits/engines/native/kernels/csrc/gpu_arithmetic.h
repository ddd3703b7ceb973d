/* One elementary operation on a GPU, rounded as on a processor: the definitions are those of naive.c, the directions are the
 * GPU's own instructions. Subnormals are kept by the instructions and flushed here, as x86's flush-to-zero does. */
#include "morphbits.h"

#if defined(__CUDACC__)
#define DEVICE static __device__
#define CALLED __noinline__ /* large, and nowhere on the way that must be fast */
#define __builtin_fabs fabs
#define __builtin_fma fma
#define __builtin_sqrt sqrt
#define __builtin_copysign copysign
#define __builtin_inf() __longlong_as_double(0x7ff0000000000000ll)
#define __builtin_memcpy memcpy
#else
#define DEVICE static inline
#define CALLED
#endif

#include "stochastic.h"

#include "precision.h"

enum { FMA = ROUND + 1 };

#define DIRECTED(name, ...)                                                                                              \
    (direction == UPWARD ? name##_ru(__VA_ARGS__) : direction == DOWNWARD ? name##_rd(__VA_ARGS__)                       \
     : direction == TOWARD_ZERO ? name##_rz(__VA_ARGS__) : name##_rn(__VA_ARGS__))

DEVICE float directed(int direction, int operation, float a, float b, float c) {
    switch (operation) {
    case ADD: return DIRECTED(__fadd, a, b);
    case SUB: return DIRECTED(__fsub, a, b);
    case MUL: case LEAKY_RELU: return DIRECTED(__fmul, a, b);
    case DIV: return DIRECTED(__fdiv, a, b);
    case SQRT: return DIRECTED(__fsqrt, a);
    case ROUND: return a;
    default: return DIRECTED(__fmaf, a, b, c);
    }
}
DEVICE double directed(int direction, int operation, double a, double b, double c) {
    switch (operation) {
    case ADD: return DIRECTED(__dadd, a, b);
    case SUB: return DIRECTED(__dsub, a, b);
    case MUL: case LEAKY_RELU: return DIRECTED(__dmul, a, b);
    case DIV: return DIRECTED(__ddiv, a, b);
    case SQRT: return DIRECTED(__dsqrt, a);
    case ROUND: return a;
    default: return DIRECTED(__fma, a, b, c);
    }
}
DEVICE float narrowed(int direction, double a) { return DIRECTED(__double2float, a); }

INLINE uint32_t bits_of(float x) { uint32_t u; __builtin_memcpy(&u, &x, 4); return u; }
INLINE uint64_t bits_of(double x) { return word_of_f64(x); }
INLINE float of_bits(uint32_t u) { float x; __builtin_memcpy(&x, &u, 4); return x; }
INLINE bool minus_zero(float x) { return bits_of(x) == 0x80000000u; }
INLINE bool minus_zero(double x) { return bits_of(x) == UINT64_C(1) << 63; }
INLINE float one_nan(float x) { return x == x ? x : of_bits(0x7fc00000u); }
INLINE double one_nan(double x) { return x == x ? x : from_bits_f64(UINT64_C(0x7ff8000000000000)); }

/* ---- subnormals to zero ---- */

INLINE float least_normal(float) { return 0x1p-126f; }
INLINE double least_normal(double) { return 0x1p-1022; }
INLINE float flushed(float x) { return __builtin_fabs((double)x) < 0x1p-126 ? of_bits(bits_of(x) & 0x80000000u) : x; }
INLINE double flushed(double x) { return __builtin_fabs(x) < 0x1p-1022 ? __builtin_copysign(0.0, x) : x; }

/* x86 flushes a result that would lie below the least normal number if exponents were unbounded; some of these have been
 * rounded up to it. They show when the operation is done again 2^64 times larger, which no operand here is too large for. */
template <typename T> DEVICE T flushed_result(int direction, int operation, T a, T b, T c, T result) {
    const T least = least_normal(result), factor = (T)0x1p64, zero = result > 0 ? (T)0 : -(T)0;
    if (result == least || result == -least) {
        const bool first = operation == DIV || __builtin_fabs((double)a) <= __builtin_fabs((double)b);
        if (operation == MUL || operation == LEAKY_RELU || operation == DIV || operation == FMA) {
            const T scaled = directed(direction, operation, first ? a * factor : a, first ? b : b * factor, c * factor);
            if (scaled < least * factor && -scaled < least * factor) return zero;
        }
        return result;
    }
    return flushed(result);
}

/* ---- one operation ---- */

DEVICE float stochastic(const rounding &r, int operation, float a, float b, float c, uint32_t word) {
    const double x = a, y = b, z = c;
    double exact = x;
    switch (operation) {
    case ADD: exact = x + y; break;
    case SUB: exact = x - y; break;
    case MUL: case LEAKY_RELU: exact = x * y; break;
    case DIV: exact = x / y; break;
    case SQRT: exact = __builtin_sqrt(x); break;
    case FMA: exact = __builtin_fma(x, y, z); break;
    }
    return reduced(&r) ? fit_stochastic(&r, exact, word) : stochastic_f32(exact, word);
}
DEVICE double stochastic(const rounding &, int operation, double a, double b, double c, uint32_t word) {
    switch (operation) {
    case ADD: return stochastic_add_f64(a, b, word);
    case SUB: return stochastic_add_f64(a, -b, word);
    case MUL: case LEAKY_RELU: return stochastic_mul_f64(a, b, word);
    case DIV: return stochastic_div_f64(a, b, word);
    case SQRT: return stochastic_sqrt_f64(a, word);
    default: return stochastic_fma_f64(a, b, c, word);
    }
}

INLINE float in_format(const rounding &r, int direction, float x) {
    if (!reduced(&r)) return x;
    const uint32_t word = bits_of(x);
    const int way = direction == TOWARD_ZERO || (word >> 31) != (uint32_t)(direction == DOWNWARD) ? FIT_TO_ZERO : FIT_AWAY;
    return of_bits(fit(&r, word, way, 0));
}
INLINE double in_format(const rounding &, int, double x) { return x; }

INLINE bool fewer_bits(const rounding &r, float) { return reduced(&r); }
INLINE bool fewer_bits(const rounding &, double) { return false; }
INLINE float nearest_in_format(const rounding &r, float up, float down) {
    return of_bits(fit_nearest(&r, bits_of(up), bits_of(down)));
}
INLINE double nearest_in_format(const rounding &, double up, double) { return up; }

INLINE int direction_of(const rounding &r, uint32_t word, int64_t index) {
    return r.mode != RANDOM ? r.mode : rounds_up(word, index) ? UPWARD : DOWNWARD;
}

/* Operation `index` of an element whose random word there is `word`. */
template <typename T>
CALLED DEVICE T operate(const rounding &r, int operation, T a, T b, T c, uint32_t word, int64_t index) {
    if (r.flush) a = flushed(a), b = flushed(b), c = flushed(c);
    T out;
    if (r.mode == NEARNESS) {
        out = stochastic(r, operation, a, b, c, word);
        if (r.flush) out = flushed(out);
    } else if (r.mode == NEAREST && fewer_bits(r, a)) {
        out = nearest_in_format(r, directed(UPWARD, operation, a, b, c), directed(DOWNWARD, operation, a, b, c));
    } else {
        int direction = direction_of(r, word, index);
        out = directed(direction, operation, a, b, c);
        if (r.flush) out = flushed_result(direction, operation, a, b, c, out);
        if (direction == DOWNWARD && minus_zero(out)) { /* an exact zero has the sign that round-to-nearest gives it */
            direction = UPWARD;
            out = directed(direction, operation, a, b, c);
            if (r.flush) out = flushed_result(direction, operation, a, b, c, out);
        }
        out = in_format(r, direction, out);
    }
    return one_nan(out);
}

/* A float64 to float32 or less. */
DEVICE float narrow(const rounding &r, double a, uint32_t word) {
    if (r.flush) a = flushed(a);
    float out;
    if (r.mode == NEARNESS) {
        out = reduced(&r) ? fit_stochastic(&r, a, word) : stochastic_f32(a, word);
        if (r.flush) out = flushed(out);
    } else if (r.mode == NEAREST && reduced(&r)) {
        out = nearest_in_format(r, narrowed(UPWARD, a), narrowed(DOWNWARD, a));
    } else {
        const int direction = direction_of(r, word, 0);
        out = narrowed(direction, a);
        const float tiny = narrowed(direction, a * 0x1p64); /* see flushed_result */
        if (r.flush && tiny < 0x1p-62f && -tiny < 0x1p-62f) out = of_bits(bits_of(out) & 0x80000000u);
        out = in_format(r, direction, out);
    }
    return one_nan(out);
}
