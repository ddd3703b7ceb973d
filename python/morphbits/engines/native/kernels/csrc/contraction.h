/* Products of matrices, and all that is one: sums over k of left(row, k)·right(k, column), for one element type. Included by
 * kernels.c after vector.h.
 * A vector is LANES neighbouring columns of one row; a tile is up to MAX_TILE rows. The right side is copied once into
 * (column block, k, LANES). Long sums go in slices of SLICE terms over all rows of a task, so that a slice of the right side
 * stays in the cache; totals and open chains wait in memory meanwhile. */

/* The ways to do an operation, as constants of each instance. */
enum { S(IEEE), S(TWO_WAYS), S(TWO_WAYS_CAREFUL), S(BY_DISTANCE) };

static inline __attribute__((always_inline)) void S(contract_tile)(const rounding *r, const contraction_call *c,
                                                                   const word_block *block, const int tile, const int way,
                                                                   const T *left, const T *right, int64_t row, int64_t column,
                                                                   uint32_t first, int64_t from, int64_t to,
                                                                   S(open_sum) * open, int64_t segment) {
    W lane, element[MAX_TILE], word[MAX_TILE] = {{0}};
    S(directions) directions[MAX_TILE];
    V chain[MAX_TILE];
    const T *at[MAX_TILE];
    for (int l = 0; l < LANES; ++l) lane[l] = first + (uint32_t)((column + l) * c->column_step);
    for (int i = 0; i < tile; ++i) {
        element[i] = lane + (uint32_t)((row + i) * c->row_step);
        chain[i] = open[i].chain;
        at[i] = left + c->row_offset[row + i];
    }
    for (int64_t k = from; k < to;) {
        const int64_t end = c->segment_end[segment] < to ? c->segment_end[segment] : to;
        while (k < end) {
            const int64_t block_end = way == S(IEEE) ? end : way == S(BY_DISTANCE) ? k + 1 : (k | 31) + 1;
            const int64_t stop = end < block_end ? end : block_end;
            if (way != S(IEEE))
                for (int i = 0; i < tile; ++i) {
                    word[i] = S(word_for)(r->mode, block, k, element[i]);
                    if (way != S(BY_DISTANCE)) directions[i] = S(directions_of)(word[i]);
                }
            for (; k < stop; ++k) {
                const V w = *(const V *)(right + k * LANES);
                const int64_t offset = c->depth_offset[k];
                for (int i = 0; i < tile; ++i) {
                    const V a = S(splat)(at[i][offset]);
                    if (way == S(IEEE)) chain[i] = S(fma_vector)(a, w, chain[i]);
                    else if (way == S(BY_DISTANCE)) chain[i] = S(fma_stochastic)(a, w, chain[i], word[i]);
                    else chain[i] = S(fma_random)(a, w, chain[i], S(direction_at)(directions + i, k), way == S(TWO_WAYS_CAREFUL));
                }
            }
        }
        if (k < c->segment_end[segment]) break;
        for (int i = 0; i < tile; ++i) {
            V sum = way == S(TWO_WAYS) ? S(positive_zero)(chain[i]) : chain[i];
            if (segment > 0) {
                const int64_t index = c->depth + segment;
                if (way == S(IEEE)) sum = open[i].total + sum;
                else {
                    const W bits = S(word_for)(r->mode, block, index, element[i]);
                    sum = way == S(BY_DISTANCE) ? S(add_stochastic)(open[i].total, sum, bits)
                                                : S(add_random)(open[i].total, sum, S(direction_of)(bits, index));
                }
            }
            open[i].total = sum;
            chain[i] = (V){0};
        }
        ++segment;
    }
    for (int i = 0; i < tile; ++i) open[i].chain = chain[i];
}

/* Rows `row` to `row_end` of one block of columns; `open` has a place for each of them. */
static inline __attribute__((always_inline)) void S(contract_rows)(const rounding *r, const contraction_call *c,
                                                                   const word_block *block, const int way, const T *left,
                                                                   const T *right, int64_t row, int64_t row_end,
                                                                   int64_t column, int64_t batch, S(open_sum) * open) {
    const uint32_t first = (uint32_t)(batch * c->rows * c->columns);
    const int64_t lanes = c->columns - column < LANES ? c->columns - column : LANES;
    T *output = (T *)c->output + batch * c->rows * c->columns + column * c->column_step;
    memset(open, 0, sizeof(*open) * (size_t)(row_end - row));
    int64_t segment = 0;
    for (int64_t from = 0; from < c->depth; from += SLICE) {
        const int64_t to = c->depth - from < SLICE ? c->depth : from + SLICE;
        while (c->segment_end[segment] <= from) ++segment;
        for (int64_t m = row; m < row_end;) {
            S(open_sum) *here = open + (m - row);
            if (row_end - m >= MAX_TILE) {
                S(contract_tile)(r, c, block, MAX_TILE, way, left, right, m, column, first, from, to, here, segment);
                m += MAX_TILE;
            } else if (row_end - m >= 2) {
                S(contract_tile)(r, c, block, 2, way, left, right, m, column, first, from, to, here, segment);
                m += 2;
            } else {
                S(contract_tile)(r, c, block, 1, way, left, right, m, column, first, from, to, here, segment);
                m += 1;
            }
        }
    }
    for (int64_t m = row; m < row_end; ++m) {
        const V out = S(one_nan)(open[m - row].total);
        for (int64_t l = 0; l < lanes; ++l) output[m * c->row_step + l * c->column_step] = out[l];
    }
}

