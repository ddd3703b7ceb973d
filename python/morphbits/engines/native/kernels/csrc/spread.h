/* The gradient of an interpolation along one to three axes: each output's gradient times the weights of its taps, added to the
 * places that these were taken from. What the rule (`_spread` of rules/resampling.py) does operation by operation, with the same
 * random bits. Included by kernels.c after sampling.h, once for each element type.
 *
 * Draws, in their order; a combination is one tap of each axis, the last axis fastest: for each combination the products of its
 * weights, from the first axis on (an element: an output of these axes), and the product with the gradient; then the additions,
 * of which number j = output·combinations + combination.
 *
 * A lane of a vector is a plane and one tap of each axis but the last: it stands for one row of the image at a time. The output
 * is walked along its rows, and the rows of the image to which one is added lie side by side in a buffer meanwhile. */
#include <stdlib.h>
#include <string.h>

#define ROOM 16 /* lanes, of whole planes; more only where one plane has more */

/* What one thread works in. Words and what they are made from lie in the order of `lane_of`, all else in that of the lanes. */
typedef struct {
    const rounding *r;
    const spread_call *c;
    int64_t lanes, used, of_plane, combinations; /* whole vectors; those in use; of a plane */
    T *image, *gradient;                         /* (voxels of a row, lanes), (outputs of a row, lanes) */
    T *weight, *product;                         /* (taps of the last axis, lanes) */
    uint32_t *multiplier, *increment, *inner;    /* (draws of a combination, taps, lanes): of the products' words */
    uint32_t *number, *power, *word;             /* (taps, lanes): of the additions; power: step_power(number) */
    uint32_t *output, *voxel, *place;            /* (lanes): first elements of the plane of outputs and of the row of the image; */
    int64_t *tap[2];                             /* (lanes): of the other axes */
    int64_t *row, *held, *same;                  /* where a lane's word is; the row's first voxel or -1, the same of the rows in */
    word_block *block;                           /* `image`, the first lane that has this row; of the additions, from the one */
    int64_t from;                                /* with number `from` on */
} S(spreader);

static inline __attribute__((always_inline)) V S(spread_mul)(const int way, V a, V b, W word) {
    if (way == NEAREST) return a * b;
    return way == NEARNESS ? S(mul_stochastic)(a, b, word) : S(mul_random)(a, b, S(direction_of)(word, 0));
}
static inline __attribute__((always_inline)) V S(spread_add)(const int way, V a, V b, W word) {
    if (way == NEAREST) return a + b;
    return way == NEARNESS ? S(add_stochastic)(a, b, word) : S(add_random)(a, b, S(direction_of)(word, 0));
}

/* The words of draw `d` of the combinations with tap `tap`. */
static inline __attribute__((always_inline)) W S(product_word)(const S(spreader) * s, const int way, int64_t d, int64_t tap,
                                                               int64_t v, W element) {
    const int64_t at = (d * s->c->taps[2] + tap) * s->lanes + v;
    if (way == NEAREST || s->r->mode == DOWNWARD) return (W){0};
    if (s->r->mode == UPWARD) return (W){0} - 1u;
    W x = element * *(const W *)(s->multiplier + at) + *(const W *)(s->increment + at);
    SCRAMBLE(x, *(const W *)(s->inner + at));
    return x;
}

/* The words of the additions of output `output`, their own bits first. */
static inline __attribute__((always_inline)) W S(addition_word)(const S(spreader) * s, const int way, int64_t output,
                                                                uint32_t power, int64_t tap, int64_t v, W element) {
    const int64_t first = output * s->combinations, at = tap * s->lanes + v;
    if (way == NEAREST || s->r->mode == DOWNWARD) return (W){0};
    if (s->r->mode == UPWARD) return (W){0} - 1u;
    if ((first & 31) + s->combinations <= 32) { /* of one block */
        const W word = S(word_vector)(s->block[(first >> 5) - s->from], element);
        if (way == NEARNESS) return (word | 1) * (*(const W *)(s->power + at) * power);
        return word << (*(const W *)(s->number + at) + (uint32_t)(first & 31));
    }
    W word;
    for (int l = 0; l < LANES; ++l) {
        const int64_t index = first + s->number[at + l];
        const word_block b = s->block[(index >> 5) - s->from];
        word[l] = way == NEARNESS ? draw(b, element[l], index) : random_word(b, element[l]) << (index & 31);
    }
    return word;
}

