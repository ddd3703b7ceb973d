/* The kernels of the GPU: the operators of morphbits.h with the same random bits, orders and rules, so the same bytes as on
 * a processor. Compiled at run time, each instance when it is first needed (gpu.py); for the tests, by g++ on threads that
 * take turns.
 * All pointers in the calls lie on the device. A convolution's weight is (terms, channels_out), and its table `tap` is
 * (terms, 4) int32: the tap's distance from the first voxel along three axes, and the channel. */
#include "gpu_arithmetic.h"

#define THREADS 256
#define SIDE 16  /* a block is SIDE x SIDE threads */
#define CHUNK 32 /* terms in shared memory at a time; a random word serves as many operations */

INLINE word_block block_of(const rounding &r, int64_t index) { return block_constants(r.key, (uint64_t)(index >> 5)); }
/* The bits of operation `index`: mode NEARNESS its draw, else the word of its block. */
INLINE uint32_t word_of(const rounding &r, uint32_t element, int64_t index) {
    return r.mode == NEARNESS ? draw(block_of(r, index), element, index) : random_word(block_of(r, index), element);
}
INLINE int64_t thread_number() { return (int64_t)blockIdx.x * THREADS + threadIdx.x; }

/* ---- one operation an element ---- */

template <typename T> __global__ void __launch_bounds__(THREADS) elementwise(rounding r, elementwise_call c) {
    const int64_t e = thread_number();
    int64_t total = 1, at_a = 0, at_b = 0;
    for (int d = 0; d < c.dims; ++d) total *= c.shape[d];
    if (e >= total) return;
    uint32_t rest = (uint32_t)e;
    for (int d = c.dims - 1; d >= 0; --d) {
        const uint32_t size = (uint32_t)c.shape[d], index = rest % size;
        at_a += index * c.stride_a[d];
        at_b += index * c.stride_b[d];
        rest /= size;
    }
    const uint32_t word = word_of(r, (uint32_t)e, 0);
    T *out = (T *)c.out + e;
    if (c.operation == NARROW) {
        *out = (T)narrow(r, ((const double *)c.a)[at_a], word);
        return;
    }
    const T a = ((const T *)c.a)[at_a], b = c.b ? ((const T *)c.b)[at_b] : 0;
    const bool kept = c.operation == LEAKY_RELU && (r.flush ? flushed(a) : a) > 0;
    *out = kept ? a : operate(r, c.operation, a, b, (T)0, word, 0);
}

/* ---- chains of one operation ---- */

template <typename T> __global__ void __launch_bounds__(THREADS) reduction(rounding r, reduction_call c) {
    const int64_t e = thread_number();
    if (e >= c.outer * c.period) return;
    const int64_t o = e / c.period;
    const T *input = (const T *)c.input + o * c.length;
    T *output = (T *)c.output + (c.scan ? o * c.length : o * c.period);
    T total = 0;
    uint32_t word = 0;
    int64_t t = 0, at = e % c.period;
    for (; at < c.length; ++t, at += c.period) {
        if (t == 0) {
            total = one_nan(input[at]);
        } else {
            if ((t - 1) % 32 == 0) word = word_of(r, (uint32_t)e, t - 1);
            else if (r.mode == NEARNESS) word *= STEP;
            total = operate(r, c.operation, total, input[at], (T)0, word, t - 1);
        }
        if (c.scan) output[at] = total;
    }
    if (!c.scan) output[e % c.period] = total;
}

/* ---- the least magnitude but zero, as its bits; `out` holds the greatest number at first ---- */

template <typename T> __global__ void __launch_bounds__(THREADS) least(const T *x, int64_t n, unsigned long long *out) {
    unsigned long long found = ~0ull;
    for (int64_t i = thread_number(); i < n; i += (int64_t)gridDim.x * THREADS) {
        const unsigned long long bits = bits_of(x[i] < 0 ? -x[i] : x[i]);
        if (x[i] != 0 && bits < found) found = bits;
    }
    if (found != ~0ull) atomicMin(out, found);
}

/* ---- sums of products: out(row, column) = the sum over terms of left(row, term)·right(term, column) ---- */

/* Ways to do a fused multiply-add. PLAIN: to nearest. DIRECTIONS: each way by its own bit, where nothing can underflow, so
 * that a chain's -0 is an exact cancellation, set right at its end. ANY: all modes and formats, slowly. */
enum { NOWHERE = -1 }; /* where there is no bias */
enum way { PLAIN, DIRECTIONS, ANY };

