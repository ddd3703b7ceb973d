/* Linear sampling of an image at points between its voxels, and its derivatives, in one pass over the points: what the rule of
 * `grid_sample` (rules/grids.py) does operation by operation, with the same random bits. Coordinates that are reflected are left
 * to the rule. Included by kernels.c after elementwise.h and reduction.h, once for each element type.
 *
 * Draws, in their order; C channels, D axes, K = 2^D corners; corner k lies on side (k >> (D - 1 - d)) & 1 of axis d:
 *   for each axis the coordinate in voxels: plus one; then, of n voxels, for three axes over two and times n - 1 (aligned corners),
 *     or times n, minus one, over two; for two axes times (n - 1) / 2, or times n / 2, minus a half. A factor of one has no draw;
 *   three axes: for each axis the distances to the upper and to the lower corner; two axes: for each axis the distance to the
 *     lower corner, then for each axis one minus that: the weights of both sides;
 *   value: for each corner D - 1 products of weights, from the last axis on, and the product with the value; one chain of these;
 *   image: for each corner the same products of weights, and the product with the gradient; the scattered additions;
 *   place: for each axis d: for each corner the value times the weights of the other axes, from the last on, times the gradient;
 *     one chain over channels and corners; the product with the slope of d. */
#include <stdlib.h>
#include <string.h>

#define POINTS 256 /* of a tile */

typedef S(bits) S(tile_bits)[POINTS];
typedef T S(tile)[POINTS];

/* What one thread works in. */
typedef struct {
    S(tile) place, number, slope[3]; /* a coordinate in voxels, a constant, derivatives of the former by what is given */
    S(tile) low, high;               /* the whole numbers around it */
    S(tile) weight[3][2];            /* of both sides of each axis */
    S(tile) corner[8];               /* products of these */
    S(tile) value[8], term[8], total[3];
    S(tile_bits) inside[8]; /* all bits of those corners that lie in the image */
    int32_t at[8][POINTS];
    const rounding *r;
    const sampling_call *c;
    const word_block *block; /* of each draw */
    control base;            /* the thread's own register */
} S(sampler);

static int64_t S(corners)(const sampling_call *c) { return INT64_C(1) << c->dims; }
static int S(scaled)(const sampling_call *c, int d) { /* whether there is a factor of other than one */
    const int64_t n = c->size[d] - c->aligned;
    return n != (c->dims == 3 ? 1 : 2);
}
static int64_t S(place_draws)(const sampling_call *c) {
    int64_t draws = 0;
    for (int d = 0; d < c->dims; ++d) draws += S(scaled)(c, d) + (c->dims == 3 ? c->aligned ? 2 : 3 : c->aligned ? 1 : 2);
    return draws;
}
static int64_t S(weight_draws)(const sampling_call *c) { return S(place_draws)(c) + (c->dims == 3 ? 6 : 4); }
static int S(side)(const sampling_call *c, int64_t corner, int d) { return (corner >> (c->dims - 1 - d)) & 1; }

static void S(operate)(const S(sampler) * s, int operation, int64_t draw, int64_t element, int64_t n, const T *a, const T *b,
                       T *out) {
    const elementwise_call call = {.operation = operation, .type = s->c->type};
    control_set(control_with(s->base, s->r->mode, s->r->flush));
    chunk(s->r, s->base, &call, s->block[draw], (uint32_t)element, n, a, b, out);
}

static void S(with_number)(S(sampler) * s, int operation, int64_t draw, int64_t first, int64_t n, double number) {
    control_set(s->base);
    for (int64_t i = 0; i < n; ++i) s->number[i] = (T)number;
    S(operate)(s, operation, draw, first, n, s->place, s->number, s->place);
}

/* Coordinates of `n` points along axis d, in voxels, and their derivatives; returns the next draw. */
static int64_t S(find_places)(S(sampler) * s, int d, int64_t draw, int64_t first, int64_t n) {
    const sampling_call *c = s->c;
    const int64_t size = c->size[d] - c->aligned, last = c->size[d] - 1;
    const T *given = (const T *)c->place + first * c->dims + c->dims - 1 - d;
    for (int64_t i = 0; i < n; ++i) s->place[i] = given[i * c->dims];
    S(with_number)(s, ADD, draw++, first, n, 1);
    if (c->dims == 3 && c->aligned) S(with_number)(s, DIV, draw++, first, n, 2);
    if (S(scaled)(c, d)) S(with_number)(s, MUL, draw++, first, n, c->dims == 3 ? (double)size : (double)size / 2);
    if (!c->aligned) S(with_number)(s, SUB, draw++, first, n, c->dims == 3 ? 1 : 0.5);
    if (c->dims == 3 && !c->aligned) S(with_number)(s, DIV, draw++, first, n, 2);
    control_set(s->base);
    const V zero = {0}, end = zero + (T)last, factor = zero + (T)size / 2;
    for (int64_t i = 0; i < n; i += LANES) {
        const V x = *(const V *)(s->place + i);
        const I inside = (I)(x > zero) & (I)(x < end), low = (I)(x < zero), high = (I)(x > end), number = (I)(x == x);
        *(V *)(s->slope[d] + i) = c->border ? (V)((I)factor & inside) : factor;
        if (c->border) *(V *)(s->place + i) = (V)((((I)x & ~high) | ((I)end & high)) & number & ~low);
    }
    return draw;
}

