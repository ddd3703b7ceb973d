/* Products of matrices, and all that is one: sums over k of left(row, k)·right(k, column), for one element type. Included by
 * kernels.c after vector.h.
 * A vector is LANES neighbouring columns of one row; a tile is up to MAX_TILE rows. The right side is copied once into
 * (column block, k, LANES). Long sums go in slices of SLICE terms over all rows of a task, so that a slice of the right side
 * stays in the cache; totals and open chains wait in memory meanwhile. */
#include <stdlib.h>
#include <string.h>


/* The ways to do an operation, as constants of each instance. */
enum { S(IEEE), S(TWO_WAYS), S(TWO_WAYS_CAREFUL), S(BY_DISTANCE), S(BY_DISTANCE_CAREFUL) };

static inline __attribute__((always_inline)) void S(contract_tile)(const rounding *r, const contraction_call *c,
                                                                   const word_block *block, const int tile, const int way,
                                                                   const void *left, const void *right, int64_t row, int64_t column,
                                                                   uint32_t first, int64_t from, int64_t to,
                                                                   S(open_sum) * open, int64_t segment) {
    const int nearness = way == S(BY_DISTANCE) || way == S(BY_DISTANCE_CAREFUL);
    W lane, word[MAX_TILE] = {{0}}, sum_word[MAX_TILE] = {{0}}; /* of 32 products, of 32 additions of chains */
    S(directions) directions[MAX_TILE];
    V chain[MAX_TILE];
    S(total) wide[MAX_TILE];
    const char *row_at[MAX_TILE];
    int drawn = 0;
#define ELEMENT(i) (lane + (uint32_t)((row + (i)) * c->row_step))
    for (int l = 0; l < LANES; ++l) lane[l] = first + (uint32_t)((column + (nearness ? S(lane_of)(l) : l)) * c->column_step);
    for (int i = 0; i < tile; ++i) {
        row_at[i] = (const char *)left + c->row_offset[row + i] * (nearness ? (int64_t)sizeof(double) : (int64_t)sizeof(T));
        if (nearness) wide[i] = open[i].wide;
        else chain[i] = open[i].chain;
    }
    for (int64_t k = from; k < to;) {
        const int64_t end = c->segment_end[segment] < to ? c->segment_end[segment] : to;
        while (k < end) {
            const int64_t block_end = way == S(IEEE) ? end : (k | 31) + 1;
            const int64_t stop = end < block_end ? end : block_end;
            if (way != S(IEEE) && (k & 31) == 0) { /* so is `from` */
                S(words_for)(r->mode, block, k, ELEMENT(0), (uint32_t)c->row_step, tile, word);
                if (way == S(TWO_WAYS) || way == S(TWO_WAYS_CAREFUL))
                    for (int i = 0; i < tile; ++i) directions[i] = S(directions_of)(word[i]);
            }
#define TERM(k, direction)                                                                                               \
    {                                                                                                                    \
        const V w = *(const V *)((const T *)right + (k) * LANES);                                                         \
        const int64_t offset = c->depth_offset[k];                                                                       \
        for (int i = 0; i < tile; ++i) {                                                                                 \
            const V a = S(splat)(((const T *)row_at[i])[offset]);                                                        \
            if (way == S(IEEE)) chain[i] = S(fma_vector)(a, w, chain[i]);                                                \
            else chain[i] = S(fma_random)(a, w, chain[i], direction, way == S(TWO_WAYS_CAREFUL));                        \
        }                                                                                                                \
    }
            while (k < stop) {
                if (nearness) {
                    const double *w = (const double *)right + k * LANES;
                    const int64_t offset = c->depth_offset[k++];
                    for (int i = 0; i < tile; ++i) {
                        const double a = ((const double *)row_at[i])[offset];
                        wide[i] = S(fma_stochastic)(a, w, wide[i], word[i], way == S(BY_DISTANCE_CAREFUL));
                        word[i] *= STEP;
                    }
                    continue;
                }
#if defined(DIRECTED)
                if (way == S(TWO_WAYS) && (k & 7) == 0 && k + 8 <= stop) {
                    const int group = (int)(k >> 3) & 3;
                    _Pragma("GCC unroll 8") for (int bit = 0; bit < 8; ++bit)
                        TERM(k + bit, S(direction_in)(directions + i, group, bit))
                    k += 8;
                    continue;
                }
#endif
                TERM(k, S(direction_at)(directions + i, k))
                ++k;
            }
#undef TERM
        }
        if (k < c->segment_end[segment]) break;
        const int64_t index = c->depth + segment;
        if (way != S(IEEE) && segment > 0) {
            if (!drawn || (index & 31) == 0)
                S(words_for)(r->mode, block, index, ELEMENT(0), (uint32_t)c->row_step, tile, sum_word);
            drawn = 1;
        }
        for (int i = 0; i < tile; ++i) {
            V sum = nearness ? S(narrowed)(wide[i]) : way == S(TWO_WAYS) ? S(positive_zero)(chain[i]) : chain[i];
            if (segment > 0) {
                if (way == S(IEEE)) sum = open[i].total + sum;
                else if (nearness) sum = S(add_stochastic)(open[i].total, sum, sum_word[i]), sum_word[i] *= STEP;
                else sum = S(add_random)(open[i].total, sum, S(direction_of)(sum_word[i], index));
            }
            open[i].total = sum;
            chain[i] = (V){0}, wide[i] = (S(total)){0};
        }
        ++segment;
    }
    for (int i = 0; i < tile; ++i)
        if (nearness) open[i].wide = wide[i];
        else open[i].chain = chain[i];
#undef ELEMENT
}

