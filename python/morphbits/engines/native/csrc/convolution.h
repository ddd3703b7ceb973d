/* Convolution for one element type. Included by kernels.c with
 *   T, S(name)       the element type and its suffix
 *   LANES            elements in a vector: output channels, one output voxel
 * The input is copied once into zero-padded, channels-last planes and the weights into (channel block, term, lane), so
 * that a term is one broadcast of the input times one vector of weights. A tile is up to MAX_TILE neighbouring voxels of a
 * row. Terms outside the image multiply a zero of the padding, unless a weight is not finite: then the naive kernel, which
 * leaves these out, is called. */

typedef T S(vec) __attribute__((vector_size(sizeof(T) * LANES), aligned(sizeof(T)), may_alias));
typedef S(bits) S(ivec) __attribute__((vector_size(sizeof(T) * LANES), aligned(sizeof(T)), may_alias));
typedef uint32_t S(words) __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

#define V S(vec)
#define I S(ivec)
#define W S(words)
#define MINUS_ZERO ((S(bits))1 << (8 * sizeof(T) - 1))

typedef struct {
    const rounding *r;
    const convolution_call *c;
    const word_block *block;
    const int64_t *offset; /* of each term, into the padded input, from a voxel's first tap */
    const T *weight;       /* (channel blocks, terms, LANES) */
    const T *bias;         /* (channel blocks * LANES) or NULL */
    int64_t voxel_step;    /* between neighbouring output voxels of a row, in the padded input */
    int64_t voxels;        /* output voxels of a channel */
} S(plan);

static inline W S(word_vector)(word_block c, W element) {
    W x = element * c.multiplier + c.increment;
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x ^= c.inner;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    return x ^ (x >> 16);
}

static inline V S(splat)(T x) {
#if defined(SPLAT)
    return (V)SPLAT(x);
#else
    V out;
    for (int l = 0; l < LANES; ++l) out[l] = x;
    return out;
#endif
}

static inline V S(fma_vector)(V a, V b, V c) {
#if defined(FMA_VECTOR)
    return (V)FMA_VECTOR(a, b, c);
#else
    V out;
    for (int l = 0; l < LANES; ++l) out[l] = FMA_SCALAR(a[l], b[l], c[l]);
    return out;
#endif
}

/* All lanes up where the direction bit is set and down where not. The register is set upward: -RU(-x) rounds x down, so a
 * sign is a direction. Signs are flipped on the integer bits, which no compiler folds into another operation. */
