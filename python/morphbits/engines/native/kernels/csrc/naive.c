/* The naive reference: one element, one operation at a time, the rounding direction set around each. Slow, plain, and what
 * the fast kernels are tested against byte for byte. Compiled without vector extensions and without threads. */
#include "morphbits.h"

#include <math.h>
#include <stdlib.h>

#include "stochastic.h"

#include "precision.h"

typedef union {
    float f32;
    double f64;
} number;

enum { FMA = ROUND + 1 };

static float operate_f32(int operation, volatile float a, volatile float b, volatile float c) {
    switch (operation) {
    case ADD: return a + b;
    case SUB: return a - b;
    case MUL: case LEAKY_RELU: return a * b;
    case DIV: return a / b;
    case SQRT: return sqrtf(a);
    case ROUND: return a;
    default: return fmaf(a, b, c);
    }
}

static double operate_f64(int operation, volatile double a, volatile double b, volatile double c) {
    switch (operation) {
    case ADD: return a + b;
    case SUB: return a - b;
    case MUL: case LEAKY_RELU: return a * b;
    case DIV: return a / b;
    case SQRT: return sqrt(a);
    case NARROW: case ROUND: return a;
    default: return fma(a, b, c);
    }
}

static double stochastic_operate_f64(int operation, double a, double b, double c, uint32_t word) {
    switch (operation) {
    case ADD: return stochastic_add_f64(a, b, word);
    case SUB: return stochastic_add_f64(a, -b, word);
    case MUL: case LEAKY_RELU: return stochastic_mul_f64(a, b, word);
    case DIV: return stochastic_div_f64(a, b, word);
    case SQRT: return stochastic_sqrt_f64(a, word);
    default: return stochastic_fma_f64(a, b, c, word);
    }
}

static number raw(const rounding *r, control base, int direction, int operation, int type, number a, number b, number c) {
    number out;
    control_set(control_with(base, direction, r->flush));
    if (operation == NARROW) {
        volatile double wide = a.f64;
        volatile float narrow = (float)wide;
        out.f32 = narrow;
    } else if (type == FLOAT32) {
        volatile float result = operate_f32(operation, a.f32, b.f32, c.f32);
        out.f32 = result;
    } else {
        volatile double result = operate_f64(operation, a.f64, b.f64, c.f64);
        out.f64 = result;
    }
    control_set(control_with(base, NEAREST, r->flush));
    return out;
}

static int minus_zero(int type, number x) {
    return type == FLOAT32 ? x.f32 == 0 && signbit(x.f32) : x.f64 == 0 && signbit(x.f64);
}

/* A float32 operation rounded into a format of fewer bits (precision.h). Computed in float64, rounded to odd: what falls
 * off leaves a trace in the last of the 53 bits, so that rounding again, to 51 bits or fewer, is rounding once (Boldo &
 * Melquiond 2008). Then a division by the last place, which is exact, and a rounding to a whole number. */
static float raw_reduced(const rounding *r, control base, int direction, int operation, number a, number b, number c) {
    const double x = operation == NARROW ? a.f64 : a.f32, y = b.f32, z = c.f32;
    control_set(control_with(base, TOWARD_ZERO, 0));
    const double inner = operate_f64(operation, x, y, z);
    control_set(control_with(base, UPWARD, 0));
    const double above = operate_f64(operation, x, y, z);
    control_set(control_with(base, DOWNWARD, 0));
    const double below = operate_f64(operation, x, y, z);
    control_set(control_with(base, NEAREST, 0));
    /* an exact zero has the sign that round-to-nearest gives, which is also that of rounding toward zero */
    if (inner - inner != 0 || (inner == 0 && above == below)) return (float)inner;
    const double odd = above == below ? inner : from_bits_f64(word_of_f64(inner) | 1);
    int exponent;
    frexp(odd, &exponent);
    exponent = exponent - 1 < r->emin ? r->emin : exponent - 1;
    double whole = ldexp(odd, r->precision - 1 - exponent);
    if (direction == NEAREST) whole = rint(whole);
    else if (direction == UPWARD) whole = ceil(whole);
    else if (direction == DOWNWARD) whole = floor(whole);
    else whole = trunc(whole);
    const double result = copysign(ldexp(whole, exponent - r->precision + 1), odd);
    const double largest = ldexp(2 - ldexp(1, 1 - r->precision), 1 - r->emin);
    if (fabs(result) <= largest) return (float)result;
    const int outward = direction == NEAREST || direction == (result > 0 ? UPWARD : DOWNWARD);
    return (float)copysign(outward ? HUGE_VAL : largest, result);
}

