/* Linear sampling of volumes, and its derivatives, unperturbed: the operations of torch's `grid_sampler_3d` and their order
 * (GridSampler.cpp; corners aligned, outside the border goes on), hence its bytes. torch goes from point to point; here each
 * operation goes over a tile of points, which a compiler makes vectors of. */
#include <stdint.h>
#include <string.h>

#define POINTS 128 /* of a tile */

/* image (channels, voxels), place (points, axes from the last to the first), the others (channels, points); what is null is not
 * wanted. to_image comes as zeros. */
typedef struct {
    int64_t channels, points, size[3];
    const float *image, *place, *gradient;
    float *value, *to_image, *to_place;
} plain_call;

/* Corner k lies on side (k >> (2 - d)) & 1 of axis d. */
typedef struct {
    int32_t at[8][POINTS], base[POINTS], step[3][POINTS]; /* place in the image; of the lowest corner; to the upper side */
    float inside[8][POINTS]; /* 1, or 0 outside the image */
    float side[3][2][POINTS], corner[8][POINTS];          /* weights of both sides of an axis, and their products */
    float slope[3][POINTS];                               /* derivative of a coordinate in voxels by the given one */
    float share[8][POINTS], value[POINTS], total[3][POINTS];
} tile;

#define SIDE(k, d) ((k) >> (2 - (d)) & 1)

static void find_corners(const plain_call *c, int64_t first, int64_t n, tile *t) {
    memset(t->base, 0, sizeof(t->base));
    for (int d = 0; d < 3; ++d) {
        const float last = (float)(c->size[d] - 1), *place = c->place + 3 * first + 2 - d;
        const int32_t size = (int32_t)c->size[d], step = d == 2 ? 1 : (int32_t)(c->size[2] * (d == 0 ? c->size[1] : 1));
        for (int64_t i = 0; i < n; ++i) {
            float x = (place[3 * i] + 1) / 2 * last;
            t->slope[d][i] = x > 0 && x < last ? last / 2 : 0;
            x = x > 0 ? x : 0; /* also where it is not a number */
            x = x < last ? x : last;
            const int32_t whole = (int32_t)x;
            const float low = (float)whole, high = low + 1;
            t->side[d][0][i] = high - x, t->side[d][1][i] = x - low;
            t->step[d][i] = high <= last ? step : 0; /* outside, where the weight is 0 */
            t->base[i] = t->base[i] * size + whole;
        }
    }
    for (int k = 0; k < 8; ++k)
        for (int64_t i = 0; i < n; ++i) {
            t->at[k][i] = t->base[i], t->inside[k][i] = 1;
            for (int d = 0; d < 3; ++d)
                if (SIDE(k, d)) t->at[k][i] += t->step[d][i], t->inside[k][i] *= t->step[d][i] > 0;
            t->corner[k][i] = t->side[2][SIDE(k, 2)][i] * t->side[1][SIDE(k, 1)][i] * t->side[0][SIDE(k, 0)][i];
        }
}

static void sample(const float *image, int64_t n, const tile *t, float *value) {
    memset(value, 0, sizeof(float) * (size_t)n);
    for (int k = 0; k < 8; ++k)
        for (int64_t i = 0; i < n; ++i) value[i] += image[t->at[k][i]] * t->corner[k][i];
}

static void scatter(const float *gradient, int64_t n, tile *t, float *to_image) {
    for (int k = 0; k < 8; ++k)
        for (int64_t i = 0; i < n; ++i) t->share[k][i] = t->corner[k][i] * gradient[i];
    for (int64_t i = 0; i < n; ++i)
        for (int k = 0; k < 8; ++k) to_image[t->at[k][i]] += t->share[k][i];
}

/* Adds the derivatives of one channel by the coordinates in voxels. */
static void add_slopes(const float *image, const float *gradient, int64_t n, tile *t) {
    for (int k = 0; k < 8; ++k) {
        const float *x = t->side[0][SIDE(k, 0)], *y = t->side[1][SIDE(k, 1)], *z = t->side[2][SIDE(k, 2)];
        for (int64_t i = 0; i < n; ++i) t->value[i] = image[t->at[k][i]];
        for (int64_t i = 0; i < n; ++i) {
            const float v = t->value[i] * t->inside[k][i], g = gradient[i];
            const float by[3] = {v * z[i] * y[i] * g, v * z[i] * x[i] * g, v * y[i] * x[i] * g};
            for (int d = 0; d < 3; ++d) t->total[d][i] += SIDE(k, d) ? by[d] : -by[d];
        }
    }
}

void morphbits_plain_sampling(const plain_call *c) {
    const int64_t voxels = c->size[0] * c->size[1] * c->size[2];
    tile t;
    for (int64_t first = 0; first < c->points; first += POINTS) {
        const int64_t n = c->points - first < POINTS ? c->points - first : POINTS;
        find_corners(c, first, n, &t);
        memset(t.total, 0, sizeof(t.total));
        for (int64_t channel = 0; channel < c->channels; ++channel) {
            const float *image = c->image + channel * voxels;
            const int64_t here = channel * c->points + first;
            if (c->value) sample(image, n, &t, c->value + here);
            if (c->to_image) scatter(c->gradient + here, n, &t, c->to_image + channel * voxels);
            if (c->to_place) add_slopes(image, c->gradient + here, n, &t);
        }
        for (int d = 0; c->to_place && d < 3; ++d)
            for (int64_t i = 0; i < n; ++i) c->to_place[3 * (first + i) + 2 - d] = t.slope[d][i] * t.total[d][i];
    }
}
