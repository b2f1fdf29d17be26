/* Products of factors of small blocks, and of U Vᵀ + diag(d), with features-first x, (features, batch), in fp32.

   A factor alone does few multiply-adds for each number that it reads and writes. So several factors in succession are
   applied at once to a cell: the features that they mix among each other, for a piece of the batch, which stays in the
   nearest caches meanwhile. The factors of a cell have blocks of b_1 x b_1, b_2 x b_2, ..., and the cell b_1·b_2·...
   features; a single factor may have blocks that are no squares. Each number is summed by one thread in a fixed order,
   so it does not depend on the number of threads. */

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#ifdef __AVX512F__
#define LANES 16
#define TILE 4 /* vectors of a sum that are kept in registers, for each of 4 outputs */
#define ROWS 4 /* rows of a weight's gradient that are summed at once */
#else /* AVX2 */
#define LANES 8
#define TILE 2
#define ROWS 2
#endif
#define PIECE 128 /* images of a piece of the batch */
#define NEAR 8 /* the largest block of a first factor that reads its rows where they lie: larger ones read them often */
#define INLINE static inline __attribute__((always_inline))

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

/* Call with constants, so that the compiler keeps sums in registers. */
#define WITH_UP_TO_FOUR(count, CALL) \
    switch (count) { \
    case 1: CALL(1); break; \
    case 2: CALL(2); break; \
    case 3: CALL(3); break; \
    default: CALL(4); \
    }

/* TILE vectors of `outs` rows of y = W x + bias; entry (o, k) of W is w[o * by_out + k * by_term]. */
INLINE void weighted_sums(const int outs, int64_t terms, const float *w, int64_t by_out, int64_t by_term,
                          const float *bias, const float *x, int64_t x_apart, float *y, int64_t y_apart)
{
    lanes sum[4][TILE];
#pragma GCC unroll 4
    for (int o = 0; o < outs; o++)
#pragma GCC unroll 4
        for (int v = 0; v < TILE; v++)
            sum[o][v] = (bias ? bias[o] : 0) - (lanes){0};
    for (int64_t k = 0; k < terms; k++) {
        const lanes *row = (const lanes *)(x + k * x_apart);
#pragma GCC unroll 4
        for (int o = 0; o < outs; o++)
#pragma GCC unroll 4
            for (int v = 0; v < TILE; v++)
                sum[o][v] += w[o * by_out + k * by_term] * row[v];
    }
#pragma GCC unroll 4
    for (int o = 0; o < outs; o++)
#pragma GCC unroll 4
        for (int v = 0; v < TILE; v++)
            ((lanes *)(y + o * y_apart))[v] = sum[o][v];
}

/* One factor of a cell, for a piece of the batch. Block t reads the rows t, t + blocks, t + 2 blocks, ... of x and gives
   the rows of y from t * out on, so that factors in succession go through the axes of a table of features. `before` blocks
   at a time have weights that lie together, the first ones from block `first` on, the next ones `jump` blocks later. */
struct factor {
    int64_t out, in, blocks, before, first, jump;
    const float *weight, *bias, *second;
    int64_t number, apart; /* the factor's number among all, and see PAIR */
    int64_t ahead; /* numbers from a row of x to that of the next cell, whose gradient is prefetched; 0: none is */
};

INLINE void multiply(int64_t out, int64_t in, const float *w, int64_t by_out, int64_t by_in, const float *bias, int tiles,
                     const float *x, int64_t x_apart, float *y, int64_t y_apart)
{
    for (int64_t o = 0; o < out; o += 4)
        for (int tile = 0; tile < tiles * TILE * LANES; tile += TILE * LANES) {
#define SUMS(count) \
    weighted_sums(count, in, w + o * by_out, by_out, by_in, bias ? bias + o : 0, x + tile, x_apart, y + o * y_apart + tile, \
                  y_apart)
            WITH_UP_TO_FOUR(out - o, SUMS)
        }
}

INLINE __m128 halves(lanes x)
{
#if LANES == 16
    __m512 all;
    memcpy(&all, &x, sizeof all);
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all),
                                _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(all), 1)));
#else
    __m256 half;
    memcpy(&half, &x, sizeof half);
#endif
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

