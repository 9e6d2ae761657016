/* The two things that a U-Net spends its time on, for the CPU in float32 and NHWC (channels last):

   conv3x3   Y = X * g, zero padding 1, by Winograd's F(4x4, 3x3) (Lavin & Gray, 2016): an output tile of 4x4 pixels is
             A^T [ (G g G^T) (B^T d B) ] A with d 6x6 pixels of the input: 36 products a pair of channels instead of 144.
   norm_silu silu(a (x - mean)/std + b), mean and std of a group of channels, a and b of each sample and channel.

   Written for the compiler's vectors, of 16 floats where the processor has AVX-512 and of 8 elsewhere; no instruction set is
   named besides. Both compute the same sums in the same order. The gradient for X is conv3x3 with turned weights; that for g
   is the sum over tiles of V^T Q, transformed back. Layouts: every matrix is kept in panels that the next product reads from
   front to back. Numbers of channels are multiples of 16. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef __AVX512F__
#define W 16      /* floats of a vector */
#define ROWS 12   /* of a product, whose sums fill the registers: 12 x 2 vectors of 32, or 6 x 2 of 16 */
#else
#define W 8
#define ROWS 6
#endif
typedef float vec __attribute__((vector_size(4 * W), aligned(4)));
typedef int ints __attribute__((vector_size(4 * W)));
#define INLINE static inline __attribute__((always_inline))
#define P 36   /* products of a tile */
#define LOAD(p) (*(const vec *)(p))
#define STORE(p, v) (*(vec *)(p) = (v))

/* Memory of the calling thread, kept from call to call: fresh pages from the system cost more than what is written there. */
typedef struct { float *memory; size_t held; } store;
static _Thread_local store for_tiles, for_weights;

static float *reserve(store *s, size_t floats)
{
    if (s->held < floats) {
        free(s->memory);
        s->memory = aligned_alloc(64, (floats * 4 + 4095) / 64 * 64);
        s->held = s->memory ? floats : 0;
        if (!s->memory) {
            fputs("pidistill: out of memory for a convolution\n", stderr);
            abort();
        }
    }
    return s->memory;
}

static float *scratch(size_t floats) { return reserve(&for_tiles, floats); }

/* --- transforms ---------------------------------------------------------------------------------------------------- */

/* B^T d along one axis: interpolation at 0, 1, -1, 2, -2 and infinity. */
INLINE void bt(const vec d[6], vec o[6])
{
    vec p = d[4] - 4 * d[2], q = d[3] - 4 * d[1], r = d[4] - d[2], s = 2 * (d[3] - d[1]);
    o[0] = 4 * d[0] - 5 * d[2] + d[4];
    o[1] = p + q;
    o[2] = p - q;
    o[3] = r + s;
    o[4] = r - s;
    o[5] = 4 * d[1] - 5 * d[3] + d[5];
}

/* A^T m along one axis. */
INLINE void at(const vec m[6], vec o[4])
{
    vec p = m[1] + m[2], q = m[1] - m[2], r = m[3] + m[4], s = m[3] - m[4];
    o[0] = m[0] + p + r;
    o[1] = q + 2 * s;
    o[2] = p + 4 * r;
    o[3] = q + 8 * s + m[5];
}

/* A y: its adjoint. */
INLINE void a_(const vec y[4], vec o[6])
{
    vec p = y[0] + y[2], q = y[1] + y[3], r = y[0] + 4 * y[2], s = 2 * y[1] + 8 * y[3];
    o[0] = y[0];
    o[1] = p + q;
    o[2] = p - q;
    o[3] = r + s;
    o[4] = r - s;
    o[5] = y[3];
}

/* G g. */
INLINE void g_(const vec g[3], vec o[6])
{
    vec p = (g[0] + g[2]) * (-1.f / 6), q = g[1] * (-1.f / 6), r = g[0] * (1.f / 24) + g[2] * (1.f / 6), s = g[1] * (1.f / 12);
    o[0] = g[0] * .25f;
    o[1] = p + q;
    o[2] = p - q;
    o[3] = r + s;
    o[4] = r - s;
    o[5] = g[2];
}

