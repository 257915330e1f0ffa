/* kernel.c on many shapes with buffers of exactly the size that it asks for, against a plain loop over the dense weight.
   Prints how many products were compared. Built with sanitizers by test_kernel.py. */

#ifdef EMULATED
#include "emulated.h"
#endif
#include KERNEL
#include <math.h>
#include <stdio.h>

static uint32_t state = 1;
static uint32_t draw(void) { return state = state * 1664525u + 1013904223u, state >> 8; }

static void *exactly(size_t bytes) { return calloc(bytes ? bytes : 1, 1); }

static void put(int kind, void *to, int64_t at, float value) { store(kind, to, at, value); }

static int one(int weights, int kind, int64_t O, int64_t I, int64_t B, int per_cent, int with_bias) {
    const int64_t W = (I + 63) / 64;
    const int size = weights == F32 ? 4 : 2, other = kind == F32 ? 4 : 2;
    uint64_t *mask = exactly((size_t)(O * W * 8));
    int32_t *offsets = exactly((size_t)(O + 1) * 4);
    void *dense = exactly((size_t)(O * I * size)), *again = exactly((size_t)(O * I * size));
    float *wide = exactly((size_t)(O * I * 4));
    for (int64_t o = 0; o < O; o++) {
        offsets[o + 1] = offsets[o];
        for (int64_t i = 0; i < I; i++)
            if ((int)(draw() % 100) < per_cent) {
                mask[o * W + i / 64] |= 1ull << i % 64;
                offsets[o + 1]++;
                put(weights, dense, o * I + i, 0.5f + (float)(draw() % 64) / 64);
            }
    }
    void *values = exactly((size_t)(offsets[O] * size) + 64);
    int64_t at = 0;
    for (int64_t n = 0; n < O * I; n++)
        if (mask[n / I * W + n % I / 64] >> n % I % 64 & 1) memcpy((char *)values + size * at++, (char *)dense + size * n, (size_t)size);
    void *x = exactly((size_t)(B * I * other)), *y = exactly((size_t)(B * O * other));
    float *bias = with_bias ? exactly((size_t)O * 4) : NULL;
    for (int64_t n = 0; n < B * I; n++) put(kind, x, n, (float)(draw() % 64) / 64 - 0.5f);
    if (restorelcc_linear(weights, mask, values, offsets, kind, x, bias, y, O, I, B, 1)) return 1;
    for (int64_t b = 0; b < B; b++)
        for (int64_t o = 0; o < O; o++) {
            double sum = 0;
            for (int64_t i = 0; i < I; i++)
                sum += (double)number(weights, dense, o * I + i) * number(kind, x, b * I + i);
            if (fabs(sum - number(kind, y, b * O + o)) > 0.01 * (1 + fabs(sum)) * (kind == F32 ? 0.01 : 1)) return 1;
        }
    restorelcc_expand(weights, mask, values, offsets, weights, again, O, I, 1);
    restorelcc_expand(weights, mask, values, offsets, F32, wide, O, I, 1);
    int bad = memcmp(dense, again, (size_t)(O * I * size)) != 0;
    for (int64_t n = 0; n < O * I; n++) bad |= wide[n] != number(weights, dense, n);
    free(mask), free(offsets), free(dense), free(again), free(wide), free(values), free(x), free(y), free(bias);
    return bad;
}

int main(void) {
    const int64_t inputs[] = {1, 7, 8, 31, 32, 33, 63, 64, 65, 127, 128, 200};
    const int64_t tokens[] = {1, 2, 3, 5, 8, 9, 17};
    const int shares[] = {0, 3, 50, 100};
    int done = 0;
    for (int weights = 0; weights < 3; weights++)
        for (int kind = 0; kind < 3; kind++)
            for (unsigned i = 0; i < 12; i++)
                for (unsigned b = 0; b < 7; b++)
                    for (unsigned s = 0; s < 4; s++, done++)
                        if (one(weights, kind, 1 + (i + b) % 5, inputs[i], tokens[b], shares[s], (int)(b % 2))) {
                            fprintf(stderr, "weights %d, x %d, %d inputs, %d tokens, %d %%\n", weights, kind,
                                    (int)inputs[i], (int)tokens[b], shares[s]);
                            return 1;
                        }
    printf("%d\n", done);
    return 0;
}
