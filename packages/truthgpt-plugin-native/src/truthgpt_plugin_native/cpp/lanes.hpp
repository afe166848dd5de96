// Vectors of floats, as wide as the machine's.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "numbers.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__) && defined(__ARM_NEON)
#include <arm_neon.h>
#define NEON  // vectors of four floats: g++ keeps longer ones in memory
#endif

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define PACKED_INTEGERS  // rows of integers lie side by side in vectors
#endif

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(NEON)
constexpr int LANES = 4;
#else
constexpr int LANES = 8;
#endif

typedef float Lanes __attribute__((vector_size(LANES * sizeof(float))));
typedef float EightLanes __attribute__((vector_size(8 * sizeof(float))));

// So many bytes before they are needed memory is asked for them. Rows that are read side by side are
// asked for one after the other, as they lie: memory is slower for several streams than for one.
constexpr int64_t AHEAD = 4096;

inline void prefetch(const void* at) { __builtin_prefetch(at, 0, 3); }

// To a second cache, what is needed later.
inline void prefetch_far(const void* at) { __builtin_prefetch(at, 0, 2); }

// Ask for so many bytes from an address on, if it is not null; return where they end. Compilers leave out
// calls that do nothing else.
template <size_t COUNT>
[[gnu::always_inline]] inline const char* ask_for(const char* at) {
    if (at == nullptr) return nullptr;
    for (size_t i = 0; i < COUNT; i += 64) prefetch_far(at + i);
    return at + COUNT;
}

[[gnu::always_inline]] inline void ask_for(const float* scales, int64_t count) {
    for (int64_t i = 0; i < count; i += 16) prefetch_far(scales + i);
}

inline Lanes load(const float* from) {
    Lanes lanes;
    std::memcpy(&lanes, from, sizeof lanes);
    return lanes;
}

inline void store(Lanes lanes, float* to) { std::memcpy(to, &lanes, sizeof lanes); }

inline Lanes load(const uint16_t* from) {
#if defined(__AVX512F__)
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return (Lanes)_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16);
#elif defined(__AVX2__)
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return (Lanes)_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16);
#elif defined(NEON)
    return (Lanes)vshlq_n_u32(vmovl_u16(vld1_u16(from)), 16);
#else
    Lanes lanes;
    for (int i = 0; i < LANES; ++i) lanes[i] = from_bfloat16(from[i]);
    return lanes;
#endif
}

inline Lanes same(float value) {
#if defined(__AVX512F__)
    return (Lanes)_mm512_set1_ps(value);
#elif defined(NEON)
    return (Lanes)vdupq_n_f32(value);
#else
    return Lanes{value, value, value, value, value, value, value, value};
#endif
}

// One rounding where the machine can, and the same everywhere in this file.
inline Lanes fused(Lanes a, Lanes b, Lanes c) {
#if defined(__AVX512F__)
    return (Lanes)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__) && defined(__FMA__)
    return (Lanes)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(NEON)
    return (Lanes)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

inline Lanes larger(Lanes a, Lanes b) {
#if defined(__AVX512F__)
    return (Lanes)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (Lanes)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return a > b ? a : b;
#endif
}

inline float largest_of(Lanes v) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)v);
#else
    float largest = v[0];
    for (int i = 1; i < LANES; ++i) largest = v[i] > largest ? v[i] : largest;
    return largest;
#endif
}

// As for one number, but with fewer roundings where the machine can.
inline Lanes exponential(Lanes exact) {
#if (defined(__AVX2__) && defined(__FMA__)) || defined(NEON)
    // In this order NaN becomes a bound.
    Lanes x = larger(exact, same(-87.0f));
    x = x > same(88.0f) ? same(88.0f) : x;
    const Lanes scaled = x * same(1.44269504088896341f);
#if defined(__AVX512F__)
    const Lanes n = (Lanes)_mm512_roundscale_ps((__m512)scaled, _MM_FROUND_TO_NEAREST_INT);
#elif defined(NEON)
    const Lanes n = (Lanes)vrndnq_f32((float32x4_t)scaled);
#else
    const Lanes n = (Lanes)_mm256_round_ps((__m256)scaled, _MM_FROUND_TO_NEAREST_INT);
#endif
    Lanes r = fused(n, same(-0.693359375f), x);
    r = fused(n, same(2.12194440e-4f), r);
    Lanes p = same(1.9875691500e-4f);
    for (const float next : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f,
                             5.0000001201e-1f})
        p = fused(p, r, same(next));
    p = fused(p * r, r, r) + same(1.0f);