/* A tile of gradient xᵀ, of `outs` rows of the gradient and `ins` of x, over all vectors of a piece. */
INLINE void inner_products(const int outs, const int ins, int vectors, const float *gradient, int64_t gradient_apart,
                           const float *x, int64_t x_apart, int is_first, float *of_w, int64_t by_out)
{
    lanes sum[ROWS][4];
#pragma GCC unroll 4
    for (int o = 0; o < outs; o++)
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++)
            sum[o][i] = (lanes){0};
    for (int v = 0; v < vectors; v++)
#pragma GCC unroll 4
        for (int o = 0; o < outs; o++)
#pragma GCC unroll 4
            for (int i = 0; i < ins; i++)
                sum[o][i] += ((const lanes *)(gradient + o * gradient_apart))[v] * ((const lanes *)(x + i * x_apart))[v];
#pragma GCC unroll 4
    for (int o = 0; o < outs; o++) {
        float totals[4];
        _mm_storeu_ps(totals, _mm_hadd_ps(_mm_hadd_ps(halves(sum[o][0]), halves(sum[o][1])),
                                          _mm_hadd_ps(halves(sum[o][2]), halves(sum[o][3]))));
#pragma GCC unroll 4
        for (int i = 0; i < ins; i++)
            of_w[o * by_out + i] = is_first ? totals[i] : of_w[o * by_out + i] + totals[i];
    }
}

/* gradient xᵀ of one block, whose entry (o, i) is of_w[o * by_out + i]. */
INLINE void weight_gradient(int64_t outs, int64_t ins, int vectors, const float *gradient, int64_t gradient_apart,
                            const float *x, int64_t x_apart, int is_first, float *of_w, int64_t by_out)
{
    for (int64_t o = 0; o < outs; o += ROWS)
        for (int64_t i = 0; i < ins; i += 4) {
#define PRODUCTS_OF(rows, columns) \
    inner_products(rows, columns, vectors, gradient + o * gradient_apart, gradient_apart, x + i * x_apart, x_apart, \
                   is_first, of_w + o * by_out + i, by_out)
#define PRODUCTS_1(columns) PRODUCTS_OF(1, columns)
#define PRODUCTS_2(columns) PRODUCTS_OF(2, columns)
#define PRODUCTS_3(columns) PRODUCTS_OF(3, columns)
#define PRODUCTS_4(columns) PRODUCTS_OF(4, columns)
            const int64_t rows = outs - o < ROWS ? outs - o : ROWS;
            if (rows == 1)
                WITH_UP_TO_FOUR(ins - i, PRODUCTS_1)
            else if (rows == 2)
                WITH_UP_TO_FOUR(ins - i, PRODUCTS_2)
#if ROWS == 4
            else if (rows == 3)
                WITH_UP_TO_FOUR(ins - i, PRODUCTS_3)
            else
                WITH_UP_TO_FOUR(ins - i, PRODUCTS_4)
#endif
        }
}

/* The same for blocks that are so small that their weights stay in registers. */
INLINE void multiply_small(const int out, const int in, const float *w, int64_t by_out, int64_t by_in, const float *bias,
                           int vectors, const float *x, int64_t x_apart, float *y, int64_t y_apart)
{
    lanes weight[4][4], start[4];
#pragma GCC unroll 4
    for (int o = 0; o < out; o++) {
        start[o] = (bias ? bias[o] : 0) - (lanes){0};
#pragma GCC unroll 4
        for (int i = 0; i < in; i++)
            weight[o][i] = w[o * by_out + i * by_in] - (lanes){0};
    }
    for (int v = 0; v < vectors; v++) {
        lanes sum[4];
#pragma GCC unroll 4
        for (int o = 0; o < out; o++)
            sum[o] = start[o];
#pragma GCC unroll 4
        for (int i = 0; i < in; i++) {
            const lanes term = ((const lanes *)(x + i * x_apart))[v];
#pragma GCC unroll 4
            for (int o = 0; o < out; o++)
                sum[o] += weight[o][i] * term;
        }
#pragma GCC unroll 4
        for (int o = 0; o < out; o++)
            ((lanes *)(y + o * y_apart))[v] = sum[o];
    }
}

