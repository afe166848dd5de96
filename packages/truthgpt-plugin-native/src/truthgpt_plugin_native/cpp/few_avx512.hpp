// Rows of integers times a few rows of rounded activations, with AVX-512 VNNI: as they lie in memory.
//
// Each number has the same bits as among many rows: see `integers_avx512.hpp`.
#pragma once

#include <algorithm>
#include <cstdint>

#include "integers.hpp"
#include "lanes.hpp"
#include "matrix.hpp"
#include "rows.hpp"

namespace {

constexpr int64_t MOST_FEW = 4;  // rows of activations, for which packing does not pay
constexpr int FEW_ROWS = 4;  // of a matrix, which are read side by side

// The scales and minima of four rows and blocks: in fours of lanes the rows, one after the other the
// blocks.
class OfFourRows {
   public:
    OfFourRows(const Matrix& m, const int32_t* rows) : in_group_(m.group / BLOCK) {
        const int32_t groups = m.columns / m.group;
        for (int r = 0; r < FEW_ROWS; ++r) before_[r] = int64_t(rows[r]) * groups;
    }

    // Go on to the next `count` blocks, at most four.
    void next(int32_t count) {
        while (in_ >= in_group_) in_ -= in_group_, ++group_;
        // How many groups after the first each of the blocks is in.
        const __m512i at = _mm512_add_epi32(_mm512_set1_epi32(in_), BLOCK_OF_LANE());
        __m512i beyond = _mm512_setzero_si512();
        for (int i = 1; i < 4; ++i)
            beyond = _mm512_mask_add_epi32(
                beyond, _mm512_cmpge_epi32_mask(at, _mm512_set1_epi32(i * in_group_)), beyond,
                _mm512_set1_epi32(1));
        lane_ = beyond;
        there_ = __mmask8((1 << ((in_ + count - 1) / in_group_ + 1)) - 1);
        first_ = group_;
        in_ += count;
    }

    __m512 scales(const float* values) const {
        __m512 rows = _mm512_castps128_ps512(four(values, 0));
        rows = _mm512_insertf32x4(rows, four(values, 1), 1);
        rows = _mm512_insertf32x4(rows, four(values, 2), 2);
        rows = _mm512_insertf32x4(rows, four(values, 3), 3);
        return _mm512_permutexvar_ps(_mm512_add_epi32(lane_, FOURS_BY_ROW()), rows);
    }

    // The same of float16 numbers.
    __m512 scales(const uint16_t* values) const {
        const __m128i low = _mm_unpacklo_epi64(four(values, 0), four(values, 1));
        const __m128i high = _mm_unpacklo_epi64(four(values, 2), four(values, 3));
        const __m512 rows = _mm512_cvtph_ps(_mm256_setr_m128i(low, high));
        return _mm512_permutexvar_ps(_mm512_add_epi32(lane_, FOURS_BY_ROW()), rows);
    }

   private:
    static __m512i BLOCK_OF_LANE() {
        return _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    }
    static __m512i FOURS_BY_ROW() {
        return _mm512_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12);
    }
    __m128 four(const float* values, int r) const {
        return _mm_maskz_loadu_ps(there_, values + before_[r] + first_);
    }
    __m128i four(const uint16_t* values, int r) const {
        return _mm_maskz_loadu_epi16(there_, values + before_[r] + first_);
    }

    const int32_t in_group_;
    int64_t before_[FEW_ROWS];
    int32_t in_ = 0, group_ = 0, first_ = 0;
    __mmask8 there_ = 0;
    __m512i lane_ = _mm512_setzero_si512();
};

// Of two numbers of each of four blocks one, for four lanes each.
inline __m512 for_four_rows(__m256 halves, int half) {
    const __m512i firsts = _mm512_setr_epi32(0, 0, 0, 0, 2, 2, 2, 2, 4, 4, 4, 4, 6, 6, 6, 6);
    return _mm512_permutexvar_ps(_mm512_add_epi32(firsts, _mm512_set1_epi32(half)),
                                 _mm512_castps256_ps512(halves));
}

// A number of each of four blocks, for four lanes each.
inline __m512 for_four_rows(const float* blocks, int32_t count) {
    const __m128 four = _mm_maskz_loadu_ps(__mmask8((1 << count) - 1), blocks);
    return _mm512_permutexvar_ps(_mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3),
                                 _mm512_castps128_ps512(four));
}

// 128 columns as two vectors. Of int4 the first has blocks 0 and 2, as their halves of bytes lie.
template <bool MINIMA>
struct Columns {
    __m512i low, high;

    // Of weights, as unsigned bytes; beyond `count` blocks nothing is read.
    static Columns weights(const uint8_t* from, int32_t count) {
        if (MINIMA) {
            const __m512i bytes = _mm512_maskz_loadu_epi8(count > 2 ? ~__mmask64(0) : 0xffffffffu, from);
            const __m512i half = _mm512_set1_epi8(15);
            return {_mm512_and_si512(bytes, half),
                    _mm512_and_si512(_mm512_srli_epi16(bytes, 4), half)};
        }
        const Columns read = as_they_lie(from, count);
        const __m512i offset = _mm512_set1_epi8(-128);
        return {_mm512_xor_si512(read.low, offset), _mm512_xor_si512(read.high, offset)};
    }

    static Columns activations(const int8_t* from, int32_t count) {
        const Columns read = as_they_lie(from, count);
        if (!MINIMA) return read;
        return {_mm512_shuffle_i64x2(read.low, read.high, 0x44),
                _mm512_shuffle_i64x2(read.low, read.high, 0xee)};
    }

