/* Random rounding of float32 and float64 arithmetic: what every translation unit shares.
 *
 * A perturbed operation has a number within its operator (`index`) and belongs to one output element
 * (`element`, its position in the contiguous logical order of the result). Its random bits are a function of
 * (key, element, index) alone, so that tiles, vector widths, instruction sets and threads cannot change a result.
 * `key` stands for (seed, number of the operator in the sample).
 */
#ifndef MORPHBITS_H
#define MORPHBITS_H

#if defined(__CUDACC_RTC__) /* compiled at run time, without the headers of a system */
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#define UINT64_C(x) x##ull
#else
#include <stdint.h>
#endif

/* A function that the kernels for GPUs (gpu.cu) share with those for processors. */
#if defined(__CUDACC__)
#define INLINE static __device__ __forceinline__
#else
#define INLINE static inline
#endif

enum mode { NEAREST, RANDOM, NEARNESS, UPWARD, DOWNWARD, TOWARD_ZERO };
enum type { FLOAT32, FLOAT64 };
enum operation { ADD, SUB, MUL, DIV, SQRT, LEAKY_RELU, NARROW, ROUND };
enum variant { PORTABLE, AVX2, AVX512, AVX512_IFMA, VARIANTS }; /* the last: the kernels of AVX512, some by IFMA */
enum status { OK, OUT_OF_MEMORY, UNSUPPORTED };

typedef struct {
    int32_t mode;
    int32_t flush; /* 1: subnormal operands and results become zero, as in TensorFlow's threads */
    int32_t threads;
    int32_t variant;
    uint64_t key;
    int32_t precision; /* significant bits of a float32 result, 2 to 24, and its least normal exponent: precision.h; */
    int32_t emin;      /* 24 and -126 are float32 itself; a convolution takes no other exponent. No flush below 24 */
} rounding;

#define MAX_DIMS 8

typedef struct {
    int32_t operation;
    int32_t type; /* of the result; NARROW reads float64 and writes float32, ROUND changes the format alone */
    int32_t dims;
    int64_t shape[MAX_DIMS];
    int64_t stride_a[MAX_DIMS]; /* in elements; 0 where broadcast */
    int64_t stride_b[MAX_DIMS];
    const void *a;
    const void *b; /* NULL for SQRT, NARROW and ROUND */
    void *out;     /* contiguous */
} elementwise_call;

enum bias { LAST, FIRST, START };

/* A convolution is data: the list of its terms in the order in which they are accumulated.
 * Term t multiplies the weight at (tap[t], channel[t]); terms up to segment_end[0] form the first chain of fused
 * multiply-adds from zero, terms up to segment_end[1] the second, and so on; chains are added in that order, to the
 * bias if bias_first is FIRST, else to nothing, and then the bias is added if it is LAST; if it is START the first chain
 * starts from the bias and not from zero. A term outside the image multiplies +0 by a
 * finite weight, or is left out: it rounds nothing, and no more than a -0 left by an underflow becomes +0. */
typedef struct {
    int32_t type;
    int32_t bias_first;
    int64_t batch, channels_in, channels_out;
    int64_t size_in[3], size_out[3], kernel[3], stride[3], padding[3], dilation[3];
    int64_t terms, segments;
    const int64_t *tap, *channel, *segment_end;
    const void *input;  /* (batch, channels_in, *size_in), contiguous */
    const void *weight; /* (channels_out, channels_in, *kernel), contiguous */
    const void *bias;   /* (channels_out) or NULL */
    void *output;       /* (batch, channels_out, *size_out), contiguous */
} convolution_call;

/* Chains of one operation (ADD or MUL): out[o, j] = x[o, j] op x[o, j + period] op x[o, j + 2·period] op …, from left to
 * right, as long as there are terms; the operation that joins term t is number t - 1. */
typedef struct {
    int32_t operation;
    int32_t type;
    int64_t scan; /* 1: every partial result is kept, the output has the shape of the input */
    int64_t outer, length, period;
    const void *input; /* (outer, length), contiguous */
    void *output;      /* (outer, period); scan: (outer, length) */
} reduction_call;

