/* Vectors of one element type and the operations on them, each lane rounded by its own random bit. Included by kernels.c
 * with
 *   T, S(name)       the element type and its suffix
 *   LANES            elements in a vector
 * before the kernels that use it. */
#include "morphbits.h"
#include "stochastic.h"


typedef T S(vec) __attribute__((vector_size(sizeof(T) * LANES), aligned(sizeof(T)), may_alias));
typedef S(bits) S(ivec) __attribute__((vector_size(sizeof(T) * LANES), aligned(sizeof(T)), may_alias));
typedef uint32_t S(words) __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

#define V S(vec)
#define I S(ivec)
#define W S(words)
#define MINUS_ZERO ((S(bits))1 << (8 * sizeof(T) - 1))

/* `random_word` from its first step on, which is linear in the element. A shift of an exclusive or is one of both: the middle
 * step is one instruction of three operands. */
static inline W S(scrambled)(word_block c, W x) {
#if defined(__AVX512F__) && defined(SINGLE)
    const __m512i inner = _mm512_set1_epi32((int)(c.inner ^ (c.inner >> 15)));
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (W)_mm512_ternarylogic_epi32((__m512i)x, _mm512_srli_epi32((__m512i)x, 15), inner, 0x96) * 0x846ca68bu;
    x ^= x >> 16;
#else
    SCRAMBLE(x, c.inner);
#endif
    return x;
}
static inline W S(word_vector)(word_block c, W element) { return S(scrambled)(c, element * c.multiplier + c.increment); }

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
/* The same of the operation `bit` of a group of eight, a constant. */
static inline S(direction) S(direction_in)(const S(directions) * d, int group, const int bit) {
    return _mm_test_epi8_mask(_mm_load_si128((const __m128i *)d + group), _mm_set1_epi8((char)(128 >> bit)));
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

/* ---- mode NEARNESS: sums in float64 -------------------------------------------------------------------------------
 * A `total` is a vector of values of type T, held in float64. Its elements lie in the lanes in the order of `lane_of`, in
 * which the caller draws their random words, too: float32 fills two vectors of float64, the first half of the elements and
 * the second, and their draws are the even and the odd lanes of one vector of words, so that one shift lays open each. */

#if defined(SINGLE)
#define HALF (LANES / 2)
typedef double S(wide) __attribute__((vector_size(8 * HALF), aligned(8), may_alias));
typedef uint64_t S(wide_bits) __attribute__((vector_size(8 * HALF), may_alias));
typedef float S(half) __attribute__((vector_size(4 * HALF), aligned(4), may_alias));
typedef struct {
    S(wide) low, high;
} S(total);
static inline int S(lane_of)(int lane) { return lane / 2 + lane % 2 * HALF; }

static inline S(total) S(widened)(V x) {
    const union { V whole; S(half) part[2]; } u = {x};
    return (S(total)){__builtin_convertvector(u.part[0], S(wide)), __builtin_convertvector(u.part[1], S(wide))};
}
static inline V S(narrowed)(S(total) x) { /* of values of float32 */
    union { V whole; S(half) part[2]; } u;
    u.part[0] = __builtin_convertvector(x.low, S(half)), u.part[1] = __builtin_convertvector(x.high, S(half));
    return u.whole;
}

static inline int S(any)(S(wide_bits) x) {
#if defined(__AVX512F__)
    return _mm512_test_epi64_mask((__m512i)x, (__m512i)x) != 0;
#elif defined(__AVX2__)
    return !_mm256_testz_si256((__m256i)x, (__m256i)x);
#else
    uint64_t any = 0;
    for (int l = 0; l < HALF; ++l) any |= x[l];
    return any != 0;
#endif
}

/* stochastic_f32 of each lane, by adding the draw to the 29 bits that then fall off. `careful`: lanes that may be subnormal
 * or overflow, or are not finite, take the scalar way. */
static inline __attribute__((always_inline)) S(wide) S(drop_bits)(S(wide) exact, S(wide_bits) draw, const int careful) {
    if (careful) {
        const uint64_t least = UINT64_C(0x3810000000000000), largest = UINT64_C(0x47efffffe0000000); /* 2^-126, 2^128 - 2^104 */
        const S(wide_bits) magnitude = (S(wide_bits))exact & INT64_MAX;
        if (S(any)((S(wide_bits))(magnitude - least > largest - least) & magnitude)) {
            for (int l = 0; l < HALF; ++l) exact[l] = stochastic_f32(exact[l], (uint32_t)draw[l] << 3);
            return exact;
        }
    }
    return (S(wide))(((S(wide_bits))exact + draw) & ~((UINT64_C(1) << 29) - 1));
}
static inline __attribute__((always_inline)) S(total) S(drop)(S(total) exact, W word, const int careful) {
#if defined(__AVX512F__)
    const S(wide_bits) even = (S(wide_bits))_mm512_maskz_srli_epi32(0x5555, (__m512i)word, 3);
#else
    const S(wide_bits) even = ((S(wide_bits))word & 0xffffffffu) >> 3;
#endif
    const S(wide_bits) odd = (S(wide_bits))word >> 35;
    return (S(total)){S(drop_bits)(exact.low, even, careful), S(drop_bits)(exact.high, odd, careful)};
}

/* The draws of a vector of elements: 32 bits each, one vector of words. By IFMA, AVX-512's multiplication of 52 bits (`ifma`, a
 * constant), they are two vectors of words shifted by 20: the lower half of a product is then the next draw, and the upper half
 * of that with 2^29 is the draw's first 29 bits, which the same instruction adds to a total. Bits above the 52 are not read. */
typedef struct {
    W word;
    S(wide_bits) low, high;
} S(draws);
static inline S(draws) S(draws_of)(W word) {
    const S(wide_bits) pair = (S(wide_bits))word;
    return (S(draws)){word, pair << 20, pair >> 32 << 20};
}
#if defined(__AVX512F__)
#define BY_IFMA(r) ((r)->variant == AVX512_IFMA)
#else
#define BY_IFMA(r) 0
#endif
/* total + the lower or the upper half of a·b. Assembly, because compilers have a function for it only where all is compiled for
 * processors that have it. */
static inline __attribute__((always_inline)) S(wide_bits) S(add_half)(S(wide_bits) total, S(wide_bits) a, S(wide_bits) b,
                                                                      const int upper) {
#if defined(__AVX512F__)
    if (upper) __asm__("vpmadd52huq %2, %1, %0" : "+v"(total) : "v"(a), "v"(b));
    else __asm__("vpmadd52luq %2, %1, %0" : "+v"(total) : "v"(a), "v"(b));
#else
    (void)a, (void)b, (void)upper;
#endif
    return total;
}
static inline __attribute__((always_inline)) void S(next_draws)(S(draws) *d, const int ifma) {
    const S(wide_bits) step = (S(wide_bits)){0} + (STEP - 1); /* by IFMA, a draw plus its product with this */
    if (!ifma) d->word *= STEP;
    else d->low = S(add_half)(d->low, d->low, step, 0), d->high = S(add_half)(d->high, d->high, step, 0);
}
static inline __attribute__((always_inline)) S(wide) S(drop_by_ifma)(S(wide) exact, S(wide_bits) draw) {
    const S(wide_bits) sum = S(add_half)((S(wide_bits))exact, draw, (S(wide_bits)){0} + (UINT64_C(1) << 29), 1);
    return (S(wide))(sum & ~((UINT64_C(1) << 29) - 1));
}

static inline S(wide) S(wide_splat)(double x) {
#if defined(__AVX512F__)
    return (S(wide))_mm512_set1_pd(x);
#elif defined(__AVX2__)
    return (S(wide))_mm256_set1_pd(x);
#else
    return (S(wide)){x, x};
#endif
}
/* A product of two float32 is exact in float64, so that with or without a fused instruction the sum is rounded once. */
static inline S(wide) S(wide_fma)(S(wide) a, S(wide) b, S(wide) c) {
#if defined(__AVX512F__)
    return (S(wide))_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__AVX2__)
    return (S(wide))_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#else
    return a * b + c;
#endif
}
/* total + a·b[0], b[1], …, the elements in their own order; by IFMA not `careful` */
static inline __attribute__((always_inline)) S(total) S(fma_stochastic)(double a, const double *b, S(total) c, const S(draws) *d,
                                                                        const int careful, const int ifma) {
    const S(wide) number = S(wide_splat)(a);
    const S(total) exact = {S(wide_fma)(number, *(const S(wide) *)b, c.low), S(wide_fma)(number, *(const S(wide) *)(b + HALF), c.high)};
    if (!ifma) return S(drop)(exact, d->word, careful);
    return (S(total)){S(drop_by_ifma)(exact.low, d->low), S(drop_by_ifma)(exact.high, d->high)};
}
static inline __attribute__((always_inline)) S(total) S(add_totals)(S(total) a, S(total) b, W word, const int careful) {
    return S(drop)((S(total)){a.low + b.low, a.high + b.high}, word, careful);
}
static inline __attribute__((always_inline)) S(total) S(mul_totals)(S(total) a, S(total) b, W word, const int careful) {
    return S(drop)((S(total)){a.low * b.low, a.high * b.high}, word, careful);
}
static inline V S(add_stochastic)(V a, V b, W word) {
    return S(narrowed)(S(add_totals)(S(widened)(a), S(widened)(b), word, 1));
}
static inline V S(mul_stochastic)(V a, V b, W word) {
    return S(narrowed)(S(mul_totals)(S(widened)(a), S(widened)(b), word, 1));
}
#undef HALF
#else
typedef V S(total);
static inline int S(lane_of)(int lane) { return lane; }
static inline V S(narrowed)(V x) { return x; }
typedef struct {
    W word;
} S(draws);
static inline S(draws) S(draws_of)(W word) { return (S(draws)){word}; }
static inline void S(next_draws)(S(draws) *d, const int ifma) {
    (void)ifma;
    d->word *= STEP;
}
#define BY_IFMA(r) 0

