/* The code from here on is the same for each model: resampling and the network. It needs only the C library. */

#include <math.h>
#include <stddef.h>
#include <string.h>

/* Vector types of gcc and clang where the processor has vectors; otherwise, or with -DKDUNET_SCALAR, plain C. */
#if defined(__GNUC__) && !defined(KDUNET_SCALAR) \
    && (defined(__AVX__) || defined(__SSE2__) || defined(__ARM_NEON) || defined(__wasm_simd128__))
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
typedef float vector __attribute__((vector_size(4 * LANES)));
#else
#define LANES 1
typedef float vector;
#endif

#ifndef KD_MOST_DEPTH
#define KD_MOST_DEPTH KD_DEPTH
#endif

#define LOAD(v, from) memcpy(&(v), (from), sizeof(vector))
#define STORE(to, v) memcpy((to), &(v), sizeof(vector))

/* ------------------------------------------------------------------------------------ planes and their places */

/* Planes of one level of the network. A plane has a border of zeros, a pixel wide, and on the right up to the pitch. */
typedef struct {
    int height, width;
    size_t pitch, plane; /* floats from row to row, and from plane to plane */
    float *both, *inner; /* 2 n planes: the skip, then the input from below; n planes between two convolutions */
} level;

typedef struct {
    int up, down, unit; /* image to working pixels: up / down; a unit is a multiple of 2^depth of the latter */
    int size, padded, working;
} axis;

/* Source of a resampled pixel: the mean of `count` pixels or, if `count` is 0, two pixels weighted by `share`. */
typedef struct {
    int first, count;
    float share;
} tap;

typedef struct {
    axis y, x;
    level levels[KD_MOST_DEPTH + 1];
    tap *taps;
    float *row;
    size_t floats;
} plan;

static size_t rounded(size_t n, size_t step) { return (n + step - 1) / step * step; }

/* Set the ratio of pixel sizes as a fraction of small integers, and the size padded to whole units on both sides. */
static int set_axis(axis *a, int size, double pixel)
{
    double ratio = kd_pixel > 0 && pixel > 0 ? pixel / kd_pixel : 1, larger = ratio < 1 ? 1 / ratio : ratio, best = 2;
    int above = 1, below = 1, d, multiple = 1 << KD_DEPTH, common = 1;
    if (!(larger <= 64) || size < 1) return -1;
    for (d = 1; d <= 6; d++) {
        double n = floor(larger * d + 0.5), off = fabs(n / d - larger);
        if (off < best) best = off, above = (int)n, below = d;
    }
    a->up = ratio < 1 ? below : above;
    a->down = ratio < 1 ? above : below;
    while (common < multiple && a->up % (2 * common) == 0) common *= 2;
    a->unit = multiple / common * a->down;
    a->size = size;
    if (size > (1 << 26)) return -1;
    a->padded = ((size + a->unit - 1) / a->unit + 2) * a->unit;
    a->working = (int)((long long)a->padded * a->up / a->down);
    return 0;
}

/* Lay out the planes from `memory` on; if it is null only count the floats that are needed. */
static int set_plan(plan *p, int height, int width, double pixel_y, double pixel_x, float *memory)
{
    size_t used = 0, longest;
    int l;
    if (set_axis(&p->y, height, pixel_y) || set_axis(&p->x, width, pixel_x)) return -1;
    for (l = 0; l <= KD_DEPTH; l++) {
        level *v = &p->levels[l];
        size_t n = (size_t)KD_K << l;
        v->height = p->y.working >> l;
        v->width = p->x.working >> l;
        v->pitch = rounded((size_t)v->width, LANES) + 2 * LANES;
        v->plane = ((size_t)v->height + 2) * v->pitch;
        v->both = memory ? memory + used : 0;
        v->inner = memory ? v->both + 2 * n * v->plane : 0;
        used += 3 * n * v->plane;
    }
    longest = (size_t)(p->x.padded > p->x.working ? p->x.padded : p->x.working);
    p->row = memory ? memory + used : 0;
    used += longest;
    p->taps = memory ? (tap *)(void *)(memory + used) : 0;
    used += longest * ((sizeof(tap) + sizeof(float) - 1) / sizeof(float));
    p->floats = used;
    return 0;
}

static float *pixel_of(const level *v, float *plane, int y) { return plane + ((size_t)y + 1) * v->pitch + LANES; }