/* Two factors of 2 x 2 in succession have the inputs and outputs of one of 4 x 4. Two blocks of the first one, `apart`
   blocks from each other, give m0, m1 and m2, m3; two blocks of the second one that lie together read m0, m2 and m1, m3. */
#define PAIR(w, u, apart) \
    const lanes zero = {0}; \
    const lanes a00 = w[0] - zero, a01 = w[1] - zero, a10 = w[2] - zero, a11 = w[3] - zero; \
    const lanes b00 = w[4 * apart] - zero, b01 = w[4 * apart + 1] - zero; \
    const lanes b10 = w[4 * apart + 2] - zero, b11 = w[4 * apart + 3] - zero; \
    const lanes c00 = u[0] - zero, c01 = u[1] - zero, c10 = u[2] - zero, c11 = u[3] - zero; \
    const lanes d00 = u[4] - zero, d01 = u[5] - zero, d10 = u[6] - zero, d11 = u[7] - zero
#define ROW(x, i, apart) ((lanes *)((x) + (i) * (apart)))[v]
#define FIRST_OF_PAIR \
    const lanes x0 = ROW(x, 0, x_apart), x1 = ROW(x, 1, x_apart), x2 = ROW(x, 2, x_apart), x3 = ROW(x, 3, x_apart); \
    const lanes m0 = a00 * x0 + a01 * x2, m1 = a10 * x0 + a11 * x2; \
    const lanes m2 = b00 * x1 + b01 * x3, m3 = b10 * x1 + b11 * x3

INLINE void multiply_pair(const float *w, const float *u, int64_t apart, const float *bias, int vectors, const float *x,
                          int64_t x_apart, float *y, int64_t y_apart)
{
    PAIR(w, u, apart);
    lanes start[4];
    for (int o = 0; o < 4; o++)
        start[o] = (bias ? bias[o] : 0) - zero;
    for (int v = 0; v < vectors; v++) {
        FIRST_OF_PAIR;
        ROW(y, 0, y_apart) = start[0] + c00 * m0 + c01 * m2;
        ROW(y, 1, y_apart) = start[1] + c10 * m0 + c11 * m2;
        ROW(y, 2, y_apart) = start[2] + d00 * m1 + d01 * m3;
        ROW(y, 3, y_apart) = start[3] + d10 * m1 + d11 * m3;
    }
}

INLINE void add_totals(lanes a, lanes b, lanes c, lanes d, int is_first, float *into)
{
    const __m128 totals = _mm_hadd_ps(_mm_hadd_ps(halves(a), halves(b)), _mm_hadd_ps(halves(c), halves(d)));
    _mm_storeu_ps(into, is_first ? totals : _mm_add_ps(_mm_loadu_ps(into), totals));
}

INLINE void gradients_of_pair(const float *w, const float *u, int64_t apart, int vectors, const float *x, int64_t x_apart,
                              const float *of_y, int64_t y_apart, int is_first, float *of_w, float *of_u, float *of_x,
                              int64_t of_x_apart, int64_t ahead)
{
    PAIR(w, u, apart);
    lanes of_a[4] = {zero, zero, zero, zero}, of_b[4] = {zero, zero, zero, zero};
    lanes of_c[4] = {zero, zero, zero, zero}, of_d[4] = {zero, zero, zero, zero};
    for (int v = 0; v < vectors; v++) {
        FIRST_OF_PAIR;
        const lanes y0 = ROW(of_y, 0, y_apart), y1 = ROW(of_y, 1, y_apart);
        const lanes y2 = ROW(of_y, 2, y_apart), y3 = ROW(of_y, 3, y_apart);
        of_c[0] += y0 * m0, of_c[1] += y0 * m2, of_c[2] += y1 * m0, of_c[3] += y1 * m2;
        of_d[0] += y2 * m1, of_d[1] += y2 * m3, of_d[2] += y3 * m1, of_d[3] += y3 * m3;
        const lanes g0 = c00 * y0 + c10 * y1, g2 = c01 * y0 + c11 * y1;
        const lanes g1 = d00 * y2 + d10 * y3, g3 = d01 * y2 + d11 * y3;
        of_a[0] += g0 * x0, of_a[1] += g0 * x2, of_a[2] += g1 * x0, of_a[3] += g1 * x2;
        of_b[0] += g2 * x1, of_b[1] += g2 * x3, of_b[2] += g3 * x1, of_b[3] += g3 * x3;
        if (ahead)
            for (int i = 0; i < 4; i++)
                __builtin_prefetch(&ROW(of_x + ahead, i, of_x_apart), 1);
        ROW(of_x, 0, of_x_apart) = a00 * g0 + a10 * g1;
        ROW(of_x, 1, of_x_apart) = b00 * g2 + b10 * g3;
        ROW(of_x, 2, of_x_apart) = a01 * g0 + a11 * g1;
        ROW(of_x, 3, of_x_apart) = b01 * g2 + b11 * g3;
    }
    add_totals(of_a[0], of_a[1], of_a[2], of_a[3], is_first, of_w);
    add_totals(of_b[0], of_b[1], of_b[2], of_b[3], is_first, of_w + 4 * apart);
    add_totals(of_c[0], of_c[1], of_c[2], of_c[3], is_first, of_u);
    add_totals(of_d[0], of_d[1], of_d[2], of_d[3], is_first, of_u + 4);
}