/* step_f64 of each lane */
static inline V S(step_across)(V nearest, V remainder, W word) {
    const I zero = (I)(nearest == 0), above = (I)(remainder > 0), positive = (I)(nearest > 0) | (zero & above);
    const I least = (I)S(splat)(0x1p-1074) | ((I)remainder & MINUS_ZERO), next = (I)nearest + ((~(above ^ positive) & 2) - 1);
    const V other = (V)((least & zero) | (next & ~zero)), ratio = remainder / (other - nearest);
    const I steps = (I)(__builtin_convertvector(word, V) * 0x1p-32 < ratio) & (I)(remainder != 0) & (I)(nearest - nearest == 0);
    return (V)(((I)other & steps) | ((I)nearest & ~steps));
}
static inline V S(add_stochastic)(V a, V b, W word) {
    const V s = a + b, t = s - a;
    return S(step_across)(s, (a - (s - t)) + (b - t), word);
}
static inline V S(mul_stochastic)(V a, V b, W word) {
    const V p = a * b;
    return S(step_across)(p, S(fma_vector)(a, b, (V)((I)p ^ MINUS_ZERO)), word);
}
static inline V S(fma_stochastic)(double number, const double *b, V c, const S(draws) *d, const int careful, const int ifma) {
    (void)careful, (void)ifma;
    const V a = S(splat)(number), w = *(const V *)b, s = S(fma_vector)(a, w, c), p = a * w;
    const V low = S(fma_vector)(a, w, (V)((I)p ^ MINUS_ZERO)), q = p + c, t = q - p, rest = (p - (q - t)) + (c - t);
    return S(step_across)(s, (q - s) + (rest + low), d->word);
}
#endif