/* Set the border of a plane to 0. */
static void clear_border(const level *v, float *plane)
{
    int y;
    memset(plane, 0, v->pitch * sizeof *plane);
    memset(plane + ((size_t)v->height + 1) * v->pitch, 0, v->pitch * sizeof *plane);
    for (y = 0; y < v->height; y++) {
        float *row = pixel_of(v, plane, y);
        row[-1] = 0;
        memset(row + v->width, 0, (v->pitch - LANES - (size_t)v->width) * sizeof *row);
    }
}

/* ------------------------------------------------------------------------------------------------- the network */

/* 3x3 convolutions of a row, to 4, 2 or 1 channels at once, whose sums stay in registers: each value that is loaded is
   used for all of them. Weights are stored as biases, then (in, 3, 3, channels). Rows are computed in whole vectors. */
#define TAP1(v, a) a += q[0] * v;
#define TAP2(v, a, b) a += q[0] * v; b += q[1] * v;
#define TAP4(v, a, b, c, d) a += q[0] * v; b += q[1] * v; c += q[2] * v; d += q[3] * v;
#define START(a, n) a = zero + w[n];

#define TAPS(n, body) \
    for (c = 0; c < channels; c++, p += plane) { \
        for (t = 0; t < 3; t++) { \
            const float *r = p + (size_t)t * pitch - 1; \
            { body(0) } q += n; { body(1) } q += n; { body(2) } q += n; \
        } \
    }

static void convolve_4(const float *in, size_t plane, size_t pitch, int channels, const float *w, float *const *out,
                       int width)
{
    const vector zero = {0};
    int x, c, t;
    for (x = 0; x + LANES < width; x += 2 * LANES) {
        const float *p = in + x, *q = w + 4;
        vector a0, a1, b0, b1, c0, c1, d0, d1, v0, v1;
        START(a0, 0) START(b0, 1) START(c0, 2) START(d0, 3)
        a1 = a0; b1 = b0; c1 = c0; d1 = d0;
#define BODY(k) LOAD(v0, r + k); LOAD(v1, r + k + LANES); TAP4(v0, a0, b0, c0, d0) TAP4(v1, a1, b1, c1, d1)
        TAPS(4, BODY)
#undef BODY
        STORE(out[0] + x, a0); STORE(out[0] + x + LANES, a1);
        STORE(out[1] + x, b0); STORE(out[1] + x + LANES, b1);
        STORE(out[2] + x, c0); STORE(out[2] + x + LANES, c1);
        STORE(out[3] + x, d0); STORE(out[3] + x + LANES, d1);
    }
    for (; x < width; x += LANES) {
        const float *p = in + x, *q = w + 4;
        vector a0, b0, c0, d0, v0;
        START(a0, 0) START(b0, 1) START(c0, 2) START(d0, 3)
#define BODY(k) LOAD(v0, r + k); TAP4(v0, a0, b0, c0, d0)
        TAPS(4, BODY)
#undef BODY
        STORE(out[0] + x, a0); STORE(out[1] + x, b0); STORE(out[2] + x, c0); STORE(out[3] + x, d0);
    }
}

static void convolve_2(const float *in, size_t plane, size_t pitch, int channels, const float *w, float *const *out,
                       int width)
{
    const vector zero = {0};
    int x, c, t;
    for (x = 0; x + 3 * LANES < width; x += 4 * LANES) {
        const float *p = in + x, *q = w + 2;
        vector a0, a1, a2, a3, b0, b1, b2, b3, v0, v1, v2, v3;
        START(a0, 0) START(b0, 1)
        a1 = a0; a2 = a0; a3 = a0; b1 = b0; b2 = b0; b3 = b0;
#define BODY(k) \
        LOAD(v0, r + k); LOAD(v1, r + k + LANES); LOAD(v2, r + k + 2 * LANES); LOAD(v3, r + k + 3 * LANES); \
        TAP2(v0, a0, b0) TAP2(v1, a1, b1) TAP2(v2, a2, b2) TAP2(v3, a3, b3)
        TAPS(2, BODY)
#undef BODY
        STORE(out[0] + x, a0); STORE(out[0] + x + LANES, a1);
        STORE(out[0] + x + 2 * LANES, a2); STORE(out[0] + x + 3 * LANES, a3);
        STORE(out[1] + x, b0); STORE(out[1] + x + LANES, b1);
        STORE(out[1] + x + 2 * LANES, b2); STORE(out[1] + x + 3 * LANES, b3);
    }
    for (; x < width; x += LANES) {
        const float *p = in + x, *q = w + 2;
        vector a0, b0, v0;
        START(a0, 0) START(b0, 1)
#define BODY(k) LOAD(v0, r + k); TAP2(v0, a0, b0)
        TAPS(2, BODY)
#undef BODY
        STORE(out[0] + x, a0); STORE(out[1] + x, b0);
    }
}

