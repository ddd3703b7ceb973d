/* Sums, products and their partial results for one element type. Included by kernels.c after vector.h.
 * A vector is LANES neighbouring outputs; each output is one chain over terms that lie `period` apart. */
#include <stdlib.h>


#define REDUCTION_TILE 4

static inline __attribute__((always_inline)) V S(reduce_operation)(const rounding *r, int multiply,
                                                                   V a, V b, int64_t index, W word) {
    switch (r->mode) {
    case NEAREST: case TOWARD_ZERO: return multiply ? a * b : a + b;
    case NEARNESS:
        return multiply ? S(mul_stochastic)(a, b, word) : S(add_stochastic)(a, b, word);
    default:
        return multiply ? S(mul_random)(a, b, S(direction_of)(word, index)) : S(add_random)(a, b, S(direction_of)(word, index));
    }
}

/* How many of the lanes of vector `i` there are, when `left` are there in all. */
static inline int64_t S(lanes_of)(int64_t left, int i) {
    const int64_t here = left - i * LANES;
    return here < 0 ? 0 : here < LANES ? here : LANES;
}
static inline V S(load_lanes)(const T *from, int64_t lanes) {
    if (lanes == LANES) return *(const V *)from;
    V x = {0};
    for (int64_t l = 0; l < lanes; ++l) x[l] = from[l];
    return x;
}
static inline void S(store_lanes)(T *to, int64_t lanes, V x) {
    if (lanes == LANES) *(V *)to = x;
    else for (int64_t l = 0; l < lanes; ++l) to[l] = x[l];
}

/* `tile` vectors of outputs from `start` on, of which `lanes` are there (whole vectors if tile > 1). */
static inline __attribute__((always_inline)) void S(reduce_tile)(const rounding *r, const reduction_call *c,
                                                                 const word_block *block, const int tile, int64_t outer,
                                                                 int64_t start, int64_t lanes) {
    const T *input = (const T *)c->input + outer * c->length;
    T *output = (T *)c->output + outer * (c->scan ? c->length : c->period);
    V total[REDUCTION_TILE] = {{0}};
    W lane, element[REDUCTION_TILE], word[REDUCTION_TILE] = {{0}};
    for (int l = 0; l < LANES; ++l)
        lane[l] = (uint32_t)(outer * c->period + start + (r->mode == NEARNESS ? S(lane_of)(l) : l));
    for (int i = 0; i < tile; ++i) element[i] = lane + (uint32_t)(i * LANES);
    for (int64_t term = 0, at = start; at < c->length; ++term, at += c->period) {
        const int64_t index = term - 1, left = c->length - at < lanes ? c->length - at : lanes;
        for (int i = 0; i < tile; ++i) {
            const int64_t here = S(lanes_of)(left, i);
            const V x = S(load_lanes)(input + at + i * LANES, here);
            if (term == 0) {
                total[i] = x;
            } else {
                if ((index & 31) == 0) word[i] = S(word_for)(r->mode, block, index, element[i]);
                const V sum = S(reduce_operation)(r, c->operation == MUL, total[i], x, index, word[i]);
                if (r->mode == NEARNESS) word[i] *= STEP;
                if (here == LANES) total[i] = sum;
                else for (int64_t l = 0; l < here; ++l) total[i][l] = sum[l];
            }
            if (c->scan) S(store_lanes)(output + at + i * LANES, here, S(one_nan)(total[i]));
        }
    }
    for (int i = 0; i < tile && !c->scan; ++i)
        S(store_lanes)(output + start + i * LANES, S(lanes_of)(lanes, i), S(one_nan)(total[i]));
}

#if defined(SINGLE)
/* The same for additions in mode NEARNESS, subnormals kept, with the totals in float64: a subnormal sum is exact there. Returns
 * 0, and what it wrote is to be written again, where a total might have overflowed. */