/* A voxel is a row, an output channel a column. */
template <typename T> struct convolution_sum {
    const convolution_call &c;
    const T *image;
    int64_t rows, columns, terms;
    uint32_t first, row_step, column_step;
    T *output;
    struct place { int32_t z, y, x; };

    __device__ convolution_sum(const convolution_call &call, int64_t batch) : c(call) {
        rows = c.size_out[0] * c.size_out[1] * c.size_out[2];
        columns = c.channels_out;
        terms = c.terms;
        row_step = 1;
        column_step = (uint32_t)rows;
        first = (uint32_t)(batch * columns * rows);
        output = (T *)c.output + batch * columns * rows;
        image = (const T *)c.input + batch * c.channels_in * c.size_in[0] * c.size_in[1] * c.size_in[2];
    }
    __device__ place at(int64_t row) const {
        if (row >= rows) return {-(1 << 30), 0, 0}; /* outside the image for every tap */
        const uint32_t v = (uint32_t)row, x = (uint32_t)c.size_out[2], y = (uint32_t)c.size_out[1];
        return {(int32_t)(v / x / y * c.stride[0] - c.padding[0]), (int32_t)(v / x % y * c.stride[1] - c.padding[1]),
                (int32_t)(v % x * c.stride[2] - c.padding[2])};
    }
    __device__ T left(place p, int64_t term) const {
        const int32_t *tap = (const int32_t *)c.tap + 4 * term;
        const int32_t z = p.z + tap[0], y = p.y + tap[1], x = p.x + tap[2];
        const bool inside = z >= 0 && z < c.size_in[0] && y >= 0 && y < c.size_in[1] && x >= 0 && x < c.size_in[2];
        return inside ? image[((tap[3] * c.size_in[0] + z) * c.size_in[1] + y) * c.size_in[2] + x] : 0;
    }
    __device__ T right(int64_t term, int64_t column) const { return ((const T *)c.weight)[term * columns + column]; }
    __device__ int bias_at() const { return c.bias ? c.bias_first : NOWHERE; }
    __device__ T bias(int64_t column) const { return ((const T *)c.bias)[column]; }
};

template <typename T> struct contraction_sum {
    const contraction_call &c;
    const T *left_side, *right_side;
    int64_t rows, columns, terms;
    uint32_t first, row_step, column_step;
    T *output;
    typedef const T *place;

    __device__ contraction_sum(const contraction_call &call, int64_t batch) : c(call) {
        rows = c.rows;
        columns = c.columns;
        terms = c.depth;
        row_step = (uint32_t)c.row_step;
        column_step = (uint32_t)c.column_step;
        first = (uint32_t)(batch * rows * columns);
        output = (T *)c.output + batch * rows * columns;
        left_side = (const T *)c.left + batch * c.left_batch_step;
        right_side = (const T *)c.right + batch * c.right_batch_step;
    }
    __device__ place at(int64_t row) const { return left_side + c.row_offset[row < rows ? row : 0]; }
    __device__ T left(place p, int64_t term) const { return p[c.depth_offset[term]]; }
    __device__ T right(int64_t term, int64_t column) const {
        return right_side[term * c.right_depth_step + column * c.right_column_step];
    }
    __device__ int bias_at() const { return NOWHERE; }
    __device__ T bias(int64_t) const { return 0; }
};

/* A block computes SIDE·R rows by SIDE·4 columns, a thread R by 4: its rows are fours of neighbours, SIDE·4 apart.
 * MANY: sums of several chains, or with the bias first. */
