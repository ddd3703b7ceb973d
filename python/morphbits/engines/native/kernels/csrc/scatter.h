/* Scattered additions whose index is the same for all rows, and whose rows lie side by side in memory: a vector is LANES
 * neighbouring rows. What it writes is what scatter_naive of scalar.c writes. Included by kernels.c after reduction.h, once
 * for each element type. */

static inline __attribute__((always_inline)) V S(scatter_one)(const rounding *r, word_block block, uint32_t power, int64_t j,
                                                              V a, V b, W element) {
    W word = {0};
    if (r->mode == RANDOM || r->mode == NEARNESS) word = S(word_vector)(block, element);
    if (r->mode == NEARNESS) word = (word | 1) * power;
    if (r->mode == UPWARD) word = ~word;
    return S(one_nan)(S(reduce_operation)(r, 0, a, b, j, word));
}

/* All sources, added in their order to rows `begin` to `end`. */
static __attribute__((noinline)) void S(scatter_rows)(const rounding *r, const scatter_call *c, int64_t begin, int64_t end) {
    W lane;
    for (int l = 0; l < LANES; ++l) lane[l] = (uint32_t)((r->mode == NEARNESS ? S(lane_of)(l) : l) * c->size);
    word_block block = {0, 0, 0};
    uint32_t power = 1;
    for (int64_t j = 0; j < c->count; ++j) {
        if ((j & 31) == 0) block = block_constants(r->key, (uint64_t)(j >> 5));
        power = (j & 31) == 0 ? 1 : power * STEP;
        const int64_t at = c->index[j];
        T *out = (T *)c->output + at * c->output_place_step;
        const T *source = (const T *)c->source + j * c->source_place_step;
        int64_t o = begin;
        for (; o + LANES <= end; o += LANES)
            *(V *)(out + o) = S(scatter_one)(r, block, power, j, *(const V *)(out + o), *(const V *)(source + o),
                                             lane + (uint32_t)(o * c->size + at));
        if (o < end)
            S(store_lanes)(out + o, end - o,
                           S(scatter_one)(r, block, power, j, S(load_lanes)(out + o, end - o),
                                          S(load_lanes)(source + o, end - o), lane + (uint32_t)(o * c->size + at)));
    }
}

static int S(scatter_side_by_side)(const rounding *r, const scatter_call *c) {
    const int64_t step = 16 * LANES;
#pragma omp parallel num_threads(r->threads) if (c->outer * c->count >= 32768)
    {
        const control saved = control_get();
        control_set(control_with(saved, r->mode == DOWNWARD || r->mode == RANDOM ? UPWARD : r->mode, r->flush));
#pragma omp for schedule(static)
        for (int64_t begin = 0; begin < c->outer; begin += step)
            S(scatter_rows)(r, c, begin, begin + step < c->outer ? begin + step : c->outer);
        control_set(saved);
    }
    return OK;
}
