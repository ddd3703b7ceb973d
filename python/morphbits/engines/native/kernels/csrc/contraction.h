/* Products of matrices, and all that is one: sums over k of left(row, k)·right(k, column), for one element type. Included by
 * kernels.c after vector.h.
 * A vector is LANES neighbouring columns of one row; a tile is up to MAX_TILE rows. The right side is copied once into
 * (column block, k, LANES). Few columns of many rows are computed as the rows of the transposed product, whose right side lies
 * anywhere: its blocks are copied one by one. Long sums go in slices of SLICE terms over all rows of a task, so that a slice of the right side
 * stays in the cache; totals and open chains wait in memory meanwhile. */
#include <stdlib.h>
#include <string.h>


/* The ways to do an operation, as constants of each instance. */
enum { S(IEEE), S(TWO_WAYS), S(TWO_WAYS_CAREFUL), S(BY_DISTANCE), S(BY_DISTANCE_CAREFUL), S(BY_DISTANCE_IFMA) };

/* The sum of two chains. Where nothing can underflow the sign of a zero is set at the end. */
static inline __attribute__((always_inline)) V S(add_chains)(V a, V b, S(direction) d, const int careful) {
    if (careful) return S(add_random)(a, b, d);
#if defined(DIRECTED)
    return S(pick_directed)(_mm512_add_round_ps((__m512)a, (__m512)b, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC),
                            _mm512_add_round_ps((__m512)a, (__m512)b, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC), d, 0);
#else
    return S(add_directed)(a, b, d);
#endif
}