/* out[b, m, n] = the sum over k of left[b, m, k]·right[b, k, n]: chains of fused multiply-adds from zero, the first over
 * k < segment_end[0], the next up to segment_end[1] and so on; the chains' sums are added in order. Product k is operation
 * k, the addition of chain s is operation depth + s. The left side lies anywhere: left[b·left_batch_step + row_offset[m] +
 * depth_offset[k]]. Element and place of a result: (b·rows·columns) + m·row_step + n·column_step. */
typedef struct {
    int32_t type;
    int32_t unused;
    int64_t batch, rows, columns, depth, segments;
    int64_t left_batch_step, left_size, right_batch_step, right_depth_step, right_column_step, row_step, column_step;
    const int64_t *segment_end, *row_offset, *depth_offset;
    const void *left; /* left_size elements, all of which may be read */
    const void *right;
    void *output;
} contraction_call;

/* out[o, index[j]] += source[o, j], for j = 0, 1, …; operation j of an element is the addition of source j. */
typedef struct {
    int32_t type;
    int32_t unused;
    int64_t outer, count, size;
    int64_t index_step; /* 0: one index for all o; count: (outer, count) */
    int64_t source_step, source_place_step; /* in elements, from one o to the next and from one j */
    int64_t output_step, output_place_step;
    const int64_t *index;
    const void *source;
    void *output; /* holds what is added to */
} scatter_call;

/* Linear sampling of an image at places between its voxels, or its derivatives (sampling.h). */
typedef struct {
    int32_t type;
    int32_t dims;            /* two or three axes */
    int32_t aligned, border; /* -1 and 1 are the middles of the first and last voxel, else their ends; beyond, its border goes on,
                                else it is zero */
    int64_t start;           /* the key of draw d is that of number start + d of the random stream (context.py) */
    int64_t channels, points;
    int64_t size[3];         /* of the image, below 2^31 voxels; the last is 1 where there are two axes */
    const void *image;       /* (channels, *size) */
    const void *place;       /* (points, dims), the last axis first */
    const void *gradient;    /* (channels, points), of the values; NULL: the values are computed */
    void *value;             /* (channels, points) */
    void *to_image;          /* (channels, *size), zeros that are added to; or NULL */
    void *to_place;          /* as place; or NULL */
    int64_t *count;          /* draws and elementary operations, written here */
} sampling_call;

/* The gradient of an interpolation along one to three axes (spread.h). Two axes are the first and the last, one is the last; an
 * axis that is not there has one voxel and one tap. */
typedef struct {
    int32_t type;
    int32_t dims;
    int64_t start;             /* as in a sampling_call */
    int64_t planes;
    int64_t size_out[3], size_in[3], taps[3];
    const int64_t *index[3];   /* (taps, size_out) of each axis: where an output's taps lie, */
    const void *weight[3];     /* and their weights */
    const void *gradient;      /* (planes, *size_out) */
    void *output;              /* (planes, *size_in), zeros that are added to */
} spread_call;

/* A function of the C library, computed in a wider type and then rounded by the mode; or a number brought to a narrower
 * format, which is written as a float32. */
enum function {
    EXP, EXP2, EXPM1, LOG, LOG2, LOG10, LOG1P, SIN, COS, TAN, ASIN, ACOS, ATAN, SINH, COSH, TANH, ASINH, ACOSH, ATANH,
    ERF, ERFC, LGAMMA, POW, ATAN2, HYPOT, FMOD, TO_FLOAT16, TO_BFLOAT16, FUNCTIONS
};
typedef struct {
    int32_t function;
    int32_t type;
    int64_t count;
    const void *a, *b; /* contiguous; b is NULL for functions of one argument */
    void *out;
} function_call;
typedef function_call wide_call; /* float32 in, and the float64 that a result is rounded from out: for the tests */