/* G^T u: its adjoint. */
INLINE void gt(const vec u[6], vec o[3])
{
    vec p = (u[1] + u[2]) * (-1.f / 6), q = (u[1] - u[2]) * (-1.f / 6), r = u[3] + u[4], s = u[3] - u[4];
    o[0] = u[0] * .25f + p + r * (1.f / 24);
    o[1] = q + s * (1.f / 12);
    o[2] = p + r * (1.f / 6) + u[5];
}

typedef struct { long b, h, w; } shape;   /* of an image batch in pixels */

INLINE long tiles_of(shape s) { return s.b * ((s.h + 3) / 4) * ((s.w + 3) / 4); }

/* Sample, and first pixel (of the output), of a tile. */
INLINE void place(shape s, long tile, long *b, long *y, long *x)
{
    long across = (s.w + 3) / 4, down = (s.h + 3) / 4;
    *x = tile % across * 4;
    *y = tile / across % down * 4;
    *b = tile / across / down;
}

/* V = B^T d B of n tiles from `first` on -> (36, channels/W, n, W), the 36 parts `step` floats apart; of them, those
   numbered begin ... end - 1. */
static void transform_input(const float *x, shape s, long channels, long first, long n, long begin, long end, float *v,
                            long step)
{
    float zero[W] = {0};
    for (long k = begin; k < end; k++) {
        long b, y0, x0;
        place(s, first + k, &b, &y0, &x0);
        const float *pixels[36];
        long stride[36];
        for (int i = 0; i < 6; i++) {
            long y = y0 + i - 1;
            const float *row = y >= 0 && y < s.h ? x + ((b * s.h + y) * s.w + x0 - 1) * channels : 0;
            for (int j = 0; j < 6; j++) {
                int inside = row && x0 + j > 0 && x0 + j <= s.w;
                pixels[6 * i + j] = inside ? row + j * channels : zero;
                stride[6 * i + j] = inside;
            }
        }
        for (long c = 0; c < channels; c += W) {
            vec t[6][6], d[6], o[6];
            for (int j = 0; j < 6; j++) {
                for (int i = 0; i < 6; i++) d[i] = LOAD(pixels[6 * i + j] + c * stride[6 * i + j]);
                bt(d, o);
                for (int i = 0; i < 6; i++) t[i][j] = o[i];
            }
            float *out = v + (c * n + k * W);
            for (int i = 0; i < 6; i++) {
                bt(t[i], o);
                for (int j = 0; j < 6; j++) STORE(out + (6 * i + j) * step, o[j]);
            }
        }
    }
}

/* Q = A y A^T of the gradient's tiles -> (36, channels/16, n, 16). */
static void transform_gradient(const float *g, shape s, long channels, long first, long n, long begin, long end, float *q,
                               long step)
{
    float zero[W] = {0};
    for (long k = begin; k < end; k++) {
        long b, y0, x0;
        place(s, first + k, &b, &y0, &x0);
        const float *pixels[16];
        long stride[16];
        for (int i = 0; i < 4; i++)
            for (int j = 0; j < 4; j++) {
                int inside = y0 + i < s.h && x0 + j < s.w;
                pixels[4 * i + j] = inside ? g + ((b * s.h + y0 + i) * s.w + x0 + j) * channels : zero;
                stride[4 * i + j] = inside;
            }
        for (long c = 0; c < channels; c += W) {
            vec t[6][4], y[4], o[6];
            for (int j = 0; j < 4; j++) {
                for (int i = 0; i < 4; i++) y[i] = LOAD(pixels[4 * i + j] + c * stride[4 * i + j]);
                a_(y, o);
                for (int i = 0; i < 6; i++) t[i][j] = o[i];
            }
            float *out = q + ((c / 16 * n + k) * 16 + c % 16);
            for (int i = 0; i < 6; i++) {
                a_(t[i], o);
                for (int j = 0; j < 6; j++) STORE(out + (6 * i + j) * step, o[j]);
            }
        }
    }
}