static inline V S(positive_zero)(V x) { return (V)((I)x & ~(I)((I)x == (I){0} + MINUS_ZERO)); }

/* The least of the values that are not zero and of `least`, as bits: with both of a convolution's, no product or sum of its
 * chains can underflow when their exponents add up to SAFE_EXPONENT or more (every partial sum is a multiple of the least
 * product of last places, 2^(exponents - 2 MANTISSA), which is then a normal number), and a chain's -0 is an exact
 * cancellation. */
static inline S(bits) S(least)(int64_t n, const T *x, S(bits) least) {
    for (int64_t i = 0; i < n; ++i) {
        const S(bits) magnitude = (((const S(bits) *)x)[i] & ~MINUS_ZERO) - 1; /* zero wraps to the greatest */
        least = magnitude < least ? magnitude : least;
    }
    return least;
}
static inline int64_t S(exponent)(S(bits) least) { return (int64_t)(least >> MANTISSA) - BIAS; }
static inline S(bits) S(largest)(int64_t n, const T *x, S(bits) largest) {
    for (int64_t i = 0; i < n; ++i) {
        const S(bits) magnitude = ((const S(bits) *)x)[i] & ~MINUS_ZERO;
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest;
}
/* Whether no chain of `terms` products of numbers up to these can overflow: a product is below 2^(exponents + 2), and n
 * roundings enlarge a sum by less than 2 while n < 2^22. */
static inline int S(bounded)(S(bits) largest, S(bits) other, int64_t terms) {
    const int64_t doublings = 64 - __builtin_clzll((unsigned long long)terms | 1);
    return terms < 1 << 22 && S(exponent)(largest) + S(exponent)(other) + 2 + doublings + 1 <= BIAS;
}

/* Numbers as a kernel of sums of products reads them in mode NEARNESS: as float64, subnormal ones of float32 flushed where
 * asked (those of float64 are flushed by the processor). */
static inline void S(lay_wide)(int64_t n, const T *from, double *to, int64_t step, int flush) {
    for (int64_t i = 0; i < n; ++i) {
        const double x = (double)from[i];
        to[i * step] = sizeof(T) == 4 && flush && __builtin_fabs(x) < 0x1p-126 ? __builtin_copysign(0, x) : x;
    }
}

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
/* The random word of operation `index` of each element, in mode NEARNESS its draw; upward and downward are random with all
 * bits alike. */
static inline W S(word_for)(int mode, const word_block *block, int64_t index, W element) {
    if (mode == UPWARD) return (W){0} - 1u;
    if (mode == DOWNWARD) return (W){0};
    const W word = S(word_vector)(block[index >> 5], element);
    if (mode == NEARNESS) return (word | 1) * step_power(index);
    return word;
}

/* `word_for` of vectors of elements that lie `step` apart, from vector `first` on. */
static inline __attribute__((always_inline)) void S(words_for)(int mode, const word_block *block, int64_t index, W first,
                                                               uint32_t step, const int count, W *word) {
    const word_block c = block[index >> 5];
    const uint32_t power = mode == NEARNESS ? step_power(index) : 1;
    W linear = first * c.multiplier + c.increment;
    for (int i = 0; i < count; ++i, linear += step * c.multiplier)
        if (mode == UPWARD || mode == DOWNWARD) word[i] = (W){0} - (uint32_t)(mode == UPWARD);
        else if (mode == NEARNESS) word[i] = (S(scrambled)(c, linear) | 1) * power;
        else word[i] = S(scrambled)(c, linear);
}

/* to[column·to_step + row] = from[row·step + column] of up to 8 rows and LANES columns. */
static inline __attribute__((always_inline)) void S(transpose_block)(const T *from, int64_t step, int64_t rows, int64_t columns, T *to,
                                                               int64_t to_step) {
#if defined(DIRECTED)
    const __mmask16 in = (__mmask16)((1u << columns) - 1);
    const __mmask8 first = (__mmask8)(rows >= 4 ? 15 : (1 << rows) - 1), second = (__mmask8)(rows > 4 ? (1 << (rows - 4)) - 1 : 0);
    __m512 x[8], y[8];
    for (int i = 0; i < 8; ++i) x[i] = i < rows ? _mm512_maskz_loadu_ps(in, from + i * step) : _mm512_setzero_ps();
    for (int i = 0; i < 8; i += 4) { /* then column 4q + j of rows i to i + 3 is part q of y[i + j] */
        const __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(x[i], x[i + 1])), b = _mm512_castps_pd(_mm512_unpacklo_ps(x[i + 2], x[i + 3]));
        const __m512d c = _mm512_castps_pd(_mm512_unpackhi_ps(x[i], x[i + 1])), d = _mm512_castps_pd(_mm512_unpackhi_ps(x[i + 2], x[i + 3]));
        y[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), y[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        y[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(c, d)), y[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(c, d));
    }
#define COLUMN(q, j)                                                                                                    \
    if (4 * (q) + (j) < columns) {                                                                                      \
        T *at = to + (4 * (q) + (j)) * to_step;                                                                         \
        if (rows >= 4) _mm_storeu_ps(at, _mm512_extractf32x4_ps(y[j], q));                                              \
        else _mm_mask_storeu_ps(at, first, _mm512_extractf32x4_ps(y[j], q));                                            \
        if (rows == 8) _mm_storeu_ps(at + 4, _mm512_extractf32x4_ps(y[4 + (j)], q));                                    \
        else if (rows > 4) _mm_mask_storeu_ps(at + 4, second, _mm512_extractf32x4_ps(y[4 + (j)], q));                   \
    }
#define COLUMNS(q) COLUMN(q, 0) COLUMN(q, 1) COLUMN(q, 2) COLUMN(q, 3)
    COLUMNS(0) COLUMNS(1) COLUMNS(2) COLUMNS(3)
#undef COLUMNS
#undef COLUMN
#else
    for (int64_t column = 0; column < columns; ++column)
        for (int64_t row = 0; row < rows; ++row) to[column * to_step + row] = from[row * step + column];
#endif
}

static inline V S(one_nan)(V x) {
    const I ordered = (I)(x == x);
    return (V)(((I)x & ordered) | (~ordered & QUIET_NAN));
}

/* LANES vectors of LANES elements, transposed: in each step those whose numbers differ in one bit exchange halves. */
static inline __attribute__((always_inline)) void S(exchange)(V *x, const int bit) {
    I low, high;
    for (int l = 0; l < LANES; ++l) low[l] = l & bit ? LANES + l - bit : l, high[l] = l & bit ? LANES + l : l + bit;
    for (int i = 0; i < LANES; ++i)
        if (!(i & bit)) {
            const V a = x[i], b = x[i + bit];
            x[i] = __builtin_shuffle(a, b, low), x[i + bit] = __builtin_shuffle(a, b, high);
        }
}
static inline __attribute__((always_inline)) void S(transpose)(V *x) {
    S(exchange)(x, 1);
    if (LANES > 2) S(exchange)(x, 2);
    if (LANES > 4) S(exchange)(x, 4);
    if (LANES > 8) S(exchange)(x, 8);
}
