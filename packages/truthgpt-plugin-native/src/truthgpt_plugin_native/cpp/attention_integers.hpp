// Attending with keys and values of 8 bits.
//
// Queries and the weights of values are rounded to 16 bits, so that a lane adds up two products of
// integers at once: of a query and a key those of two dimensions, of weights and values those of two
// positions. Sums of integers are exact, and so the same in any order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "lanes.hpp"
#include "numbers.hpp"

namespace {

constexpr int64_t SEGMENT = 128;    // positions that are attended to at a time
constexpr int32_t KEY_GROUP = 32;   // numbers of a key that are rounded by one scale; of a value all are

// Keys and values of this type are integers with scales: as they are stored, or as products read them.
template <typename Stored>
constexpr bool INTEGERS = std::is_same_v<Stored, int8_t> || std::is_same_v<Stored, int16_t>;

inline int32_t groups_of(int32_t width) { return (width + KEY_GROUP - 1) / KEY_GROUP; }

// What integers are multiplied by to be the numbers again, and the other way around. Of numbers that are
// not all finite the scale is NaN, whatever the integers are; numbers too small to have an inverse are
// nothing beside any others.
struct Scales {
    float scale, inverse;

    // `bits` are those of the largest of the numbers without its sign; it becomes the integer `most`.
    Scales(uint32_t bits, float most) {
        float largest;
        std::memcpy(&largest, &bits, sizeof largest);
        scale = largest / most;
        inverse = most / largest;
        if (is_not_finite(largest)) scale = NAN, inverse = 0.0f;
        else if (is_not_finite(inverse)) scale = inverse = 0.0f;
    }
};

// The bits of the largest number, without its sign: they are in the order of the numbers and lose no NaN.
inline uint32_t largest_bits(const float* numbers, int64_t count) {
    uint32_t bits = 0;
    for (int64_t i = 0; i < count; ++i) bits = std::max(bits, bits_of(numbers[i]) & 0x7fffffffu);
    return bits;
}

// Of numbers up to 2 ** 22: added to this one they leave their nearest integer in the lowest bits.
inline int32_t nearest(float number) { return int32_t(bits_of(number + 12582912.0f) - 0x4b400000u); }

// Round to 8 bits; `put(i, integer)` gets each. Returns the scale.
template <typename Put>
float round_to_bytes(const float* numbers, int32_t count, Put put) {
    const Scales scales(largest_bits(numbers, count), 127.0f);
    for (int32_t i = 0; i < count; ++i) put(i, static_cast<int8_t>(nearest(numbers[i] * scales.inverse)));
    return scales.scale;
}

// Round the `width` numbers of a query where they are, which is a multiple of LANES. Returns the scale.
inline float round_query(float* numbers, int32_t width) {
    const Scales scales(largest_bits(numbers, width), 32767.0f);
    for (int32_t i = 0; i < width; i += LANES) {
        int16_t rounded[LANES];
        for (int lane = 0; lane < LANES; ++lane)
            rounded[lane] = static_cast<int16_t>(nearest(numbers[i + lane] * scales.inverse));
        std::memcpy(reinterpret_cast<char*>(numbers) + i * sizeof(int16_t), rounded, sizeof rounded);
    }
    return scales.scale;
}

typedef int32_t IntegerLanes __attribute__((vector_size(LANES * sizeof(int32_t))));
typedef int16_t ShortPairs __attribute__((vector_size(LANES * 2 * sizeof(int16_t))));
typedef int8_t BytePairs __attribute__((vector_size(LANES * 2)));

// Multiply the weights of a segment by the scales of values, and round them to 16 bits: of positions that
// are not in [first, last) to zero, whatever their scales are. Returns the scale.
inline float round_weights(float* weights, const float* value_scales, int64_t first, int64_t last, int16_t* to) {
    IntegerLanes largest = {};
    for (int64_t p = 0; p < SEGMENT; p += LANES) {
        Lanes each = load(weights + p) * load(value_scales + p);
        if (p < first || p + LANES > last)
            for (int lane = 0; lane < LANES; ++lane)
                if (p + lane < first || p + lane >= last) each[lane] = 0.0f;
        store(each, weights + p);
        const IntegerLanes bits = (IntegerLanes)each & 0x7fffffff;
        largest = bits > largest ? bits : largest;
    }
    int32_t bits = 0;
    for (int lane = 0; lane < LANES; ++lane) bits = std::max(bits, largest[lane]);
    const Scales scales(bits, 32767.0f);
    for (int64_t p = 0; p < SEGMENT; ++p) to[p] = static_cast<int16_t>(nearest(weights[p] * scales.inverse));
    return scales.scale;
}

inline ShortPairs load_pairs(const int8_t* from) {
    BytePairs bytes;
    std::memcpy(&bytes, from, sizeof bytes);
#if defined(__AVX512BW__)
    return (ShortPairs)_mm512_cvtepi8_epi16((__m256i)bytes);
#endif
    return __builtin_convertvector(bytes, ShortPairs);
}

inline ShortPairs load_pairs(const int16_t* from) {
    ShortPairs pairs;
    std::memcpy(&pairs, from, sizeof pairs);
    return pairs;
}

// Widen a multiple of 2 * LANES integers once, for many queries.
inline const int16_t* widen(const int8_t* from, int64_t count, float* to) {
    char* bytes = reinterpret_cast<char*>(to);
    for (int64_t i = 0; i < count; i += 2 * LANES) {
        const ShortPairs pairs = load_pairs(from + i);
        std::memcpy(bytes + i * sizeof(int16_t), &pairs, sizeof pairs);
    }
    return reinterpret_cast<const int16_t*>(to);
}

// The same two integers in all lanes.
inline ShortPairs same_shorts(const void* from) {
    int32_t pair;
    std::memcpy(&pair, from, sizeof pair);
#if defined(__AVX512F__)
    return (ShortPairs)_mm512_set1_epi32(pair);
#elif defined(NEON)
    return (ShortPairs)vdupq_n_s32(pair);
#else
    return (ShortPairs)IntegerLanes{pair, pair, pair, pair, pair, pair, pair, pair};
#endif
}

inline IntegerLanes add_products(IntegerLanes sum, ShortPairs a, ShortPairs b) {
#if defined(__AVX512VNNI__)
    return (IntegerLanes)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#elif defined(__AVX512BW__)
    return sum + (IntegerLanes)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__) && !defined(__AVX512F__)
    return sum + (IntegerLanes)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(NEON)
    const int16x8_t left = (int16x8_t)a, right = (int16x8_t)b;
    return sum + (IntegerLanes)vpaddq_s32(vmull_s16(vget_low_s16(left), vget_low_s16(right)),
                                          vmull_high_s16(left, right));
#else
    for (int i = 0; i < LANES; ++i) sum[i] += a[2 * i] * b[2 * i] + a[2 * i + 1] * b[2 * i + 1];
    return sum;
#endif
}