/* Rows `row` to `row_end` of one block of columns; `open` has a place for each of them. */
static inline __attribute__((always_inline)) void S(contract_rows)(const rounding *r, const contraction_call *c,
                                                                   const word_block *block, const int way, const void *left,
                                                                   const void *right, int64_t row, int64_t row_end,
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
        if (lanes == LANES && c->column_step == 1) *(V *)(output + m * c->row_step) = out;
        else for (int64_t l = 0; l < lanes; ++l) output[m * c->row_step + l * c->column_step] = out[l];
    }
}

#define ROWS(name, way)                                                                                                    \
    static __attribute__((noinline)) void S(name)(const rounding *r, const contraction_call *c, const word_block *block,  \
                                                  const void *left, const void *right, int64_t row, int64_t row_end,       \
                                                  int64_t column, int64_t batch, S(open_sum) * open) {                     \
        S(contract_rows)(r, c, block, way, left, right, row, row_end, column, batch, open);                                \
    }
ROWS(rows_ieee, S(IEEE))
ROWS(rows_two_ways, S(TWO_WAYS))
ROWS(rows_careful, S(TWO_WAYS_CAREFUL))
ROWS(rows_by_distance, S(BY_DISTANCE))
ROWS(rows_by_distance_careful, S(BY_DISTANCE_CAREFUL))
#undef ROWS