static inline __attribute__((always_inline)) int S(add_tile)(const reduction_call *c, const word_block *block, const int tile,
                                                             int64_t outer, int64_t start, int64_t lanes) {
    const T *input = (const T *)c->input + outer * c->length;
    T *output = (T *)c->output + outer * (c->scan ? c->length : c->period);
    S(total) total[REDUCTION_TILE] = {0};
    W lane, word[REDUCTION_TILE] = {{0}};
    I largest = {0};
    int64_t term = 0;
    for (int l = 0; l < LANES; ++l) lane[l] = (uint32_t)(outer * c->period + start + S(lane_of)(l));
    for (int64_t at = start; at < c->length; ++term, at += c->period) {
        const int64_t index = term - 1, left = c->length - at < lanes ? c->length - at : lanes;
        for (int i = 0; i < tile; ++i) {
            const int64_t here = S(lanes_of)(left, i);
            const V x = S(load_lanes)(input + at + i * LANES, here);
            const I magnitude = (I)x & ~MINUS_ZERO, more = (I)(magnitude > largest);
            largest = (magnitude & more) | (largest & ~more);
            if (term == 0) {
                total[i] = S(widened)(x);
            } else {
                if ((index & 31) == 0) word[i] = S(word_for)(NEARNESS, block, index, lane + (uint32_t)(i * LANES));
                const S(total) sum = S(add_totals)(total[i], S(widened)(x), word[i], 0);
                word[i] *= STEP;
                if (here == LANES) {
                    total[i] = sum;
                } else {
                    V kept = S(narrowed)(total[i]), added = S(narrowed)(sum);
                    for (int64_t l = 0; l < here; ++l) kept[l] = added[l];
                    total[i] = S(widened)(kept);
                }
            }
            if (c->scan) S(store_lanes)(output + at + i * LANES, here, S(narrowed)(total[i]));
        }
    }
    for (int i = 0; i < tile && !c->scan; ++i)
        S(store_lanes)(output + start + i * LANES, S(lanes_of)(lanes, i), S(narrowed)(total[i]));
    S(bits) all = 0;
    for (int l = 0; l < LANES; ++l) all = largest[l] > all ? largest[l] : all;
    return S(bounded)(all, (S(bits))BIAS << MANTISSA, term);
}
static __attribute__((noinline)) int S(add_whole)(const reduction_call *c, const word_block *block, int64_t outer, int64_t start) {
    return S(add_tile)(c, block, REDUCTION_TILE, outer, start, LANES * REDUCTION_TILE);
}
static __attribute__((noinline)) int S(add_part)(const reduction_call *c, const word_block *block, int64_t outer, int64_t start,
                                                 int64_t lanes) {
    return S(add_tile)(c, block, 1, outer, start, lanes);
}
#endif

static __attribute__((noinline)) void S(reduce_whole)(const rounding *r, const reduction_call *c, const word_block *block,
                                                      int64_t outer, int64_t start) {
#if defined(SINGLE)
    if (r->mode == NEARNESS && c->operation == ADD && !r->flush && S(add_whole)(c, block, outer, start)) return;
#endif
    S(reduce_tile)(r, c, block, REDUCTION_TILE, outer, start, LANES * REDUCTION_TILE);
}
static __attribute__((noinline)) void S(reduce_part)(const rounding *r, const reduction_call *c, const word_block *block,
                                                     int64_t outer, int64_t start, int64_t lanes) {
#if defined(SINGLE)
    if (r->mode == NEARNESS && c->operation == ADD && !r->flush && S(add_part)(c, block, outer, start, lanes)) return;
#endif
    S(reduce_tile)(r, c, block, 1, outer, start, lanes);
}

static int S(reduce)(const rounding *r, const reduction_call *c) {
    const int64_t terms = (c->length + c->period - 1) / c->period, step = LANES * REDUCTION_TILE;
    const int64_t tiles = (c->period + step - 1) / step;
    const int64_t draws = terms / 32 + 1;
    word_block *block = malloc(sizeof(word_block) * (size_t)draws);
    if (!block) return OUT_OF_MEMORY;
    for (int64_t b = 0; b < draws; ++b) block[b] = block_constants(r->key, (uint64_t)b);
#pragma omp parallel num_threads(r->threads) if (c->outer * c->length >= 32768)
    {
        const control saved = control_get();
        control_set(control_with(saved, r->mode == DOWNWARD ? UPWARD : r->mode, r->flush));
#pragma omp for schedule(static)
        for (int64_t item = 0; item < c->outer * tiles; ++item) {
            const int64_t outer = item / tiles, start = item % tiles * step;
            const int64_t left = c->period - start < step ? c->period - start : step;
            if (left == step) S(reduce_whole)(r, c, block, outer, start);
            else for (int64_t at = 0; at < left; at += LANES)
                S(reduce_part)(r, c, block, outer, start + at, left - at < LANES ? left - at : LANES);
        }
        control_set(saved);
    }
    free(block);
    return OK;
}
