/* Products of a sparse matrix in CSR form with features-first x, (columns, batch), in fp32.

   They are bound by reading rows of x, one for each nonzero, mostly from the second-level cache. So a stretch of the
   batch is summed in registers over all nonzeros of a row, then written once, and the row of x for the nonzero AHEAD is
   prefetched. Each number is summed by one thread in a fixed order, so it does not depend on the number of threads.
   A batch has at least LANES images. */

#include <stdint.h>
#include <string.h>

#ifdef __AVX512F__
#define LANES 16
#else /* AVX2 */
#define LANES 8
#endif
#define AHEAD 16
#define LINE 16 /* floats in a line of the cache */
#define INLINE static inline __attribute__((always_inline))

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float eight __attribute__((vector_size(32)));
typedef float four __attribute__((vector_size(16)));

/* A stretch of the batch of 8, 4, 2 or 1 vectors. The last one ends with the batch, and may overlap the stretch before
   it: its first `seen` lanes were done there. */
struct stretch {
    int64_t from;
    int vectors, seen;
};

static struct stretch stretch_from(int64_t from, int64_t batch)
{
    int64_t left = batch - from;
    if (left < LANES)
        return (struct stretch){batch - LANES, 1, (int)(LANES - left)};
    int vectors = 8;
    while (vectors * LANES > left)
        vectors /= 2;
    return (struct stretch){from, vectors, 0};
}

#define FOR_EACH_STRETCH(s, batch) \
    for (struct stretch s = stretch_from(0, batch); s.vectors; \
         s = s.from + s.vectors * LANES < batch ? stretch_from(s.from + s.vectors * LANES, batch) : (struct stretch){0})

/* The stretch of the row of x that nonzero k of `count` multiplies. `in_pairs`: prefetch only one of two cache lines. */
INLINE const lanes *entries_at(int32_t k, int32_t count, const int vectors, const int32_t *row_of, const float *x,
                               int64_t batch, const int in_pairs)
{
    if (k + AHEAD < count) {
        const float *ahead = x + row_of[k + AHEAD] * batch;
        for (int i = 0; i < vectors * LANES; i += 2 * LINE)
            __builtin_prefetch(ahead + i);
        if (!in_pairs)
            for (int i = LINE; i < vectors * LANES; i += 2 * LINE)
                __builtin_prefetch(ahead + i);
    }
    return (const lanes *)(x + row_of[k] * batch);
}

/* Call with a constant number of vectors, so that the compiler keeps them in registers. */
#define WITH_CONSTANT(vectors, CALL) \
    switch (vectors) { \
    case 8: CALL(8); break; \
    case 7: CALL(7); break; \
    case 6: CALL(6); break; \
    case 5: CALL(5); break; \
    case 4: CALL(4); break; \
    case 3: CALL(3); break; \
    case 2: CALL(2); break; \
    default: CALL(1); \
    }
#define WITH_POWER_OF_TWO(vectors, CALL) \
    switch (vectors) { \
    case 8: CALL(8); break; \
    case 4: CALL(4); break; \
    case 2: CALL(2); break; \
    default: CALL(1); \
    }

/* One stretch of y = A x + bias for one row of A. Processors fetch cache lines in pairs, so where rows of x consist of
   whole pairs, one prefetch serves two lines; that pays here, but not for the gradients. The last vector begins `last`
   floats after the first; it ends with the batch, and so may overlap the vector before it. */
INLINE void weighted_sum(const int vectors, int64_t last, int32_t from, int32_t to, int32_t count, const int32_t *column_of,
                         const float *values, float bias, const float *x, int64_t batch, float *y)
{
    lanes sum[8];
#pragma GCC unroll 8
    for (int i = 0; i < vectors; i++)
        sum[i] = bias - (lanes){0};
    for (int32_t k = from; k < to; k++) {
        const lanes *row = entries_at(k, count, vectors, column_of, x, batch, batch % (2 * LINE) == 0);
#pragma GCC unroll 8
        for (int i = 0; i < vectors - 1; i++)
            sum[i] += values[k] * row[i];
        sum[vectors - 1] += values[k] * *(const lanes *)((const float *)row + last);
    }
#pragma GCC unroll 8
    for (int i = 0; i < vectors - 1; i++)
        ((lanes *)y)[i] = sum[i];
    *(lanes *)(y + last) = sum[vectors - 1];
}

