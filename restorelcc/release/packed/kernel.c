/* y_BO = x_BI W_OI^T + bias_O for a weight W that is stored as a bit mask and its survivors.

   Letters: B tokens, O outputs (rows of the weight), I inputs, W words of 64 mask bits in a row = ceil(I / 64).

   mask     [O, W] little-endian words; bit i of a row says whether weight i of that row is stored. Bits from I on are 0.
   values   the stored weights of all rows, one row after another, followed by at least 64 readable bytes
   offsets  [O + 1] the number of values before each row
   kinds    0 bfloat16, 1 float16, 2 float32

   All sums are float32. Three versions of one step (stored weights of a few mask bits -> floats, zeros between them):
   AVX-512 VBMI2 has an instruction for it, AVX2 looks the places up in a table by 8 mask bits, plain C goes from bit to
   bit. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AVX512VBMI2__) && defined(__AVX512BW__)
#define LEVEL 2
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define LEVEL 1
#else
#define LEVEL 0
#endif
#if LEVEL
#include <immintrin.h>
#endif

enum { BF16, F16, F32 };
enum { TOKENS = 8 };            /* tokens that share one pass over a row */
enum { ALONE = 1 << 16 };       /* weights; a smaller matrix is not worth waking other threads for */

static float from_bf16(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

static uint16_t to_bf16(float value) { /* to the nearest, ties to even; NaN stays NaN */
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((bits >> 16) | 0x40);
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

static float from_f16(uint16_t bits) {
    uint32_t sign = (uint32_t)(bits & 0x8000) << 16, exponent = (bits >> 10) & 31, fraction = bits & 1023, wide;
    float value;
    if (exponent == 0) { /* zero or subnormal: fraction * 2^-24 */
        value = (float)fraction * 5.9604644775390625e-8f;
        memcpy(&wide, &value, 4);
        wide |= sign;
    } else {
        wide = sign | ((exponent == 31 ? 255u : exponent + 112u) << 23) | (fraction << 13);
    }
    memcpy(&value, &wide, 4);
    return value;
}

static uint16_t to_f16(float value) { /* to the nearest, ties to even */
    uint32_t bits, sign, rest, low;
    memcpy(&bits, &value, 4);
    sign = (bits >> 16) & 0x8000;
    rest = bits & 0x7fffffffu;
    if (rest > 0x7f800000u) return (uint16_t)(sign | 0x7e00);
    if (rest >= 0x477ff000u) return (uint16_t)(sign | 0x7c00); /* 65520 and more round to infinity */
    if (rest < 0x38800000u) {                                  /* subnormal: adding 0.5 rounds to multiples of 2^-24 */
        float half;
        memcpy(&half, &rest, 4);
        half += 0.5f;
        memcpy(&rest, &half, 4);
        return (uint16_t)(sign | (rest - 0x3f000000u));
    }
    low = (rest >> 13) & 1;
    return (uint16_t)(sign | ((rest - 0x38000000u + 0xfffu + low) >> 13));
}

static inline float number(int kind, const void *from, int64_t at) {
    if (kind == F32) return ((const float *)from)[at];
    return kind == BF16 ? from_bf16(((const uint16_t *)from)[at]) : from_f16(((const uint16_t *)from)[at]);
}

static void store(int kind, void *to, int64_t at, float value) {
    if (kind == F32) ((float *)to)[at] = value;
    else ((uint16_t *)to)[at] = kind == BF16 ? to_bf16(value) : to_f16(value);
}

#if LEVEL == 1
/* Where the stored weights of 8 mask bits go: bytes for bfloat16 (into the upper half of a float), bytes for float16
   (in half of an entry), and floats; 0x80 is a zero. An entry has 32 bytes, so 32 times the mask bits is its place. */
enum { ENTRY = 32 };
static uint8_t PLACES_BF16[256][ENTRY] __attribute__((aligned(32)));
static uint8_t PLACES_F16[256][ENTRY] __attribute__((aligned(32)));
static uint32_t PLACES_F32[256][ENTRY / 4] __attribute__((aligned(32)));

__attribute__((constructor)) static void fill_tables(void) {
    memset(PLACES_BF16, 0x80, sizeof PLACES_BF16);
    memset(PLACES_F16, 0x80, sizeof PLACES_F16);
    for (int mask = 0; mask < 256; mask++) {
        int rank = 0;
        for (int bit = 0; bit < 8; bit++) {
            PLACES_F32[mask][bit] = 0x80000000u;
            if (!(mask >> bit & 1)) continue;
            PLACES_BF16[mask][4 * bit + 2] = PLACES_F16[mask][2 * bit] = (uint8_t)(2 * rank);
            PLACES_BF16[mask][4 * bit + 3] = PLACES_F16[mask][2 * bit + 1] = (uint8_t)(2 * rank + 1);
            PLACES_F32[mask][bit] = (uint32_t)rank++;
        }
    }
}

static inline __attribute__((always_inline)) __m256 spread(int kind, uint64_t place, const char *from) {
    if (kind == BF16) {
        const __m256i both = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)from));
        const __m256i places = *(const __m256i *)((const char *)PLACES_BF16 + place);
        return _mm256_castsi256_ps(_mm256_shuffle_epi8(both, places));
    }
    if (kind == F16) {
        const __m128i places = *(const __m128i *)((const char *)PLACES_F16 + place);
        return _mm256_cvtph_ps(_mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)from), places));
    }
    const __m256i places = *(const __m256i *)((const char *)PLACES_F32 + place);
    const __m256 own = _mm256_permutevar8x32_ps(_mm256_loadu_ps((const float *)from), places);
    return _mm256_blendv_ps(own, _mm256_setzero_ps(), _mm256_castsi256_ps(places));
}