/* One perturbed operation: number `index` of output element `element`. */
static number perturbed(const rounding *r, control base, int operation, int type, int64_t index, uint32_t element, number a,
                        number b, number c) {
    number out;
    if (r->mode == NEARNESS) {
        const uint32_t word = draw(block_constants(r->key, (uint64_t)(index >> 5)), element, index);
        control_set(control_with(base, NEAREST, r->flush));
        if (type == FLOAT32 && reduced(r))
            out.f32 = fit_stochastic(r, operate_f64(operation, operation == NARROW ? a.f64 : a.f32, b.f32, c.f32), word);
        else if (operation == NARROW) out.f32 = stochastic_f32(a.f64, word);
        else if (type == FLOAT32) {
            const double x = a.f32, y = b.f32, z = c.f32;
            out.f32 = stochastic_f32(operate_f64(operation, x, y, z), word);
        } else out.f64 = stochastic_operate_f64(operation, a.f64, b.f64, c.f64, word);
    } else if (type == FLOAT32 && reduced(r)) {
        const uint32_t word = random_word(block_constants(r->key, (uint64_t)(index >> 5)), element);
        const int direction = r->mode != RANDOM ? r->mode : rounds_up(word, index) ? UPWARD : DOWNWARD;
        out.f32 = raw_reduced(r, base, direction, operation, a, b, c);
    } else if (r->mode == NEAREST || r->mode == TOWARD_ZERO) {
        out = raw(r, base, r->mode, operation, type, a, b, c);
    } else {
        const uint32_t word = random_word(block_constants(r->key, (uint64_t)(index >> 5)), element);
        const int up = r->mode == UPWARD || (r->mode == RANDOM && rounds_up(word, index));
        out = raw(r, base, up ? UPWARD : DOWNWARD, operation, type, a, b, c);
        if (!up && minus_zero(type, out)) out = raw(r, base, UPWARD, operation, type, a, b, c); /* an exact zero */
    }
    if (type == FLOAT32 ? isnan(out.f32) : isnan(out.f64)) {
        if (type == FLOAT32) out.f32 = __builtin_nanf("");
        else out.f64 = __builtin_nan("");
    }
    return out;
}

static number load(int type, const void *from, int64_t at) {
    number x;
    if (type == FLOAT32) x.f32 = ((const float *)from)[at];
    else x.f64 = ((const double *)from)[at];
    return x;
}

static void store(int type, void *to, int64_t at, number x) {
    if (type == FLOAT32) ((float *)to)[at] = x.f32;
    else ((double *)to)[at] = x.f64;
}

int elementwise_naive(const rounding *r, const elementwise_call *c) {
    const control saved = control_get();
    const int type_in = c->operation == NARROW ? FLOAT64 : c->type;
    const number none = {0};
    int64_t total = 1;
    for (int d = 0; d < c->dims; ++d) total *= c->shape[d];
    for (int64_t e = 0; e < total; ++e) {
        int64_t at_a = 0, at_b = 0;
        for (int64_t rest = e, d = c->dims - 1; d >= 0; --d) {
            at_a += rest % c->shape[d] * c->stride_a[d];
            at_b += rest % c->shape[d] * c->stride_b[d];
            rest /= c->shape[d];
        }
        const number a = load(type_in, c->a, at_a), b = c->b ? load(type_in, c->b, at_b) : none;
        number out = perturbed(r, saved, c->operation, c->type, 0, (uint32_t)e, a, b, none);
        control_set(control_with(saved, NEAREST, r->flush));
        if (c->operation == LEAKY_RELU && (c->type == FLOAT32 ? a.f32 > 0 : a.f64 > 0)) out = a;
        control_set(saved);
        store(c->type, c->out, e, out);
    }
    return OK;
}

