/* Convolution for one element type. Included by kernels.c after vector.h.
 * The input is copied once into zero-padded planes and the weights are packed, so that a term is one vector times a few
 * numbers: a vector of the weights of LANES output channels times the inputs of up to MAX_TILE neighbouring voxels of a row
 * (channels last in memory, weights as (channel block, term, lane)); or, where that leaves fewer lanes idle, a vector of the
 * inputs of LANES neighbouring voxels times the weights of up to MAX_TILE output channels: "narrow" (the channels of a row one
 * after the other, weights as (term, channel)), three such vectors at once where few channels would leave too few chains to
 * hide how long an operation waits for the one before. The channels beyond whole vectors are narrow, too, where that pays. Long sums
 * go in slices of SLICE terms over all tiles of a row, so that a slice of the weights stays in the cache; totals and open
 * chains wait in memory meanwhile. Terms outside the image multiply a zero of the padding, unless a weight is not finite: then
 * the naive kernel, which leaves these out, is called. */
#include <omp.h>
#include <stdlib.h>
#include <string.h>


typedef struct {
    const rounding *r;
    const convolution_call *c;
    const word_block *block;
    const int64_t *offset; /* of each term, into the padded input, from a voxel's first tap */
    const void *weight;    /* (channel blocks, terms, LANES); narrow: (terms, channels) */
    const T *bias;         /* (channel blocks * LANES) or NULL */
    int64_t channels;      /* of the output, that this plan computes */
    int64_t voxel_step;    /* between neighbouring output voxels of a row, in the padded input */
    int64_t voxels;        /* output voxels of a channel */
    int64_t size;          /* of a number of image and weight in bytes: T, in mode NEARNESS a float64 */
    int narrow;
} S(plan);

/* The ways to do an operation; constants at every call, so each instance keeps one. `careful`: where a product may be
 * subnormal, or, by NEARNESSES, a sum overflow; not by NEARNESSES_IFMA. */
enum { S(PLAIN), S(DIRECTIONS), S(NEARNESSES), S(NEARNESSES_IFMA) };

/* The elements in their own order; in mode NEARNESS an open chain is `wide`. */
typedef struct {
    V total;
    union {
        V chain;
        S(total) wide;
    };
} S(open_sum);

static inline V S(add)(const S(plan) * p, int way, V a, V b, int64_t index, W element) {
    if (way == S(PLAIN)) return a + b;
    const W word = S(word_for)(p->r->mode, p->block, index, element);
    if (way == S(DIRECTIONS)) return S(add_random)(a, b, S(direction_of)(word, index));
    return S(add_stochastic)(a, b, word);
}

#define SEVERAL 3 /* vectors of voxels at once, of up to FEW channels */
#define FEW ((MAX_TILE + 1) / SEVERAL)
#define CHAINS (MAX_TILE + 1)

/* Terms `from` to `to` of a tile: `tile` neighbouring voxels of one row, LANES output channels from `channel` on; narrow: the
 * `narrow` output channels of LANES neighbouring voxels, those of the next LANES and so on, `tile` vectors in all. `first` is
 * the output element of the first voxel in the first of these channels, `input` its first tap, `segment` the chain of term
 * `from`. */