   private:
    static Columns as_they_lie(const void* from, int32_t count) {
        const auto there = [&](int32_t blocks) {
            return blocks >= 2 ? ~__mmask64(0) : blocks == 1 ? __mmask64(0xffffffffu) : __mmask64(0);
        };
        return {_mm512_maskz_loadu_epi8(there(count), from),
                _mm512_maskz_loadu_epi8(there(count - 2), static_cast<const char*>(from) + 64)};
    }
};

// Fours of lanes of four vectors, added up: their sums are the new fours.
inline __m512i sums_of_fours(const __m512i v[4]) {
    const auto pairs = [](__m512i a, __m512i b) {
        const __m512 x = (__m512)a, y = (__m512)b;
        return _mm512_add_epi32((__m512i)_mm512_shuffle_ps(x, y, 0x88), (__m512i)_mm512_shuffle_ps(x, y, 0xdd));
    };
    return pairs(pairs(v[0], v[1]), pairs(v[2], v[3]));
}

// What the products of the two groups of each of four blocks add up to, for four rows: in fours of lanes
// the rows, one after the other the blocks.
template <bool MINIMA>
struct Halves {
    __m512 first, second;

    Halves(const Columns<MINIMA> weights[FEW_ROWS], const Columns<MINIMA>& xs) {
        __m512i lows[FEW_ROWS], highs[FEW_ROWS];
        for (int r = 0; r < FEW_ROWS; ++r) {
            lows[r] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), weights[r].low, xs.low);
            highs[r] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), weights[r].high, xs.high);
        }
        const __m512i low = sums_of_fours(lows), high = sums_of_fours(highs);
        first = in_order(_mm512_shuffle_i32x4(low, high, 0x88));
        second = in_order(_mm512_shuffle_i32x4(low, high, 0xdd));
    }

   private:
    static __m512 in_order(__m512i blocks) {
        return _mm512_cvtepi32_ps(MINIMA ? _mm512_shuffle_i32x4(blocks, blocks, 0xd8) : blocks);
    }
};

// At most four rows [row, last) of weights times N rows of activations: out[n * step + r].
template <int N, bool MINIMA>
void tile_of_few(const Matrix& m, const Rows& x, int32_t row, int32_t last, int64_t first, float* out,
                 int64_t step) {
    const int64_t bytes_of_row = MINIMA ? m.columns / 2 : m.columns;
    const uint8_t* weights[FEW_ROWS];
    int32_t rows[FEW_ROWS];
    for (int r = 0; r < FEW_ROWS; ++r) {
        rows[r] = std::min(row + r, last - 1);
        weights[r] = static_cast<const uint8_t*>(m.weight) + rows[r] * bytes_of_row;
    }
    const __mmask8 there = __mmask8((1 << (last - row)) - 1);
    const int32_t blocks = m.columns / BLOCK;
    OfFourRows of(m, rows);
    for (int32_t begin = 0; begin < blocks; begin += PART_BLOCKS) {
        const int32_t end = std::min(blocks, begin + PART_BLOCKS);
        __m512 sums[N];
        for (int n = 0; n < N; ++n) sums[n] = _mm512_setzero_ps();
        for (int32_t block = begin; block < end; block += 4) {
            const int32_t count = std::min(4, end - block);
            const int64_t column = int64_t(block) * BLOCK, bytes = MINIMA ? column / 2 : column;
            const uint8_t* next = weights[0] + bytes * FEW_ROWS + AHEAD;
            for (int i = 0; i < (MINIMA ? FEW_ROWS : 2 * FEW_ROWS); ++i) prefetch(next + i * 64);
            of.next(count);
            const __m512 steps = of.scales(static_cast<const Scale<MINIMA>*>(m.scales));
            __m512 minima = _mm512_setzero_ps();
            if (MINIMA) minima = of.scales(m.minima);
            Columns<MINIMA> ws[FEW_ROWS];
            for (int r = 0; r < FEW_ROWS; ++r)
                ws[r] = Columns<MINIMA>::weights(weights[r] + bytes, count);
            for (int n = 0; n < N; ++n) {
                const auto xs = Columns<MINIMA>::activations(x.rounded(first + n) + column, count);
                const __m512 of_blocks = for_four_rows(x.sums(first + n) + block, count);
                const __m256 each = _mm256_maskz_loadu_ps(__mmask8((1 << 2 * count) - 1),
                                                          x.scales(first + n) + column / ACTIVATION_GROUP);
                const Halves<MINIMA> products(ws, xs);
                __m512 inner = _mm512_mul_ps(products.first, for_four_rows(each, 0));
                inner = _mm512_fmadd_ps(products.second, for_four_rows(each, 1), inner);
                if (MINIMA) sums[n] = _mm512_fmadd_ps(minima, of_blocks, sums[n]);
                else inner = _mm512_add_ps(inner, _mm512_mul_ps(of_blocks, _mm512_set1_ps(-128.0f)));
                sums[n] = _mm512_fmadd_ps(inner, steps, sums[n]);
            }
        }
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
            __m128 part = _mm512_castps512_ps128(sums[n]);
            part = _mm_add_ps(part, _mm512_extractf32x4_ps(sums[n], 1));
            part = _mm_add_ps(part, _mm512_extractf32x4_ps(sums[n], 2));
            part = _mm_add_ps(part, _mm512_extractf32x4_ps(sums[n], 3));
            float* to = out + n * step;
            if (begin > 0) part = _mm_add_ps(_mm_maskz_loadu_ps(there, to), part);
            _mm_mask_storeu_ps(to, there, part);
        }
    }
}

}  // namespace