#if !defined(DIRECTED)
typedef I S(direction); /* the sign bit where down, 0 where up */
static inline S(direction) S(direction_of)(W word, int64_t index) {
    return ~(__builtin_convertvector(word, I) << (8 * sizeof(T) - 32 + (index & 31))) & MINUS_ZERO;
}
static inline V S(fma_directed)(V a, V b, V c, S(direction) d) {
    return (V)((I)S(fma_vector)((V)((I)a ^ d), b, (V)((I)c ^ d)) ^ d);
}
static inline V S(add_directed)(V a, V b, S(direction) d) {
    return (V)((I)((V)((I)a ^ d) + (V)((I)b ^ d)) ^ d);
}
static inline V S(pick_zero)(V directed, V up) { /* see PICK in elementwise.h */
    I is = (I)((I)directed == (I){0} + MINUS_ZERO);
    return (V)(((I)up & is) | ((I)directed & ~is));
}
static inline V S(fma_random)(V a, V b, V c, S(direction) d, int careful) {
    V out = S(fma_directed)(a, b, c, d);
    return careful ? S(pick_zero)(out, S(fma_vector)(a, b, c)) : out;
}
static inline V S(add_random)(V a, V b, S(direction) d) { return S(pick_zero)(S(add_directed)(a, b, d), a + b); }
#else
/* AVX-512, float32: two operations with the rounding direction in the instruction, and a masked choice. */
typedef __mmask16 S(direction); /* 1 where up */
static inline S(direction) S(direction_of)(W word, int64_t index) {
    return _mm512_test_epi32_mask((__m512i)word, _mm512_set1_epi32((int)(1u << (31 - (index & 31)))));
}
static inline V S(pick_directed)(__m512 up, __m512 down, S(direction) d, int careful) {
    if (careful) d |= _mm512_cmpeq_epi32_mask(_mm512_castps_si512(down), _mm512_set1_epi32((int)0x80000000));
    return (V)_mm512_mask_blend_ps(d, down, up);
}
static inline V S(fma_random)(V a, V b, V c, S(direction) d, int careful) {
    __m512 up = _mm512_fmadd_round_ps((__m512)a, (__m512)b, (__m512)c, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC);
    __m512 down = _mm512_fmadd_round_ps((__m512)a, (__m512)b, (__m512)c, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    return S(pick_directed)(up, down, d, careful);
}
static inline V S(add_random)(V a, V b, S(direction) d) {
    __m512 up = _mm512_add_round_ps((__m512)a, (__m512)b, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC);
    __m512 down = _mm512_add_round_ps((__m512)a, (__m512)b, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    return S(pick_directed)(up, down, d, 1);
}
#endif

#if defined(SINGLE)
/* stochastic_f32 for a vector; the lanes that are subnormal or not finite take the scalar way. */
typedef double S(wide) __attribute__((vector_size(8 * LANES), may_alias));
typedef uint64_t S(wide_bits) __attribute__((vector_size(8 * LANES), may_alias));
static inline V S(stochastic_vector)(S(wide) exact, W word) {
    const S(wide_bits) u = (S(wide_bits))exact, magnitude = u & ~(UINT64_C(1) << 63);
    const uint64_t least = UINT64_C(0x3810000000000000); /* 2^-126 */
    const S(wide_bits) odd = (S(wide_bits))(magnitude - least >= UINT64_C(0x7ff0000000000000) - least) & magnitude;
    uint64_t any = 0;
    for (int l = 0; l < LANES; ++l) any |= odd[l];
    V out;
    if (any)
        for (int l = 0; l < LANES; ++l) out[l] = stochastic_f32(exact[l], word[l]);
    else
        out = __builtin_convertvector(
            (S(wide))((u + __builtin_convertvector(word >> 3, S(wide_bits))) & ~((UINT64_C(1) << 29) - 1)), V);
    return out;
}
#define WIDE(x) __builtin_convertvector(x, S(wide))
static inline V S(add_stochastic)(V a, V b, W word) { return S(stochastic_vector)(WIDE(a) + WIDE(b), word); }
static inline V S(fma_stochastic)(V a, V b, V c, W word) { return S(stochastic_vector)(WIDE(a) * WIDE(b) + WIDE(c), word); }
#undef WIDE
#else
static inline V S(add_stochastic)(V a, V b, W word) {
    V out;
    for (int l = 0; l < LANES; ++l) out[l] = stochastic_add_f64(a[l], b[l], word[l]);
    return out;
}
static inline V S(fma_stochastic)(V a, V b, V c, W word) {
    V out;
    for (int l = 0; l < LANES; ++l) out[l] = stochastic_fma_f64(a[l], b[l], c[l], word[l]);
    return out;
}
#endif

/* The three ways to do an operation; constants at every call, so each instance keeps one. */
enum { S(PLAIN), S(DIRECTIONS), S(NEARNESSES) };

static inline W S(draw)(const S(plan) * p, int64_t index, W element) {
    if (p->r->mode == UPWARD) return (W){0} - 1u;
    if (p->r->mode == DOWNWARD) return (W){0};
    return S(word_vector)(p->block[p->r->mode == RANDOM ? index >> 5 : index], element);
}

static inline V S(add)(const S(plan) * p, int way, V a, V b, int64_t index, W element) {
    if (way == S(PLAIN)) return a + b;
    W word = S(draw)(p, index, element);
    if (way == S(DIRECTIONS)) return S(add_random)(a, b, S(direction_of)(word, index));
    return S(add_stochastic)(a, b, word);
}

static inline V S(positive_zero)(V x) { return (V)((I)x & ~(I)((I)x == (I){0} + MINUS_ZERO)); }

/* `tile` neighbouring voxels of one row, LANES output channels from `channel` on; `first` is the output element of the
 * first voxel in the first of these channels, `input` its first tap. */
static inline __attribute__((always_inline)) void S(run_tile)(const S(plan) * p, const int tile, const int way,
                                                              const int careful, const T *input, int64_t channel,
                                                              uint32_t first, V *total) {
    const convolution_call *c = p->c;
    const T *weight = p->weight + channel * c->terms;
    const int64_t step = p->voxel_step;
    W lane = {0}, element[MAX_TILE], word[MAX_TILE] = {{0}};
    V chain[MAX_TILE];
    for (int l = 0; l < LANES; ++l) lane[l] = first + (uint32_t)(l * p->voxels);
    for (int i = 0; i < tile; ++i) element[i] = lane + (uint32_t)i;
    int64_t t = 0;
    for (int64_t s = 0; s < c->segments; ++s) {
        for (int i = 0; i < tile; ++i) chain[i] = (V){0};
        const int64_t end = c->segment_end[s];
        while (t < end) {
            const int64_t block_end = way == S(PLAIN) ? end : way == S(NEARNESSES) ? t + 1 : (t | 31) + 1;
            const int64_t stop = end < block_end ? end : block_end;
            if (way != S(PLAIN))
                for (int i = 0; i < tile; ++i) word[i] = S(draw)(p, t, element[i]);
            for (; t < stop; ++t) {
                const V w = *(const V *)(weight + t * LANES);
                const T *x = input + p->offset[t];
                for (int i = 0; i < tile; ++i) {
                    const V a = S(splat)(x[i * step]);
                    if (way == S(PLAIN)) chain[i] = S(fma_vector)(a, w, chain[i]);
                    else if (way == S(DIRECTIONS))
                        chain[i] = S(fma_random)(a, w, chain[i], S(direction_of)(word[i], t), careful);
                    else chain[i] = S(fma_stochastic)(a, w, chain[i], word[i]);
                }
            }
        }
        for (int i = 0; i < tile; ++i) {
            V sum = way == S(DIRECTIONS) && !careful ? S(positive_zero)(chain[i]) : chain[i];
            if (s > 0) sum = S(add)(p, way, total[i], sum, c->terms + s, element[i]);
            else if (c->bias_first) sum = S(add)(p, way, *(const V *)(p->bias + channel), sum, c->terms, element[i]);
            total[i] = sum;
        }
    }
    for (int i = 0; i < tile; ++i) {
        if (p->bias && !c->bias_first)
            total[i] = S(add)(p, way, total[i], *(const V *)(p->bias + channel), c->terms + c->segments, element[i]);
        const I ordered = (I)(total[i] == total[i]);
        total[i] = (V)(((I)total[i] & ordered) | (~ordered & QUIET_NAN));
    }
}

/* One row of output voxels, all channels. */
static inline __attribute__((always_inline)) void S(run_row)(const S(plan) * p, const int way, const int careful,
                                                             const T *input, uint32_t first, T *output) {
    const convolution_call *c = p->c;
    for (int64_t channel = 0; channel < c->channels_out; channel += LANES) {
        const int64_t lanes = c->channels_out - channel < LANES ? c->channels_out - channel : LANES;
        for (int64_t x = 0; x < c->size_out[2];) {
            const int64_t left = c->size_out[2] - x, from = channel * p->voxels + x;
            const T *at = input + x * p->voxel_step;
            V total[MAX_TILE] = {{0}};
            int tile;
            if (left >= MAX_TILE) S(run_tile)(p, tile = MAX_TILE, way, careful, at, channel, first + (uint32_t)from, total);
            else if (left >= 4) S(run_tile)(p, tile = 4, way, careful, at, channel, first + (uint32_t)from, total);
            else if (left >= 2) S(run_tile)(p, tile = 2, way, careful, at, channel, first + (uint32_t)from, total);
            else S(run_tile)(p, tile = 1, way, careful, at, channel, first + (uint32_t)from, total);
            for (int64_t l = 0; l < lanes; ++l)
                for (int i = 0; i < tile; ++i) output[from + l * p->voxels + i] = total[i][l];
            x += tile;
        }
    }
}

#define ROW(name, way, careful)                                                                                         \
    static __attribute__((noinline)) void S(name)(const S(plan) * p, const T *input, uint32_t first, T *output) { \
        S(run_row)(p, way, careful, input, first, output);                                                              \
    }
ROW(row_plain, S(PLAIN), 0)
ROW(row_directed, S(DIRECTIONS), 0)
ROW(row_careful, S(DIRECTIONS), 1)
ROW(row_nearness, S(NEARNESSES), 0)
#undef ROW

/* The least exponent among the values that are not zero: with both of a convolution's, no product or sum of its chains
 * can underflow when `S(safe)` says so (every partial sum is a multiple of the least product of last places), and then
 * a chain's -0 is an exact cancellation. */
static inline S(bits) S(least)(int64_t n, const T *x) {
    S(bits) least = ~(S(bits))0;
    for (int64_t i = 0; i < n; ++i) {
        const S(bits) magnitude = (((const S(bits) *)x)[i] & ~MINUS_ZERO) - 1; /* zero wraps to the greatest */
        least = magnitude < least ? magnitude : least;
    }
    return least;
}
static inline int64_t S(exponent)(S(bits) least) { return (int64_t)(least >> MANTISSA) - BIAS; }

static int S(convolve)(const rounding *r, const convolution_call *c) {
    const int64_t taps = c->kernel[0] * c->kernel[1] * c->kernel[2], in = c->channels_in, terms = c->terms;
    const int64_t blocks = (c->channels_out + LANES - 1) / LANES;
    int64_t padded[3];
    for (int d = 0; d < 3; ++d) padded[d] = c->size_in[d] + 2 * c->padding[d];
    const int64_t row = padded[2] * in, plane = padded[1] * row, volume = padded[0] * plane;
    const int64_t volume_in = c->size_in[0] * c->size_in[1] * c->size_in[2];
    const int64_t voxels = c->size_out[0] * c->size_out[1] * c->size_out[2];
    const int64_t draws = terms + c->segments + 1;
    T *image = malloc(sizeof(T) * (size_t)(c->batch * volume)), *bias = calloc((size_t)(blocks * LANES), sizeof(T));
    T *weight = malloc(sizeof(T) * (size_t)(blocks * LANES * terms));
    int64_t *offset = malloc(sizeof(int64_t) * (size_t)terms);
    word_block *block = malloc(sizeof(word_block) * (size_t)draws);
    int status = image && bias && weight && offset && block ? OK : OUT_OF_MEMORY;
    if (status == OK) {
        for (int64_t b = 0; b < draws; ++b) block[b] = block_constants(r->key, (uint64_t)b);
        for (int64_t t = 0; t < terms; ++t) {
            const int64_t x = c->tap[t] % c->kernel[2], y = c->tap[t] / c->kernel[2] % c->kernel[1];
            const int64_t z = c->tap[t] / (c->kernel[2] * c->kernel[1]);
            offset[t] = z * c->dilation[0] * plane + y * c->dilation[1] * row + x * c->dilation[2] * in + c->channel[t];
        }
        for (int64_t o = 0; o < blocks * LANES; ++o)
            for (int64_t t = 0; t < terms; ++t)
                weight[(o / LANES * terms + t) * LANES + o % LANES] =
                    o < c->channels_out ? ((const T *)c->weight)[(o * in + c->channel[t]) * taps + c->tap[t]] : 0;
        if (c->bias) memcpy(bias, c->bias, sizeof(T) * (size_t)c->channels_out);
        const S(plan) p = {r, c, block, offset, weight, c->bias ? bias : NULL, c->stride[2] * in, voxels};
        S(bits) least = ~(S(bits))0;
#pragma omp parallel num_threads(r->threads)
        {
#pragma omp for schedule(static) reduction(min : least)
            for (int64_t z = 0; z < c->batch * padded[0]; ++z) {
                T *to = image + z * plane;
                const int64_t from_z = z % padded[0] - c->padding[0];
                memset(to, 0, sizeof(T) * (size_t)plane);
                if (from_z < 0 || from_z >= c->size_in[0]) continue;
                for (int64_t y = 0; y < c->size_in[1]; ++y)
                    for (int64_t k = 0; k < in; ++k) {
                        const T *from = (const T *)c->input + (z / padded[0] * in + k) * volume_in +
                                        (from_z * c->size_in[1] + y) * c->size_in[2];
                        T *line = to + (y + c->padding[1]) * row + c->padding[2] * in + k;
                        const S(bits) here = S(least)(c->size_in[2], from);
                        if (here < least) least = here;
                        for (int64_t x = 0; x < c->size_in[2]; ++x) line[x * in] = from[x];
                    }
            }
            const int safe =
                S(exponent)(least) + S(exponent)(S(least)(blocks * LANES * terms, weight)) >= SAFE_EXPONENT;
            const control saved = control_get();
            control_set(control_with(saved, r->mode == DOWNWARD ? UPWARD : r->mode, r->flush));
#pragma omp for schedule(dynamic, 2)
            for (int64_t item = 0; item < c->batch * c->size_out[0] * c->size_out[1]; ++item) {
                const int64_t y = item % c->size_out[1], z = item / c->size_out[1] % c->size_out[0];
                const int64_t b = item / (c->size_out[1] * c->size_out[0]);
                const T *input = image + b * volume + z * c->stride[0] * plane + y * c->stride[1] * row;
                const int64_t first = b * c->channels_out * voxels + (z * c->size_out[1] + y) * c->size_out[2];
                T *output = (T *)c->output + first;
                if (r->mode == NEAREST || r->mode == TOWARD_ZERO) S(row_plain)(&p, input, (uint32_t)first, output);
                else if (r->mode == NEARNESS) S(row_nearness)(&p, input, (uint32_t)first, output);
                else if (safe) S(row_directed)(&p, input, (uint32_t)first, output);
                else S(row_careful)(&p, input, (uint32_t)first, output);
            }
            control_set(saved);
        }
    }
    free(image), free(bias), free(weight), free(offset), free(block);
    return status;
}

#undef V
#undef I
#undef W
#undef MINUS_ZERO