/* Weights and places of the corners around `n` points. */
static void S(find_corners)(S(sampler) * s, int64_t first, int64_t n) {
    const sampling_call *c = s->c;
    const int dims = c->dims;
    typedef int32_t places __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
    int32_t at[3][2][POINTS];
    S(tile_bits) inside[3][2];
    int64_t draw = 0, next = S(place_draws)(c);
    for (int d = 0; d < dims; ++d) {
        draw = S(find_places)(s, d, draw, first, n);
        const T *x = s->place, last = (T)(c->size[d] - 1);
        int32_t step = 1;
        for (int e = d + 1; e < dims; ++e) step *= (int32_t)c->size[e];
        control_set(s->base);
        for (int64_t i = 0; i < n; ++i) s->low[i] = FLOOR(x[i]);
        for (int64_t i = 0; i < n; ++i) s->high[i] = s->low[i] + 1;
        const V zero = {0}, end = zero + last;
        for (int side = 0; side < 2; ++side)
            for (int64_t i = 0; i < n; i += LANES) {
                const V v = *(const V *)((side ? s->high : s->low) + i);
                const I positive = (I)(v > zero), below = (I)(v < end);
                const V clamped = (V)(((I)v & below) | ((I)end & ~below));
                *(I *)(inside[d][side] + i) = (I)(v >= zero) & (I)(v <= end);
                *(places *)(at[d][side] + i) = __builtin_convertvector((V)((I)clamped & positive), places) * step; /* NaN: 0 */
            }
        if (dims == 3) S(operate)(s, SUB, next++, first, n, s->high, x, s->weight[d][0]);
        S(operate)(s, SUB, next++, first, n, x, s->low, s->weight[d][1]);
    }
    if (dims == 2) {
        for (int64_t i = 0; i < n; ++i) s->low[i] = 1;
        for (int d = 0; d < dims; ++d) S(operate)(s, SUB, next++, first, n, s->low, s->weight[d][1], s->weight[d][0]);
    }
    for (int64_t k = 0; k < S(corners)(c); ++k) {
        const int a = S(side)(c, k, 0), b = S(side)(c, k, 1), e = dims == 3 ? S(side)(c, k, 2) : 0;
        for (int64_t i = 0; i < n; i += LANES) {
            places to = *(const places *)(at[0][a] + i) + *(const places *)(at[1][b] + i);
            I in = *(const I *)(inside[0][a] + i) & *(const I *)(inside[1][b] + i);
            if (dims == 3) to += *(const places *)(at[2][e] + i), in &= *(const I *)(inside[2][e] + i);
            *(places *)(s->at[k] + i) = to, *(I *)(s->inside[k] + i) = in;
        }
    }
}

/* The corners' weights, drawn from `draw` on, one product fewer than axes for each, and one draw between. */
static void S(weigh_corners)(S(sampler) * s, int64_t draw, int64_t first, int64_t n) {
    const sampling_call *c = s->c;
    for (int64_t k = 0; k < S(corners)(c); ++k) {
        const T *product = s->weight[c->dims - 1][S(side)(c, k, c->dims - 1)];
        for (int d = c->dims - 2; d >= 0; --d, product = s->corner[k])
            S(operate)(s, MUL, draw + (k + 1) * c->dims - 2 - d, first, n, product, s->weight[d][S(side)(c, k, d)], s->corner[k]);
    }
}

/* Zero outside the image. */
static void S(only_inside)(const S(sampler) * s, int64_t k, int64_t n, T *x) {
    for (int64_t i = 0; i < n; i += LANES) *(I *)(x + i) &= *(const I *)(s->inside[k] + i);
}

