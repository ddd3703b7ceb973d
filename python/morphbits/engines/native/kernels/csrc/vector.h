/* Vectors of one element type and the operations on them, each lane rounded by its own random bit. Included by kernels.c
 * with
 *   T, S(name)       the element type and its suffix
 *   LANES            elements in a vector
 * before the kernels that use it. */

typedef T S(vec) __attribute__((vector_size(sizeof(T) * LANES), aligned(sizeof(T)), may_alias));
typedef S(bits) S(ivec) __attribute__((vector_size(sizeof(T) * LANES), aligned(sizeof(T)), may_alias));
typedef uint32_t S(words) __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

#define V S(vec)
#define I S(ivec)
#define W S(words)
#define MINUS_ZERO ((S(bits))1 << (8 * sizeof(T) - 1))

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
typedef W S(directions); /* of 32 operations */
static inline S(directions) S(directions_of)(W word) { return word; }
static inline S(direction) S(direction_at)(const S(directions) * d, int64_t index) { return S(direction_of)(*d, index); }
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
/* The directions of 32 operations, byte-wise transposed: the highest bytes of the 16 lanes, then the next, so that one
 * operation's bits are tested in 16 bytes. A test of 64 bytes takes twice as long on the units that also multiply. */
typedef __m512i S(directions);
static inline S(directions) S(directions_of)(W word) {
    const __m512i bytes = _mm512_broadcast_i32x4(_mm_setr_epi8(3, 7, 11, 15, 2, 6, 10, 14, 1, 5, 9, 13, 0, 4, 8, 12));
    const __m512i groups = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm512_permutexvar_epi32(groups, _mm512_shuffle_epi8((__m512i)word, bytes));
}
static inline S(direction) S(direction_at)(const S(directions) * d, int64_t index) {
#define BIT(b) {(uint64_t)(b) * UINT64_C(0x0101010101010101), (uint64_t)(b) * UINT64_C(0x0101010101010101)}
    static const uint64_t bit[8][2] __attribute__((aligned(16))) = {BIT(128), BIT(64), BIT(32), BIT(16),
                                                                    BIT(8),   BIT(4),  BIT(2),  BIT(1)};
#undef BIT
    return _mm_test_epi8_mask(_mm_load_si128((const __m128i *)d + ((index >> 3) & 3)),
                              _mm_load_si128((const __m128i *)bit[index & 7]));
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

static inline V S(positive_zero)(V x) { return (V)((I)x & ~(I)((I)x == (I){0} + MINUS_ZERO)); }

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

/* ---- multiplication, and an operation of any mode, for the kernels other than convolution ---- */
#if !defined(DIRECTED)
static inline V S(mul_random)(V a, V b, S(direction) d) {
    return S(pick_zero)((V)((I)((V)((I)a ^ d) * b) ^ d), a * b);
}
#else
static inline V S(mul_random)(V a, V b, S(direction) d) {
    __m512 up = _mm512_mul_round_ps((__m512)a, (__m512)b, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC);
    __m512 down = _mm512_mul_round_ps((__m512)a, (__m512)b, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    return S(pick_directed)(up, down, d, 1);
}
#endif
#if defined(SINGLE)
static inline V S(mul_stochastic)(V a, V b, W word) {
    return S(stochastic_vector)(__builtin_convertvector(a, S(wide)) * __builtin_convertvector(b, S(wide)), word);
}
#else
static inline V S(mul_stochastic)(V a, V b, W word) {
    V out;
    for (int l = 0; l < LANES; ++l) out[l] = stochastic_mul_f64(a[l], b[l], word[l]);
    return out;
}
#endif

/* The random word of operation `index` of each element; upward and downward are random with all bits alike. */
static inline W S(word_for)(int mode, const word_block *block, int64_t index, W element) {
    if (mode == UPWARD) return (W){0} - 1u;
    if (mode == DOWNWARD) return (W){0};
    return S(word_vector)(block[mode == RANDOM ? index >> 5 : index], element);
}

static inline V S(one_nan)(V x) {
    const I ordered = (I)(x == x);
    return (V)(((I)x & ordered) | (~ordered & QUIET_NAN));
}