/* Adds the row of outputs from `first` on; `apart`: no two lanes have the same row of the image. */
static inline __attribute__((always_inline)) void S(spread_row)(const S(spreader) * s, const int way, const int apart,
                                                                int64_t first) {
    const spread_call *c = s->c;
    const int64_t taps = c->taps[2], lanes = s->lanes;
    for (int64_t i = 0; i < c->size_out[2]; ++i) {
        const int64_t output = first + i;
        const uint32_t power = way == NEARNESS ? step_power(output * s->combinations) : 1;
        for (int64_t tap = 0; tap < taps; ++tap) {
            const int64_t voxel = c->index[2][tap * c->size_out[2] + i];
            const V weight = S(splat)(((const T *)c->weight[2])[tap * c->size_out[2] + i]);
            for (int64_t v = 0; v < lanes; v += LANES) {
                const W place = *(const W *)(s->output + v) + (uint32_t)output;
                V x = weight;
                if (c->dims > 1)
                    x = S(spread_mul)(way, *(const V *)(s->weight + tap * lanes + v), x,
                                      S(product_word)(s, way, c->dims - 2, tap, v, (W){0} + (uint32_t)output));
                x = S(spread_mul)(way, x, *(const V *)(s->gradient + i * lanes + v),
                                  S(product_word)(s, way, c->dims - 1, tap, v, place));
                const W word =
                    S(addition_word)(s, way, output, power, tap, v, *(const W *)(s->voxel + v) + (uint32_t)voxel);
                V *to = (V *)(s->image + voxel * lanes + v);
                if (apart) *to = S(spread_add)(way, *to, x, word);
                else *(V *)(s->product + tap * lanes + v) = x, *(W *)(s->word + tap * lanes + v) = word;
            }
        }
        for (int64_t l = 0; l < s->used && !apart; ++l)
            for (int64_t tap = 0; tap < taps; ++tap) {
                T *to = s->image + c->index[2][tap * c->size_out[2] + i] * lanes + s->same[l];
                const V sum = S(spread_add)(way, S(splat)(*to), S(splat)(s->product[tap * lanes + l]),
                                            (W){0} + s->word[tap * lanes + s->place[l]]);
                *to = sum[0];
            }
    }
}
#define SPREAD_ROW(name, way, apart) \
    static __attribute__((noinline)) void S(name)(const S(spreader) * s, int64_t first) { S(spread_row)(s, way, apart, first); }
SPREAD_ROW(spread_nearest, NEAREST, 1)
SPREAD_ROW(spread_random, RANDOM, 1)
SPREAD_ROW(spread_nearness, NEARNESS, 1)
SPREAD_ROW(spread_nearest_one_by_one, NEAREST, 0)
SPREAD_ROW(spread_random_one_by_one, RANDOM, 0)
SPREAD_ROW(spread_nearness_one_by_one, NEARNESS, 0)
#undef SPREAD_ROW

/* The rows in `image` into memory. */
static void S(write_rows)(const S(spreader) * s) {
    for (int64_t l = 0; l < s->used; ++l) {
        if (s->held[l] < 0 || s->same[l] != l) continue;
        const int64_t n = s->c->size_in[2], lanes = s->lanes;
        const T *from = s->image + l;
        T *to = (T *)s->c->output + s->held[l];
        for (int64_t i = 0; i < n; ++i, from += lanes) to[i] = *from == *from ? *from : (T)__builtin_nan("");
    }
}

/* The rows of the lanes into `image`, unless they are there. Returns whether they are apart. */
static int S(hold_rows)(S(spreader) * s) {
    const int64_t n = s->c->size_in[2], lanes = s->lanes;
    int apart = 1;
    if (memcmp(s->row, s->held, sizeof(int64_t) * (size_t)s->used) != 0) {
        S(write_rows)(s);
        memcpy(s->held, s->row, sizeof(int64_t) * (size_t)s->used);
        for (int64_t l = 0; l < s->used; ++l) {
            s->same[l] = l;
            for (int64_t k = l / s->of_plane * s->of_plane; k < l && s->row[l] >= 0 && s->same[l] == l; ++k)
                if (s->row[k] == s->row[l]) s->same[l] = k;
            const T *from = (const T *)s->c->output + s->row[l];
            T *to = s->image + l;
            for (int64_t i = 0; i < n && s->row[l] >= 0; ++i, to += lanes) *to = from[i];
        }
    }
    for (int64_t l = 0; l < s->used; ++l) apart &= s->same[l] == l;
    return apart;
}