static void convolve_1(const float *in, size_t plane, size_t pitch, int channels, const float *w, float *const *out,
                       int width)
{
    const vector zero = {0};
    int x, c, t;
    for (x = 0; x + 3 * LANES < width; x += 4 * LANES) {
        const float *p = in + x, *q = w + 1;
        vector a0, a1, a2, a3, v0, v1, v2, v3;
        START(a0, 0)
        a1 = a0; a2 = a0; a3 = a0;
#define BODY(k) \
        LOAD(v0, r + k); LOAD(v1, r + k + LANES); LOAD(v2, r + k + 2 * LANES); LOAD(v3, r + k + 3 * LANES); \
        TAP1(v0, a0) TAP1(v1, a1) TAP1(v2, a2) TAP1(v3, a3)
        TAPS(1, BODY)
#undef BODY
        STORE(out[0] + x, a0); STORE(out[0] + x + LANES, a1);
        STORE(out[0] + x + 2 * LANES, a2); STORE(out[0] + x + 3 * LANES, a3);
    }
    for (; x < width; x += LANES) {
        const float *p = in + x, *q = w + 1;
        vector a0, v0;
        START(a0, 0)
#define BODY(k) LOAD(v0, r + k); TAP1(v0, a0)
        TAPS(1, BODY)
#undef BODY
        STORE(out[0] + x, a0);
    }
}

/* 3x3 convolution and activation, from `n` planes to `m`; returns the weights that follow. */
static const float *convolution(const level *v, const float *in, int n, float *out, int m, const float *w)
{
    int done, y, x, i;
    for (done = 0; done < m;) {
        int count = m - done >= 4 ? 4 : m - done >= 2 ? 2 : 1;
        for (y = 0; y < v->height; y++) {
            const float *top = in + (size_t)y * v->pitch + LANES;
            float *rows[4] = {0, 0, 0, 0};
            for (i = 0; i < count; i++) rows[i] = pixel_of(v, out + (size_t)(done + i) * v->plane, y);
            if (count == 4) convolve_4(top, v->plane, v->pitch, n, w, rows, v->width);
            else if (count == 2) convolve_2(top, v->plane, v->pitch, n, w, rows, v->width);
            else convolve_1(top, v->plane, v->pitch, n, w, rows, v->width);
            for (i = 0; i < count; i++) {
                float *row = rows[i];
                for (x = 0; x < v->width; x++) row[x] = row[x] > 0 ? row[x] : KD_SLOPE * row[x];
            }
        }
        w += (size_t)count * (1 + 9 * (size_t)n);
        done += count;
    }
    for (i = 0; i < m; i++) clear_border(v, out + (size_t)i * v->plane);
    return w;
}

/* 2x2 max pooling, from `n` planes to `n` planes of the level below. */
static void pool(const level *v, const float *in, int n, const level *below, float *out)
{
    int c, y, x;
    for (c = 0; c < n; c++) {
        for (y = 0; y < below->height; y++) {
            const float *a = in + (size_t)c * v->plane + (2 * (size_t)y + 1) * v->pitch + LANES, *b = a + v->pitch;
            float *to = pixel_of(below, out + (size_t)c * below->plane, y);
            for (x = 0; x < below->width; x++) {
                float left = a[2 * x] > b[2 * x] ? a[2 * x] : b[2 * x];
                float right = a[2 * x + 1] > b[2 * x + 1] ? a[2 * x + 1] : b[2 * x + 1];
                to[x] = left > right ? left : right;
            }
        }
        clear_border(below, out + (size_t)c * below->plane);
    }
}

/* Transposed 2x2 convolution of stride 2, from `n` planes of the level below to `m`; weights are stored, for each of
   the `m`, as a bias, then (in, 2, 2). Returns the weights that follow. */
