// Attending with keys and values of bfloat16, where the processor multiplies pairs of them.
//
// A lane adds up two products at once: of a query and a key those of two dimensions, of weights and
// values those of two positions, which begin at an even one. Queries and weights are rounded to
// bfloat16.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "lanes.hpp"
#include "rows.hpp"

namespace {

// Keys and values of this type are multiplied in pairs, and lie so.
template <typename Stored>
constexpr bool IN_PAIRS = BFLOAT16_ROUNDS && std::is_same_v<Stored, uint16_t>;

#if defined(__AVX512BF16__)

// Round `count` numbers, a multiple of LANES; `to` may be where they are.
inline void round_to_bfloat16(const float* from, int64_t count, void* to) {
    for (int64_t i = 0; i < count; i += LANES) {
        const __m256i rounded = (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(from + i));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(static_cast<uint16_t*>(to) + i), rounded);
    }
}

inline __m512bh same_pair(const void* from) {
    int32_t pair;
    std::memcpy(&pair, from, sizeof pair);
    return (__m512bh)_mm512_set1_epi32(pair);
}

// N rounded queries times the keys of B vectors of positions. As many bytes as are read are asked for at
// `ahead`, if it is not null.
template <int N, int B>
void scores_of_pairs(const uint16_t* keys, const float* const* queries, int32_t width, const char* ahead,
                     float* const* scores) {
    __m512 sums[N][B];
    for (int n = 0; n < N; ++n)
        for (int b = 0; b < B; ++b) sums[n][b] = _mm512_setzero_ps();
    for (int32_t i = 0; i < width; i += 2) {
        __m512i each[B];
        ahead = ask_for<B * sizeof(__m512i)>(ahead);
        for (int b = 0; b < B; ++b) {
            each[b] = _mm512_loadu_si512(keys + (b * width + i) * LANES);
            hold(each[b]);
        }
        for (int n = 0; n < N; ++n) {
            const __m512bh query = same_pair(reinterpret_cast<const uint16_t*>(queries[n]) + i);
            for (int b = 0; b < B; ++b)
                sums[n][b] = _mm512_dpbf16_ps(sums[n][b], (__m512bh)each[b], query);
        }
    }
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n)
#pragma GCC unroll 4
        for (int b = 0; b < B; ++b) _mm512_storeu_ps(scores[n] + b * LANES, sums[n][b]);
}

// The values of the pairs of positions in [first, last), D vectors of dimensions, weighted by N rows of
// rounded weights and added. Only what `kept` has of a pair is read.
template <int N, int D>
void weigh_pairs(const uint16_t* values, const uint16_t* const* weights, int64_t first, int64_t last,
                 int32_t width, uint32_t kept, const char* ahead, float* const* sums) {
    __m512 found[N][D];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n)
#pragma GCC unroll 4
        for (int d = 0; d < D; ++d) found[n][d] = _mm512_loadu_ps(sums[n] + d * LANES);
    const __m512i all = _mm512_set1_epi32(int32_t(kept));
    for (int64_t p = first; p < last; p += 2) {
        __m512i each[D];
        ahead = ask_for<D * sizeof(__m512i)>(ahead);
        for (int d = 0; d < D; ++d) {
            each[d] = _mm512_and_si512(all, _mm512_loadu_si512(values + p * width + d * 2 * LANES));
            hold(each[d]);
        }
        for (int n = 0; n < N; ++n) {
            const __m512bh weight = same_pair(weights[n] + p);
            for (int d = 0; d < D; ++d)
                found[n][d] = _mm512_dpbf16_ps(found[n][d], (__m512bh)each[d], weight);
        }
    }
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n)
#pragma GCC unroll 4
        for (int d = 0; d < D; ++d) _mm512_storeu_ps(sums[n] + d * LANES, found[n][d]);
}

template <int N>
void weigh_all_pairs(const uint16_t* values, const uint16_t* const* weights, int64_t first, int64_t last,
                     int32_t width, uint32_t kept, const char* ahead, float* const* sums) {
    if (first >= last) return;
    float* to[N];
    int32_t d = 0;
    for (; d + 4 * LANES <= width; d += 4 * LANES) {
        for (int n = 0; n < N; ++n) to[n] = sums[n] + d;
        weigh_pairs<N, 4>(values + 2 * d, weights, first, last, width, kept, d == 0 ? ahead : nullptr, to);
    }
    for (; d < width; d += LANES) {
        for (int n = 0; n < N; ++n) to[n] = sums[n] + d;
        weigh_pairs<N, 1>(values + 2 * d, weights, first, last, width, kept, nullptr, to);
    }
}

// Values of positions [first[n], last[n]), weighted by row n of `weights`, which is rounded in place.
// Whole pairs that all queries see are read once for all of them; what one may not look at is not even
// multiplied by zero: it may be NaN.
template <int N>
void weigh_seen_pairs(const uint16_t* values, float* const* rows, int64_t positions, const int64_t* first,
                      const int64_t* last, int32_t width, const char* ahead, float* const* sums) {
    const uint16_t* weights[N];
    int64_t begin = 0, end = INT64_MAX;
    for (int n = 0; n < N; ++n) {
        round_to_bfloat16(rows[n], positions, rows[n]);
        weights[n] = reinterpret_cast<const uint16_t*>(rows[n]);
        begin = std::max(begin, (first[n] + 1) / 2 * 2);
        end = std::min(end, last[n] / 2 * 2);
    }
    constexpr uint32_t BOTH = ~0u, EARLIER = 0x0000ffffu, LATER = 0xffff0000u;
    const auto one = [&](int n, int64_t from, int64_t to, uint32_t kept) {
        weigh_all_pairs<1>(values, weights + n, from, to, width, kept, nullptr, sums + n);
    };
    for (int n = 0; n < N; ++n) {
        if (first[n] % 2 != 0 && first[n] < last[n]) one(n, first[n] - 1, first[n] + 1, LATER);
        const int64_t whole_end = last[n] / 2 * 2;
        one(n, (first[n] + 1) / 2 * 2, begin < end ? begin : whole_end, BOTH);
    }
    weigh_all_pairs<N>(values, weights, begin, end, width, BOTH, ahead, sums);
    for (int n = 0; n < N; ++n) {
        if (begin < end) one(n, end, last[n] / 2 * 2, BOTH);
        if (last[n] % 2 != 0 && first[n] < last[n]) one(n, last[n] - 1, last[n] + 1, EARLIER);
    }
}

#endif

}  // namespace