static void S(fetch_values)(S(sampler) * s, int64_t channel, int64_t n) {
    const sampling_call *c = s->c;
    const T *image = (const T *)c->image + channel * c->size[0] * c->size[1] * c->size[2];
    for (int64_t k = 0; k < S(corners)(c); ++k) {
        const int32_t *at = s->at[k];
        T *value = s->value[k];
        for (int64_t i = 0; i < n; ++i) value[i] = image[at[i]];
        S(only_inside)(s, k, n, value);
    }
}

/* Terms `from`, `from` + 1, … of the chains of `n` neighbouring elements, one for each corner. `way` is the mode, or RANDOM for
 * all that are directed: a constant of each instance. */
static inline __attribute__((always_inline)) void S(add_terms_by)(const S(sampler) * s, const int way, const word_block *block,
                                                                  int64_t from, int64_t element, int64_t n, T *total) {
    const int64_t corners = S(corners)(s->c);
    W lane, word = {0};
    for (int l = 0; l < LANES; ++l) lane[l] = (uint32_t)(element + (way == NEARNESS ? S(lane_of)(l) : l));
    for (int64_t i = 0; i < n; i += LANES, lane += LANES) {
        V sum = *(const V *)(from ? total + i : s->term[0] + i);
        if (from && way != NEAREST) word = S(word_for)(s->r->mode, block, from - 1, lane);
        for (int64_t k = !from, index = from + k - 1; k < corners; ++k, ++index) {
            const V x = *(const V *)(s->term[k] + i);
            if ((index & 31) == 0 && way != NEAREST) word = S(word_for)(s->r->mode, block, index, lane);
            if (way == NEAREST) sum = sum + x;
            else if (way == NEARNESS) sum = S(add_stochastic)(sum, x, word), word *= STEP;
            else sum = S(add_random)(sum, x, S(direction_of)(word, index));
        }
        *(V *)(total + i) = S(one_nan)(sum);
    }
}

static void S(add_terms)(const S(sampler) * s, const word_block *block, int64_t from, int64_t element, int64_t n, T *total) {
    const int mode = s->r->mode, directed = mode == DOWNWARD || mode == RANDOM;
    control_set(control_with(s->base, directed ? UPWARD : mode, s->r->flush));
    if (mode == NEAREST || mode == TOWARD_ZERO) S(add_terms_by)(s, NEAREST, block, from, element, n, total);
    else if (mode == NEARNESS) S(add_terms_by)(s, NEARNESS, block, from, element, n, total);
    else S(add_terms_by)(s, RANDOM, block, from, element, n, total);
}

static void S(sample_tile)(S(sampler) * s, int64_t first, int64_t n) {
    const sampling_call *c = s->c;
    const int64_t start = S(weight_draws)(c), corners = S(corners)(c);
    S(find_corners)(s, first, n);
    S(weigh_corners)(s, start, first, n);
    for (int64_t channel = 0; channel < c->channels; ++channel) {
        const int64_t element = channel * c->points + first;
        S(fetch_values)(s, channel, n);
        for (int64_t k = 0; k < corners; ++k) {
            S(operate)(s, MUL, start + (k + 1) * c->dims - 1, element, n, s->value[k], s->corner[k], s->term[k]);
            if (c->dims == 3) S(only_inside)(s, k, n, s->term[k]); /* as torch: also where a weight is infinite */
        }
        S(add_terms)(s, s->block + start + corners * c->dims, 0, element, n, s->total[0]);
        memcpy((T *)c->value + element, s->total[0], sizeof(T) * (size_t)n);
    }
}

/* What a gradient adds to the corners of points `first` …, as `share` (channels, corners, step). */
static void S(share_tile)(S(sampler) * s, int64_t first, int64_t n, T *share, int64_t step) {
    const sampling_call *c = s->c;
    const int64_t start = S(weight_draws)(c), corners = S(corners)(c);
    S(weigh_corners)(s, start, first, n);
    for (int64_t channel = 0; channel < c->channels; ++channel)
        for (int64_t k = 0; k < corners; ++k, share += step) {
            const int64_t element = channel * c->points + first;
            S(operate)(s, MUL, start + (k + 1) * c->dims - 1, element, n, s->corner[k], (const T *)c->gradient + element, share);
            S(only_inside)(s, k, n, share);
        }
}

