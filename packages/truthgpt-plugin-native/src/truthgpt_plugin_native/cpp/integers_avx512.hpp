// Some rows of integers times some rows of rounded activations, with AVX-512 VNNI.
//
// Its instruction multiplies unsigned bytes by signed ones. Weights of int8 are made unsigned by adding
// 128, and 128 times the sum of each quad of activations is what is taken away again.
#pragma once

#include <algorithm>
#include <cstdint>

#include "lanes.hpp"
#include "matrix.hpp"
#include "rows.hpp"

namespace {

// One number for the lanes of each of two blocks.
inline __m512 of_two(float low, float high) {
    return _mm512_insertf32x8(_mm512_set1_ps(low), _mm256_set1_ps(high), 1);
}

// ONE_SCALE: a row of weights has one scale, which what comes out is multiplied by.
template <int R, int N, bool ONE_SCALE>
void tile_of_int8(const Matrix& m, const Rows& x, int32_t row, int64_t first, float* out, int64_t step) {
    const int32_t blocks = m.columns / BLOCK, in_group = m.group / BLOCK, groups = m.columns / m.group;
    const __m512i offset = _mm512_set1_epi8(-128);
    const int8_t *weights[R], *xs[N];
    const float *scales[R], *fine[N];
    for (int r = 0; r < R; ++r) {
        weights[r] = static_cast<const int8_t*>(m.weight) + int64_t(row + r) * m.columns;
        scales[r] = static_cast<const float*>(m.scales) + int64_t(row + r) * groups;
    }
    for (int n = 0; n < N; ++n) xs[n] = x.rounded(first + n), fine[n] = x.scales(first + n);
    __m512 sums[R][N];
    for (int r = 0; r < R; ++r)
        for (int n = 0; n < N; ++n) sums[r][n] = _mm512_setzero_ps();
    int32_t group = 0, left = in_group;
    const auto next = [&] {
        const int32_t found = group;
        if (--left == 0) ++group, left = in_group;
        return found;
    };
    // Two blocks at a time; of a last single one, nothing beyond it is read.
    for (int32_t block = 0; block < blocks; block += 2) {
        const bool both = block + 1 < blocks;
        const __mmask64 there = both ? ~__mmask64(0) : 0xffffffffu;
        const int64_t at = int64_t(block) * BLOCK;
        __m512i ws[R];
        __m512 steps[R];
        if (!ONE_SCALE) {
            const int32_t low = next(), high = both ? next() : low;
            for (int r = 0; r < R; ++r) steps[r] = of_two(scales[r][low], scales[r][high]);
        }
        for (int r = 0; r < R; ++r) {
            prefetch(weights[0] + at * R + r * 64 + AHEAD);
            ws[r] = _mm512_xor_si512(_mm512_maskz_loadu_epi8(there, weights[r] + at), offset);
        }
        for (int n = 0; n < N; ++n) {
            __m512i bytes = _mm512_maskz_loadu_epi8(there, xs[n] + at);
            __m512 each = _mm512_maskz_loadu_ps(both ? 0xffff : 0xff, fine[n] + at / QUAD);
            hold(bytes);
            hold(each);
            const __m512i less = _mm512_sub_epi32(
                _mm512_setzero_si512(), _mm512_dpbusd_epi32(_mm512_setzero_si512(), offset, bytes));
            for (int r = 0; r < R; ++r) {
                const __m512 products = _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(less, ws[r], bytes));
                sums[r][n] = _mm512_fmadd_ps(products, ONE_SCALE ? each : _mm512_mul_ps(each, steps[r]),
                                             sums[r][n]);
            }
        }
    }
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n)
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r)
            out[n * step + r] = total((Lanes)sums[r][n]) * (ONE_SCALE ? scales[r][0] : 1.0f);
}

// The scales, or the minima, of eight blocks of int4: groups of 32 << shift columns share one. `left`
// of them are in memory from `halves` on; what is read beyond a row is multiplied by nothing.
inline __m256 of_blocks(const uint16_t* halves, int64_t left, int32_t shift) {
    const __mmask8 there = left >= 8 ? 0xff : __mmask8((1 << left) - 1);
    const __m256 numbers = _mm256_cvtph_ps(_mm_maskz_loadu_epi16(there, halves));
    const __m256i each =
        _mm256_srl_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm_cvtsi32_si128(shift));
    return _mm256_permutevar8x32_ps(numbers, each);
}

template <int R, int N>
void tile_of_int4(const Matrix& m, const Rows& x, int32_t row, int64_t first, float* out, int64_t step) {
    const int32_t blocks = m.columns / BLOCK, groups = m.columns / m.group;
    int32_t shift = 0;
    while (BLOCK << shift < m.group) ++shift;
    const uint8_t* weights[R];
    int64_t at[R];
    for (int r = 0; r < R; ++r) {
        weights[r] = static_cast<const uint8_t*>(m.weight) + int64_t(row + r) * m.columns / 2;
        at[r] = int64_t(row + r) * groups;
    }
    const int8_t* xs[N];
    const float* fine[N];
    for (int n = 0; n < N; ++n) xs[n] = x.rounded(first + n), fine[n] = x.scales(first + n);
    const int64_t all = int64_t(m.rows) * groups;
    const __m512i low = _mm512_set1_epi8(15);
    __m512 sums[R][N];
    for (int r = 0; r < R; ++r)
        for (int n = 0; n < N; ++n) sums[r][n] = _mm512_setzero_ps();
    for (int32_t begin = 0; begin < blocks; begin += 8) {
        const int32_t count = std::min(8, blocks - begin), group = begin >> shift;
        alignas(32) float steps[R][8];
        for (int r = 0; r < R; ++r) {
            const int64_t from = at[r] + group;
            const auto* scales = static_cast<const uint16_t*>(m.scales) + from;
            _mm256_store_ps(steps[r], of_blocks(scales, all - from, shift));
            const __m512 lows = _mm512_zextps256_ps512(of_blocks(m.minima + from, all - from, shift));
            for (int n = 0; n < N; ++n)
                sums[r][n] = _mm512_fmadd_ps(
                    lows, _mm512_zextps256_ps512(_mm256_loadu_ps(x.sums(first + n) + begin)), sums[r][n]);
        }
        for (int32_t i = 0; i < count; i += 2) {
            const int64_t column = int64_t(begin + i) * BLOCK;
            __m512i ws[R];
            __m512 both[R];
            for (int r = 0; r < R; ++r) {
                const uint8_t* pair = weights[r] + column / 2;
                if (i % 4 == 0) prefetch(weights[0] + column / 2 * R + r * 64 + AHEAD);
                const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(pair));
                ws[r] = _mm512_and_si512(low, _mm512_inserti64x4(_mm512_castsi256_si512(bytes),
                                                                 _mm256_srli_epi16(bytes, 4), 1));
                both[r] = of_two(steps[r][i], steps[r][i + 1]);
            }
            for (int n = 0; n < N; ++n) {
                __m512i bytes = _mm512_loadu_si512(xs[n] + column);
                __m512 each = _mm512_loadu_ps(fine[n] + column / QUAD);
                hold(bytes);
                hold(each);
                for (int r = 0; r < R; ++r) {
                    const __m512 products =
                        _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(_mm512_setzero_si512(), ws[r], bytes));
                    sums[r][n] = _mm512_fmadd_ps(products, _mm512_mul_ps(each, both[r]), sums[r][n]);
                }
            }
        }
    }
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n)
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r)
            out[n * step + r] = total((Lanes)sums[r][n]);
}

}  // namespace