/* Y = A^T M A + bias from (36, channels/16, n, 16). */
static void transform_output(const float *m, long step, shape s, long channels, long first, long n, const float *bias,
                             long bias_step, float *y)
{
    for (long k = 0; k < n; k++) {
        long b, y0, x0;
        place(s, first + k, &b, &y0, &x0);
        int rows = s.h - y0 < 4 ? (int)(s.h - y0) : 4, columns = s.w - x0 < 4 ? (int)(s.w - x0) : 4;
        float *corner = y + ((b * s.h + y0) * s.w + x0) * channels;
        for (long c = 0; c < channels; c += W) {
            const float *in = m + ((c / 16 * n + k) * 16 + c % 16);
            vec t[4][6], d[6], o[4], add = {0};
            if (bias) add = LOAD(bias + b * bias_step + c);
            for (int j = 0; j < 6; j++) {
                for (int i = 0; i < 6; i++) d[i] = LOAD(in + (6 * i + j) * step);
                at(d, o);
                for (int i = 0; i < 4; i++) t[i][j] = o[i];
            }
            for (int i = 0; i < rows; i++) {
                at(t[i], o);
                for (int j = 0; j < columns; j++) STORE(corner + (i * s.w + j) * channels + c, o[j] + add);
            }
        }
    }
}

INLINE long smaller(long a, long b) { return a < b ? a : b; }
INLINE long larger(long a, long b) { return a > b ? a : b; }
/* Parts lie a few cache lines more than a power of two apart, or all 36 would share the cache's same few sets. */
INLINE long padded(long floats) { return (floats + 15) / 16 * 16 + 16; }

/* U = G g G^T -> (36, out/16, in, 16), the 36 parts padded(in out) floats apart. Weight (n, k) of output n and input k begins
   at weight + n * step_n + k * step_k; turned: by half a turn. */
void transform_weight(const float *weight, long out, long in, long step_n, long step_k, int turned, float *u, int threads)
{
    long panels = out / 16, step_u = padded(in * out);
#pragma omp parallel for num_threads(threads)
    for (long i = 0; i < panels * in; i++) {
        /* In the order in which the weights lie in memory. */
        long n = 16 * (step_n > step_k ? i / in : i % panels), k = step_n > step_k ? i % in : i / panels;
        for (int half = 0; half < 16; half += W) {
            vec t[6][3], o[6];
            for (int c = 0; c < 3; c++) {
                float g[3][W];
                for (int r = 0; r < 3; r++) {
                    const float *from = weight + (n + half) * step_n + k * step_k + (turned ? 8 - (3 * r + c) : 3 * r + c);
                    for (int l = 0; l < W; l++) g[r][l] = from[l * step_n];
                }
                g_((vec[3]){LOAD(g[0]), LOAD(g[1]), LOAD(g[2])}, o);
                for (int r = 0; r < 6; r++) t[r][c] = o[r];
            }
            for (int r = 0; r < 6; r++) {
                g_(t[r], o);
                for (int c = 0; c < 6; c++) STORE(u + (6 * r + c) * step_u + (n / 16 * in + k) * 16 + half, o[c]);
            }
        }
    }
}

/* --- products ------------------------------------------------------------------------------------------------------ */

/* M[r, :] = sum_k V[r, k] U[k, :] for `rows` tiles and `vectors` vectors of outputs, which lie `apart` in U and `below` in M;
   V in panels of W channels that are `panel` floats long. */
INLINE void product(const float *v, long panel, const float *u, long apart, long depth, float *m, long below, const int rows,
                    const int vectors)
{
    vec acc[ROWS][2];
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++) acc[r][0] = acc[r][1] = (vec){0};
    for (long k = 0; k < depth; k += W, v += panel)
        for (int l = 0; l < W; l++, u += 16) {
            vec u0 = LOAD(u), u1 = vectors == 2 ? LOAD(u + apart) : u0;
#pragma GCC unroll 12
            for (int r = 0; r < rows; r++) {
                acc[r][0] += v[W * r + l] * u0;
                if (vectors == 2) acc[r][1] += v[W * r + l] * u1;
            }
        }
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++) {
        STORE(m + 16 * r, acc[r][0]);
        if (vectors == 2) STORE(m + 16 * r + below, acc[r][1]);
    }
}

/* The same for n tiles. */
INLINE void product_of_all(const float *v, const float *u, long apart, long depth, float *m, long below, long n,
                           const int vectors)
{
    long k = 0;
    for (; k + ROWS <= n; k += ROWS)
        product(v + W * k, W * n, u, apart, depth, m + 16 * k, below, ROWS, vectors);
#define REST(r) case r: product(v + W * k, W * n, u, apart, depth, m + 16 * k, below, r, vectors); break;
    switch (n - k) {
#if ROWS == 12
    REST(11) REST(10) REST(9) REST(8) REST(7) REST(6)
#endif
    REST(5) REST(4) REST(3) REST(2) REST(1)
    }
#undef REST
}

