/* Convolution with every elementary result in fewer than 24 bits, float32's exponents (precision.h), or whose first chain
 * starts from the bias. Included by kernels.c after convolution.h; one simple kernel for all modes: the input in zero-padded
 * planes, output channels in the lanes, TILE voxels of a row at a time. Operations, their numbers and their
 * random words are those of convolution.h. */
#include <stdlib.h>
#include <string.h>

#include "precision.h"


#define REDUCED_LANES (VECTOR_BYTES / 4)
#define REDUCED_TILE 4
typedef vec_f32 RV;
typedef ivec_f32 RI;
typedef words_f32 RW;

typedef struct {
    const rounding *r;
    const convolution_call *c;
    const word_block *block;
    const int64_t *offset;
    const float *weight, *bias;
    int64_t voxel_step, voxels;
    uint32_t mask; /* the bits that fall off */
} reduced_plan;

static inline RV reduced_select(RI condition, RV yes, RV no) {
    return (RV)(((RI)yes & condition) | ((RI)no & ~condition));
}

/* a·b + c, rounded once into the format; `word` is this operation's. */
static inline __attribute__((always_inline)) RV reduced_fma(const reduced_plan *p, const int mode, RV a, RV b, RV c,
                                                            RW word, int64_t index) {
    const RI sign = (RI){0} + 0x80000000u, mask = (RI){0} + p->mask;
    if (mode == NEARNESS) {
        RV out;
        for (int l = 0; l < REDUCED_LANES; ++l)
            out[l] = fit_stochastic(p->r, (double)a[l] * (double)b[l] + (double)c[l], word[l]);
        return out;
    }
    const RV up = fma_vector_f32(a, b, c); /* the register is set upward, but where the hardware rounds by itself */
    if (mode == NEAREST && p->mask == 0) return up;
    if (mode == TOWARD_ZERO) return reduced_select((RI)(up == up), (RV)((RI)up & ~mask), up);
    if (mode == NEAREST) {
        const RV down = (RV)((RI)fma_vector_f32((RV)((RI)a ^ sign), b, (RV)((RI)c ^ sign)) ^ sign);
        const RI above = (RI)up & ~sign, below = (RI)down & ~sign;
        const RI z = (RI)reduced_select((RI)(below < above), down, up);
        const RI sticky = (RI)(below != above) & 1u, odd = ((z & ~sign) >> (24 - p->r->precision)) & 1u;
        return reduced_select((RI)(up == up), (RV)((z + (mask >> 1) + (odd | sticky)) & ~mask), up);
    }
    RI flip = {0};
    if (mode == DOWNWARD) flip = sign;
    if (mode == RANDOM) flip = ~((RI)word << (index & 31)) & sign;
    const RV y = fma_vector_f32((RV)((RI)a ^ flip), b, (RV)((RI)c ^ flip));
    const RI away = (((RI)y >> 31) - 1u) & mask; /* the mask where positive */
    const RI fitted = ((RI)y + away) & ~mask;
    /* +0 before the flip back is an exact zero, and has the sign of `up` */
    const RV out = reduced_select((RI)(fitted == (RI){0}), up, (RV)(fitted ^ flip));
    return reduced_select((RI)(y == y), out, y);
}

static inline RW reduced_draw(const reduced_plan *p, const int mode, int64_t index, RW element) {
    if (mode != RANDOM && mode != NEARNESS) return (RW){0};
    return word_for_f32(mode, p->block, index, element);
}