static inline __attribute__((always_inline)) void S(contract_tile)(const rounding *r, const contraction_call *c,
                                                                   const word_block *block, const int tile, const int way,
                                                                   const void *left, const void *right, int64_t row, int64_t column,
                                                                   uint32_t first, int64_t from, int64_t to,
                                                                   S(open_sum) * open, int64_t segment) {
    const int nearness = way >= S(BY_DISTANCE), ifma = way == S(BY_DISTANCE_IFMA);
    W lane, word[MAX_TILE] = {{0}}, sum_word[MAX_TILE] = {{0}}; /* of 32 products, of 32 additions of chains */
    S(directions) directions[MAX_TILE];
    S(draws) draws[MAX_TILE];
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
                if (nearness)
                    for (int i = 0; i < tile; ++i) draws[i] = S(draws_of)(word[i]);
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
                        wide[i] = S(fma_stochastic)(a, w, wide[i], draws + i, way == S(BY_DISTANCE_CAREFUL), ifma);
                        S(next_draws)(draws + i, ifma);
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
            V sum = nearness ? S(narrowed)(wide[i]) : chain[i];
            if (segment > 0) {
                if (way == S(IEEE)) sum = open[i].total + sum;
                else if (nearness) sum = S(add_stochastic)(open[i].total, sum, sum_word[i]), sum_word[i] *= STEP;
                else sum = S(add_chains)(open[i].total, sum, S(direction_of)(sum_word[i], index), way == S(TWO_WAYS_CAREFUL));
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
#define TILE(n)                                                                                                            \
    if (MAX_TILE >= n && row_end - m >= n) {                                                                               \
        S(contract_tile)(r, c, block, n < MAX_TILE ? n : MAX_TILE, way, left, right, m, column, first, from, to, here, segment); \
        m += n;                                                                                                            \
        continue;                                                                                                          \
    }
#if MAX_TILE > 4
            TILE(8) TILE(6)
#else
            TILE(4)
#endif
            TILE(3) TILE(2) TILE(1)
#undef TILE
        }
    }
    for (int64_t m = row; m < row_end; ++m) {
        const V out = S(one_nan)(way == S(TWO_WAYS) ? S(positive_zero)(open[m - row].total) : open[m - row].total);
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
ROWS(rows_by_ifma, S(BY_DISTANCE_IFMA))
#undef ROWS

/* `count` numbers from each of `lanes` places on, side by side; LANES may be read. */
static inline void S(lay_side_by_side)(const T *const *from, int64_t lanes, int64_t count, T *lines) {
    V part[LANES] = {{0}};
    for (int64_t l = 0; l < lanes; ++l) part[l] = *(const V *)from[l];
    S(transpose)(part);
    for (int64_t i = 0; i < count; ++i) *(V *)(lines + i * LANES) = part[i];
}

/* Terms `k` to `k + count` of LANES columns from `column` on, side by side; those that are not there are zero. */
static void S(fetch_lines)(const contraction_call *c, int64_t batch, int64_t column, int64_t k, int64_t count, T *lines) {
    const int64_t lanes = c->columns - column < LANES ? c->columns - column : LANES;
    const int64_t across = c->right_column_step, along = c->right_depth_step;
    const T *here = (const T *)c->right + batch * c->right_batch_step + k * along + column * across;
    if (lanes < LANES) memset(lines, 0, sizeof(T) * (size_t)(count * LANES));
    if (across <= along) /* memory is read in its order */
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
}

/* The same of columns that are the rows of the left side of `rows`: by vectors where its terms lie side by side. */
static void S(fetch_rows)(const contraction_call *c, const contraction_call *rows, int64_t batch, int64_t column, int64_t k,
                          int64_t count, T *lines) {
    const int64_t lanes = c->columns - column < LANES ? c->columns - column : LANES;
    const int64_t *offset = rows->depth_offset + k;
    const T *from[LANES], *end = (const T *)rows->left + rows->left_size;
    for (int64_t l = 0; l < lanes; ++l)
        from[l] = (const T *)rows->left + batch * rows->left_batch_step + rows->row_offset[column + l];
    if (lanes < LANES) memset(lines, 0, sizeof(T) * (size_t)(count * LANES));
    for (int64_t i = 0, run; i < count; i += run) {
        V part[LANES] = {{0}};
        int whole = 1; /* vectors may be read */
        for (run = 1; run < LANES && i + run < count && offset[i + run] == offset[i] + run;) ++run;
        for (int64_t l = 0; l < lanes; ++l) whole &= end - from[l] >= offset[i] + LANES;
        if (run > LANES / 4 && whole) {
            for (int64_t l = 0; l < lanes; ++l) part[l] = *(const V *)(from[l] + offset[i]);
            S(transpose)(part);
            for (int64_t j = 0; j < run; ++j) *(V *)(lines + (i + j) * LANES) = part[j];
        } else {
            for (int64_t j = 0; j < run; ++j)
                for (int64_t l = 0; l < lanes; ++l) lines[(i + j) * LANES + l] = from[l][offset[i] + j];
        }
    }
}

/* A block of columns as (k, LANES), in mode NEARNESS as float64; and the least and the largest of its numbers. */
static void S(pack_panel)(const rounding *r, const contraction_call *c, const contraction_call *rows, int64_t batch,
                          int64_t column, char *to, S(bits) * least, S(bits) * largest) {
    T lines[64 * LANES];
    for (int64_t k = 0; k < c->depth; k += 64) {
        const int64_t count = c->depth - k < 64 ? c->depth - k : 64;
        T *direct = r->mode == NEARNESS ? lines : (T *)to + k * LANES;
        if (rows) S(fetch_rows)(c, rows, batch, column, k, count, direct);
        else S(fetch_lines)(c, batch, column, k, count, direct);
        if (least) *least = S(least)(count * LANES, direct, *least);
        if (r->mode == NEARNESS) {
            if (largest) *largest = S(largest)(count * LANES, lines, *largest);
            S(lay_wide)(count * LANES, lines, (double *)to + k * LANES, 1, r->flush);
        }
    }
}

/* `rows`: the call whose transposed product this is, or NULL. */
static int S(contract_all)(const rounding *r, const contraction_call *c, const contraction_call *rows) {
    const int64_t blocks = (c->columns + LANES - 1) / LANES, panel = c->depth * LANES, group = 64;
    const int64_t groups = (c->rows + group - 1) / group, panels = rows ? r->threads : c->batch * blocks;
    const int64_t draws = (c->depth + c->segments) / 32 + 1, size = r->mode == NEARNESS ? (int64_t)sizeof(double) : (int64_t)sizeof(T);
    const int widens = size > (int64_t)sizeof(T);
    word_block *block = malloc(sizeof(word_block) * (size_t)draws);
    char *right = aligned(size * panels * panel);
    double *wide_left = widens ? malloc(sizeof(double) * (size_t)c->left_size) : NULL;
    if (!block || !right || (widens && !wide_left)) {
        free(block), free(right), free(wide_left);
        return OUT_OF_MEMORY;
    }
    for (int64_t b = 0; b < draws; ++b) block[b] = block_constants(r->key, (uint64_t)b);
    const S(bits) least_left = S(least)(c->left_size, c->left, ~(S(bits))0);
    const S(bits) largest_left = r->mode == NEARNESS ? S(largest)(c->left_size, c->left, 0) : 0;
    S(bits) least_right = rows ? S(least)(rows->left_size, rows->left, ~(S(bits))0) : ~(S(bits))0;
    S(bits) largest_right = rows && r->mode == NEARNESS ? S(largest)(rows->left_size, rows->left, 0) : 0;
    const char *left_side = widens ? (const char *)wide_left : c->left;
    if (widens) S(lay_wide)(c->left_size, c->left, wide_left, 1, r->flush);
#pragma omp parallel num_threads(r->threads) if (c->batch * c->rows * c->columns * c->depth >= 32768)
    {
#pragma omp for schedule(static) reduction(min : least_right) reduction(max : largest_right)
        for (int64_t item = 0; item < (rows ? 0 : c->batch * blocks); ++item)
            S(pack_panel)(r, c, NULL, item / blocks, item % blocks * LANES, right + item * panel * size, &least_right, &largest_right);
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
            char *panel_at = right + (rows ? omp_get_thread_num() : batch * blocks + at) * panel * size;
            if (rows) S(pack_panel)(r, c, rows, batch, at * LANES, panel_at, NULL, NULL);
            if (r->mode == NEAREST || r->mode == TOWARD_ZERO)
                S(rows_ieee)(r, c, block, left, panel_at, row, row_end, at * LANES, batch, open);
            else if (r->mode == NEARNESS && safe && BY_IFMA(r))
                S(rows_by_ifma)(r, c, block, left, panel_at, row, row_end, at * LANES, batch, open);
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

static int S(contract)(const rounding *r, const contraction_call *c) {
    const int64_t n = c->columns, depth = c->depth;
    if (2 * n >= LANES || n > MAX_TILE || c->rows < LANES) return S(contract_all)(r, c, NULL);
    T *left = malloc(sizeof(T) * (size_t)(c->batch * depth * n)); /* the right side as (batch, k, column) */
    int64_t *offset = malloc(sizeof(int64_t) * (size_t)(depth + n));
    int status = left && offset ? OK : OUT_OF_MEMORY;
    if (status == OK) {
        for (int64_t b = 0; b < c->batch; ++b)
            for (int64_t k = 0; k < depth; ++k)
                for (int64_t i = 0; i < n; ++i)
                    left[(b * depth + k) * n + i] =
                        ((const T *)c->right)[b * c->right_batch_step + k * c->right_depth_step + i * c->right_column_step];
        for (int64_t k = 0; k < depth; ++k) offset[k] = k * n;
        for (int64_t i = 0; i < n; ++i) offset[depth + i] = i;
        contraction_call t = *c;
        t.rows = n, t.columns = c->rows, t.row_step = c->column_step, t.column_step = c->row_step;
        t.left = left, t.left_size = c->batch * depth * n, t.left_batch_step = depth * n;
        t.depth_offset = offset, t.row_offset = offset + depth;
        status = S(contract_all)(r, &t, c);
    }
    free(left), free(offset);
    return status;
}