#define FOR_EACH_BLOCK(f, t, at) \
    for (int64_t first = 0, at = (f)->first; first < (f)->blocks; first += (f)->before, at += (f)->jump) \
        for (int64_t t = first; t < first + (f)->before; t++, at++)

INLINE void product(const int is_small, const struct factor *f, int64_t out, int64_t in, int tiles, const float *x,
                    int64_t x_apart, float *y, int64_t y_apart)
{
    const float *weight = f->weight, *bias = f->bias;
    const int64_t blocks = f->blocks;
    FOR_EACH_BLOCK(f, t, at)
        if (is_small)
            multiply_small(out, in, weight + at * out * in, in, 1, bias ? bias + t * out : 0, tiles * TILE, x + t * x_apart,
                           blocks * x_apart, y + t * out * y_apart, y_apart);
        else
            multiply(out, in, weight + at * out * in, in, 1, bias ? bias + t * out : 0, tiles, x + t * x_apart,
                     blocks * x_apart, y + t * out * y_apart, y_apart);
}

INLINE void gradients(const int is_small, const struct factor *f, int64_t out, int64_t in, int tiles, const float *x,
                      int64_t x_apart, const float *of_y, int64_t y_apart, int is_first, float *of_weight, float *of_x,
                      int64_t of_x_apart)
{
    const float *weight = f->weight;
    const int64_t blocks = f->blocks;
    FOR_EACH_BLOCK(f, t, at) {
        weight_gradient(out, in, tiles * TILE, of_y + t * out * y_apart, y_apart, x + t * x_apart, blocks * x_apart,
                        is_first, of_weight + at * out * in, in);
        if (is_small)
            multiply_small(in, out, weight + at * out * in, 1, in, 0, tiles * TILE, of_y + t * out * y_apart, y_apart,
                           of_x + t * of_x_apart, blocks * of_x_apart);
        else
            multiply(in, out, weight + at * out * in, 1, in, 0, tiles, of_y + t * out * y_apart, y_apart,
                     of_x + t * of_x_apart, blocks * of_x_apart);
    }
}

/* The same as functions of their own, with loops of their own for the smallest blocks. */
#define DEFINE(is_small, out, in, NAME) \
    static __attribute__((noinline)) void NAME(product)(const struct factor *f, int tiles, const float *x, int64_t x_apart, \
                                                        float *y, int64_t y_apart) \
    { \
        product(is_small, f, out, in, tiles, x, x_apart, y, y_apart); \
    } \
    static __attribute__((noinline)) void NAME(gradients)(const struct factor *f, int tiles, const float *x, \
                                                          int64_t x_apart, const float *of_y, int64_t y_apart, \
                                                          int is_first, float *of_weight, float *of_x, int64_t of_x_apart) \
    { \
        gradients(is_small, f, out, in, tiles, x, x_apart, of_y, y_apart, is_first, of_weight, of_x, of_x_apart); \
    }