static inline __attribute__((always_inline)) void reduced_tile(const reduced_plan *p, const int mode, const int tile,
                                                               const float *input, int64_t channel, uint32_t first,
                                                               RV *total) {
    const convolution_call *c = p->c;
    const float *weight = p->weight + channel * c->terms;
    const RV one = splat_f32(1);
    RW element[REDUCED_TILE], word[REDUCED_TILE] = {{0}};
    RV chain[REDUCED_TILE], bias = {0};
    for (int i = 0; i < tile; ++i)
        for (int l = 0; l < REDUCED_LANES; ++l) element[i][l] = first + (uint32_t)(l * p->voxels + i);
    if (p->bias) bias = *(const RV *)(p->bias + channel);
#define REDUCED_ADD(a, b, index) reduced_fma(p, mode, a, one, b, reduced_draw(p, mode, index, element[i]), index)
    for (int64_t t = 0, s = 0; s < c->segments; ++s) {
        for (int i = 0; i < tile; ++i) chain[i] = s == 0 && c->bias_first == START ? bias : (RV){0};
        for (const int64_t start = t, end = c->segment_end[s]; t < end; ++t) {
            const RV w = *(const RV *)(weight + t * REDUCED_LANES);
            const float *x = input + p->offset[t];
            if (t == start || t % 32 == 0)
                for (int i = 0; i < tile; ++i) word[i] = reduced_draw(p, mode, t, element[i]);
            for (int i = 0; i < tile; ++i) {
                chain[i] = reduced_fma(p, mode, splat_f32(x[i * p->voxel_step]), w, chain[i], word[i], t);
                if (mode == NEARNESS) word[i] *= STEP;
            }
        }
        for (int i = 0; i < tile; ++i)
            if (s > 0) total[i] = REDUCED_ADD(total[i], chain[i], c->terms + s);
            else total[i] = c->bias_first == FIRST ? REDUCED_ADD(bias, chain[i], c->terms) : chain[i];
    }
    for (int i = 0; i < tile; ++i) {
        if (p->bias && !c->bias_first) total[i] = REDUCED_ADD(total[i], bias, c->terms + c->segments);
        total[i] = reduced_select((RI)(total[i] == total[i]), total[i], (RV)((RI){0} + 0x7fc00000u));
    }
#undef REDUCED_ADD
}

static inline __attribute__((always_inline)) void reduced_row(const reduced_plan *p, const int mode, const float *input,
                                                              uint32_t first, float *output) {
    const convolution_call *c = p->c;
    for (int64_t channel = 0; channel < c->channels_out; channel += REDUCED_LANES) {
        const int64_t left = c->channels_out - channel, lanes = left < REDUCED_LANES ? left : REDUCED_LANES;
        for (int64_t x = 0; x < c->size_out[2];) {
            const int64_t from = channel * p->voxels + x;
            const int tile = c->size_out[2] - x >= REDUCED_TILE ? REDUCED_TILE : 1;
            RV total[REDUCED_TILE] = {{0}};
            if (tile == 1) reduced_tile(p, mode, 1, input + x * p->voxel_step, channel, first + (uint32_t)from, total);
            else reduced_tile(p, mode, REDUCED_TILE, input + x * p->voxel_step, channel, first + (uint32_t)from, total);
            for (int64_t l = 0; l < lanes; ++l)
                for (int i = 0; i < tile; ++i) output[from + l * p->voxels + i] = total[i][l];
            x += tile;
        }
    }
}

#define REDUCED_ROW(mode)                                                                                             \
    static __attribute__((noinline)) void reduced_row_##mode(const reduced_plan *p, const float *input, uint32_t first, \
                                                             float *output) {                                         \
        reduced_row(p, mode, input, first, output);                                                                   \
    }
REDUCED_ROW(NEAREST)
REDUCED_ROW(RANDOM)
REDUCED_ROW(NEARNESS)
REDUCED_ROW(UPWARD)
REDUCED_ROW(DOWNWARD)
REDUCED_ROW(TOWARD_ZERO)