int convolution_naive(const rounding *r, const convolution_call *c) {
    const control saved = control_get();
    const int64_t taps = c->kernel[0] * c->kernel[1] * c->kernel[2];
    const int64_t voxels = c->size_out[0] * c->size_out[1] * c->size_out[2];
    const number none = {0};
    for (int64_t b = 0; b < c->batch; ++b)
        for (int64_t o = 0; o < c->channels_out; ++o)
            for (int64_t v = 0; v < voxels; ++v) {
                const int64_t e = (b * c->channels_out + o) * voxels + v;
                const int64_t at[3] = {v / (c->size_out[2] * c->size_out[1]), v / c->size_out[2] % c->size_out[1],
                                       v % c->size_out[2]};
                const number bias = c->bias ? load(c->type, c->bias, o) : none;
                number total = none;
                int64_t t = 0;
                for (int64_t s = 0; s < c->segments; ++s) {
                    number chain = s == 0 && c->bias_first == START ? bias : none;
                    for (; t < c->segment_end[s]; ++t) {
                        const int64_t tap[3] = {c->tap[t] / (c->kernel[2] * c->kernel[1]),
                                                c->tap[t] / c->kernel[2] % c->kernel[1], c->tap[t] % c->kernel[2]};
                        int64_t from = b * c->channels_in + c->channel[t];
                        int inside = 1;
                        for (int d = 0; d < 3; ++d) {
                            const int64_t x = at[d] * c->stride[d] - c->padding[d] + tap[d] * c->dilation[d];
                            inside = inside && x >= 0 && x < c->size_in[d];
                            from = from * c->size_in[d] + x;
                        }
                        const number x = inside ? load(c->type, c->input, from) : none;
                        const number w = load(c->type, c->weight, (o * c->channels_in + c->channel[t]) * taps + c->tap[t]);
                        if (inside || (c->type == FLOAT32 ? isfinite(w.f32) : isfinite(w.f64)))
                            chain = perturbed(r, saved, FMA, c->type, t, (uint32_t)e, x, w, chain);
                    }
                    if (s == 0 && c->bias_first != FIRST) total = chain;
                    else total = perturbed(r, saved, ADD, c->type, c->terms + s, (uint32_t)e, s ? total : bias, chain, none);
                }
                if (c->bias && !c->bias_first)
                    total = perturbed(r, saved, ADD, c->type, c->terms + c->segments, (uint32_t)e, total, bias, none);
                control_set(saved);
                store(c->type, c->output, e, total);
            }
    return OK;
}

int reduction_naive(const rounding *r, const reduction_call *c) {
    const control saved = control_get();
    const number none = {0};
    for (int64_t o = 0; o < c->outer; ++o)
        for (int64_t j = 0; j < c->period; ++j) {
            number total = none;
            for (int64_t t = 0, at = j; at < c->length; ++t, at += c->period) {
                const number x = load(c->type, c->input, o * c->length + at);
                total = t == 0 ? x
                               : perturbed(r, saved, c->operation, c->type, t - 1, (uint32_t)(o * c->period + j), total, x, none);
                if (c->type == FLOAT32 ? isnan(total.f32) : isnan(total.f64)) {
                    if (c->type == FLOAT32) total.f32 = __builtin_nanf("");
                    else total.f64 = __builtin_nan("");
                }
                if (c->scan) store(c->type, c->output, o * c->length + at, total);
            }
            control_set(saved);
            if (!c->scan) store(c->type, c->output, o * c->period + j, total);
        }
    return OK;
}

int contraction_naive(const rounding *r, const contraction_call *c) {
    const control saved = control_get();
    const number none = {0};
    for (int64_t b = 0; b < c->batch; ++b)
        for (int64_t m = 0; m < c->rows; ++m)
            for (int64_t n = 0; n < c->columns; ++n) {
                const int64_t e = b * c->rows * c->columns + m * c->row_step + n * c->column_step;
                number total = none;
                for (int64_t s = 0, k = 0; s < c->segments; ++s) {
                    number chain = none;
                    for (; k < c->segment_end[s]; ++k) {
                        const number x = load(c->type, c->left, b * c->left_batch_step + c->row_offset[m] + c->depth_offset[k]);
                        const number y = load(c->type, c->right,
                                              b * c->right_batch_step + k * c->right_depth_step + n * c->right_column_step);
                        chain = perturbed(r, saved, FMA, c->type, k, (uint32_t)e, x, y, chain);
                    }
                    total = s == 0 ? chain
                                   : perturbed(r, saved, ADD, c->type, c->depth + s, (uint32_t)e, total, chain, none);
                }
                control_set(saved);
                store(c->type, c->output, e, total);
            }
    return OK;
}
