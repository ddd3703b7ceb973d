/* Sums of whole rows, for program.h, with the order and the element numbers of `Arithmetic.sum`: n terms are dealt out to
 * C = ceil(n / 256) chains, term i to chain i mod C, and the chains' sums are summed in the same way. Chain c of row r is
 * element c·(rows in all) + r of its level. Included by kernels.c after reduction.h, once for each element type. */

/* The next term of a chain in each lane: `index` is its operation's number, `word` serves 32 of them. */
static inline __attribute__((always_inline)) V S(next_term)(const rounding *r, const word_block *block, V total, V x,
                                                            int64_t index, W *word, W element) {
    if ((index & 31) == 0) *word = S(word_for)(r->mode, block, index, element);
    const V sum = S(reduce_operation)(r, 0, total, x, index, *word);
    if (r->mode == NEARNESS) *word *= STEP;
    return sum;
}

/* One chain of `terms` vectors, which lie `step` apart. */
static inline __attribute__((always_inline)) V S(one_chain)(const rounding *r, const word_block *block, const V *x,
                                                            int64_t terms, int64_t step, W element) {
    V total = x[0];
    W word = {0};
    for (int64_t t = 1; t < terms; ++t) total = S(next_term)(r, block, total, x[t * step], t - 1, &word, element);
    return S(one_nan)(total);
}

/* Up to GROUP chains at once, so that one's addition need not wait for its last: chain g begins at x[g]. */
#define GROUP 4
static inline __attribute__((always_inline)) void S(some_chains)(const rounding *r, const word_block *block, const int group, V *x,
                                                                 int64_t n, int64_t step, const W *element, V *total) {
    W word[GROUP] = {{0}};
    const int64_t whole = (n - group) / step + 1; /* terms that all have */
    for (int g = 0; g < group; ++g) total[g] = x[g];
    for (int64_t t = 1; t < whole; ++t)
        for (int g = 0; g < group; ++g) total[g] = S(next_term)(r, block, total[g], x[g + t * step], t - 1, word + g, element[g]);
    for (int g = 0; g < group && g + whole * step < n; ++g) /* one more of the first of them */
        total[g] = S(next_term)(r, block, total[g], x[g + whole * step], whole - 1, word + g, element[g]);
    for (int g = 0; g < group; ++g) total[g] = S(one_nan)(total[g]);
}

/* The columns of `rows` rows of n elements, one vector each. */
static __attribute__((noinline)) void S(columns_of)(const T *x, int64_t rows, int64_t n, V *columns) {
    int64_t i = 0;
    for (; rows == LANES && i + LANES <= n; i += LANES) {
        V part[LANES];
        for (int l = 0; l < LANES; ++l) part[l] = *(const V *)(x + l * n + i);
        S(transpose)(part);
        for (int l = 0; l < LANES; ++l) columns[i + l] = part[l];
    }
    for (; i < n; ++i) {
        V column = {0};
        for (int64_t l = 0; l < rows; ++l) column[l] = x[l * n + i];
        columns[i] = column;
    }
}
static __attribute__((noinline)) void S(rows_of)(const V *columns, int64_t rows, int64_t n, T *x) {
    int64_t i = 0;
    for (; rows == LANES && i + LANES <= n; i += LANES) {
        V part[LANES];
        for (int l = 0; l < LANES; ++l) part[l] = columns[i + l];
        S(transpose)(part);
        for (int l = 0; l < LANES; ++l) *(V *)(x + l * n + i) = part[l];
    }
    for (; i < n; ++i)
        for (int64_t l = 0; l < rows; ++l) x[l * n + i] = columns[i][l];
}
static inline W S(row_numbers)(const rounding *r, int64_t first) {
    W row;
    for (int l = 0; l < LANES; ++l) row[l] = (uint32_t)(first + (r->mode == NEARNESS ? S(lane_of)(l) : l));
    return row;
}

/* LANES rows side by side, of which `rows` are there. `columns` has room for one vector of each term, `block` the random
 * words' constants of both levels, 256 each. */
