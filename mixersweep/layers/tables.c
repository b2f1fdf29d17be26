/* Tables of features, (rows, batch, columns) in fp32, and the same numbers features first, (rows*columns, batch), where
   feature f of the table is row place[f]. Both ways a square TILE of the batch and the columns is turned in the first
   cache: memory is read and written by whole lines, and only once. */

#include <stdint.h>
#include <string.h>

#define TILE 16
#define INLINE static inline __attribute__((always_inline))

INLINE int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

INLINE void tile_from(const int64_t images, const int64_t width, int64_t batch, int64_t columns, const int64_t *place,
                      const float *x, float *y)
{
    float tile[TILE][TILE];
    for (int64_t b = 0; b < images; b++)
        memcpy(tile[b], x + b * columns, width * sizeof(float));
    for (int64_t c = 0; c < width; c++)
        for (int64_t b = 0; b < images; b++)
            y[place[c] * batch + b] = tile[b][c];
}

INLINE void tile_to(const int64_t images, const int64_t width, int64_t batch, int64_t columns, const int64_t *place,
                    const float *x, float *y)
{
    float tile[TILE][TILE];
    for (int64_t c = 0; c < width; c++)
        memcpy(tile[c], x + place[c] * batch, images * sizeof(float));
    for (int64_t b = 0; b < images; b++)
        for (int64_t c = 0; c < width; c++)
            y[b * columns + c] = tile[c][b];
}

/* Whole tiles have sizes that the compiler knows, and those of narrow tables at least one. */
#define FOR_EACH_TILE(TURN, X, Y) \
    _Pragma("omp parallel for collapse(2) schedule(static) num_threads(threads)") \
    for (int64_t r = 0; r < rows; r++) \
        for (int64_t c = 0; c < columns; c += TILE) \
            for (int64_t b = 0; b < batch; b += TILE) { \
                const int64_t images = least(TILE, batch - b), width = least(TILE, columns - c); \
                const int64_t inside = (r * batch + b) * columns + c; \
                const int64_t *at = place + r * columns + c; \
                if (images == TILE && width == TILE) \
                    TURN(TILE, TILE, batch, columns, at, X, Y); \
                else if (images == TILE) \
                    TURN(TILE, width, batch, columns, at, X, Y); \
                else \
                    TURN(images, width, batch, columns, at, X, Y); \
            }

/* y[place[r * columns + c]][b] = x[r][b][c] */
void mixersweep_from_table(int64_t rows, int64_t batch, int64_t columns, int threads, const int64_t *place,
                           const float *x, float *y)
{
    FOR_EACH_TILE(tile_from, x + inside, y + b)
}

/* y[r][b][c] = x[place[r * columns + c]][b] */
void mixersweep_to_table(int64_t rows, int64_t batch, int64_t columns, int threads, const int64_t *place,
                         const float *x, float *y)
{
    FOR_EACH_TILE(tile_to, x + b, y + inside)
}
