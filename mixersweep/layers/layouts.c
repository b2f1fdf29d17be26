/* Convert between the layouts (rows, batch, columns) and (rows*columns, batch) in fp32; feature f of the former, counted
   row by row, is row position[f] of the latter. A square TILE of the batch and the columns is transposed in the first-level
   cache, so that memory is read and written by whole cache lines, and only once. */

#include <stdint.h>
#include <string.h>

#define TILE 16
#define INLINE static inline __attribute__((always_inline))

INLINE int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

INLINE void tile_from(const int64_t images, const int64_t width, int64_t batch, int64_t columns, const int64_t *position,
                      const float *x, float *y)
{
    float tile[TILE][TILE];
    for (int64_t b = 0; b < images; b++)
        memcpy(tile[b], x + b * columns, width * sizeof(float));
    for (int64_t c = 0; c < width; c++)
        for (int64_t b = 0; b < images; b++)
            y[position[c] * batch + b] = tile[b][c];
}

INLINE void tile_to(const int64_t images, const int64_t width, int64_t batch, int64_t columns, const int64_t *position,
                    const float *x, float *y)
{
    float tile[TILE][TILE];
    for (int64_t c = 0; c < width; c++)
        memcpy(tile[c], x + position[c] * batch, images * sizeof(float));
    for (int64_t b = 0; b < images; b++)
        for (int64_t c = 0; c < width; c++)
            y[b * columns + c] = tile[c][b];
}

/* The compiler knows both sizes of a whole tile, and the number of images of a narrow one. */
#define FOR_EACH_TILE(TURN, X, Y) \
    _Pragma("omp parallel for collapse(2) schedule(static) num_threads(threads)") \
    for (int64_t r = 0; r < rows; r++) \
        for (int64_t c = 0; c < columns; c += TILE) \
            for (int64_t b = 0; b < batch; b += TILE) { \
                const int64_t images = least(TILE, batch - b), width = least(TILE, columns - c); \
                const int64_t inside = (r * batch + b) * columns + c; \
                const int64_t *at = position + r * columns + c; \
                if (images == TILE && width == TILE) \
                    TURN(TILE, TILE, batch, columns, at, X, Y); \
                else if (images == TILE) \
                    TURN(TILE, width, batch, columns, at, X, Y); \
                else \
                    TURN(images, width, batch, columns, at, X, Y); \
            }

/* y[position[r * columns + c]][b] = x[r][b][c] */
void mixersweep_rbc_to_mb(int64_t rows, int64_t batch, int64_t columns, int threads, const int64_t *position,
                           const float *x, float *y)
{
    FOR_EACH_TILE(tile_from, x + inside, y + b)
}

/* y[r][b][c] = x[position[r * columns + c]][b] */
void mixersweep_mb_to_rbc(int64_t rows, int64_t batch, int64_t columns, int threads, const int64_t *position,
                         const float *x, float *y)
{
    FOR_EACH_TILE(tile_to, x + b, y + inside)
}