static __attribute__((noinline)) void S(sum_rows)(const rounding *r, const word_block *block, int64_t rows, int64_t n, int64_t all,
                                                  int64_t first, const T *x, T *out, V *columns) {
    const int64_t chains = (n + 255) / 256;
    const W row = S(row_numbers)(r, first);
    S(columns_of)(x, rows, n, columns);
    for (int64_t c = 0; c < chains; c += GROUP) { /* a chain's sum takes the place of its first term */
        const int64_t group = chains - c < GROUP ? chains - c : GROUP;
        W element[GROUP];
        V total[GROUP];
        for (int64_t g = 0; g < group; ++g) element[g] = row + (uint32_t)((c + g) * all);
        if (group == GROUP) S(some_chains)(r, block, GROUP, columns + c, n - c, chains, element, total);
        else S(some_chains)(r, block, (int)group, columns + c, n - c, chains, element, total);
        for (int64_t g = 0; g < group; ++g) columns[c + g] = total[g];
    }
    S(store_lanes)(out, rows, chains == 1 ? columns[0] : S(one_chain)(r, block + 256, columns, chains, 1, row));
}

/* The partial sums or products of each row: chains over its terms from left to right, as `reduce` with `scan`. */
static void S(row_scans)(const rounding *r, const word_block *block, int multiply, int64_t rows, int64_t n, int64_t first,
                         const T *x, T *out, void *room) {
    V *columns = room;
    for (int64_t i = 0; i < rows; i += LANES) {
        const int64_t here = rows - i < LANES ? rows - i : LANES;
        const W row = S(row_numbers)(r, first + i);
        W word = {0};
        S(columns_of)(x + i * n, here, n, columns);
        V total = columns[0];
        for (int64_t t = 1; t < n; ++t) {
            if (((t - 1) & 31) == 0) word = S(word_for)(r->mode, block, t - 1, row);
            total = S(reduce_operation)(r, multiply, total, columns[t], t - 1, word);
            if (r->mode == NEARNESS) word *= STEP;
            columns[t] = S(one_nan)(total);
        }
        columns[0] = S(one_nan)(columns[0]);
        S(rows_of)(columns, here, n, out + i * n);
    }
}

/* One row, GROUP vectors of LANES chains side by side. Lanes beyond the last chain hold what nobody reads. */
static __attribute__((noinline)) void S(sum_row)(const rounding *r, const word_block *block, int64_t n, int64_t all, int64_t row,
                                                 const T *x, T *out, V *columns) {
    const int64_t chains = (n + 255) / 256;
    for (int64_t c = 0; c < chains; c += GROUP * LANES) {
        const int64_t vectors = (chains - c + LANES - 1) / LANES, group = vectors < GROUP ? vectors : GROUP;
        W element[GROUP], word[GROUP] = {{0}};
        V total[GROUP];
        for (int64_t g = 0; g < group; ++g) {
            for (int l = 0; l < LANES; ++l)
                element[g][l] = (uint32_t)((c + g * LANES + (r->mode == NEARNESS ? S(lane_of)(l) : l)) * all + row);
            total[g] = *(const V *)(x + c + g * LANES);
        }
        for (int64_t t = 1; c + t * chains < n; ++t)
            for (int64_t g = 0; g < group; ++g) {
                const int64_t at = c + g * LANES + t * chains, here = n - at < 0 ? 0 : n - at;
                const V term = here < LANES ? S(load_lanes)(x + at, here) : *(const V *)(x + at);
                const V sum = S(next_term)(r, block, total[g], term, t - 1, word + g, element[g]);
                if (here >= LANES) total[g] = sum;
                else for (int64_t l = 0; l < here; ++l) total[g][l] = sum[l];
            }
        for (int64_t g = 0; g < group; ++g) {
            total[g] = S(one_nan)(total[g]);
            for (int64_t l = 0, at = c + g * LANES; l < LANES && at < chains; ++l, ++at)
                columns[at] = (V){0}, columns[at][0] = total[g][l];
        }
    }
    W element = {(uint32_t)row};
    *out = S(one_chain)(r, block + 256, columns, chains, 1, element)[0];
}

static void S(row_sums)(const rounding *r, const word_block *block, int64_t rows, int64_t n, int64_t all, int64_t first,
                        const T *x, T *out, void *columns) {
    if (n >= 256 * LANES)
        for (int64_t i = 0; i < rows; ++i) S(sum_row)(r, block, n, all, first + i, x + i * n, out + i, columns);
    else
        for (int64_t i = 0; i < rows; i += LANES)
            S(sum_rows)(r, block, rows - i < LANES ? rows - i : LANES, n, all, first + i, x + i * n, out + i, columns);
}