static __attribute__((noinline)) void product_of_pair(const struct factor *f, int tiles, const float *x, int64_t x_apart,
                                                      float *y, int64_t y_apart)
{
    FOR_EACH_BLOCK(f, t, at)
        multiply_pair(f->weight + 4 * at, f->second + 8 * at, f->apart, f->bias ? f->bias + 4 * t : 0, tiles * TILE,
                      x + t * x_apart, f->blocks * x_apart, y + 4 * t * y_apart, y_apart);
}

static __attribute__((noinline)) void pair_gradients(const struct factor *f, int tiles, const float *x, int64_t x_apart,
                                                     const float *of_y, int64_t y_apart, int is_first, float *of_weight,
                                                     float *of_second, float *of_x, int64_t of_x_apart)
{
    FOR_EACH_BLOCK(f, t, at)
        gradients_of_pair(f->weight + 4 * at, f->second + 8 * at, f->apart, tiles * TILE, x + t * x_apart,
                          f->blocks * x_apart, of_y + 4 * t * y_apart, y_apart, is_first, of_weight + 4 * at,
                          of_second + 8 * at, of_x + t * of_x_apart, f->blocks * of_x_apart, f->ahead);
}

#define OF_TWO(name) name##_of_two
#define OF_FOUR(name) name##_of_four
#define OF_ANY(name) name##_of_any
DEFINE(1, 2, 2, OF_TWO)
DEFINE(1, 4, 4, OF_FOUR)
DEFINE(0, f->out, f->in, OF_ANY)
static void product_of(const struct factor *f, int tiles, const float *x, int64_t x_apart, float *y, int64_t y_apart)
{
    (f->second                     ? product_of_pair
     : f->in == 2 && f->out == 2   ? OF_TWO(product)
     : f->in == 4 && f->out == 4 ? OF_FOUR(product)
                                   : OF_ANY(product))(f, tiles, x, x_apart, y, y_apart);
}

static void gradients_of(const struct factor *f, int tiles, const float *x, int64_t x_apart, const float *of_y,
                         int64_t y_apart, int is_first, float *const *of_weights, float *of_x, int64_t of_x_apart)
{
    float *of_weight = of_weights[f->number];
    if (f->second)
        pair_gradients(f, tiles, x, x_apart, of_y, y_apart, is_first, of_weight, of_weights[f->number + 1], of_x, of_x_apart);
    else
        (f->in == 2 && f->out == 2   ? OF_TWO(gradients)
         : f->in == 4 && f->out == 4 ? OF_FOUR(gradients)
                                     : OF_ANY(gradients))(f, tiles, x, x_apart, of_y, y_apart, is_first, of_weight, of_x,
                                                          of_x_apart);
}

/* Describe the factors of cell n, two of 2 x 2 in succession as one; returns how many there are. */
static int64_t describe(struct factor *found, int64_t factors, int64_t cells, int64_t n, const int64_t *ins,
                        const int64_t *outs, const float *const *weights)
{
    int64_t features = 1, before = 1, count = 0;
    for (int64_t f = 0; f < factors; f++)
        features *= ins[f];
    for (int64_t f = 0; f < factors; f++) {
        const int is_pair = f + 1 < factors && ins[f] == 2 && outs[f] == 2 && ins[f + 1] == 2 && outs[f + 1] == 2;
        const int64_t in = is_pair ? 4 : ins[f], out = is_pair ? 4 : outs[f], blocks = features / in;
        found[count++] = (struct factor){out, in, blocks, before, n * before, (cells - 1) * before,
                                         weights[f], 0, is_pair ? weights[f + 1] : 0, f, blocks * cells};
        features = blocks * out, before *= out, f += is_pair;
    }
    return count;
}

/* Copy a piece of rows that are `apart` to rows of PIECE numbers, the last of which are 0 where the batch has ended. */
static void gather(const float *x, int64_t rows, int64_t apart, int64_t count, int64_t whole, float *piece)
{
    for (int64_t row = 0; row < rows; row++) {
        memcpy(piece + row * PIECE, x + row * apart, count * sizeof *x);
        memset(piece + row * PIECE + count, 0, (whole - count) * sizeof *x);
    }
}

static void scatter(const float *piece, int64_t rows, int64_t apart, int64_t count, float *x)
{
    for (int64_t row = 0; row < rows; row++)
        memcpy(x + row * apart, piece + row * PIECE, count * sizeof *x);
}