inline Lanes to_floats(IntegerLanes integers) { return __builtin_convertvector(integers, Lanes); }

// N rounded queries, each with its scale, times the keys of B vectors of positions. As many bytes as are
// read are asked for at `ahead`, if it is not null.
template <typename Stored, int N, int B>
void scores_of_integers(const Stored* keys, const float* key_scales, const float* const* queries,
                        const float* scales, int32_t width, const char* ahead, float* const* scores) {
    const int32_t groups = groups_of(width);
    for (int32_t group = 0; group < groups; ++group) {
        IntegerLanes sums[N][B] = {};
        const int32_t end = std::min(width, (group + 1) * KEY_GROUP);
        for (int32_t i = group * KEY_GROUP; i < end; i += 2) {
            ShortPairs each[B];
            ahead = ask_for<B * sizeof(BytePairs)>(ahead);
#pragma GCC unroll 4
            for (int b = 0; b < B; ++b) {
                ShortPairs pairs = load_pairs(keys + (b * width + i) * LANES);
                hold(pairs);
                each[b] = pairs;
            }
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) {
                const char* query = reinterpret_cast<const char*>(queries[n]) + i * sizeof(int16_t);
                const ShortPairs pair = same_shorts(query);
#pragma GCC unroll 4
                for (int b = 0; b < B; ++b) sums[n][b] = add_products(sums[n][b], each[b], pair);
            }
        }
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n)
#pragma GCC unroll 4
            for (int b = 0; b < B; ++b) {
                float* to = scores[n] + b * LANES;
                const Lanes scale = load(key_scales + (b * groups + group) * LANES) * same(scales[n]);
                store(fused(to_floats(sums[n][b]), scale, group == 0 ? Lanes{} : load(to)), to);
            }
    }
}

// The values of positions [first, last), D vectors of dimensions, times N rows of rounded weights, each
// with its scale. Pairs of positions are whole: of others the weight is zero.
template <typename Stored, int N, int D>
void weigh_integers(const Stored* values, const int16_t (*weights)[SEGMENT], const float* scales,
                    int64_t first, int64_t last, int32_t width, const char* ahead, float* const* sums) {
    IntegerLanes found[N][D] = {};
    for (int64_t p = first / 2 * 2; p < last; p += 2) {
        ShortPairs each[D];
        ahead = ask_for<D * sizeof(BytePairs)>(ahead);
        for (int d = 0; d < D; ++d) {
            each[d] = load_pairs(values + p * width + d * 2 * LANES);
            hold(each[d]);
        }
        for (int n = 0; n < N; ++n) {
            const ShortPairs pair = same_shorts(weights[n] + p);
            for (int d = 0; d < D; ++d) found[n][d] = add_products(found[n][d], each[d], pair);
        }
    }
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n)
#pragma GCC unroll 4
        for (int d = 0; d < D; ++d) store(to_floats(found[n][d]) * same(scales[n]), sums[n] + d * LANES);
}

// Values of positions [first[n], last[n]), weighted by row n of `rows`, which is overwritten.
template <typename Stored, int N>
void weigh_seen_integers(const Stored* values, const float* value_scales, float* const* rows,
                         const int64_t* first, const int64_t* last, int32_t width, const char* ahead,
                         float* const* sums) {
    int16_t weights[N][SEGMENT];
    float scales[N];
    int64_t begin = SEGMENT, end = 0;
    for (int n = 0; n < N; ++n) {
        scales[n] = round_weights(rows[n], value_scales, first[n], last[n], weights[n]);
        if (first[n] < last[n]) begin = std::min(begin, first[n]), end = std::max(end, last[n]);
    }
    float* to[N];
    int32_t d = 0;
    for (; d + 4 * LANES <= width; d += 4 * LANES) {
        for (int n = 0; n < N; ++n) to[n] = sums[n] + d;
        weigh_integers<Stored, N, 4>(values + 2 * d, weights, scales, begin, end, width, d == 0 ? ahead : nullptr, to);
    }
    for (; d < width; d += LANES) {
        for (int n = 0; n < N; ++n) to[n] = sums[n] + d;
        weigh_integers<Stored, N, 1>(values + 2 * d, weights, scales, begin, end, width, nullptr, to);
    }
}

}  // namespace