static void products(const float *v, const float *u, float *m, long n, long in, long out)
{
#if W == 16   /* 32 outputs at a time, which are two panels */
    for (; out >= 32; out -= 32, u += 2 * in * 16, m += 2 * n * 16) product_of_all(v, u, in * 16, in, m, n * 16, n, 2);
    if (out) product_of_all(v, u, 0, in, m, 0, n, 1);
#else         /* 16, which are two halves of a panel */
    for (; out; out -= 16, u += in * 16, m += n * 16) product_of_all(v, u, 8, in, m, 8, n, 2);
#endif
}

#define OUTER (W == 16 ? 16 : 4)   /* channels at a time, whose sums fill half of the registers */

/* dU[c, 0:16] += sum_k V[k, c] Q[k, 0:16] over tiles k, for OUTER channels c. */
INLINE void outer(const float *v, const float *q, long n, float *du)
{
    vec acc[OUTER][16 / W];
#pragma GCC unroll 16
    for (int r = 0; r < OUTER; r++)
        for (int i = 0; i < 16 / W; i++) acc[r][i] = LOAD(du + 16 * r + W * i);
    for (long k = 0; k < n; k++, v += W, q += 16)
#pragma GCC unroll 16
        for (int r = 0; r < OUTER; r++)
            for (int i = 0; i < 16 / W; i++) acc[r][i] += v[r] * LOAD(q + W * i);
#pragma GCC unroll 16
    for (int r = 0; r < OUTER; r++)
        for (int i = 0; i < 16 / W; i++) STORE(du + 16 * r + W * i, acc[r][i]);
}

/* --- convolutions -------------------------------------------------------------------------------------------------- */

/* y (b, h, w, out) = x (b, h, w, in) * weights, + bias (of each sample if bias_step > 0; may be null).
   u: from transform_weight. */
void conv3x3(const float *x, const float *u, const float *bias, long bias_step, float *y, long b, long h, long w, long in,
             long out, int threads)
{
    shape s = {b, h, w};
    long tiles = tiles_of(s);
    /* Many tiles at a time use the weights well, few stay in the second-level cache. */
    long block = larger(W == 16 ? 24 : 48, 220000 / (P * (in + out)) / ROWS * ROWS);
    block = smaller(block, (tiles + threads - 1) / threads);
    long blocks = (tiles + block - 1) / block;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (long k = 0; k < blocks; k++) {
        long first = k * block, n = smaller(block, tiles - first);
        long step_v = padded(n * in), step_m = padded(n * out);
        float *v = scratch(P * (step_v + step_m)), *m = v + P * step_v;
        transform_input(x, s, in, first, n, 0, n, v, step_v);
        for (long p = 0; p < P; p++) products(v + p * step_v, u + p * padded(in * out), m + p * step_m, n, in, out);
        transform_output(m, step_m, s, out, first, n, bias, bias_step, y);
    }
}

/* The same with weights as they are, see transform_weight. */
void conv3x3_of(const float *x, const float *weight, long step_n, long step_k, int turned, const float *bias, long bias_step,
                float *y, long b, long h, long w, long in, long out, int threads)
{
    float *u = reserve(&for_weights, P * padded(in * out));
    transform_weight(weight, out, in, step_n, step_k, turned, u, threads);
    conv3x3(x, u, bias, bias_step, y, b, h, w, in, out, threads);
}