static inline float total(__m256 sum) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}
#endif

/* One row times B tokens: sums_B. x_BI is float32, every token `stride` floats (a multiple of 64) after the one before. */
static inline __attribute__((always_inline)) void row_times(int kind, const uint64_t *mask, const char *from,
                                                            const float *x, int64_t stride, int B, float *sums) {
    const int64_t W = stride / 64;
#if LEVEL == 2
    __m512 sum[TOKENS][2];
    for (int b = 0; b < B; b++) sum[b][0] = sum[b][1] = _mm512_setzero_ps();
    for (int64_t w = 0; w < W; w++) {
        const uint64_t bits = mask[w];
        for (int part = 0; part < 2; part++) { /* 32 weights */
            const uint32_t own = (uint32_t)(bits >> 32 * part);
            const float *at = x + 64 * w + 32 * part;
            __m512 first, second;
            if (kind == F32) {
                const __mmask16 low = (__mmask16)own, high = (__mmask16)(own >> 16);
                first = _mm512_maskz_expand_ps(low, _mm512_loadu_ps(from));
                from += 4 * __builtin_popcount(low);
                second = _mm512_maskz_expand_ps(high, _mm512_loadu_ps(from));
                from += 4 * __builtin_popcount(high);
            } else {
                const __m512i all = _mm512_maskz_expand_epi16(own, _mm512_loadu_si512(from));
                from += 2 * __builtin_popcount(own);
                if (kind == BF16) { /* weights of even and of odd places: x lies in the same order (widen) */
                    first = _mm512_castsi512_ps(_mm512_slli_epi32(all, 16));
                    second = _mm512_castsi512_ps(_mm512_and_si512(all, _mm512_set1_epi32((int)0xffff0000u)));
                } else {
                    first = _mm512_cvtph_ps(_mm512_castsi512_si256(all));
                    second = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(all, 1));
                }
            }
            for (int b = 0; b < B; b++) {
                sum[b][0] = _mm512_fmadd_ps(first, _mm512_loadu_ps(at + b * stride), sum[b][0]);
                sum[b][1] = _mm512_fmadd_ps(second, _mm512_loadu_ps(at + b * stride + 16), sum[b][1]);
            }
        }
    }
    for (int b = 0; b < B; b++) sums[b] = _mm512_reduce_add_ps(_mm512_add_ps(sum[b][0], sum[b][1]));
#elif LEVEL == 1
    const int chains = B == 1 ? 4 : B == 2 ? 2 : 1; /* sums that do not wait for one another */
    __m256 sum[TOKENS][4];
    for (int b = 0; b < B; b++)
        for (int c = 0; c < 4; c++) sum[b][c] = _mm256_setzero_ps();
    for (int64_t w = 0; w < W; w++) {
        const uint64_t bits = mask[w];
#pragma GCC unroll 8
        for (int part = 0; part < 8; part++) { /* 8 weights */
            const uint64_t place = (part ? bits >> (8 * part - 5) : bits << 5) & 255 * ENTRY;
            const __m256 weights = spread(kind, place, from);
            const float *at = x + 64 * w + 8 * part;
            from += (kind == F32 ? 4 : 2) * (uint64_t)_mm_popcnt_u64(place);
#pragma GCC unroll 8
            for (int b = 0; b < B; b++) {
                __m256 *to = &sum[b][part % chains];
                *to = _mm256_fmadd_ps(weights, _mm256_loadu_ps(at + b * stride), *to);
            }
        }
    }
    for (int b = 0; b < B; b++)
        sums[b] = total(_mm256_add_ps(_mm256_add_ps(sum[b][0], sum[b][1]), _mm256_add_ps(sum[b][2], sum[b][3])));
