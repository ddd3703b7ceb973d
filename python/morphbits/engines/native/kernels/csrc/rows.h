/* Sums of whole rows, for program.h, with the order and the element numbers of `Arithmetic.sum`: n terms are dealt out to
 * C = ceil(n / 256) chains, term i to chain i mod C, and the chains' sums are summed in the same way. Chain c of row r is
 * element c·(rows in all) + r of its level. Included by kernels.c after reduction.h, once for each element type. */

#if defined(__AVX512F__)
#if defined(SINGLE)
#define SUM_TYPE __m512
#define LANES_DOWN(word, bit) _mm512_testn_epi32_mask((__m512i)(word), _mm512_set1_epi32((int)(bit)))
#else
#define SUM_TYPE __m512d
#define LANES_DOWN(word, bit) _mm256_testn_epi32_mask((__m256i)(word), _mm256_set1_epi32((int)(bit)))
#endif
#endif

/* The next term of a chain in each lane: `index` is its operation's number, `word` serves 32 of them; `directed`: see
 * by_instruction in directed.h. */
static inline __attribute__((always_inline)) V S(next_term)(const rounding *r, const int directed, const word_block *block,
                                                            V total, V x, int64_t index, W *word, W element) {
    if ((index & 31) == 0) *word = S(word_for)(r->mode, block, index, element);
#if defined(__AVX512F__)
    if (directed) return (V)S(directed_sum)((SUM_TYPE)total, (SUM_TYPE)x, LANES_DOWN(*word, 1u << (31 - (index & 31))));
#else
    (void)directed;
#endif
    const V sum = S(reduce_operation)(r, 0, total, x, index, *word);
    if (r->mode == NEARNESS) *word *= STEP;
    return sum;
}

/* One chain of `terms` vectors, which lie `step` apart. */
static inline __attribute__((always_inline)) V S(one_chain)(const rounding *r, const int directed, const word_block *block,
                                                            const V *x, int64_t terms, int64_t step, W element) {
    V total = x[0];
    W word = {0};
    for (int64_t t = 1; t < terms; ++t) total = S(next_term)(r, directed, block, total, x[t * step], t - 1, &word, element);
    return S(one_nan)(total);
}

/* Up to GROUP chains at once, so that one's addition need not wait for its last: chain g begins at x[g]. */
#define GROUP 4
static inline __attribute__((always_inline)) void S(some_chains)(const rounding *r, const int directed, const word_block *block,
                                                                 const int group, V *x, int64_t n, int64_t step,
                                                                 const W *element, V *total) {
    W word[GROUP] = {{0}};
    const int64_t whole = (n - group) / step + 1; /* terms that all have */
    for (int g = 0; g < group; ++g) total[g] = x[g];
    for (int64_t t = 1; t < whole; ++t)
        for (int g = 0; g < group; ++g)
            total[g] = S(next_term)(r, directed, block, total[g], x[g + t * step], t - 1, word + g, element[g]);
    for (int g = 0; g < group && g + whole * step < n; ++g) /* one more of the first of them */
        total[g] = S(next_term)(r, directed, block, total[g], x[g + whole * step], whole - 1, word + g, element[g]);
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
static inline __attribute__((always_inline)) void S(sum_rows)(const rounding *r, const int directed, const word_block *block,
                                                              int64_t rows, int64_t n, int64_t all, int64_t first, const T *x,
                                                              T *out, V *columns) {
    const int64_t chains = (n + 255) / 256;
    const W row = S(row_numbers)(r, first);
    S(columns_of)(x, rows, n, columns);
    for (int64_t c = 0; c < chains; c += GROUP) { /* a chain's sum takes the place of its first term */
        const int64_t group = chains - c < GROUP ? chains - c : GROUP;
        W element[GROUP];
        V total[GROUP];
        for (int64_t g = 0; g < group; ++g) element[g] = row + (uint32_t)((c + g) * all);
        if (group == GROUP) S(some_chains)(r, directed, block, GROUP, columns + c, n - c, chains, element, total);
        else S(some_chains)(r, directed, block, (int)group, columns + c, n - c, chains, element, total);
        for (int64_t g = 0; g < group; ++g) columns[c + g] = total[g];
    }
    S(store_lanes)(out, rows, chains == 1 ? columns[0] : S(one_chain)(r, directed, block + 256, columns, chains, 1, row));
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
static inline __attribute__((always_inline)) void S(sum_row)(const rounding *r, const int directed, const word_block *block,
                                                             int64_t n, int64_t all, int64_t row, const T *x, T *out,
                                                             V *columns) {
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
                const V sum = S(next_term)(r, directed, block, total[g], term, t - 1, word + g, element[g]);
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
    *out = S(one_chain)(r, directed, block + 256, columns, chains, 1, element)[0];
}

#if defined(__AVX512F__)
/* `part` elements from each of LANES / part rows. */
static inline __attribute__((always_inline)) V S(parts_of)(const T *const *row, int64_t at, const int part) {
#if defined(SINGLE)
    if (part == LANES) return (V)_mm512_loadu_ps(row[0] + at);
    if (part == 8)
        return (V)_mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(row[0] + at)), _mm256_loadu_ps(row[1] + at), 1);
    __m512 x = _mm512_castps128_ps512(_mm_loadu_ps(row[0] + at));
    x = _mm512_insertf32x4(x, _mm_loadu_ps(row[1] + at), 1);
    x = _mm512_insertf32x4(x, _mm_loadu_ps(row[2] + at), 2);
    return (V)_mm512_insertf32x4(x, _mm_loadu_ps(row[3] + at), 3);
#else
    if (part == LANES) return (V)_mm512_loadu_pd(row[0] + at);
    return (V)_mm512_insertf64x4(_mm512_castpd256_pd512(_mm256_loadu_pd(row[0] + at)), _mm256_loadu_pd(row[1] + at), 1);
#endif
}

