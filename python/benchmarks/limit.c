/* How many operations a second a core can do in registers, for the instruction mixes of the convolution kernels: what
 * kernels.py compares the kernels with. The best of 25 short runs each, by the thread's own CPU time. Prints JSON:
 * G operations a second, a fused multiply-add of one lane being an operation. */
#include <immintrin.h>
#include <stdio.h>
#include <time.h>

#define CHAINS 8
#define HIDE(x) __asm__ volatile("" : "+v"(x))
#define UP (_MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC)
#define DOWN (_MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Constants are hidden from the compiler, so that it can neither fold nor drop an operation. */
#define MIX(name, target_, V, I, set1, store, seti, ...)                                         \
    __attribute__((noinline, target(target_))) static void name(long n, float *out) {              \
        V chain[CHAINS], a = set1(1.0001f), w = set1(0.9999f);                                     \
        I word[CHAINS], bit = seti(0x10), sign = seti((int)0x80000000);                           \
        HIDE(a); HIDE(w); HIDE(bit); HIDE(sign);                                                  \
        _Pragma("GCC unroll 8") for (int i = 0; i < CHAINS; ++i) {                                 \
            chain[i] = set1((float)i + 1), word[i] = seti((int)(0x5a3c7711u * (unsigned)(i + 1)));                   \
            HIDE(chain[i]); HIDE(word[i]);                                                        \
        }                                                                                          \
        for (long t = 0; t < n; ++t) {                                                             \
            _Pragma("GCC unroll 8") for (int i = 0; i < CHAINS; ++i) { __VA_ARGS__ }                      \
            _Pragma("GCC unroll 8") for (int i = 0; i < CHAINS; ++i) HIDE(chain[i]);               \
        }                                                                                          \
        _Pragma("GCC unroll 8") for (int i = 0; i < CHAINS; ++i) store(out + 16 * i, chain[i]);    \
    }
#define MIX512(name, ...) \
    MIX(name, "avx512f,avx512bw,avx512vl", __m512, __m512i, _mm512_set1_ps, _mm512_storeu_ps, _mm512_set1_epi32, __VA_ARGS__)
#define MIX256(name, ...) \
    MIX(name, "avx2,fma", __m256, __m256i, _mm256_set1_ps, _mm256_storeu_ps, _mm256_set1_epi32, __VA_ARGS__)
#define PAIR                                                        \
    __m512 up = _mm512_fmadd_round_ps(a, w, chain[i], UP);          \
    __m512 down = _mm512_fmadd_round_ps(a, w, chain[i], DOWN);

MIX512(avx512_fma, (void)word; chain[i] = _mm512_fmadd_ps(a, w, chain[i]);)
/* a mask from 64 bytes a vector: what the kernels did first */
MIX512(avx512_mask64, PAIR HIDE(word[i]); chain[i] = _mm512_mask_blend_ps(_mm512_test_epi32_mask(word[i], bit), down, up);)
/* a mask from 16 bytes: what they do */
MIX512(avx512_mask16, PAIR __m128i low = _mm512_castsi512_si128(word[i]); HIDE(low);
       chain[i] = _mm512_mask_blend_ps(_mm_test_epi8_mask(low, _mm512_castsi512_si128(bit)), down, up);)
/* mode nearness: chains of eight float64; a pair has one vector of words, or, by IFMA, each chain has its own */
#define NEARNESS(name, target_, ...) \
    MIX(name, target_, __m512d, __m512i, _mm512_set1_pd, _mm512_storeu_pd, _mm512_set1_epi32, \
        const __m512i keep = _mm512_set1_epi64(-(1ll << 29)); __m512d x = _mm512_fmadd_pd(a, w, chain[i]); \
        __m512i total = _mm512_castpd_si512(x); __VA_ARGS__ \
        chain[i] = _mm512_castsi512_pd(_mm512_and_si512(total, keep));)
NEARNESS(avx512_nearness, "avx512f",
         __m512i draw = i % 2 ? _mm512_srli_epi64(word[i / 2], 35) : _mm512_maskz_srli_epi32(0x5555, word[i / 2], 3);
         total = _mm512_add_epi64(total, draw);
         if (i % 2) word[i / 2] = _mm512_mullo_epi32(word[i / 2], bit);)
NEARNESS(avx512_ifma_nearness, "avx512f,avx512ifma", total = _mm512_madd52hi_epu64(total, word[i], sign);
         word[i] = _mm512_madd52lo_epu64(word[i], word[i], bit);)
MIX256(avx2_fma, (void)word; chain[i] = _mm256_fmadd_ps(a, w, chain[i]);)
/* one word for all chains: with eight words no compiler keeps 16 registers */
MIX256(avx2_signs, HIDE(bit); __m256i d = _mm256_andnot_si256(_mm256_slli_epi32(bit, 3), sign); HIDE(d);
       __m256 x = _mm256_xor_ps(a, (__m256)d), c = _mm256_xor_ps(chain[i], (__m256)d);
       chain[i] = _mm256_xor_ps(_mm256_fmadd_ps(x, w, c), (__m256)d);)

static const char *separator = "{";
static void measure(const char *name, void (*mix)(long, float *), int lanes) {
    static float out[16 * CHAINS];
    const long n = 100000;
    double best = 1e9;
    for (int repeat = 0; repeat < 25; ++repeat) {
        const double start = now();
        mix(n, out);
        const double seconds = now() - start;
        if (seconds < best) best = seconds;
    }
    printf("%s\"%s\": %.2f", separator, name, 1e-9 * (double)(n * CHAINS * lanes) / best);
    separator = ", ";
}

int main(void) {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        measure("avx2 fma", avx2_fma, 8);
        measure("avx2 random", avx2_signs, 8);
    }
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
        measure("avx512 fma", avx512_fma, 16);
        measure("avx512 random, mask of 64 bytes", avx512_mask64, 16);
        measure("avx512 random", avx512_mask16, 16);
        measure("avx512 nearness", avx512_nearness, 8);
        if (__builtin_cpu_supports("avx512ifma")) measure("avx512_ifma nearness", avx512_ifma_nearness, 8);
    }
    printf("}\n");
    return 0;
}