#if defined(__AVX512F__)
    const Lanes found = (Lanes)_mm512_scalef_ps((__m512)p, (__m512)n);
#elif defined(NEON)
    const int32x4_t exponent = vaddq_s32(vcvtq_s32_f32((float32x4_t)n), vdupq_n_s32(127));
    const Lanes found = p * (Lanes)vshlq_n_s32(exponent, 23);
#else
    const __m256i power = _mm256_slli_epi32(
        _mm256_add_epi32(_mm256_cvtps_epi32((__m256)n), _mm256_set1_epi32(127)), 23);
    const Lanes found = p * (Lanes)power;
#endif
    return exact == exact ? found : exact;
#else
    for (int i = 0; i < LANES; ++i) exact[i] = exponential(exact[i]);
    return exact;
#endif
}

// Compilers would rather load a vector again for each use of it than once. For the same reason, to have
// numbers stay in registers, loops that read arrays of sums in the end say that they are unrolled: g++
// would write each sum to memory after every product.
template <typename Vector>
inline void hold(Vector& vector) {
#if defined(__AVX2__)
    asm("" : "+v"(vector));
#endif
}

// What is computed of it is computed here: compilers would rather begin everything at once, and write to
// memory what registers do not hold.
template <typename Vector>
inline void compute_here(Vector& vector) {
#if defined(__AVX512F__)
    asm volatile("" : "+v"(vector));
#endif
}

#if defined(NEON)
inline float total(Lanes v) { return vaddvq_f32((float32x4_t)v); }
#endif

inline float total(EightLanes v) {
#if defined(__AVX2__)
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
#else
    const float a = v[0] + v[4], b = v[1] + v[5], c = v[2] + v[6], d = v[3] + v[7];
    return (a + c) + (b + d);
#endif
}

#if defined(__AVX512F__)
inline EightLanes halves(__m512 v) {
    return (EightLanes)_mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
}

inline float total(Lanes v) { return total(halves((__m512)v)); }

// The totals of four vectors, each with the bits that it has alone.
inline __m128 totals(Lanes a, Lanes b, Lanes c, Lanes d) {
    const auto folded = [](Lanes x, Lanes y) {
        return _mm512_add_ps(_mm512_shuffle_f32x4((__m512)x, (__m512)y, 0x44),
                             _mm512_shuffle_f32x4((__m512)x, (__m512)y, 0xee));
    };
    const __m512 ab = folded(a, b), cd = folded(c, d);
    const __m512 fours = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
    const __m512 twos = _mm512_add_ps(fours, _mm512_permute_ps(fours, 0x4e));
    const __m512 ones = _mm512_add_ps(twos, _mm512_permute_ps(twos, 0xb1));
    return _mm512_castps512_ps128(_mm512_maskz_compress_ps(0x1111, ones));
}
#endif

float sum_of_squares(const float* x, int32_t length) {
    Lanes sums = {};
    int32_t i = 0;
    for (; i + LANES <= length; i += LANES) sums = fused(load(x + i), load(x + i), sums);
    float sum = total(sums);
    for (; i < length; ++i) sum += x[i] * x[i];
    return sum;
}

void normalize_row(const float* x, const float* weight, int32_t length, float epsilon, float* out) {
    const float factor = 1.0f / std::sqrt(sum_of_squares(x, length) / float(length) + epsilon);
    for (int32_t i = 0; i < length; ++i) out[i] = x[i] * factor * weight[i];
}

}  // namespace