#define ROWS(name, way)                                                                                                    \
    static __attribute__((noinline)) void S(name)(const rounding *r, const contraction_call *c, const word_block *block,  \
                                                  const T *left, const T *right, int64_t row, int64_t row_end,             \
                                                  int64_t column, int64_t batch, S(open_sum) * open) {                     \
        S(contract_rows)(r, c, block, way, left, right, row, row_end, column, batch, open);                                \
    }
ROWS(rows_ieee, S(IEEE))
ROWS(rows_two_ways, S(TWO_WAYS))
ROWS(rows_careful, S(TWO_WAYS_CAREFUL))
ROWS(rows_by_distance, S(BY_DISTANCE))
#undef ROWS

static int S(contract)(const rounding *r, const contraction_call *c) {
    const int64_t blocks = (c->columns + LANES - 1) / LANES, panel = c->depth * LANES, group = 64;
    const int64_t groups = (c->rows + group - 1) / group;
    const int64_t draws = r->mode == NEARNESS ? c->depth + c->segments : (c->depth + c->segments) / 32 + 1;
    word_block *block = malloc(sizeof(word_block) * (size_t)draws);
    T *right = malloc(sizeof(T) * (size_t)(c->batch * blocks * panel));
    if (!block || !right) {
        free(block), free(right);
        return OUT_OF_MEMORY;
    }
    for (int64_t b = 0; b < draws; ++b) block[b] = block_constants(r->key, (uint64_t)b);
    S(bits) least_left = S(least)(c->left_size, c->left), least_right = ~(S(bits))0;
#pragma omp parallel num_threads(r->threads) if (c->batch * c->rows * c->columns * c->depth >= 32768)
    {
#pragma omp for schedule(static) reduction(min : least_right)
        for (int64_t item = 0; item < c->batch * blocks; ++item) {
            const T *from = (const T *)c->right + item / blocks * c->right_batch_step;
            T *to = right + item * panel;
            const int64_t column = item % blocks * LANES;
            for (int64_t k = 0; k < c->depth; ++k)
                for (int64_t l = 0; l < LANES; ++l)
                    to[k * LANES + l] = column + l < c->columns
                                            ? from[k * c->right_depth_step + (column + l) * c->right_column_step]
                                            : 0;
            const S(bits) here = S(least)(panel, to);
            if (here < least_right) least_right = here;
        }
        const int safe = S(exponent)(least_left) + S(exponent)(least_right) >= SAFE_EXPONENT;
        const control saved = control_get();
        control_set(control_with(saved, r->mode == DOWNWARD ? UPWARD : r->mode, r->flush));
        S(open_sum) open[64];
#pragma omp for schedule(dynamic)
        for (int64_t item = 0; item < c->batch * blocks * groups; ++item) {
            const int64_t batch = item / (blocks * groups), at = item / groups % blocks, row = item % groups * group;
            const int64_t row_end = c->rows - row < group ? c->rows : row + group;
            const T *left = (const T *)c->left + batch * c->left_batch_step;
            const T *panel_at = right + (batch * blocks + at) * panel;
            if (r->mode == NEAREST || r->mode == TOWARD_ZERO)
                S(rows_ieee)(r, c, block, left, panel_at, row, row_end, at * LANES, batch, open);
            else if (r->mode == NEARNESS)
                S(rows_by_distance)(r, c, block, left, panel_at, row, row_end, at * LANES, batch, open);
            else if (safe)
                S(rows_two_ways)(r, c, block, left, panel_at, row, row_end, at * LANES, batch, open);
            else
                S(rows_careful)(r, c, block, left, panel_at, row, row_end, at * LANES, batch, open);
        }
        control_set(saved);
    }
    free(block), free(right);
    return OK;
}
