// What some rows of integers and some rows of rounded activations are, for products with vectors.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "lanes.hpp"
#include "matrix.hpp"
#include "rows.hpp"

namespace {

constexpr int32_t PART_BLOCKS = 24;  // what is added up before it is added to the rest of a row

template <bool MINIMA>
using Scale = std::conditional_t<MINIMA, uint16_t, float>;

// R rows of int8, and N rows of activations.
template <int R, int N>
struct Int8Operands {
    const int8_t *weights[R], *xs[N];
    const float *scales[R], *fine[N];

    Int8Operands(const Matrix& m, const Rows& x, int32_t row, int64_t first) {
        for (int r = 0; r < R; ++r) {
            weights[r] = static_cast<const int8_t*>(m.weight) + int64_t(row + r) * m.columns;
            scales[r] = static_cast<const float*>(m.scales) + int64_t(row + r) * (m.columns / m.group);
        }
        for (int n = 0; n < N; ++n) xs[n] = x.rounded(first + n), fine[n] = x.scales(first + n);
    }
};

// R rows of int4, and N rows of activations.
template <int R, int N>
struct Int4Operands {
    const uint8_t* weights[R];
    const int8_t* xs[N];
    const float *fine[N], *sums[N];

    Int4Operands(const Matrix& m, const Rows& x, int32_t row, int64_t first) : m_(m) {
        groups_ = m.columns / m.group;
        while (BLOCK << shift_ < m.group) ++shift_;
        for (int r = 0; r < R; ++r) {
            weights[r] = static_cast<const uint8_t*>(m.weight) + int64_t(row + r) * m.columns / 2;
            groups_before_[r] = int64_t(row + r) * groups_;
        }
        for (int n = 0; n < N; ++n) {
            xs[n] = x.rounded(first + n), fine[n] = x.scales(first + n);
            sums[n] = x.sums(first + n);
        }
    }

    // The scales and the minima of eight blocks of a row, from `begin` on.
    __m256 scales(int r, int32_t begin) const {
        return of_blocks(static_cast<const uint16_t*>(m_.scales), r, begin);
    }
    __m256 minima(int r, int32_t begin) const { return of_blocks(m_.minima, r, begin); }

   private:
    // Groups of 32 << shift columns share one. What is read beyond a row is multiplied by nothing.
    __m256 of_blocks(const uint16_t* halves, int r, int32_t begin) const {
        const int64_t from = groups_before_[r] + (begin >> shift_);
        const int64_t left = int64_t(m_.rows) * groups_ - from;
        __m128i packed;
        if (left >= 8) {
            packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(halves + from));
        } else {
            alignas(16) uint16_t few[8] = {};
            std::copy_n(halves + from, left, few);
            packed = _mm_load_si128(reinterpret_cast<const __m128i*>(few));
        }
        const __m256i each =
            _mm256_srl_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm_cvtsi32_si128(shift_));
        return _mm256_permutevar8x32_ps(_mm256_cvtph_ps(packed), each);
    }

    const Matrix& m_;
    int32_t groups_, shift_ = 0;
    int64_t groups_before_[R];
};

}  // namespace