/* Gradient (out, in, 3, 3) of the weights, from x (b, h, w, in) and g (b, h, w, out). */
void conv3x3_weight(const float *x, const float *g, float *weight, long b, long h, long w, long in, long out, int threads)
{
    shape s = {b, h, w};
    long tiles = tiles_of(s), block = larger(96, 1000000 / (P * (in + out)));
    block = smaller(block, tiles);
    long step_v = padded(block * in), step_q = padded(block * out), step_u = padded(in * out);
    float *v = scratch(P * (step_v + step_q + step_u)), *q = v + P * step_v, *du = q + P * step_q;
    memset(du, 0, sizeof(float) * P * step_u);
    for (long first = 0; first < tiles; first += block) {
        long n = smaller(block, tiles - first);
#pragma omp parallel num_threads(threads)
        {
#pragma omp for schedule(static) nowait
            for (long k = 0; k < n; k += 8) transform_input(x, s, in, first, n, k, smaller(k + 8, n), v, step_v);
#pragma omp for schedule(static) nowait
            for (long k = 0; k < n; k += 8) transform_gradient(g, s, out, first, n, k, smaller(k + 8, n), q, step_q);
#pragma omp barrier
#pragma omp for schedule(dynamic)
            for (long p = 0; p < P; p++)
                for (long o = 0; o < out; o += 16)
                    for (long c = 0; c < in; c += OUTER)
                        outer(v + p * step_v + (c / W * n) * W + c % W, q + p * step_q + o * n, n,
                              du + p * step_u + o * in + c * 16);
        }
    }
#pragma omp parallel for num_threads(threads) collapse(2)
    for (long o = 0; o < out; o += W)
        for (long c = 0; c < in; c++) {
            vec t[3][6], m[6], r[3];
            for (int j = 0; j < 6; j++) {
                for (int i = 0; i < 6; i++) m[i] = LOAD(du + (6 * i + j) * step_u + (o / 16 * in + c) * 16 + o % 16);
                gt(m, r);
                for (int i = 0; i < 3; i++) t[i][j] = r[i];
            }
            for (int i = 0; i < 3; i++) {
                gt(t[i], r);
                for (int j = 0; j < 3; j++)
                    for (int l = 0; l < W; l++) weight[((o + l) * in + c) * 9 + 3 * i + j] = r[j][l];
            }
        }
}

/* --- group normalisation and SiLU ---------------------------------------------------------------------------------- */

INLINE vec between(vec x, float low, float high)
{
    ints under = x < low, over = x > high;
    return (vec)(((ints)x & ~(under | over)) | ((ints)((vec){0} + low) & under) | ((ints)((vec){0} + high) & over));
}

/* 1 / (1 + exp(-x)); exp as 2^n times a polynomial of degree 6 on [-ln 2/2, ln 2/2], relative error 1e-7. */
INLINE vec sigmoid(vec x)
{
    x = between(x, -87.f, 87.f);
    vec shifted = x * -1.44269504f + 12582912.f;   /* 1.5 * 2^23: n is in the last bits */
    vec n = shifted - 12582912.f, r = n * 2.12194440e-4f - (n * 0.693359375f + x);
    vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + (r + 1.f);
    return 1.f / (1.f + p * (vec)(((ints)shifted + (127 - 0x4b400000)) << 23));
}

/* Sums over pixels of each channel, to the mean of each channel's group. */
static void of_groups(float *sums, long channels, long groups, long pixels)
{
    long size = channels / groups;
    for (long k = 0; k < groups; k++) {
        double total = 0;
        for (long c = k * size; c < (k + 1) * size; c++) total += sums[c];
        for (long c = k * size; c < (k + 1) * size; c++) sums[c] = (float)(total / (double)(size * pixels));
    }
}

/* Sums over pixels of x, or of (x - mean)^2, for n vectors of channels, which stay in registers. */
INLINE void moments(const float *x, const float *mean, float *sums, long pixels, long channels, const int n)
{
    vec s[8], m[8];
    for (int i = 0; i < n; i++) s[i] = (vec){0}, m[i] = mean ? LOAD(mean + W * i) : (vec){0};
    for (long p = 0; p < pixels; p++, x += channels)
#pragma GCC unroll 8
        for (int i = 0; i < n; i++) {
            vec d = LOAD(x + W * i) - m[i];
            s[i] += mean ? d * d : d;
        }
    for (int i = 0; i < n; i++) STORE(sums + W * i, s[i]);
}

static void moment(const float *x, const float *mean, float *sums, long pixels, long channels)
{
    long c = 0;
    for (; c + 64 <= channels; c += 64) moments(x + c, mean ? mean + c : 0, sums + c, pixels, channels, 64 / W);
    for (; c + 32 <= channels; c += 32) moments(x + c, mean ? mean + c : 0, sums + c, pixels, channels, 32 / W);
    for (; c < channels; c += 16) moments(x + c, mean ? mean + c : 0, sums + c, pixels, channels, 16 / W);
}

/* y = silu(a (x - mean) rstd + b), or without silu; a, b (samples, channels); mean, rstd (samples, groups).
   know: mean and rstd are given, else they are computed: in two passes, since |mean| may be much larger than std. */