/* The weights of a row of outputs, but for those of the last axis. */
static inline __attribute__((always_inline)) void S(weigh_rows)(S(spreader) * s, const int way, int64_t a, int64_t b) {
    const spread_call *c = s->c;
    const int64_t taps = c->taps[2], lanes = s->lanes;
    const T *first = (const T *)c->weight[0] + a, *second = (const T *)c->weight[1] + b;
    for (int64_t l = 0; l < lanes; ++l) {
        s->weight[l] = first[s->tap[0][l] * c->size_out[0]];
        s->product[l] = second[s->tap[1][l] * c->size_out[1]];
    }
    for (int64_t tap = taps - 1; tap >= 0; --tap) /* the first taps are overwritten last */
        for (int64_t v = 0; v < lanes; v += LANES) {
            V x = *(const V *)(s->weight + v);
            if (c->dims == 3)
                x = S(spread_mul)(way, x, *(const V *)(s->product + v),
                                  S(product_word)(s, way, 0, tap, v, (W){0} + (uint32_t)(a * c->size_out[1] + b)));
            *(V *)(s->weight + tap * lanes + v) = x;
        }
}

/* The planes from `plane` on, places from `begin` to `end` of the first axis. */
static void S(spread_planes)(S(spreader) * s, int64_t plane, int64_t planes, int64_t begin, int64_t end) {
    const spread_call *c = s->c;
    const int64_t taps = c->taps[2], lanes = s->lanes, n = c->size_out[2], outputs = c->size_out[0] * c->size_out[1] * n;
    const int64_t voxels = c->size_in[0] * c->size_in[1] * c->size_in[2], blocks = n * s->combinations / 32 + 2;
    const int way = s->r->mode == NEARNESS ? NEARNESS : s->r->mode == NEAREST || s->r->mode == TOWARD_ZERO ? NEAREST : RANDOM;
    const uint64_t key = key_of(c->start, s->combinations * c->dims);
    s->used = planes * s->of_plane;
    for (int64_t at = 0; at < lanes; ++at) {
        const int64_t l = at / LANES * LANES + (way == NEARNESS ? S(lane_of)((int)(at % LANES)) : at % LANES);
        s->tap[0][l] = l % s->of_plane / c->taps[1], s->tap[1][l] = l % s->of_plane % c->taps[1];
        s->place[l] = (uint32_t)at, s->held[l] = -1, s->output[at] = (uint32_t)((plane + l / s->of_plane) * outputs);
        for (int64_t tap = 0; tap < taps; ++tap) {
            const int64_t combination = l % s->of_plane * taps + tap;
            s->number[tap * lanes + at] = (uint32_t)combination;
            s->power[tap * lanes + at] = step_power(combination);
            for (int d = 0; d < c->dims; ++d) {
                const word_block b = block_constants(key_of(c->start, combination * c->dims + d), 0);
                const int64_t to = (d * taps + tap) * lanes + at;
                s->multiplier[to] = b.multiplier, s->increment[to] = b.increment, s->inner[to] = b.inner;
            }
        }
    }
    for (int64_t a = 0; a < c->size_out[0]; ++a)
        for (int64_t b = 0; b < c->size_out[1]; ++b) {
            const int64_t first = (a * c->size_out[1] + b) * n;
            int any = 0;
            for (int64_t l = 0; l < s->used; ++l) {
                const int64_t x = c->index[0][s->tap[0][l] * c->size_out[0] + a];
                const int64_t y = c->index[1][s->tap[1][l] * c->size_out[1] + b];
                const int64_t row = (plane + l / s->of_plane) * voxels + (x * c->size_in[1] + y) * c->size_in[2];
                s->row[l] = x >= begin && x < end ? row : -1;
                s->voxel[s->place[l]] = (uint32_t)row;
                any |= s->row[l] >= 0;
            }
            if (!any) continue;
            const int apart = S(hold_rows)(s);
            s->from = first * s->combinations >> 5;
            for (int64_t k = 0; k < blocks; ++k) s->block[k] = block_constants(key, (uint64_t)(s->from + k));
            for (int64_t l = 0; l < s->used; ++l) {
                const T *from = (const T *)c->gradient + (plane + l / s->of_plane) * outputs + first;
                T *to = s->gradient + l;
                for (int64_t i = 0; i < n; ++i, to += lanes) *to = from[i];
            }
            if (way == NEAREST) {
                S(weigh_rows)(s, NEAREST, a, b);
                (apart ? S(spread_nearest) : S(spread_nearest_one_by_one))(s, first);
            } else if (way == NEARNESS) {
                S(weigh_rows)(s, NEARNESS, a, b);
                (apart ? S(spread_nearness) : S(spread_nearness_one_by_one))(s, first);
            } else {
                S(weigh_rows)(s, RANDOM, a, b);
                (apart ? S(spread_random) : S(spread_random_one_by_one))(s, first);
            }
        }
    S(write_rows)(s);
}