#define FOR_EACH_PIECE(from, count, tiles) \
    for (int64_t from = 0, count, tiles; \
         count = batch - from < PIECE ? batch - from : PIECE, tiles = (count + TILE * LANES - 1) / (TILE * LANES), \
         from < batch; from += PIECE)

/* y = F_k ... F_2 F_1 x + bias, for factors F_f with weights[f] (blocks, out, in) and a bias that may be null. Cell n reads
   the n-th column of an (ins, cells) matrix of features `by_columns`, else the n-th row of a (cells, ins) one. */
void mixersweep_blocks_product(int64_t cells, int64_t batch, int threads, int64_t factors, int64_t by_columns,
                               const int64_t *ins, const int64_t *outs, const float *const *weights, const float *bias,
                               const float *x, float *y)
{
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t n = 0; n < cells; n++) {
        struct factor f[factors];
        const int64_t steps = describe(f, factors, cells, n, ins, outs, weights);
        const int64_t in = f[0].blocks * f[0].in, out = f[steps - 1].blocks * f[steps - 1].out;
        f[steps - 1].bias = bias ? bias + n * out : 0;
        const int64_t most = in > out ? in : out, apart = by_columns ? cells * batch : batch;
        const float *columns = x + (by_columns ? n : n * in) * batch;
        float *rows = y + n * out * batch;
        float pieces[2][most * PIECE] __attribute__((aligned(64)));
        FOR_EACH_PIECE(from, count, tiles) {
            const int64_t whole = tiles * TILE * LANES;
            const int reads = count < whole || ins[0] > NEAR, writes = count < whole;
            const float *now = columns + from;
            int64_t now_apart = apart;
            if (reads)
                gather(now, in, apart, count, whole, pieces[0]), now = pieces[0], now_apart = PIECE;
            for (int64_t i = 0; i < steps; i++) {
                const int is_last = i == steps - 1 && !writes;
                float *next = is_last ? rows + from : pieces[1 - i % 2];
                product_of(f + i, tiles, now, now_apart, next, is_last ? batch : PIECE);
                now = next, now_apart = PIECE;
            }
            if (writes)
                scatter(pieces[steps % 2], out, batch, count, rows + from);
        }
    }
}

/* The gradients of x and of each factor's weights, for the gradient of the product. */
void mixersweep_blocks_gradients(int64_t cells, int64_t batch, int threads, int64_t factors, int64_t by_columns,
                                 const int64_t *ins, const int64_t *outs, const float *const *weights, const float *x,
                                 const float *gradient, float *const *of_weights, float *of_x)
{
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t n = 0; n < cells; n++) {
        struct factor f[factors];
        const int64_t steps = describe(f, factors, cells, n, ins, outs, weights);
        f[0].ahead = by_columns && n + 1 < cells && batch % PIECE == 0 ? batch : 0;
        const int64_t in = f[0].blocks * f[0].in, out = f[steps - 1].blocks * f[steps - 1].out;
        const int64_t most = in > out ? in : out, apart = by_columns ? cells * batch : batch;
        const int64_t start = (by_columns ? n : n * in) * batch;
        float pieces[steps + 2][most * PIECE] __attribute__((aligned(64)));
        FOR_EACH_PIECE(from, count, tiles) {
            const int64_t whole = tiles * TILE * LANES;
            const int copies = count < whole || ins[0] > NEAR;
            const float *inputs[steps], *of_y = gradient + n * out * batch + from;
            inputs[0] = x + start + from;
            int64_t x_apart = apart, y_apart = batch;
            if (copies) {
                gather(inputs[0], in, apart, count, whole, pieces[0]), inputs[0] = pieces[0], x_apart = PIECE;
                gather(of_y, out, batch, count, whole, pieces[steps]), of_y = pieces[steps], y_apart = PIECE;
            }
            for (int64_t i = 0; i < steps - 1; i++) {
                inputs[i + 1] = pieces[i + 1];
                product_of(f + i, tiles, inputs[i], i ? PIECE : x_apart, pieces[i + 1], PIECE);
            }
            for (int64_t i = steps - 1, turn = 1; i >= 0; i--, turn = 1 - turn) {
                const int is_last = i == 0 && !copies;
                float *next = is_last ? of_x + start + from : pieces[steps + turn];
                gradients_of(f + i, tiles, inputs[i], i ? PIECE : x_apart, of_y, y_apart, from == 0, of_weights,
                     next, is_last ? apart : PIECE);
                of_y = next, y_apart = PIECE;
            }
            if (copies)
                scatter(of_y, in, apart, count, of_x + start + from);
        }
    }
}