static inline __attribute__((always_inline)) void S(run_tile)(const S(plan) * p, const int tile, const int narrow,
                                                              const int way, const int careful, const void *input,
                                                              int64_t channel, uint32_t first, int64_t from, int64_t to,
                                                              int64_t segment, S(open_sum) * open) {
    const convolution_call *c = p->c;
    const void *panel = (const char *)p->weight + channel * c->terms * p->size;
    const void *vectors = narrow ? input : panel, *numbers = narrow ? p->weight : input;
    const int64_t step = narrow ? 1 : p->voxel_step;
    const uint32_t apart = narrow ? (uint32_t)p->voxels : 1; /* vectors of elements */
    const int group = narrow ? narrow : tile;                /* chains of one vector of voxels */
    const int nearness = way >= S(NEARNESSES), ifma = way == S(NEARNESSES_IFMA);
#define ELEMENT(i) (lane + (uint32_t)((i) % group) * apart + (uint32_t)((i) / group * LANES))
#define CHANNEL_BIAS(i) (narrow ? S(splat)(p->bias[(i) % group]) : *(const V *)(p->bias + channel))
    W lane = {0}, word[CHAINS] = {{0}};
    S(directions) directions[CHAINS];
    S(draws) draws[CHAINS];
    V chain[CHAINS];
    S(total) wide[CHAINS];
    for (int l = 0; l < LANES; ++l) lane[l] = (uint32_t)(nearness ? S(lane_of)(l) : l);
    lane = lane * (narrow ? 1 : (uint32_t)p->voxels) + first;
    for (int i = 0; i < tile; ++i) {
        if (nearness) wide[i] = from ? open[i].wide : (S(total)){0};
        else chain[i] = from ? open[i].chain : (V){0};
    }
    for (int64_t t = from; t < to;) {
        const int64_t end = c->segment_end[segment] < to ? c->segment_end[segment] : to;
        while (t < end) {
            const int64_t block_end = way == S(PLAIN) ? end : (t | 31) + 1;
            const int64_t stop = end < block_end ? end : block_end;
            if (way == S(DIRECTIONS) && p->r->mode == RANDOM) {
                const word_block at = p->block[t >> 5];
                const uint32_t next = apart * at.multiplier, back = (LANES - (uint32_t)(group - 1) * apart) * at.multiplier;
                W linear = lane * at.multiplier + at.increment;
                for (int i = 0; i < tile; linear += ++i % group ? next : back)
                    directions[i] = S(directions_of)(S(scrambled)(at, linear));
            } else if (way == S(DIRECTIONS)) {
                for (int i = 0; i < tile; ++i) directions[i] = S(directions_of)((W){0} - (uint32_t)(p->r->mode == UPWARD));
            } else if (nearness) {
                for (int i = 0; i < tile; i += group) S(words_for)(NEARNESS, p->block, t, ELEMENT(i), apart, group, word + i);
                for (int i = 0; i < tile; ++i) draws[i] = S(draws_of)(word[i]);
            }
            for (; t < stop; ++t) {
                const int64_t to_vector = narrow ? p->offset[t] : t * LANES, to_number = narrow ? t * narrow : p->offset[t];
                if (nearness) {
                    const double *w = (const double *)vectors + to_vector, *x = (const double *)numbers + to_number;
                    for (int i = 0; i < tile; ++i) {
                        wide[i] = S(fma_stochastic)(x[i % group * step], w + i / group * LANES, wide[i], draws + i, careful, ifma);
                        S(next_draws)(draws + i, ifma);
                    }
                    continue;
                }
                const T *w_at = (const T *)vectors + to_vector, *x = (const T *)numbers + to_number;
                for (int i = 0; i < tile; ++i) {
                    const V w = *(const V *)(w_at + i / group * LANES), a = S(splat)(x[i % group * step]);
                    if (way == S(PLAIN)) chain[i] = S(fma_vector)(a, w, chain[i]);
                    else chain[i] = S(fma_random)(a, w, chain[i], S(direction_at)(directions + i, t), careful);
                }
            }
        }
        if (t < c->segment_end[segment]) break;
        for (int i = 0; i < tile; ++i) {
            V sum = nearness ? S(narrowed)(wide[i]) : chain[i];
            if (way == S(DIRECTIONS) && !careful) sum = S(positive_zero)(sum);
            if (segment > 0) sum = S(add)(p, way, open[i].total, sum, c->terms + segment, ELEMENT(i));
            else if (c->bias_first) sum = S(add)(p, way, CHANNEL_BIAS(i), sum, c->terms, ELEMENT(i));
            open[i].total = sum;
            chain[i] = (V){0}, wide[i] = (S(total)){0};
        }
        ++segment;
    }
    if (to < c->terms) {
        for (int i = 0; i < tile; ++i)
            if (nearness) open[i].wide = wide[i];
            else open[i].chain = chain[i];
        return;
    }
    for (int i = 0; i < tile; ++i) {
        V total = open[i].total;
        if (p->bias && !c->bias_first) total = S(add)(p, way, total, CHANNEL_BIAS(i), c->terms + c->segments, ELEMENT(i));
        open[i].total = S(one_nan)(total);
    }
#undef CHANNEL_BIAS
#undef ELEMENT
}

#if MAX_TILE > 4
#define TILES TILE(1) TILE(2) TILE(3) TILE(4) TILE(5) TILE(6) TILE(7) TILE(8)
#else
#define TILES TILE(1) TILE(2) TILE(3) TILE(4)
#endif