/* The gradient of the points' places, drawn from `draw` on; `blocks` has the constants of the chains' words, `each` of an axis. */
static void S(slope_tile)(S(sampler) * s, int64_t draw, const word_block *blocks, int64_t each, int64_t first, int64_t n) {
    const sampling_call *c = s->c;
    const int64_t corners = S(corners)(c), draws = corners * c->dims + 2;
    for (int64_t channel = 0; channel < c->channels; ++channel) {
        const int64_t element = channel * c->points + first;
        S(fetch_values)(s, channel, n);
        for (int d = 0; d < c->dims; ++d) {
            for (int64_t k = 0; k < corners; ++k) {
                const T *product = s->value[k];
                int64_t number = draw + d * draws + k * c->dims;
                for (int e = c->dims - 1; e >= 0; --e) {
                    if (e == d) continue;
                    S(operate)(s, MUL, number++, element, n, product, s->weight[e][S(side)(c, k, e)], s->term[k]);
                    product = s->term[k];
                }
                S(operate)(s, MUL, number, element, n, s->term[k], (const T *)c->gradient + element, s->term[k]);
                if (!S(side)(c, k, d))
                    for (int64_t i = 0; i < n; ++i) ((S(bits) *)s->term[k])[i] ^= MINUS_ZERO;
            }
            S(add_terms)(s, blocks + d * each, channel * corners, first, n, s->total[d]);
        }
    }
    for (int d = 0; d < c->dims; ++d) {
        S(operate)(s, MUL, draw + (d + 1) * draws - 1, first, n, s->total[d], s->slope[d], s->place);
        for (int64_t i = 0; i < n; ++i) ((T *)c->to_place)[(first + i) * c->dims + c->dims - 1 - d] = s->place[i];
    }
}

/* a + b, the register set upward: where the sign is flipped the sum is rounded down (see vector.h). */
static inline T S(add_flipped)(T a, T b, S(bits) flip) {
    union { T number; S(bits) word; } x = {a}, y = {b};
    x.word ^= flip, y.word ^= flip;
    x.number += y.number;
    x.word ^= flip;
    return x.word == MINUS_ZERO ? a + b : x.number;
}

/* Up to LANES points' shares; `way` as in `add_terms_by`. */
static inline __attribute__((always_inline)) void S(add_shares)(const int way, int64_t corners, int64_t points, int64_t begin,
                                                                int64_t end, const int32_t *at, const T *share, int64_t step,
                                                                const uint32_t bits[8][LANES], T *image) {
    for (int64_t l = 0; l < points; ++l)
        for (int64_t k = 0; k < corners; ++k) {
            const int64_t to = at[k * step + l];
            if (to < begin || to >= end) continue;
            const T a = image[to], b = share[k * step + l];
            T sum;
            if (way == RANDOM) sum = S(add_flipped)(a, b, (S(bits))(bits[k][l] >> 31) << (8 * sizeof(T) - 1));
            else if (way == NEARNESS) sum = STOCHASTIC_SUM(a, b, bits[k][l]);
            else sum = a + b;
            image[to] = sum == sum ? sum : (T)__builtin_nan("");
        }
}

/* Adds the shares of `n` points, `first` being a multiple of POINTS, to their places from `begin` to `end` of one channel, in the
 * order of the points and of their corners. Operation j is the addition of share j = point·corners + corner. */
static void S(scatter_shares)(const rounding *r, control base, const sampling_call *c, uint64_t key, int64_t channel,
                              int64_t begin, int64_t end, int64_t first, int64_t n, const int32_t *at, const T *share,
                              int64_t step) {
    const int64_t size = c->size[0] * c->size[1] * c->size[2], corners = S(corners)(c), each = 32 / corners;
    const int mode = r->mode, drawn = mode == RANDOM || mode == NEARNESS;
    const int directed = mode == RANDOM || mode == UPWARD || mode == DOWNWARD;
    T *image = (T *)c->to_image + channel * size;
    W multiplier, increment, inner, shift, power;
    uint32_t bits[8][LANES]; /* of the additions to each corner: the highest one set where down, or in mode NEARNESS the draw */
    memset(bits, mode == DOWNWARD ? 0xff : 0, sizeof(bits));
    control_set(control_with(base, directed ? UPWARD : mode, r->flush));
    for (int64_t start = 0; start < n; start += LANES) {
        const int64_t here = n - start < LANES ? n - start : LANES;
        word_block b = {0, 0, 0};
        for (int64_t l = 0; drawn && l < LANES; ++l) {
            const int64_t point = first + start + l;
            if (l == 0 || point % each == 0) b = block_constants(key, (uint64_t)(point / each));
            multiplier[l] = b.multiplier, increment[l] = b.increment, inner[l] = b.inner;
            shift[l] = (uint32_t)(point % each * corners);
            if (mode == NEARNESS) power[l] = step_power(shift[l]);
        }
        for (int64_t k = 0; drawn && k < corners; ++k) {
            W x = (*(const W *)(at + k * step + start) + (uint32_t)(channel * size)) * multiplier + increment; /* random_word */
            SCRAMBLE(x, inner);
            if (mode == RANDOM) x = ~(x << (shift + (uint32_t)k));
            else x = (x | 1) * power, power *= STEP;
            *(W *)bits[k] = x;
        }
        const int32_t *to = at + start;
        const T *add = share + start;
        if (directed) S(add_shares)(RANDOM, corners, here, begin, end, to, add, step, bits, image);
        else if (mode == NEARNESS) S(add_shares)(NEARNESS, corners, here, begin, end, to, add, step, bits, image);
        else S(add_shares)(NEAREST, corners, here, begin, end, to, add, step, bits, image);
    }
}