/* y = A x + bias, (rows, batch). The nonzeros of a row are those from starts[row] to before starts[row + 1]; the k-th is
   in column_of[k] and has the value values[k]. bias may be null. */
void mixersweep_product(int64_t rows, int64_t batch, int threads, const int32_t *starts, const int32_t *column_of,
                        const float *values, const float *bias, const float *x, float *y)
{
#pragma omp parallel num_threads(threads)
    for (int64_t from = 0; from < batch; from += 8 * LANES) {
        const int64_t left = batch - from, start = left < LANES ? batch - LANES : from;
        const int vectors = left < 8 * LANES ? (int)((left + LANES - 1) / LANES) : 8;
        const int64_t last = vectors == 1 ? 0 : left < vectors * LANES ? left - LANES : (vectors - 1) * LANES;
#pragma omp for schedule(static) nowait
        for (int64_t row = 0; row < rows; row++) {
#define SUM(vectors) \
    weighted_sum(vectors, last, starts[row], starts[row + 1], starts[rows], column_of, values, bias ? bias[row] : 0, \
                 x + start, batch, y + row * batch + start)
            WITH_CONSTANT(vectors, SUM)
        }
    }
}

INLINE float total(lanes x)
{
    eight e[LANES / 8];
    four f[2];
    memcpy(e, &x, sizeof e);
    for (int i = 1; i < LANES / 8; i++)
        e[0] += e[i];
    memcpy(f, e, sizeof f);
    f[0] += f[1];
    return (f[0][0] + f[0][2]) + (f[0][1] + f[0][3]);
}

INLINE void column_gradients(const int vectors, int seen, int is_first, int32_t from, int32_t to, int32_t count,
                             const int32_t *row_of, const int32_t *order, const float *values, const float *x,
                             const float *gradient, int64_t batch, float *of_x, float *of_values)
{
    lanes sum[8], column[8];
    memcpy(column, x, vectors * sizeof *column);
    for (int i = 0; i < seen; i++)
        column[0][i] = 0;
#pragma GCC unroll 8
    for (int i = 0; i < vectors; i++)
        sum[i] = (lanes){0};
    for (int32_t k = from; k < to; k++) {
        const lanes *row = entries_at(k, count, vectors, row_of, gradient, batch, 0);
        const float value = values[order[k]];
        if (k + AHEAD < count) {
            __builtin_prefetch(values + order[k + AHEAD]);
            __builtin_prefetch(of_values + order[k + AHEAD], 1);
        }
        lanes inner = {0};
#pragma GCC unroll 8
        for (int i = 0; i < vectors; i++) {
            sum[i] += value * row[i];
            inner += column[i] * row[i];
        }
        of_values[order[k]] = is_first ? total(inner) : of_values[order[k]] + total(inner);
    }
#pragma GCC unroll 8
    for (int i = 0; i < vectors; i++)
        ((lanes *)of_x)[i] = sum[i];
}

/* The gradients for a gradient (rows, batch) of the product: of_x = Aᵀ gradient, (columns, batch), and of_values =
   gradient xᵀ at the nonzeros. One pass computes both, because they read the same rows. The nonzeros are listed by
   columns, those of a column from starts[column] on; the k-th is in row_of[k], with its value at values[order[k]]. */
void mixersweep_gradients(int64_t columns, int64_t batch, int threads, const int32_t *starts,
                          const int32_t *row_of, const int32_t *order, const float *values, const float *x,
                          const float *gradient, float *of_x, float *of_values)
{
#pragma omp parallel num_threads(threads)
    FOR_EACH_STRETCH(s, batch)
#pragma omp for schedule(static) nowait
    for (int64_t column = 0; column < columns; column++) {
#define GRADIENTS(vectors) \
    column_gradients(vectors, s.seen, s.from == 0, starts[column], starts[column + 1], starts[columns], \
                     row_of, order, values, x + column * batch + s.from, gradient + s.from, batch, \
                     of_x + column * batch + s.from, of_values)
        WITH_POWER_OF_TWO(s.vectors, GRADIENTS)
    }
}