static inline __attribute__((always_inline)) void S(write_tile)(const S(open_sum) * open, const int tile, int64_t lanes,
                                                                int64_t voxels, T *to) {
    const T *from = (const T *)&open->total;
    const int64_t step = (int64_t)(sizeof(*open) / sizeof(T));
    if (lanes == LANES) S(transpose_block)(from, step, tile, LANES, to, voxels); /* unrolled */
    else S(transpose_block)(from, step, tile, lanes, to, voxels);
}

/* One row of output voxels, all channels; `open` has a place for each vector. */
static inline __attribute__((always_inline)) void S(run_row)(const S(plan) * p, const int way, const int careful,
                                                             const char *input, uint32_t first, T *output,
                                                             S(open_sum) * open) {
    const convolution_call *c = p->c;
    const int64_t width = c->size_out[2];
    for (int64_t channel = 0; channel < p->channels; channel += LANES) {
        const int64_t lanes = p->channels - channel < LANES ? p->channels - channel : LANES;
        T *to_channel = output + channel * p->voxels;
        int64_t segment = 0;
        for (int64_t from = 0; from < c->terms; from += SLICE) {
            const int64_t to = c->terms - from < SLICE ? c->terms : from + SLICE;
            while (c->segment_end[segment] <= from) ++segment;
            for (int64_t x = 0; x < width;) {
                const char *at = input + x * p->voxel_step * p->size;
                const uint32_t element = first + (uint32_t)(channel * p->voxels + x);
                const int64_t left = width - x, tiles = (left + MAX_TILE - 1) / MAX_TILE;
                const int64_t tile = (left + tiles - 1) / tiles; /* of like sizes */
                switch (tile) {
#define TILE(n)                                                                                      \
    case n:                                                                                          \
        S(run_tile)(p, n, 0, way, careful, at, channel, element, from, to, segment, open + x);       \
        if (to == c->terms) S(write_tile)(open + x, n, lanes, p->voxels, to_channel + x);            \
        break;
                    TILES
#undef TILE
                }
                x += tile;
            }
        }
    }
}

static inline __attribute__((always_inline)) void S(run_narrow_row)(const S(plan) * p, const int way, const int careful,
                                                                    const char *input, uint32_t first, T *output,
                                                                    S(open_sum) * open) {
    const convolution_call *c = p->c;
    const int64_t width = c->size_out[2], channels = p->channels;
    int64_t segment = 0;
    for (int64_t from = 0; from < c->terms; from += SLICE) {
        const int64_t to = c->terms - from < SLICE ? c->terms : from + SLICE;
        while (c->segment_end[segment] <= from) ++segment;
        for (int64_t x = 0; x < width;) {
            const int several = channels <= FEW && width - x > (SEVERAL - 1) * LANES;
            const char *at = input + x * p->size;
            const uint32_t element = first + (uint32_t)x;
            S(open_sum) *here = open + x / LANES * channels;
            switch (channels) {
#define MANY(n) ((n) <= FEW ? SEVERAL * (n) : (n))
#define TILE(n)                                                                                                       \
    case n:                                                                                                           \
        if ((n) <= FEW && several) S(run_tile)(p, MANY(n), n, way, careful, at, 0, element, from, to, segment, here);              \
        else S(run_tile)(p, n, n, way, careful, at, 0, element, from, to, segment, here);                             \
        break;
                TILES
#undef TILE
#undef MANY
            }
            x += several ? SEVERAL * LANES : LANES;
        }
    }
    for (int64_t i = 0; i < channels; ++i)
        for (int64_t x = 0; x < width; ++x) output[i * p->voxels + x] = open[x / LANES * channels + i].total[x % LANES];
}
#undef TILES

#define ROW(name, way, careful)                                                                                         \
    static __attribute__((noinline)) void S(name)(const S(plan) * p, const char *input, uint32_t first, T *output,        \
                                                  S(open_sum) * open) {                                                 \
        if (p->narrow) S(run_narrow_row)(p, way, careful, input, first, output, open);          \
        else S(run_row)(p, way, careful, input, first, output, open);                                                   \
    }
ROW(row_plain, S(PLAIN), 0)
ROW(row_directed, S(DIRECTIONS), 0)
ROW(row_careful, S(DIRECTIONS), 1)
ROW(row_nearness, S(NEARNESSES), 0)
ROW(row_nearness_careful, S(NEARNESSES), 1)
ROW(row_ifma, S(NEARNESSES_IFMA), 0)
#undef ROW