static int S(contract)(const rounding *r, const contraction_call *c) {
    const int64_t blocks = (c->columns + LANES - 1) / LANES, panel = c->depth * LANES, group = 64;
    const int64_t groups = (c->rows + group - 1) / group;
    const int64_t draws = (c->depth + c->segments) / 32 + 1, size = r->mode == NEARNESS ? (int64_t)sizeof(double) : (int64_t)sizeof(T);
    const int widens = size > (int64_t)sizeof(T);
    word_block *block = malloc(sizeof(word_block) * (size_t)draws);
    char *right = aligned(size * c->batch * blocks * panel);
    double *wide_left = widens ? malloc(sizeof(double) * (size_t)c->left_size) : NULL;
    if (!block || !right || (widens && !wide_left)) {
        free(block), free(right), free(wide_left);
        return OUT_OF_MEMORY;
    }
    for (int64_t b = 0; b < draws; ++b) block[b] = block_constants(r->key, (uint64_t)b);
    const S(bits) least_left = S(least)(c->left_size, c->left, ~(S(bits))0);
    const S(bits) largest_left = r->mode == NEARNESS ? S(largest)(c->left_size, c->left, 0) : 0;
    S(bits) least_right = ~(S(bits))0, largest_right = 0;
    const char *left_side = widens ? (const char *)wide_left : c->left;
    if (widens) S(lay_wide)(c->left_size, c->left, wide_left, 1, r->flush);
#pragma omp parallel num_threads(r->threads) if (c->batch * c->rows * c->columns * c->depth >= 32768)
    {
#pragma omp for schedule(static) reduction(min : least_right) reduction(max : largest_right)
        for (int64_t item = 0; item < c->batch * blocks; ++item) {
            const T *from = (const T *)c->right + item / blocks * c->right_batch_step;
            char *to = right + item * panel * size;
            const int64_t column = item % blocks * LANES;
            const int64_t lanes = c->columns - column < LANES ? c->columns - column : LANES;
            const int64_t across = c->right_column_step, along = c->right_depth_step;
            T lines[64 * LANES] = {0};
            for (int64_t k = 0; k < c->depth; k += 64) { /* memory is read in its order */
                const int64_t count = c->depth - k < 64 ? c->depth - k : 64;
                const T *here = from + k * along + column * across;
                if (across <= along)
                    for (int64_t i = 0; i < count; ++i)
                        for (int64_t l = 0; l < lanes; ++l) lines[i * LANES + l] = here[i * along + l * across];
                else if (along == 1)
                    for (int64_t l = 0; l < lanes; l += 8)
                        for (int64_t i = 0; i < count; i += LANES)
                            S(transpose_block)(here + i + l * across, across, lanes - l < 8 ? lanes - l : 8,
                                         count - i < LANES ? count - i : LANES, lines + i * LANES + l, LANES);
                else
                    for (int64_t l = 0; l < lanes; ++l)
                        for (int64_t i = 0; i < count; ++i) lines[i * LANES + l] = here[i * along + l * across];
                least_right = S(least)(count * LANES, lines, least_right);
                if (r->mode == NEARNESS) {
                    largest_right = S(largest)(count * LANES, lines, largest_right);
                    S(lay_wide)(count * LANES, lines, (double *)to + k * LANES, 1, r->flush);
                } else {
                    memcpy((T *)to + k * LANES, lines, sizeof(T) * (size_t)(count * LANES));
                }
            }
        }
        const int safe = S(exponent)(least_left) + S(exponent)(least_right) >= SAFE_EXPONENT &&
                         (r->mode != NEARNESS || S(bounded)(largest_left, largest_right, c->depth));
        const control saved = control_get();
        control_set(control_with(saved, r->mode == DOWNWARD ? UPWARD : r->mode, r->flush));
        S(open_sum) open[64];
#pragma omp for schedule(dynamic)
        for (int64_t item = 0; item < c->batch * blocks * groups; ++item) {
            const int64_t batch = item / (blocks * groups), at = item / groups % blocks, row = item % groups * group;
            const int64_t row_end = c->rows - row < group ? c->rows : row + group;
            const char *left = left_side + batch * c->left_batch_step * size;
            const char *panel_at = right + (batch * blocks + at) * panel * size;
            if (r->mode == NEAREST || r->mode == TOWARD_ZERO)
                S(rows_ieee)(r, c, block, left, panel_at, row, row_end, at * LANES, batch, open);
            else if (r->mode == NEARNESS && safe)
                S(rows_by_distance)(r, c, block, left, panel_at, row, row_end, at * LANES, batch, open);
            else if (r->mode == NEARNESS)
                S(rows_by_distance_careful)(r, c, block, left, panel_at, row, row_end, at * LANES, batch, open);
            else if (safe)
                S(rows_two_ways)(r, c, block, left, panel_at, row, row_end, at * LANES, batch, open);
            else
                S(rows_careful)(r, c, block, left, panel_at, row, row_end, at * LANES, batch, open);
        }
        control_set(saved);
    }
    free(block), free(right), free(wide_left);
    return OK;
}