static const float *enlarge(const level *below, const float *in, int n, const level *v, float *out, int m,
                            const float *w)
{
    const vector zero = {0};
    int c, k, y, x, i;
    for (c = 0; c < m; c++, w += 1 + 4 * (size_t)n) {
        float *to = out + (size_t)c * v->plane;
        for (y = 0; y < below->height; y++) {
            float *top = pixel_of(v, to, 2 * y), *bottom = top + v->pitch;
            for (x = 0; x < below->width; x += LANES) {
                const float *p = in + ((size_t)y + 1) * below->pitch + LANES + x, *q = w + 1;
                vector a, b, d, e, value;
                float parts[4][LANES];
                START(a, 0)
                b = a; d = a; e = a;
                for (k = 0; k < n; k++, p += below->plane, q += 4) {
                    LOAD(value, p);
                    TAP4(value, a, b, d, e)
                }
                STORE(parts[0], a); STORE(parts[1], b); STORE(parts[2], d); STORE(parts[3], e);
                for (i = 0; i < LANES; i++) { /* anything written beyond the width is cleared below */
                    top[2 * (x + i)] = parts[0][i];
                    top[2 * (x + i) + 1] = parts[1][i];
                    bottom[2 * (x + i)] = parts[2][i];
                    bottom[2 * (x + i) + 1] = parts[3][i];
                }
            }
        }
        clear_border(v, to);
    }
    return w;
}

/* Run the network from the image, in plane KD_K of the top level's `both`, to log odds in the first of its `inner`. */
static void network(plan *p)
{
    level *levels = p->levels, *top = &levels[0];
    const float *w = kd_weights, *head;
    int l, c, y, x;
    for (l = 0; l <= KD_DEPTH; l++) {
        level *v = &levels[l];
        int n = KD_K << l;
        float *from = v->both + (size_t)n * v->plane;
        if (l) pool(v - 1, v[-1].both, n / 2, v, from);
        w = convolution(v, from, l ? n / 2 : 1, v->inner, n, w);
        w = convolution(v, v->inner, n, v->both, n, w);
    }
    for (l = KD_DEPTH - 1; l >= 0; l--) {
        level *v = &levels[l];
        int n = KD_K << l;
        w = enlarge(v + 1, v[1].both, 2 * n, v, v->both + (size_t)n * v->plane, n, w);
        w = convolution(v, v->both, 2 * n, v->inner, n, w);
        w = convolution(v, v->inner, n, v->both, n, w);
    }
    head = w;
    for (y = 0; y < top->height; y++) {
        float *to = pixel_of(top, top->inner, y);
        for (x = 0; x < top->width; x++) to[x] = head[0];
        for (c = 0; c < KD_K; c++) {
            const float *from = pixel_of(top, top->both + (size_t)c * top->plane, y);
            for (x = 0; x < top->width; x++) to[x] += head[1 + c] * from[x];
        }
    }
}

/* ---------------------------------------------------------------------------------------------- resampling */

/* Source of pixel `i` after resampling `size` pixels to `up / down` times as many. */
static tap tap_of(int i, int up, int down, int size)
{
    tap t;
    if (up < down) {
        int block = i / up, j = i % up;
        t.first = block * down + j * down / up;
        t.count = block * down + ((j + 1) * down + up - 1) / up - t.first;
        t.share = 1.0f / (float)t.count;
    } else {
        double at = (i + 0.5) * down / up - 0.5;
        if (at < 0) at = 0;
        t.first = (int)at;
        t.count = 0;
        t.share = (float)(at - t.first);
        if (t.first >= size - 1) t.first = size - 1, t.share = 0;
    }
    return t;
}

static int mirrored(int i, int size)
{
    int period = size > 1 ? 2 * (size - 1) : 1, j = i % period;
    if (j < 0) j += period;
    return j < period - j ? j : period - j;
}

/* Standardise and mirror the image, and resample it to working pixels. */
static void to_working(plan *p, const float *image, float mean, float scale)
{
    level *top = &p->levels[0];
    float *plane = top->both + (size_t)KD_K * top->plane, *row = p->row;
    int y, x, i;
    for (x = 0; x < p->x.working; x++) p->taps[x] = tap_of(x, p->x.up, p->x.down, p->x.padded);
    for (y = 0; y < top->height; y++) {
        tap t = tap_of(y, p->y.up, p->y.down, p->y.padded);
        int count = t.count ? t.count : t.share > 0 ? 2 : 1;
        float *to = pixel_of(top, plane, y);
        for (i = 0; i < count; i++) {
            const float *from = image + (size_t)mirrored(t.first + i - p->y.unit, p->y.size) * (size_t)p->x.size;
            float share = t.count ? t.share : i ? t.share : 1 - t.share;
            for (x = 0; x < p->x.size; x++) {
                float value = share * ((from[x] - mean) * scale);
                row[p->x.unit + x] = i ? row[p->x.unit + x] + value : value;
            }
        }
        for (x = 0; x < p->x.unit; x++) row[x] = row[p->x.unit + mirrored(x - p->x.unit, p->x.size)];
        for (x = p->x.unit + p->x.size; x < p->x.padded; x++)
            row[x] = row[p->x.unit + mirrored(x - p->x.unit, p->x.size)];
        for (x = 0; x < top->width; x++) {
            const tap *s = &p->taps[x];
            if (s->count) {
                float sum = 0;
                for (i = 0; i < s->count; i++) sum += row[s->first + i];
                to[x] = sum * s->share;
            } else {
                to[x] = s->share > 0 ? row[s->first] * (1 - s->share) + row[s->first + 1] * s->share : row[s->first];
            }
        }
    }
    clear_border(top, plane);
}