#else
    int64_t value = 0;
    for (int b = 0; b < B; b++) sums[b] = 0;
    for (int64_t w = 0; w < W; w++)
        for (uint64_t bits = mask[w]; bits; bits &= bits - 1, value++) {
            const float weight = number(kind, from, value);
            const float *at = x + 64 * w + __builtin_ctzll(bits);
            for (int b = 0; b < B; b++) sums[b] += weight * at[b * stride];
        }
#endif
}

/* The same with B, and so the loops over it, known to the compiler. */
#define WITH(n) case n: row_times(kind, mask, from, x, stride, n, sums); break;
#define ROW(name, kind_)                                                                                            \
    static void name(const uint64_t *mask, const char *from, const float *x, int64_t stride, int B, float *sums) {  \
        const int kind = kind_;                                                                                     \
        switch (B) { WITH(1) WITH(2) WITH(3) WITH(4) WITH(5) WITH(6) WITH(7) WITH(8) }                              \
    }
ROW(row_bf16, BF16)
ROW(row_f16, F16)
ROW(row_f32, F32)

/* x as float32, each token filled up with zeros to whole words; for AVX-512 and bfloat16 weights 16 even places, then 16
   odd ones. */
static void widen(int weights, int kind, const void *x, int64_t I, int64_t stride, int B, float *to) {
    for (int b = 0; b < B; b++, to += stride) {
        for (int64_t i = 0; i < I; i++) {
#if LEVEL == 2
            const int64_t at = weights == BF16 ? (i & ~31) | (i & 1) << 4 | (i & 31) >> 1 : i;
#else
            const int64_t at = i;
            (void)weights;
#endif
            to[at] = number(kind, x, b * I + i);
        }
    }
}

/* Returns 0, or 1 when there is no memory for x. */
int restorelcc_linear(int weights, const uint64_t *mask, const void *values, const int32_t *offsets, int kind,
                      const void *x, const float *bias, void *y, int64_t O, int64_t I, int64_t B, int threads) {
    const int64_t W = (I + 63) / 64, stride = 64 * W;
    const int size = weights == F32 ? 4 : 2;
    float *wide = calloc((size_t)((B < TOKENS ? B : TOKENS) * stride) + 1, sizeof(float));
    if (wide == NULL) return 1;
    for (int64_t start = 0; start < B; start += TOKENS) {
        const int count = (int)(B - start < TOKENS ? B - start : TOKENS);
        widen(weights, kind, (const char *)x + start * I * (kind == F32 ? 4 : 2), I, stride, count, wide);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && O * I > ALONE)
        for (int64_t o = 0; o < O; o++) {
            float sums[TOKENS];
            const char *from = (const char *)values + (int64_t)size * offsets[o];
            if (weights == BF16) row_bf16(mask + o * W, from, wide, stride, count, sums);
            else if (weights == F16) row_f16(mask + o * W, from, wide, stride, count, sums);
            else row_f32(mask + o * W, from, wide, stride, count, sums);
            for (int b = 0; b < count; b++) store(kind, y, (start + b) * O + o, sums[b] + (bias ? bias[o] : 0.0f));
        }
    }
    free(wide);
    return 0;
}

/* The dense weight [O, I]: bit for bit, or where kind is float32 as the same numbers in float32. */
void restorelcc_expand(int weights, const uint64_t *mask, const void *values, const int32_t *offsets, int kind,
                       void *dense, int64_t O, int64_t I, int threads) {
    const int64_t W = (I + 63) / 64, size = kind == F32 ? 4 : 2;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && O * I > ALONE)
    for (int64_t o = 0; o < O; o++) {
        int64_t value = offsets[o];
        memset((char *)dense + o * I * size, 0, (size_t)(I * size));
        for (int64_t w = 0; w < W; w++)
            for (uint64_t bits = mask[o * W + w]; bits; bits &= bits - 1, value++) {
                const int64_t at = o * I + 64 * w + __builtin_ctzll(bits);
                if (kind != F32) ((uint16_t *)dense)[at] = ((const uint16_t *)values)[value];
                else if (weights == F32) ((uint32_t *)dense)[at] = ((const uint32_t *)values)[value];
                else ((float *)dense)[at] = number(weights, values, value);
            }
    }
}

/* 2 AVX-512 VBMI2, 1 AVX2, 0 plain C. */
int restorelcc_level(void) { return LEVEL; }