static int convolve_reduced(const rounding *r, const convolution_call *c) {
    const int64_t taps = c->kernel[0] * c->kernel[1] * c->kernel[2], in = c->channels_in, terms = c->terms;
    const int64_t lanes = (c->channels_out + REDUCED_LANES - 1) / REDUCED_LANES * REDUCED_LANES;
    int64_t padded[3];
    for (int d = 0; d < 3; ++d) padded[d] = c->size_in[d] + 2 * c->padding[d];
    const int64_t row = padded[2], plane = padded[1] * row, volume = padded[0] * plane;
    const int64_t voxels = c->size_out[0] * c->size_out[1] * c->size_out[2], draws = (terms + c->segments) / 32 + 1;
    float *image = calloc((size_t)(c->batch * in * volume), sizeof(float));
    float *weight = calloc((size_t)(lanes * terms), sizeof(float)), *bias = calloc((size_t)lanes, sizeof(float));
    int64_t *offset = malloc(sizeof(int64_t) * (size_t)terms);
    word_block *block = malloc(sizeof(word_block) * (size_t)draws);
    int status = image && bias && weight && offset && block ? OK : OUT_OF_MEMORY;
    if (status == OK) {
        for (int64_t b = 0; b < draws; ++b) block[b] = block_constants(r->key, (uint64_t)b);
        for (int64_t t = 0; t < terms; ++t) {
            const int64_t x = c->tap[t] % c->kernel[2], y = c->tap[t] / c->kernel[2] % c->kernel[1];
            const int64_t z = c->tap[t] / (c->kernel[2] * c->kernel[1]);
            offset[t] = c->channel[t] * volume + z * c->dilation[0] * plane + y * c->dilation[1] * row + x * c->dilation[2];
            for (int64_t o = 0; o < c->channels_out; ++o)
                weight[(o / REDUCED_LANES * terms + t) * REDUCED_LANES + o % REDUCED_LANES] =
                    ((const float *)c->weight)[(o * in + c->channel[t]) * taps + c->tap[t]];
        }
        if (c->bias) memcpy(bias, c->bias, sizeof(float) * (size_t)c->channels_out);
        for (int64_t line = 0; line < c->batch * in * c->size_in[0] * c->size_in[1]; ++line) {
            const int64_t y = line % c->size_in[1], z = line / c->size_in[1] % c->size_in[0];
            memcpy(image + line / (c->size_in[1] * c->size_in[0]) * volume + (z + c->padding[0]) * plane +
                       (y + c->padding[1]) * row + c->padding[2],
                   (const float *)c->input + line * c->size_in[2], sizeof(float) * (size_t)c->size_in[2]);
        }
        const reduced_plan p = {r, c, block, offset, weight, c->bias ? bias : NULL, c->stride[2], voxels,
                                (1u << (24 - r->precision)) - 1};
        const int by_hardware = r->mode == TOWARD_ZERO || r->mode == NEARNESS || (r->mode == NEAREST && p.mask == 0);
        const int direction = by_hardware ? r->mode : UPWARD;
#pragma omp parallel num_threads(r->threads)
        {
            const control saved = control_get();
            control_set(control_with(saved, direction, r->flush));
#pragma omp for schedule(dynamic, 2)
            for (int64_t item = 0; item < c->batch * c->size_out[0] * c->size_out[1]; ++item) {
                const int64_t y = item % c->size_out[1], z = item / c->size_out[1] % c->size_out[0];
                const int64_t b = item / (c->size_out[1] * c->size_out[0]);
                const float *input = image + b * in * volume + z * c->stride[0] * plane + y * c->stride[1] * row;
                const int64_t first = b * c->channels_out * voxels + (z * c->size_out[1] + y) * c->size_out[2];
                float *output = (float *)c->output + first;
                switch (r->mode) {
                case NEAREST: reduced_row_NEAREST(&p, input, (uint32_t)first, output); break;
                case RANDOM: reduced_row_RANDOM(&p, input, (uint32_t)first, output); break;
                case NEARNESS: reduced_row_NEARNESS(&p, input, (uint32_t)first, output); break;
                case UPWARD: reduced_row_UPWARD(&p, input, (uint32_t)first, output); break;
                case DOWNWARD: reduced_row_DOWNWARD(&p, input, (uint32_t)first, output); break;
                case TOWARD_ZERO: reduced_row_TOWARD_ZERO(&p, input, (uint32_t)first, output); break;
                }
            }
            control_set(saved);
        }
    }
    free(image), free(weight), free(bias), free(offset), free(block);
    return status;
}