/* Resample the log odds to the image's pixels, and convert them to probabilities. */
static void to_image(plan *p, float *probability)
{
    level *top = &p->levels[0];
    float *row = p->row;
    int y, x, i;
    for (x = 0; x < p->x.size; x++) p->taps[x] = tap_of(x + p->x.unit, p->x.down, p->x.up, p->x.working);
    for (y = 0; y < p->y.size; y++) {
        tap t = tap_of(y + p->y.unit, p->y.down, p->y.up, p->y.working);
        int count = t.count ? t.count : t.share > 0 ? 2 : 1;
        float *to = probability + (size_t)y * (size_t)p->x.size;
        for (i = 0; i < count; i++) {
            const float *from = pixel_of(top, top->inner, t.first + i);
            float share = t.count ? t.share : i ? t.share : 1 - t.share;
            for (x = 0; x < top->width; x++) row[x] = i ? row[x] + share * from[x] : share * from[x];
        }
        for (x = 0; x < p->x.size; x++) {
            const tap *s = &p->taps[x];
            float value = 0;
            if (s->count) {
                for (i = 0; i < s->count; i++) value += row[s->first + i];
                value *= s->share;
            } else {
                value = s->share > 0 ? row[s->first] * (1 - s->share) + row[s->first + 1] * s->share : row[s->first];
            }
            to[x] = 1 / (1 + expf(-value));
        }
    }
}

/* -------------------------------------------------------------------------------------------------- the interface */

size_t kdunet_bytes(int height, int width, double pixel_y, double pixel_x)
{
    plan p;
    return set_plan(&p, height, width, pixel_y, pixel_x, 0) ? 0 : p.floats * sizeof(float);
}

int kdunet_probability(const float *image, int height, int width, double pixel_y, double pixel_x,
                       const float *mean_and_std, float *probability, void *memory)
{
    plan p;
    double mean = 0, std = 0, rest = 0, n = (double)height * width;
    size_t i, pixels;
    if (!memory || set_plan(&p, height, width, pixel_y, pixel_x, (float *)memory)) return -1;
    pixels = (size_t)height * (size_t)width;
    if (mean_and_std) {
        mean = mean_and_std[0];
        std = mean_and_std[1];
    } else {
        for (i = 0; i < pixels; i++) mean += image[i];
        mean /= n;
        for (i = 0; i < pixels; i++) rest += (image[i] - mean) * (image[i] - mean);
        std = sqrt(rest / n);
    }
    to_working(&p, image, (float)mean, (float)(std > 0 ? 1 / std : 1));
    network(&p);
    to_image(&p, probability);
    return 0;
}

#ifdef KDUNET_MAIN /* a program: HEIGHT WIDTH PIXEL_Y PIXEL_X, float32 from the standard input to the output */

#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
    int height = argc == 5 ? atoi(argv[1]) : 0, width = argc == 5 ? atoi(argv[2]) : 0, failed;
    double pixel_y = argc == 5 ? atof(argv[3]) : 0, pixel_x = argc == 5 ? atof(argv[4]) : 0;
    size_t bytes = kdunet_bytes(height, width, pixel_y, pixel_x), n = (size_t)height * (size_t)width;
    float *image, *memory;
    if (!bytes) {
        fputs("give HEIGHT WIDTH PIXEL_Y PIXEL_X, and the image as float32 on the standard input\n", stderr);
        return 2;
    }
    image = (float *)malloc(n * sizeof *image);
    memory = (float *)malloc(bytes);
    failed = !image || !memory || fread(image, sizeof *image, n, stdin) != n
             || kdunet_probability(image, height, width, pixel_y, pixel_x, 0, image, memory)
             || fwrite(image, sizeof *image, n, stdout) != n;
    free(image);
    free(memory);
    return failed;
}

#endif