void norm_silu(const float *x, const float *a, const float *b, float *mean, float *rstd, float *y, long samples, long pixels,
               long channels, long groups, float eps, int silu, int know, int threads)
{
    long size = channels / groups;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (long k = 0; k < samples; k++) {
        const float *in = x + k * pixels * channels;
        float *scale = scratch(2 * channels), *shift = scale + channels;
        if (!know) {
            moment(in, 0, scale, pixels, channels);
            of_groups(scale, channels, groups, pixels);
            moment(in, scale, shift, pixels, channels);
            of_groups(shift, channels, groups, pixels);
            for (long g = 0; g < groups; g++) {
                mean[k * groups + g] = scale[g * size];
                rstd[k * groups + g] = 1.f / __builtin_sqrtf(shift[g * size] + eps);
            }
        }
        for (long c = 0; c < channels; c++) {
            scale[c] = a[k * channels + c] * rstd[k * groups + c / size];
            shift[c] = b[k * channels + c] - scale[c] * mean[k * groups + c / size];
        }
        for (long p = 0; p < pixels; p++)
            for (long c = 0; c < channels; c += W) {
                vec u = LOAD(in + p * channels + c) * LOAD(scale + c) + LOAD(shift + c);
                STORE(y + (k * pixels + p) * channels + c, silu ? u * sigmoid(u) : u);
            }
    }
}

/* g z of z = a n + b with n = (x - mean) rstd = r x + m, for n vectors of channels; sums of g z n and of g z. */
INLINE void back(const float *x, const float *r, const float *m, const float *a, const float *b, const float *gy, float *gz,
                 float *sum_a, float *sum_b, long pixels, long channels, int silu, const int n)
{
    vec da[4], db[4];
    for (int i = 0; i < n; i++) da[i] = db[i] = (vec){0};
    for (long p = 0; p < pixels; p++)
#pragma GCC unroll 4
        for (int i = 0; i < n; i++) {
            long at = p * channels + W * i;
            vec normal = LOAD(x + at) * LOAD(r + W * i) + LOAD(m + W * i), g = LOAD(gy + at);
            if (silu) {
                vec u = LOAD(a + W * i) * normal + LOAD(b + W * i), s = sigmoid(u);
                g = g * (s + u * s * (1.f - s));
            }
            STORE(gz + at, g);
            da[i] += g * normal;
            db[i] += g;
        }
    for (int i = 0; i < n; i++) STORE(sum_a + W * i, da[i]), STORE(sum_b + W * i, db[i]);
}

/* Gradients for x, a and b from that for y, (samples, pixels, channels); gx may be gy. */
void norm_silu_back(const float *x, const float *a, const float *b, const float *mean, const float *rstd, const float *gy,
                    float *gx, float *ga, float *gb, long samples, long pixels, long channels, long groups, int silu,
                    int threads)
{
    long size = channels / groups;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (long k = 0; k < samples; k++) {
        const float *in = x + k * pixels * channels;
        const float *al = a + k * channels, *be = b + k * channels;
        float *da = ga + k * channels, *db = gb + k * channels;
        float *r = scratch(4 * channels), *m = r + channels, *s1 = m + channels, *s2 = s1 + channels;
        for (long c = 0; c < channels; c++) {
            r[c] = rstd[k * groups + c / size];
            m[c] = -r[c] * mean[k * groups + c / size];
        }
        const float *g = gy + k * pixels * channels;
        float *out = gx + k * pixels * channels;
        for (long c = 0; c < channels; c += 32) {
            if (c + 32 <= channels)
                back(in + c, r + c, m + c, al + c, be + c, g + c, out + c, da + c, db + c, pixels, channels, silu, 32 / W);
            else
                back(in + c, r + c, m + c, al + c, be + c, g + c, out + c, da + c, db + c, pixels, channels, silu, 16 / W);
        }
        for (long c = 0; c < channels; c++) s1[c] = al[c] * db[c], s2[c] = al[c] * da[c];
        of_groups(s1, channels, groups, pixels);
        of_groups(s2, channels, groups, pixels);
        for (long p = 0; p < pixels; p++, in += channels, out += channels)
            for (long c = 0; c < channels; c += W) {
                vec n = LOAD(in + c) * LOAD(r + c) + LOAD(m + c);
                STORE(out + c, LOAD(r + c) * (LOAD(al + c) * LOAD(out + c) - LOAD(s1 + c) - n * LOAD(s2 + c)));
            }
    }
}