/* Output channels `start` to `start + out`, narrow or not. */
static int S(convolve_part)(const rounding *r, const convolution_call *c, int64_t start, int64_t out, int narrow) {
    const int64_t taps = c->kernel[0] * c->kernel[1] * c->kernel[2], in = c->channels_in, terms = c->terms;
    const int64_t width = c->size_out[2], blocks = (out + LANES - 1) / LANES;
    const int64_t lanes = narrow ? out : LANES; /* of the packed weights */
    const int64_t places = narrow ? (width + LANES - 1) / LANES * out : width;
    int64_t padded[3];
    for (int d = 0; d < 3; ++d) padded[d] = c->size_in[d] + 2 * c->padding[d];
    const int64_t voxel = narrow ? 1 : in, channel = narrow ? padded[2] : 1; /* steps in memory */
    const int64_t row = padded[2] * in, plane = padded[1] * row, volume = padded[0] * plane;
    const int64_t volume_in = c->size_in[0] * c->size_in[1] * c->size_in[2];
    const int64_t voxels = c->size_out[0] * c->size_out[1] * c->size_out[2];
    const int64_t draws = (terms + c->segments) / 32 + 1, size = r->mode == NEARNESS ? (int64_t)sizeof(double) : (int64_t)sizeof(T);
    char *image = aligned(size * (c->batch * volume + LANES)); /* the last vector of a row may reach beyond it */
    char *weight = aligned(size * blocks * LANES * terms);
    T *turn = calloc((size_t)(r->threads * in * taps * lanes), sizeof(T));
    T *bias = calloc((size_t)(blocks * LANES), sizeof(T));
    int64_t *offset = malloc(sizeof(int64_t) * (size_t)terms);
    word_block *block = malloc(sizeof(word_block) * (size_t)draws);
    S(open_sum) *open = aligned((int64_t)sizeof(S(open_sum)) * r->threads * places);
    int status = image && bias && weight && turn && offset && block && open ? OK : OUT_OF_MEMORY;
    if (status == OK) {
        for (int64_t b = 0; b < draws; ++b) block[b] = block_constants(r->key, (uint64_t)b);
        for (int64_t t = 0; t < terms; ++t) {
            const int64_t x = c->tap[t] % c->kernel[2], y = c->tap[t] / c->kernel[2] % c->kernel[1];
            const int64_t z = c->tap[t] / (c->kernel[2] * c->kernel[1]);
            offset[t] = z * c->dilation[0] * plane + y * c->dilation[1] * row + x * c->dilation[2] * voxel +
                        c->channel[t] * channel;
        }
        memset(image + c->batch * volume * size, 0, (size_t)(size * LANES));
        if (c->bias) memcpy(bias, (const T *)c->bias + start, sizeof(T) * (size_t)out);
        const S(plan) p = {r, c, block, offset, weight, c->bias ? bias : NULL, out, c->stride[2] * voxel, voxels, size, narrow};
        S(bits) least = ~(S(bits))0, least_weight = ~(S(bits))0, largest = 0, largest_weight = 0;
#pragma omp parallel num_threads(r->threads)
        {
#pragma omp for schedule(static) reduction(min : least_weight) reduction(max : largest_weight) nowait
            for (int64_t o = 0; o < out; o += lanes) { /* a block of channels: side by side first, then in the order of terms */
                const int64_t here = out - o < lanes ? out - o : lanes, every = in * taps;
                const T *from = (const T *)c->weight + (start + o) * every;
                T *turned = turn + omp_get_thread_num() * every * lanes;
                least_weight = S(least)(here * every, from, least_weight);
                largest_weight = S(largest)(here * every, from, largest_weight);
                for (int64_t l = 0; l < here; l += 8)
                    for (int64_t e = 0; e < every; e += LANES)
                        S(transpose_block)(from + l * every + e, every, here - l < 8 ? here - l : 8,
                                     every - e < LANES ? every - e : LANES, turned + e * lanes + l, lanes);
                for (int64_t t = 0; t < terms; ++t) {
                    const T *source = turned + (c->channel[t] * taps + c->tap[t]) * lanes;
                    const int64_t to = (o * terms + t * lanes) * size;
                    if (r->mode == NEARNESS) S(lay_wide)(lanes, source, (double *)(weight + to), 1, r->flush);
                    else memcpy(weight + to, source, sizeof(T) * (size_t)lanes);
                }
            }
#pragma omp for schedule(static) reduction(min : least) reduction(max : largest)
            for (int64_t z = 0; z < c->batch * padded[0]; ++z) {
                const int64_t from_z = z % padded[0] - c->padding[0];
                memset(image + z * plane * size, 0, (size_t)(size * plane));
                if (from_z < 0 || from_z >= c->size_in[0]) continue;
                for (int64_t y = 0; y < c->size_in[1]; ++y) {
                    const int64_t n = c->size_in[2], many = narrow ? n : LANES; /* voxels, of all channels: so few stay in the cache */
                    const T *from = (const T *)c->input + z / padded[0] * in * volume_in + (from_z * c->size_in[1] + y) * n;
                    const int64_t line = z * plane + (y + c->padding[1]) * row + c->padding[2] * voxel;
                    for (int64_t k = 0; k < in; ++k) {
                        least = S(least)(n, from + k * volume_in, least);
                        if (r->mode == NEARNESS) largest = S(largest)(n, from + k * volume_in, largest);
                    }
                    for (int64_t x = 0; x < n; x += many)
                        for (int64_t k = 0; k < in; ++k) {
                            const int64_t here = n - x < many ? n - x : many, at = line + k * channel + x * voxel;
                            const T *source = from + k * volume_in + x;
                            if (r->mode == NEARNESS) S(lay_wide)(here, source, (double *)image + at, voxel, r->flush);
                            else if (narrow) memcpy((T *)image + at, source, sizeof(T) * (size_t)here);
                            else if (k % 8 == 0) S(transpose_block)(source, volume_in, in - k < 8 ? in - k : 8, here, (T *)image + at, voxel);
                        }
                }
            }
            const int safe = S(exponent)(least) + S(exponent)(least_weight) >= SAFE_EXPONENT &&
                             (r->mode != NEARNESS || S(bounded)(largest, largest_weight, terms));
            const control saved = control_get();
            control_set(control_with(saved, r->mode == DOWNWARD ? UPWARD : r->mode, r->flush));
            S(open_sum) *here = open + omp_get_thread_num() * places;
#pragma omp for schedule(dynamic, 2)
            for (int64_t item = 0; item < c->batch * c->size_out[0] * c->size_out[1]; ++item) {
                const int64_t y = item % c->size_out[1], z = item / c->size_out[1] % c->size_out[0];
                const int64_t b = item / (c->size_out[1] * c->size_out[0]);
                const char *input = image + (b * volume + z * c->stride[0] * plane + y * c->stride[1] * row) * size;
                const int64_t first = (b * c->channels_out + start) * voxels + (z * c->size_out[1] + y) * width;
                T *output = (T *)c->output + first;
                if (r->mode == NEAREST || r->mode == TOWARD_ZERO) S(row_plain)(&p, input, (uint32_t)first, output, here);
                else if (r->mode == NEARNESS && safe && BY_IFMA(r)) S(row_ifma)(&p, input, (uint32_t)first, output, here);
                else if (r->mode == NEARNESS && safe) S(row_nearness)(&p, input, (uint32_t)first, output, here);
                else if (r->mode == NEARNESS) S(row_nearness_careful)(&p, input, (uint32_t)first, output, here);
                else if (safe) S(row_directed)(&p, input, (uint32_t)first, output, here);
                else S(row_careful)(&p, input, (uint32_t)first, output, here);
            }
            control_set(saved);
        }
    }
    free(image), free(bias), free(weight), free(turn), free(offset), free(block), free(open);
    return status;
}

static int S(convolve)(const rounding *r, const convolution_call *c) {
    const int64_t out = c->channels_out, rest = out % LANES, width = c->size_out[2];
    const int64_t row = (width + LANES - 1) / LANES, blocks = (out + LANES - 1) / LANES; /* vectors */
    if (c->stride[2] == 1 && out <= MAX_TILE && row * out < blocks * width) return S(convolve_part)(r, c, 0, out, 1);
    /* The channels beyond whole vectors need a second copy of the image, which several taps outweigh. */
    if (c->stride[2] != 1 || out < LANES || !rest || rest > MAX_TILE || 4 * row * rest > 3 * width || c->terms < 4 * c->channels_in)
        return S(convolve_part)(r, c, 0, out, 0);
    const int status = S(convolve_part)(r, c, 0, out - rest, 0);
    return status == OK ? S(convolve_part)(r, c, out - rest, rest, 1) : status;
}