/* GROUP vectors side by side, each of LANES / part rows with `part` chains, of which there are `chains`; `rows` of the rows
 * are there. */
static inline __attribute__((always_inline)) void S(sum_parts)(const rounding *r, const int directed, const word_block *block,
                                                               const int part, int64_t rows, int64_t n, int64_t all,
                                                               int64_t first, const T *x, T *out, V *columns) {
    const int each = LANES / part;
    const int64_t chains = (n + 255) / 256, together = (n - part) / chains + 1; /* terms with a whole part in the row */
    const T *row[GROUP * LANES];
    W element[GROUP], word[GROUP] = {{0}};
    V total[GROUP];
    for (int i = 0; i < GROUP * each; ++i) row[i] = x + (i < rows ? i : rows - 1) * n;
    for (int g = 0; g < GROUP; ++g) {
        for (int l = 0; l < LANES; ++l) {
            const int lane = r->mode == NEARNESS ? S(lane_of)(l) : l;
            element[g][l] = (uint32_t)(lane % part * all + first + g * each + lane / part);
        }
        total[g] = S(parts_of)(row + g * each, 0, part);
    }
    for (int64_t t = 1; t < together; ++t)
        for (int g = 0; g < GROUP; ++g)
            total[g] = S(next_term)(r, directed, block, total[g], S(parts_of)(row + g * each, t * chains, part), t - 1, word + g,
                                    element[g]);
    for (int64_t t = together; t * chains < n; ++t)
        for (int g = 0; g < GROUP; ++g) {
            V term = {0};
            for (int l = 0; l < LANES; ++l)
                if (t * chains + l % part < n) term[l] = row[g * each + l / part][t * chains + l % part];
            const V sum = S(next_term)(r, directed, block, total[g], term, t - 1, word + g, element[g]);
            for (int l = 0; l < LANES; ++l)
                if (t * chains + l % part < n) total[g][l] = sum[l];
        }
    T sums[GROUP * LANES];
    for (int g = 0; g < GROUP; ++g) *(V *)(sums + g * LANES) = S(one_nan)(total[g]);
    for (int64_t c = 0; c < chains; ++c)
        for (int l = 0; l < GROUP * each && l < LANES; ++l) columns[c][l] = sums[l * part + c];
    S(store_lanes)(out, rows, S(one_chain)(r, directed, block + 256, columns, chains, 1, S(row_numbers)(r, first)));
}
#endif

/* All kinds of them, compiled for directed modes by themselves. */
static inline __attribute__((always_inline)) void S(any_rows)(const rounding *r, const int directed, const word_block *block,
                                                              int64_t rows, int64_t n, int64_t all, int64_t first, const T *x,
                                                              T *out, V *columns) {
    int64_t each = n >= 256 * LANES ? 1 : LANES;
#if defined(__AVX512F__)
    const int64_t chains = (n + 255) / 256;
    const int part = chains > 8 ? LANES : chains > 4 ? 8 : 4;
    if (n < 256 * LANES && chains > 2) each = GROUP * LANES / part;
#endif
    for (int64_t i = 0; i < rows; i += each) {
        const int64_t here = rows - i < each ? rows - i : each;
        if (each == 1) S(sum_row)(r, directed, block, n, all, first + i, x + i * n, out + i, columns);
#if defined(__AVX512F__)
        else if (chains > 2 && part == 4) S(sum_parts)(r, directed, block, 4, here, n, all, first + i, x + i * n, out + i, columns);
        else if (chains > 2 && part == 8) S(sum_parts)(r, directed, block, 8, here, n, all, first + i, x + i * n, out + i, columns);
        else if (chains > 2) S(sum_parts)(r, directed, block, LANES, here, n, all, first + i, x + i * n, out + i, columns);
#endif
        else S(sum_rows)(r, directed, block, here, n, all, first + i, x + i * n, out + i, columns);
    }
}
static __attribute__((noinline)) void S(directed_rows)(const rounding *r, const word_block *block, int64_t rows, int64_t n,
                                                       int64_t all, int64_t first, const T *x, T *out, V *columns) {
    S(any_rows)(r, 1, block, rows, n, all, first, x, out, columns);
}
static __attribute__((noinline)) void S(other_rows)(const rounding *r, const word_block *block, int64_t rows, int64_t n,
                                                    int64_t all, int64_t first, const T *x, T *out, V *columns) {
    S(any_rows)(r, 0, block, rows, n, all, first, x, out, columns);
}
static void S(row_sums)(const rounding *r, const word_block *block, int64_t rows, int64_t n, int64_t all, int64_t first,
                        const T *x, T *out, void *columns) {
    if (by_instruction(r)) S(directed_rows)(r, block, rows, n, all, first, x, out, columns);
    else S(other_rows)(r, block, rows, n, all, first, x, out, columns);
}
#undef SUM_TYPE
#undef LANES_DOWN
