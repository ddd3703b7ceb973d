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

/* LANES rows side by side, of which `rows` are there. `columns` has room for one vector of each term, `block` the random
 * words' constants of both levels, 256 each. */
static void S(sum_rows)(const rounding *r, const word_block *block, int64_t rows, int64_t n, int64_t all, int64_t first,
                        const T *x, T *out, V *columns) {
    const int64_t chains = (n + 255) / 256;
    W row;
    for (int l = 0; l < LANES; ++l) row[l] = (uint32_t)(first + (r->mode == NEARNESS ? S(lane_of)(l) : l));
    for (int64_t i = 0; i < n; ++i) {
        V column = {0};
        if (rows == LANES)
            for (int l = 0; l < LANES; ++l) column[l] = x[l * n + i];
        else
            for (int64_t l = 0; l < rows; ++l) column[l] = x[l * n + i];
        columns[i] = column;
    }
    for (int64_t c = 0; c < chains; ++c) /* a chain's sum takes the place of its first term */
        columns[c] = S(one_chain)(r, block, columns + c, (n - c + chains - 1) / chains, chains, row + (uint32_t)(c * all));
    S(store_lanes)(out, rows, chains == 1 ? columns[0] : S(one_chain)(r, block + 256, columns, chains, 1, row));
}

/* One row, LANES chains side by side. */
static void S(sum_row)(const rounding *r, const word_block *block, int64_t n, int64_t all, int64_t row, const T *x, T *out,
                       V *columns) {
    const int64_t chains = (n + 255) / 256;
    for (int64_t c = 0; c < chains; c += LANES) {
        const int64_t lanes = chains - c < LANES ? chains - c : LANES;
        W element, word = {0};
        for (int l = 0; l < LANES; ++l)
            element[l] = (uint32_t)((c + (r->mode == NEARNESS ? S(lane_of)(l) : l)) * all + row);
        V total = S(load_lanes)(x + c, lanes);
        for (int64_t t = 1, at = c + chains; at < n; ++t, at += chains) {
            const int64_t here = n - at < lanes ? n - at : lanes;
            const V sum = S(next_term)(r, block, total, S(load_lanes)(x + at, here), t - 1, &word, element);
            if (here == LANES) total = sum;
            else for (int64_t l = 0; l < here; ++l) total[l] = sum[l];
        }
        total = S(one_nan)(total);
        for (int64_t l = 0; l < lanes; ++l) columns[c + l] = (V){0}, columns[c + l][0] = total[l];
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