/* A program (program.h): instruction i makes value i. All fields are 64 bits wide, so that Python writes them as one list. */
enum opcode { /* after the operations of `enum operation` */
    FUNCTION = 16, /* number `extra` of `enum function`, of float32 */
    WIDEN,         /* a float32 as a float64 */
    NEGATE, MAGNITUDE, GREATER, GREATER_EQUAL, LESS, LESS_EQUAL, EQUAL, UNEQUAL,
    SELECT,        /* b where a, else c; comparisons and what is made of them are masks of their operands' width */
    BOTH, EITHER, NEITHER,
    SPREAD,        /* a row's value a for each of its elements */
    SUM,           /* of each row of a; `draw` and `extra` are the draws of both levels (rows.h) */
    SCAN,          /* each row's partial results of operation `extra`, ADD or MUL, from left to right */
    STORE,         /* a into memory at `extra` */
    STORE_MASK,    /* a as bytes of 0 and 1 */
    FETCH,         /* from memory at `extra`, with row a of `strides` */
    FETCH_MASK,    /* bytes of 0 and 1 */
    MEMORY,        /* at `extra`, contiguous: read where it lies */
    CONSTANT       /* the float64 with the bits of `extra`, rounded to nearest */
};
typedef struct {
    int64_t opcode, type, by_row, a, b, c; /* values, or -1 */
    int64_t draw, extra, out;              /* draw: its number among the kernels of the program; out: where the value is kept */
} instruction;                             /* as well, contiguous; or 0 */
typedef struct {
    int64_t instructions, total;
    int64_t start; /* the key of draw d is that of number start + d of the random stream (context.py) */
    int64_t inner; /* elements of a row where there are values by row, else 0 */
    int64_t dims, shape[MAX_DIMS];
    const instruction *code;
    const int64_t *strides; /* rows of MAX_DIMS, in elements */
} program_call;

/* ---- random bits -------------------------------------------------------------------------------------------- */