template <typename T, int WAY, bool MANY, typename SUM> DEVICE void sum_products(const rounding &r, const SUM &sum) {
    constexpr int R = 32 / sizeof(T), C = 4, ROWS = SIDE * R, COLUMNS = SIDE * C;
    __shared__ T left[CHUNK][ROWS];
    __shared__ T right[CHUNK][COLUMNS];
    __shared__ word_block constants;
    const int thread = threadIdx.x, x = thread % SIDE, y = thread / SIDE;
    const int64_t first_row = (int64_t)blockIdx.x * ROWS, first_column = (int64_t)blockIdx.y * COLUMNS;
    const typename SUM::place mine = sum.at(first_row + thread % ROWS);
    const int64_t *segment_end = sum.c.segment_end, segments = sum.c.segments;
#define ROW(i) (first_row + (i) / 4 * (SIDE * 4) + x * 4 + (i) % 4)
#define COLUMN(j) (first_column + y * C + (j))
#define ELEMENT(i, j) (sum.first + (uint32_t)ROW(i) * sum.row_step + (uint32_t)COLUMN(j) * sum.column_step)
    T chain[R][C], total[R][C];
    uint32_t word[R][C];
    const bool idle = ROW(0) >= sum.rows || COLUMN(0) >= sum.columns; /* all of the thread's outputs lie outside */
#define ADD_UP(i, j, a, b, index) operate(r, ADD, a, b, (T)0, word_of(r, ELEMENT(i, j), index), index)
    for (int i = 0; i < R; ++i)
        for (int j = 0; j < C; ++j) {
            chain[i][j] = MANY && sum.bias_at() == START && COLUMN(j) < sum.columns ? sum.bias(COLUMN(j)) : 0;
            total[i][j] = 0, word[i][j] = 0;
        }
    int64_t segment = 0;
    for (int64_t from = 0; from < sum.terms; from += CHUNK) {
        __syncthreads();
        if (thread == 0) constants = block_of(r, from);
        for (int k = thread / ROWS; k < CHUNK; k += THREADS / ROWS)
            left[k][thread % ROWS] = from + k < sum.terms ? sum.left(mine, from + k) : -(T)0; /* -0·0 changes no sum */
        const int64_t column = first_column + thread % COLUMNS;
        for (int k = thread / COLUMNS; k < CHUNK; k += THREADS / COLUMNS)
            right[k][thread % COLUMNS] = from + k < sum.terms && column < sum.columns ? sum.right(from + k, column) : 0;
        __syncthreads();
        if (idle) continue;
        if (WAY != PLAIN)
#pragma unroll
            for (int i = 0; i < R; ++i)
#pragma unroll
                for (int j = 0; j < C; ++j)
                    word[i][j] = r.mode == UPWARD ? ~0u : r.mode == DOWNWARD ? 0 : random_word(constants, ELEMENT(i, j)) |
                                                                                       (r.mode == NEARNESS);
#pragma unroll 1
        for (int group = 0; group < CHUNK; group += 8) {
#pragma unroll(WAY == ANY || MANY ? 1 : 8)
            for (int k8 = 0; k8 < 8; ++k8) {
                const int k = group + k8;
#pragma unroll
                for (int i = 0; i < R; ++i)
#pragma unroll
                    for (int j = 0; j < C; ++j) {
                        const T a = left[k][i / 4 * (SIDE * 4) + x * 4 + i % 4], b = right[k][y * C + j];
                        if constexpr (WAY == PLAIN) {
                            chain[i][j] = directed(NEAREST, FMA, a, b, chain[i][j]);
                        } else if constexpr (WAY == DIRECTIONS) { /* the word's highest bit is this group's first */
                            const T up = directed(UPWARD, FMA, a, b, chain[i][j]);
                            const T down = directed(DOWNWARD, FMA, a, b, chain[i][j]);
                            chain[i][j] = word[i][j] & (0x80000000u >> k8) ? up : down;
                        } else {
                            chain[i][j] = operate(r, FMA, a, b, chain[i][j], word[i][j], k);
                            if (r.mode == NEARNESS) word[i][j] *= STEP;
                        }
                    }
                if (MANY && segment < segments && from + k + 1 == segment_end[segment]) {
                    for (int i = 0; i < R; ++i)
                        for (int j = 0; j < C; ++j) {
                            const T closed = WAY == DIRECTIONS && minus_zero(chain[i][j]) ? 0 : chain[i][j];
                            const int64_t index = sum.terms + segment;
                            if (segment > 0) total[i][j] = ADD_UP(i, j, total[i][j], closed, index);
                            else if (sum.bias_at() != FIRST) total[i][j] = closed;
                            else if (COLUMN(j) < sum.columns) total[i][j] = ADD_UP(i, j, sum.bias(COLUMN(j)), closed, index);
                            chain[i][j] = 0;
                        }
                    ++segment;
                }
            }
            if (WAY == DIRECTIONS)
#pragma unroll
                for (int i = 0; i < R; ++i)
#pragma unroll
                    for (int j = 0; j < C; ++j) word[i][j] <<= 8;
        }
    }
    for (int i = 0; i < R; ++i)
        for (int j = 0; j < C; ++j)
            if (ROW(i) < sum.rows && COLUMN(j) < sum.columns) {
                T out = MANY ? total[i][j] : WAY == DIRECTIONS && minus_zero(chain[i][j]) ? 0 : chain[i][j];
                if (sum.bias_at() == LAST)
                    out = ADD_UP(i, j, out, sum.bias(COLUMN(j)), sum.terms + segments);
                sum.output[ROW(i) * sum.row_step + COLUMN(j) * sum.column_step] = one_nan(out);
            }
#undef ROW
#undef COLUMN
#undef ELEMENT
#undef ADD_UP
}

template <typename T, int WAY, bool MANY> __global__ void __launch_bounds__(THREADS) convolution(rounding r, convolution_call c) {
    sum_products<T, WAY, MANY>(r, convolution_sum<T>(c, blockIdx.z));
}
template <typename T, int WAY, bool MANY> __global__ void __launch_bounds__(THREADS) contraction(rounding r, contraction_call c) {
    sum_products<T, WAY, MANY>(r, contraction_sum<T>(c, blockIdx.z));
}
