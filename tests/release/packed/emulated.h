/* The AVX-512 instructions that kernel.c uses, in plain C, each as Intel's guide describes it: a processor without them
   can then run that part of the file too. Included before kernel.c (sanitized.c, -DEMULATED). */

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define __AVX512VBMI2__ 1
#define __AVX512BW__ 1

typedef struct { float of[16]; } floats512;
typedef union { uint32_t of[16]; uint16_t half[32]; } bits512;
typedef struct { uint16_t of[16]; } bits256;

static floats512 fake_zero(void) { floats512 r = {{0}}; return r; }
static floats512 fake_load(const void *from) { floats512 r; memcpy(&r, from, 64); return r; }
static bits512 fake_load_bits(const void *from) { bits512 r; memcpy(&r, from, 64); return r; }
static floats512 fake_expand_ps(uint16_t mask, floats512 a) {
    floats512 r = {{0}};
    for (int i = 0, m = 0; i < 16; i++) if (mask >> i & 1) r.of[i] = a.of[m++];
    return r;
}
static bits512 fake_expand_16(uint32_t mask, bits512 a) {
    bits512 r = {{0}};
    for (int i = 0, m = 0; i < 32; i++) if (mask >> i & 1) r.half[i] = a.half[m++];
    return r;
}
static floats512 fake_cast(bits512 a) { floats512 r; memcpy(&r, &a, 64); return r; }
static bits512 fake_shift(bits512 a, int by) { for (int i = 0; i < 16; i++) a.of[i] <<= by; return a; }
static bits512 fake_and(bits512 a, bits512 b) { for (int i = 0; i < 16; i++) a.of[i] &= b.of[i]; return a; }
static bits512 fake_set(int value) { bits512 r; for (int i = 0; i < 16; i++) r.of[i] = (uint32_t)value; return r; }
static bits256 fake_part(bits512 a, int part) { bits256 r; memcpy(&r, a.half + 16 * part, 32); return r; }
static float from_f16(uint16_t bits);
static floats512 fake_widen(bits256 a) { floats512 r; for (int i = 0; i < 16; i++) r.of[i] = from_f16(a.of[i]); return r; }
static floats512 fake_fma(floats512 a, floats512 b, floats512 c) {
    for (int i = 0; i < 16; i++) c.of[i] += a.of[i] * b.of[i];
    return c;
}
static floats512 fake_add(floats512 a, floats512 b) { for (int i = 0; i < 16; i++) a.of[i] += b.of[i]; return a; }
static float fake_sum(floats512 a) { float r = 0; for (int i = 0; i < 16; i++) r += a.of[i]; return r; }

#define __m512 floats512
#define __m512i bits512
#define _mm512_setzero_ps fake_zero
#define _mm512_loadu_ps fake_load
#define _mm512_loadu_si512 fake_load_bits
#define _mm512_maskz_expand_ps fake_expand_ps
#define _mm512_maskz_expand_epi16 fake_expand_16
#define _mm512_castsi512_ps fake_cast
#define _mm512_slli_epi32 fake_shift
#define _mm512_and_si512 fake_and
#define _mm512_set1_epi32 fake_set
#define _mm512_castsi512_si256(a) fake_part(a, 0)
#define _mm512_extracti64x4_epi64 fake_part
#define _mm512_cvtph_ps fake_widen
#define _mm512_fmadd_ps fake_fma
#define _mm512_add_ps fake_add
#define _mm512_reduce_add_ps fake_sum
