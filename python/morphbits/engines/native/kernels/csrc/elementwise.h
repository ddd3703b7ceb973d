/* Elementwise operators, one elementary operation an element, in chunks: the whole chunk rounded up, the whole chunk
 * rounded down, then the result picked element by element. Included by kernels.c. */
#ifndef MORPHBITS_ELEMENTWISE_H
#define MORPHBITS_ELEMENTWISE_H

#include <string.h>

#include "directed.h"
#include "morphbits.h"
#include "narrow.h"
#include "precision.h"
#include "stochastic.h"
#include "variant.h"

#define CHUNK 1024

/* Plain loops; the caller has set the rounding direction, so they must not be inlined into it. */
#define PLAIN_LOOP(name, T, expression)                                                                              \
    static __attribute__((noinline)) void name(int64_t n, const T *restrict a, const T *restrict b, T *restrict out) { \
        (void)b;                                                                                                     \
        for (int64_t i = 0; i < n; ++i) out[i] = expression;                                                         \
    }
#define PLAIN_LOOPS(T, suffix, root)                        \
    PLAIN_LOOP(plain_add_##suffix, T, a[i] + b[i])          \
    PLAIN_LOOP(plain_sub_##suffix, T, a[i] - b[i])          \
    PLAIN_LOOP(plain_mul_##suffix, T, a[i] * b[i])          \
    PLAIN_LOOP(plain_div_##suffix, T, a[i] / b[i])          \
    PLAIN_LOOP(plain_sqrt_##suffix, T, root(a[i]))
PLAIN_LOOPS(float, f32, __builtin_sqrtf)
PLAIN_LOOPS(double, f64, __builtin_sqrt)

static __attribute__((noinline)) void plain_narrow(int64_t n, const double *restrict a, float *restrict out) {
    for (int64_t i = 0; i < n; ++i) out[i] = (float)a[i];
}

static void plain_f32(int operation, int64_t n, const void *a, const void *b, float *out) {
    switch (operation) {
    case ADD: plain_add_f32(n, a, b, out); break;
    case SUB: plain_sub_f32(n, a, b, out); break;
    case MUL: case LEAKY_RELU: plain_mul_f32(n, a, b, out); break;
    case DIV: plain_div_f32(n, a, b, out); break;
    case SQRT: plain_sqrt_f32(n, a, b, out); break;
    case NARROW: plain_narrow(n, a, out); break;
    case ROUND: memcpy(out, a, sizeof(float) * (size_t)n); break;
    }
}

static void plain_f64(int operation, int64_t n, const void *a, const void *b, double *out) {
    switch (operation) {
    case ADD: plain_add_f64(n, a, b, out); break;
    case SUB: plain_sub_f64(n, a, b, out); break;
    case MUL: case LEAKY_RELU: plain_mul_f64(n, a, b, out); break;
    case DIV: plain_div_f64(n, a, b, out); break;
    case SQRT: plain_sqrt_f64(n, a, b, out); break;
    }
}

static __attribute__((noinline)) void element_words(int64_t n, word_block c, uint32_t first, uint32_t *restrict word) {
    for (int64_t i = 0; i < n; ++i) word[i] = random_word(c, first + (uint32_t)i);
}

/* Picks by the highest bit of `word`. An exact zero keeps the sign that round-to-nearest gives it: rounded down, an exact
 * cancellation is -0, and -0 rounded down comes from an exact zero only, so the upward result is right there. */
#define PICK(name, T, U)                                                                                                  \
    static __attribute__((noinline)) void name(int64_t n, const T *up, const T *down, const uint32_t *word, T *out) {      \
        const U minus_zero = (U)1 << (8 * sizeof(U) - 1);                                                                  \
        for (int64_t i = 0; i < n; ++i) {                                                                                  \
            U u = ((const U *)up)[i], d = ((const U *)down)[i];                                                            \
            U pick_up = (U)0 - (U)((word[i] >> 31) | (d == minus_zero));                                                   \
            ((U *)out)[i] = (u & pick_up) | (d & ~pick_up);                                                                \
        }                                                                                                                  \
    }
PICK(pick_f32, float, uint32_t)
PICK(pick_f64, double, uint64_t)

/* The exact results, or those rounded to float64. */
#define WIDE_LOOP(name, expression)                                                                                       \
    static __attribute__((noinline)) void name(int64_t n, const float *restrict a, const float *restrict b, double *restrict out) { \
        (void)b;                                                                                                          \
        for (int64_t i = 0; i < n; ++i) out[i] = expression;                                                              \
    }
WIDE_LOOP(wide_add, (double)a[i] + (double)b[i])
WIDE_LOOP(wide_sub, (double)a[i] - (double)b[i])
WIDE_LOOP(wide_mul, (double)a[i] * (double)b[i])
WIDE_LOOP(wide_div, (double)a[i] / (double)b[i])
WIDE_LOOP(wide_sqrt, __builtin_sqrt((double)a[i]))
WIDE_LOOP(wide_same, (double)a[i])
#undef WIDE_LOOP
static void wide_result(int operation, int64_t n, const void *a, const void *b, double *out) {
    switch (operation) {
    case ADD: wide_add(n, a, b, out); break;
    case SUB: wide_sub(n, a, b, out); break;
    case MUL: case LEAKY_RELU: wide_mul(n, a, b, out); break;
    case DIV: wide_div(n, a, b, out); break;
    case SQRT: wide_sqrt(n, a, b, out); break;
    case ROUND: wide_same(n, a, b, out); break;
    case NARROW: memcpy(out, a, sizeof(double) * (size_t)n); break;
    }
    for (int64_t i = n; i % WIDE_LANES; ++i) out[i] = 1; /* up to a whole vector */
}

static __attribute__((noinline)) void nearness_f32(int64_t n, const double *restrict exact, const uint32_t *restrict word,
                                                   float *restrict out) {
    for (int64_t i = 0; i < n; ++i) out[i] = stochastic_f32(exact[i], word[i]);
}

static __attribute__((noinline)) void nearness_f64(int operation, int64_t n, const double *a, const double *b,
                                                   const uint32_t *restrict word, double *restrict out) {
    for (int64_t i = 0; i < n; ++i)
        switch (operation) {
        case ADD: out[i] = stochastic_add_f64(a[i], b[i], word[i]); break;
        case SUB: out[i] = stochastic_add_f64(a[i], -b[i], word[i]); break;
        case MUL: case LEAKY_RELU: out[i] = stochastic_mul_f64(a[i], b[i], word[i]); break;
        case DIV: out[i] = stochastic_div_f64(a[i], b[i], word[i]); break;
        case SQRT: out[i] = stochastic_sqrt_f64(a[i], word[i]); break;
        }
}

/* Writes the results of a chunk; only here is `out` touched, which may be the operand `a` itself. */
#define FINISH(name, T, U, quiet)                                                                                 \
    static __attribute__((noinline)) void name(int64_t n, int leaky, const T *a, const T *restrict result, T *out) { \
        if (leaky)                                                                                                \
            for (int64_t i = 0; i < n; ++i) out[i] = a[i] > 0 ? a[i] : result[i];                                  \
        else                                                                                                      \
            for (int64_t i = 0; i < n; ++i) out[i] = result[i];                                                   \
        for (int64_t i = 0; i < n; ++i) ((U *)out)[i] = out[i] != out[i] ? quiet : ((U *)out)[i];                  \
    }
FINISH(finish_f32, float, uint32_t, 0x7fc00000u)
FINISH(finish_f64, double, uint64_t, UINT64_C(0x7ff8000000000000))

typedef union {
    float f32[CHUNK];
    double f64[CHUNK] __attribute__((aligned(VECTOR_BYTES)));
} chunk_buffer;

static void plain(const elementwise_call *c, int64_t n, const void *a, const void *b, chunk_buffer *out) {
    if (c->type == FLOAT32) plain_f32(c->operation, n, a, b, out->f32);
    else plain_f64(c->operation, n, a, b, out->f64);
}

/* One contiguous chunk; `base` is the thread's own control register, `element` the chunk's first output element. */
static void chunk(const rounding *r, control base, const elementwise_call *c, word_block block, uint32_t element,
                  int64_t n, const void *a, const void *b, void *out) {
    uint32_t word[CHUNK];
    chunk_buffer result, down;
    const int single = c->type == FLOAT32, fewer = single && reduced(r);
#if defined(__AVX512F__)
    if (!fewer && by_instruction(r)) {
        directed(r->mode, c->operation, c->type, block, element, n, a, b, out);
        return;
    }
#endif
    if (r->mode == TOWARD_ZERO || (r->mode == NEAREST && !fewer)) {
        plain(c, n, a, b, &result);
        if (fewer) fit_to_zero_f32(r, n, result.f32);
    } else if (r->mode == NEARNESS) {
        if (single) wide_result(c->operation, n, a, b, down.f64);
        if (!single || fewer || !narrow_normal(r, block, element, n, down.f64, result.f32)) {
            element_words(n, block, element, word);
            if (!single) nearness_f64(c->operation, n, a, b, word, result.f64);
            else if (fewer) for (int64_t i = 0; i < n; ++i) result.f32[i] = fit_stochastic(r, down.f64[i], word[i]);
            else nearness_f32(n, down.f64, word, result.f32);
        }
    } else {
        if (r->mode == RANDOM) element_words(n, block, element, word);
        else memset(word, r->mode == UPWARD ? 0xff : 0, sizeof(word));
        control_set(control_with(base, DOWNWARD, r->flush));
        plain(c, n, a, b, &down);
        control_set(control_with(base, UPWARD, r->flush));
        plain(c, n, a, b, &result);
        control_set(control_with(base, NEAREST, r->flush));
        if (fewer && r->mode != NEAREST) {
            fit_directed_f32(r, n, 0, down.f32);
            fit_directed_f32(r, n, 1, result.f32);
        }
        if (r->mode == NEAREST) fit_nearest_f32(r, n, result.f32, down.f32, result.f32);
        else if (single) pick_f32(n, result.f32, down.f32, word, result.f32);
        else pick_f64(n, result.f64, down.f64, word, result.f64);
    }
    if (single) finish_f32(n, c->operation == LEAKY_RELU, a, result.f32, out);
    else finish_f64(n, c->operation == LEAKY_RELU, a, result.f64, out);
}

/* n numbers of `size` bytes that lie `step` numbers apart. */
#define RUN(T)                                                                                        \
    if (step == 0) for (int64_t i = 0; i < n; ++i) ((T *)to)[i] = *(const T *)from;                   \
    else for (int64_t i = 0; i < n; ++i) ((T *)to)[i] = ((const T *)from)[i * step];                  \
    break;
static void collect_run(int64_t n, const void *restrict from, int64_t step, int64_t size, void *restrict to) {
    switch (step == 1 ? 0 : size) {
    case 0: memcpy(to, from, (size_t)(n * size)); break;
    case 1: RUN(uint8_t)
    case 4: RUN(uint32_t)
    case 8: RUN(uint64_t)
    }
}
#undef RUN

/* `n` elements of an operand from output element `start` on, in the order of the output. */
static void collect(const elementwise_call *c, const int64_t *stride, int64_t start, int64_t n, int64_t size,
                    const char *operand, char *to) {
    int64_t index[MAX_DIMS], at = 0;
    const int last = c->dims - 1;
    for (int64_t rest = start, d = last; d >= 0; --d) {
        index[d] = rest % c->shape[d];
        at += index[d] * stride[d];
        rest /= c->shape[d];
    }
    while (n > 0) {
        int64_t run = c->shape[last] - index[last];
        if (run > n) run = n;
        collect_run(run, operand + at * size, stride[last], size, to);
        to += run * size;
        n -= run;
        index[last] += run;
        at += run * stride[last];
        for (int d = last; d > 0 && index[d] == c->shape[d]; --d) {
            at += stride[d - 1] - index[d] * stride[d];
            index[d] = 0;
            ++index[d - 1];
        }
    }
}

static int contiguous(const elementwise_call *c, const int64_t *stride) {
    int64_t expected = 1;
    for (int d = c->dims - 1; d >= 0; --d) {
        if (c->shape[d] != 1 && stride[d] != expected) return 0;
        expected *= c->shape[d];
    }
    return 1;
}

int FN(elementwise)(const rounding *r, const elementwise_call *c) {
    const int64_t size_out = c->type == FLOAT32 ? 4 : 8, size_in = c->operation == NARROW ? 8 : size_out;
    const int direct_a = contiguous(c, c->stride_a), direct_b = c->b && contiguous(c, c->stride_b);
    const word_block block = block_constants(r->key, 0);
    int64_t total = 1;
    for (int d = 0; d < c->dims; ++d) total *= c->shape[d];
#pragma omp parallel num_threads(r->threads) if (total >= 32 * CHUNK)
    {
        const control saved = control_get();
        control_set(control_with(saved, r->mode, r->flush));
        double buffer_a[CHUNK], buffer_b[CHUNK];
#pragma omp for schedule(static)
        for (int64_t start = 0; start < total; start += CHUNK) {
            const int64_t n = total - start < CHUNK ? total - start : CHUNK;
            const char *a = (const char *)c->a + start * size_in, *b = (const char *)c->b + start * size_in;
            if (!direct_a) collect(c, c->stride_a, start, n, size_in, c->a, (char *)buffer_a), a = (char *)buffer_a;
            if (!c->b) b = NULL;
            else if (!direct_b) collect(c, c->stride_b, start, n, size_in, c->b, (char *)buffer_b), b = (char *)buffer_b;
            chunk(r, saved, c, block, (uint32_t)start, n, a, b, (char *)c->out + start * size_out);
        }
        control_set(saved);
    }
    return OK;
}

#endif
