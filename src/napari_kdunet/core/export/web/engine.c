/* The code of the C export (kdunet.c) for any k-Unet: its form and weights are given at run time. scripts/wasm.py
   compiles it to kdunet.wasm, which imports nothing. The caller lays out memory from __heap_base on, and grows it. */

static int kd_k, kd_depth;
static float kd_slope;
static double kd_pixel;
static const float *kd_weights;

#define KD_K kd_k
#define KD_DEPTH kd_depth
#define KD_MOST_DEPTH 6
#define KD_SLOPE kd_slope

#include "../kdunet.c"

/* Set the network: its form, working pixel size (nm), and weights in the order of c_file.py. */
void kdunet_open(int k, int depth, float slope, double pixel, const float *weights)
{
    kd_k = k;
    kd_depth = depth;
    kd_slope = slope;
    kd_pixel = pixel;
    kd_weights = weights;
}

/* Working pixels per image pixel of `pixel` nm; 0 where that is too far from the working pixel size. */
double kdunet_ratio(double pixel)
{
    axis a;
    return set_axis(&a, 1, pixel) ? 0 : (double)a.up / a.down;
}

/* Least number of image pixels that is a whole multiple of 2^depth working pixels; 0 as in kdunet_ratio. */
int kdunet_unit(double pixel)
{
    axis a;
    return set_axis(&a, 1, pixel) ? 0 : a.unit;
}

/* Like kdunet_probability with mean and standard deviation given, but the network sees the image turned by a quarter,
   and its result is turned back. `more` is memory for the turned image: kdunet_bytes with the sides exchanged. */
int kdunet_turned(const float *image, int height, int width, double pixel_y, double pixel_x,
                  const float *mean_and_std, float *probability, void *memory, void *more)
{
    plan p, q;
    level *straight = &p.levels[0], *turned = &q.levels[0];
    float *plane, std = mean_and_std[1];
    int y, x;
    if (set_plan(&p, height, width, pixel_y, pixel_x, (float *)memory)) return -1;
    if (set_plan(&q, width, height, pixel_x, pixel_y, (float *)more)) return -1;
    to_working(&p, image, mean_and_std[0], std > 0 ? 1 / std : 1);
    plane = turned->both + (size_t)kd_k * turned->plane;
    for (y = 0; y < turned->height; y++)
        for (x = 0; x < turned->width; x++)
            pixel_of(turned, plane, y)[x]
                = pixel_of(straight, straight->both + (size_t)kd_k * straight->plane, straight->height - 1 - x)[y];
    clear_border(turned, plane);
    network(&q);
    for (y = 0; y < straight->height; y++)
        for (x = 0; x < straight->width; x++)
            pixel_of(straight, straight->inner, y)[x] = pixel_of(turned, turned->inner, x)[straight->height - 1 - y];
    to_image(&p, probability);
    return 0;
}