static int S(spread)(const rounding *r, const spread_call *c) {
    const int64_t of_plane = c->taps[0] * c->taps[1], taps = c->taps[2], together = of_plane < ROOM ? ROOM / of_plane : 1;
    const int64_t most = c->planes < together ? c->planes : together, groups = (c->planes + together - 1) / together;
    const int64_t lanes = (most * of_plane + LANES - 1) / LANES * LANES;
    const int64_t parts = groups < r->threads ? r->threads : 1, part = (c->size_in[0] + parts - 1) / parts;
    const int64_t numbers = lanes * (c->size_in[2] + c->size_out[2] + 2 * taps), blocks = c->size_out[2] * of_plane * taps / 32 + 2;
    const int64_t words = lanes * (taps * (3 * c->dims + 3) + 3);
    const int64_t room = (numbers * (int64_t)sizeof(T) + 5 * lanes * 8 + blocks * (int64_t)sizeof(word_block) + words * 4 + 63) / 64 * 64;
    char *memory = aligned_alloc(64, (size_t)(room * r->threads));
    if (!memory) return OUT_OF_MEMORY;
    memset(memory, 0, (size_t)(room * r->threads));
#pragma omp parallel num_threads(r->threads) if (c->planes * c->size_out[0] * c->size_out[1] * c->size_out[2] >= 4096)
    {
        char *at = memory + room * omp_get_thread_num();
#define TAKE(type, count) (at += sizeof(type) * (size_t)(count), (type *)(at - sizeof(type) * (size_t)(count)))
        S(spreader) s = {.r = r, .c = c, .lanes = lanes, .of_plane = of_plane, .combinations = of_plane * taps};
        s.image = TAKE(T, c->size_in[2] * lanes), s.gradient = TAKE(T, c->size_out[2] * lanes);
        s.weight = TAKE(T, taps * lanes), s.product = TAKE(T, taps * lanes);
        s.tap[0] = TAKE(int64_t, lanes), s.tap[1] = TAKE(int64_t, lanes);
        s.row = TAKE(int64_t, lanes), s.held = TAKE(int64_t, lanes), s.same = TAKE(int64_t, lanes);
        s.multiplier = TAKE(uint32_t, c->dims * taps * lanes), s.increment = TAKE(uint32_t, c->dims * taps * lanes);
        s.inner = TAKE(uint32_t, c->dims * taps * lanes), s.number = TAKE(uint32_t, taps * lanes);
        s.power = TAKE(uint32_t, taps * lanes), s.word = TAKE(uint32_t, taps * lanes);
        s.output = TAKE(uint32_t, lanes), s.voxel = TAKE(uint32_t, lanes), s.place = TAKE(uint32_t, lanes);
        s.block = TAKE(word_block, blocks);
#undef TAKE
        const control saved = control_get();
        control_set(control_with(saved, r->mode == DOWNWARD || r->mode == RANDOM ? UPWARD : r->mode, r->flush));
#pragma omp for schedule(static)
        for (int64_t item = 0; item < groups * parts; ++item) {
            const int64_t plane = item / parts * together, left = c->planes - plane, begin = item % parts * part;
            S(spread_planes)(&s, plane, left < together ? left : together, begin, begin + part);
        }
        control_set(saved);
    }
    free(memory);
    return OK;
}
#undef ROOM