/* Sum gradient·x over the batch, and the gradient. */
INLINE void diagonal_gradients(int vectors, const float *gradient, const float *x, float *of_diagonal, float *of_bias)
{
    lanes inner = {0}, sum = {0};
    for (int v = 0; v < vectors; v++) {
        const lanes g = ((const lanes *)gradient)[v];
        inner += g * ((const lanes *)x)[v], sum += g;
    }
    float totals[4];
    _mm_storeu_ps(totals, _mm_hadd_ps(_mm_hadd_ps(halves(inner), halves(sum)), _mm_setzero_ps()));
    *of_diagonal = totals[0];
    if (of_bias)
        *of_bias = totals[1];
}

INLINE void add_multiple(int vectors, float factor, const float *x, float *y)
{
    for (int v = 0; v < vectors; v++)
        ((lanes *)y)[v] += factor * ((const lanes *)x)[v];
}

#define FOUR_AT_ONCE(first, some, count) \
    for (int64_t first = 0; first < count; first += 4) \
        for (int64_t some = count - first < 4 ? count - first : 4, once = 1; once; once = 0)

/* y = (U Vᵀ + diag(d)) x + bias and z = Vᵀ x, for Vᵀ (rank, width), rows of `weight` (width, rank + 1) that are those of U
   followed by d, and a batch that is a multiple of TILE vectors. The bias may be null. */
void mixersweep_low_rank_product(int64_t width, int64_t batch, int threads, int64_t rank, const float *transposed,
                                 const float *weight, const float *bias, const float *x, float *z, float *y)
{
    const int tiles = batch / (TILE * LANES);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        FOUR_AT_ONCE(k, some, rank)
            multiply(some, width, transposed + k * width, width, 1, 0, tiles, x, batch, z + k * batch, batch);
#pragma omp for schedule(static)
        FOUR_AT_ONCE(i, some, width) {
            multiply(some, rank, weight + i * (rank + 1), rank + 1, 1, bias ? bias + i : 0, tiles, z, batch, y + i * batch,
                     batch);
            for (int64_t row = i; row < i + some; row++)
                add_multiple(tiles * TILE, weight[row * (rank + 1) + rank], x + row * batch, y + row * batch);
        }
    }
}

/* Its gradients; of_z (rank, batch) is that of z, and of_bias may be null. */
void mixersweep_low_rank_gradients(int64_t width, int64_t batch, int threads, int64_t rank, const float *transposed,
                                   const float *weight, const float *x, const float *z, const float *gradient, float *of_z,
                                   float *of_transposed, float *of_weight, float *of_bias, float *of_x)
{
    const int tiles = batch / (TILE * LANES), vectors = tiles * TILE;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        FOUR_AT_ONCE(k, some, rank)
            multiply(some, width, weight + k, 1, rank + 1, 0, tiles, gradient, batch, of_z + k * batch, batch);
#pragma omp for schedule(static)
        FOUR_AT_ONCE(i, some, width) {
            const float *of_y = gradient + i * batch;
            weight_gradient(some, rank, vectors, of_y, batch, z, batch, 1, of_weight + i * (rank + 1), rank + 1);
            multiply(some, rank, transposed + i, 1, width, 0, tiles, of_z, batch, of_x + i * batch, batch);
            for (int64_t row = i; row < i + some; row++) {
                diagonal_gradients(vectors, gradient + row * batch, x + row * batch, of_weight + row * (rank + 1) + rank,
                                   of_bias ? of_bias + row : 0);
                add_multiple(vectors, weight[row * (rank + 1) + rank], gradient + row * batch, of_x + row * batch);
            }
            weight_gradient(rank, some, vectors, of_z, batch, x + i * batch, batch, 1, of_transposed + i, width);
        }
    }
}