static int S(sample)(const rounding *r, const sampling_call *c) {
    const int64_t corners = S(corners)(c), start = S(weight_draws)(c) + corners * c->dims;
    const int64_t places = c->to_image ? start + 1 : S(weight_draws)(c); /* the first draw of the gradient of the places */
    const int64_t of_axis = corners * c->dims + 2, draws = c->gradient ? places + c->dims * of_axis : start + 1;
    const int64_t each = c->channels * corners / 32 + 1, parts = c->channels >= r->threads ? 1 : r->threads;
    const int64_t size = c->size[0] * c->size[1] * c->size[2], part = (size + parts - 1) / parts;
    const int64_t step = r->threads > 1 ? 4 * r->threads * POINTS : POINTS; /* points between two scatterings */
    const int64_t room = (int64_t)(sizeof(S(sampler)) + 63) / 64 * 64;
    word_block *block = malloc(sizeof(word_block) * (size_t)(draws + c->dims * each));
    char *samplers = aligned_alloc(64, (size_t)(room * r->threads));
    T *share = c->to_image ? calloc((size_t)(c->channels * corners * step), sizeof(T)) : NULL;
    int32_t *at = c->to_image ? calloc((size_t)(corners * step), sizeof(int32_t)) : NULL;
    /* what is drawn and done for each point */
    int64_t operations = S(weight_draws)(c) + corners * (c->dims - 1 + c->channels) + (corners - 1) * c->channels;
    if (c->gradient) {
        operations = S(weight_draws)(c);
        if (c->to_image) operations += corners * (c->dims - 1 + 2 * c->channels);
        if (c->to_place) operations += c->dims * corners * (c->dims + 1) * c->channels;
    }
    c->count[0] = c->gradient && !c->to_place ? places : draws, c->count[1] = operations * c->points;
    const int status = block && samplers && (!c->to_image || (share && at)) ? OK : OUT_OF_MEMORY;
    if (status == OK) {
        memset(samplers, 0, (size_t)(room * r->threads));
        for (int64_t draw = 0; draw < draws; ++draw) block[draw] = block_constants(key_of(c->start, draw), 0);
        for (int64_t b = 0; b < c->dims * each && c->gradient; ++b)
            block[draws + b] = block_constants(key_of(c->start, places + (b / each + 1) * of_axis - 2), (uint64_t)(b % each));
#pragma omp parallel num_threads(r->threads) if (c->points * c->channels >= 4096)
        {
            S(sampler) *s = (S(sampler) *)(samplers + omp_get_thread_num() * room);
            const control saved = control_get();
            s->r = r, s->c = c, s->block = block, s->base = saved;
            for (int64_t from = 0; from < c->points; from += step) {
                const int64_t to = c->points - from < step ? c->points : from + step;
#pragma omp for schedule(static)
                for (int64_t first = from; first < to; first += POINTS) {
                    const int64_t n = to - first < POINTS ? to - first : POINTS;
                    if (!c->gradient) {
                        S(sample_tile)(s, first, n);
                        continue;
                    }
                    S(find_corners)(s, first, n);
                    if (c->to_image) S(share_tile)(s, first, n, share + first - from, step);
                    for (int64_t k = 0; c->to_image && k < corners; ++k)
                        memcpy(at + k * step + first - from, s->at[k], sizeof(int32_t) * (size_t)n);
                    if (c->to_place) S(slope_tile)(s, places, block + draws, each, first, n);
                }
                if (!c->to_image) continue;
#pragma omp for schedule(static)
                for (int64_t item = 0; item < c->channels * parts; ++item)
                    S(scatter_shares)(r, saved, c, key_of(c->start, start), item / parts, item % parts * part,
                                      (item % parts + 1) * part, from, to - from, at, share + item / parts * corners * step, step);
            }
            control_set(saved);
        }
    }
    free(block), free(samplers), free(share), free(at);
    return status;
}
#undef POINTS