INLINE uint64_t mix64(uint64_t x) { /* splitmix64's finalizer (Steele, Lea, Flood 2014) */
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

/* The constants of one block of random words: block b serves operations 32 b .. 32 b + 31, in mode RANDOM by one bit of the
 * word each (the highest first), in mode NEARNESS by one step of a generator each, which starts from the word. */
typedef struct {
    uint32_t multiplier, increment, inner;
} word_block;

INLINE word_block block_constants(uint64_t key, uint64_t block) {
    uint64_t x = mix64(key + UINT64_C(0x9e3779b97f4a7c15) * (2 * block + 1));
    uint64_t y = mix64(key + UINT64_C(0x9e3779b97f4a7c15) * (2 * block + 2));
    const uint64_t both = x | 1; /* written at once: a processor waits where it reads at once what two writes made */
    word_block c = {0, 0, (uint32_t)y};
    __builtin_memcpy(&c, &both, 8);
    return c;
}

/* Mixes the bits of x, a 32-bit number or a vector of them. The constants of the two multiplications are those of `lowbias32`
 * (Wellons, hash-prospector). */
#define SCRAMBLE(x, inner)                                                                                               \
    ((x) = ((x) ^ ((x) >> 16)) * 0x7feb352du, (x) ^= (inner), (x) = ((x) ^ ((x) >> 15)) * 0x846ca68bu, (x) ^= (x) >> 16)

/* The 32-bit word of one output element: a keyed permutation of the element number. `word_vector` is the vector form. */
INLINE uint32_t random_word(word_block c, uint32_t element) {
    uint32_t x = element * c.multiplier + c.increment;
    SCRAMBLE(x, c.inner);
    return x;
}

/* The key of draw number `draw` of a program that begins at number `start` of the random stream. */
INLINE uint64_t key_of(int64_t start, int64_t draw) {
    return mix64(((uint64_t)start + (uint64_t)draw + 1) * UINT64_C(0x9e3779b97f4a7c15));
}

INLINE int rounds_up(uint32_t word, int64_t index) { return (word >> (31 - (index & 31))) & 1; }

/* Mode NEARNESS: a multiplicative congruential generator modulo 2^32, whose multiplier is the best of Steele & Vigna's
 * ("Computationally easy, spectrally good multipliers", 2022) for this modulus. It starts from the block's word, made odd;
 * its value before step k serves operation k of the block. The 29 leading bits of it are uniform. Why: decision 0008. */
#define STEP 0x93d765ddu
INLINE uint32_t step_power(int64_t index) { /* of `index` modulo 32 steps */
    uint32_t power = 1, square = STEP;
    for (int64_t rest = index & 31; rest; rest >>= 1, square *= square) power *= rest & 1 ? square : 1;
    return power;
}
INLINE uint32_t first_draw(word_block c, uint32_t element) { return random_word(c, element) | 1; }
INLINE uint32_t draw(word_block c, uint32_t element, int64_t index) { return first_draw(c, element) * step_power(index); }

#if !defined(__cplusplus) /* what follows is for processors alone */

/* ---- floating-point control ---------------------------------------------------------------------------------- */

#if defined(__x86_64__)
#include <immintrin.h>
typedef unsigned int control;
static inline control control_get(void) { return _mm_getcsr(); }
static inline void control_set(control c) { _mm_setcsr(c); }
static inline control control_with(control c, int mode, int flush) {
    static const unsigned direction[] = {
        [NEAREST] = _MM_ROUND_NEAREST, [RANDOM] = _MM_ROUND_UP,      [NEARNESS] = _MM_ROUND_NEAREST,
        [UPWARD] = _MM_ROUND_UP,       [DOWNWARD] = _MM_ROUND_DOWN, [TOWARD_ZERO] = _MM_ROUND_TOWARD_ZERO};
    c = (c & ~(unsigned)_MM_ROUND_MASK) | direction[mode];
    return flush ? c | 0x8040u : c & ~0x8040u; /* flush-to-zero and denormals-are-zero */
}
#elif defined(__aarch64__)
typedef uint64_t control;
static inline control control_get(void) {
    control c;
    __asm__ volatile("mrs %0, fpcr" : "=r"(c));
    return c;
}
static inline void control_set(control c) { __asm__ volatile("msr fpcr, %0" ::"r"(c)); }
static inline control control_with(control c, int mode, int flush) {
    static const control direction[] = {[NEAREST] = 0, [RANDOM] = 1,   [NEARNESS] = 0,
                                        [UPWARD] = 1,  [DOWNWARD] = 2, [TOWARD_ZERO] = 3};
    c = (c & ~(UINT64_C(3) << 22)) | (direction[mode] << 22);
    return flush ? c | (UINT64_C(1) << 24) : c & ~(UINT64_C(1) << 24);
}
#else
#error "the native engine needs the floating-point control register of x86-64 or AArch64"
#endif

/* ---- kernels, one set a variant (kernels.c) and the naive set (naive.c) --------------------------------------- */

int elementwise_portable(const rounding *, const elementwise_call *);
int elementwise_avx2(const rounding *, const elementwise_call *);
int elementwise_avx512(const rounding *, const elementwise_call *);
int convolution_portable(const rounding *, const convolution_call *);
int convolution_avx2(const rounding *, const convolution_call *);
int convolution_avx512(const rounding *, const convolution_call *);
int reduction_portable(const rounding *, const reduction_call *);
int reduction_avx2(const rounding *, const reduction_call *);
int reduction_avx512(const rounding *, const reduction_call *);
int contraction_portable(const rounding *, const contraction_call *);
int contraction_avx2(const rounding *, const contraction_call *);
int contraction_avx512(const rounding *, const contraction_call *);
int function_portable(const rounding *, const function_call *);
int function_avx2(const rounding *, const function_call *);
int function_avx512(const rounding *, const function_call *);
int function_naive(const rounding *, const function_call *);
int wide_portable(const rounding *, const wide_call *);
int wide_avx2(const rounding *, const wide_call *);
int wide_avx512(const rounding *, const wide_call *);
int wide_naive(const rounding *, const wide_call *);
int sampling_portable(const rounding *, const sampling_call *);
int sampling_avx2(const rounding *, const sampling_call *);
int sampling_avx512(const rounding *, const sampling_call *);
int spread_portable(const rounding *, const spread_call *);
int spread_avx2(const rounding *, const spread_call *);
int spread_avx512(const rounding *, const spread_call *);
int scatter_portable(const rounding *, const scatter_call *);
int scatter_avx2(const rounding *, const scatter_call *);
int scatter_avx512(const rounding *, const scatter_call *);
int scatter_naive(const rounding *, const scatter_call *);
int program_portable(const rounding *, const program_call *);
int program_avx2(const rounding *, const program_call *);
int program_avx512(const rounding *, const program_call *);
double wide_value(int function, float a, float b);

#endif

#endif
