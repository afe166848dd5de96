// Some rows of integers times some rows of rounded activations, with AVX-512 VNNI.
//
// Its instruction multiplies unsigned bytes by signed ones. Weights of int8 are made unsigned by adding
// 128, and 128 times the sum of each quad of activations is what is taken away again.
#pragma once

#include <algorithm>
#include <cstdint>

#include "integers.hpp"
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
    const Int8Operands<R, N> of(m, x, row, first);
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
            for (int r = 0; r < R; ++r) steps[r] = of_two(of.scales[r][low], of.scales[r][high]);
        }
        for (int r = 0; r < R; ++r) {
            prefetch(of.weights[0] + at * R + r * 64 + AHEAD);
            ws[r] = _mm512_xor_si512(_mm512_maskz_loadu_epi8(there, of.weights[r] + at), offset);
        }
        for (int n = 0; n < N; ++n) {
            __m512i bytes = _mm512_maskz_loadu_epi8(there, of.xs[n] + at);
            __m512 each = _mm512_maskz_loadu_ps(both ? 0xffff : 0xff, of.fine[n] + at / QUAD);
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
            out[n * step + r] = total((Lanes)sums[r][n]) * (ONE_SCALE ? of.scales[r][0] : 1.0f);
}

template <int R, int N>
void tile_of_int4(const Matrix& m, const Rows& x, int32_t row, int64_t first, float* out, int64_t step) {
    const int32_t blocks = m.columns / BLOCK;
    const Int4Operands<R, N> of(m, x, row, first);
    const __m512i low = _mm512_set1_epi8(15);
    __m512 sums[R][N];
    for (int r = 0; r < R; ++r)
        for (int n = 0; n < N; ++n) sums[r][n] = _mm512_setzero_ps();
    for (int32_t begin = 0; begin < blocks; begin += 8) {
        const int32_t count = std::min(8, blocks - begin);
        alignas(32) float steps[R][8];
        for (int r = 0; r < R; ++r) {
            _mm256_store_ps(steps[r], of.scales(r, begin));
            const __m512 lows = _mm512_zextps256_ps512(of.minima(r, begin));
            for (int n = 0; n < N; ++n)
                sums[r][n] = _mm512_fmadd_ps(
                    lows, _mm512_zextps256_ps512(_mm256_loadu_ps(of.sums[n] + begin)), sums[r][n]);
        }
        for (int32_t i = 0; i < count; i += 2) {
            const int64_t column = int64_t(begin + i) * BLOCK;
            __m512i ws[R];
            __m512 both[R];
            for (int r = 0; r < R; ++r) {
                const uint8_t* pair = of.weights[r] + column / 2;
                if (i % 4 == 0) prefetch(of.weights[0] + column / 2 * R + r * 64 + AHEAD);
                const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(pair));
                ws[r] = _mm512_and_si512(low, _mm512_inserti64x4(_mm512_castsi256_si512(bytes),
                                                                 _mm256_srli_epi16(bytes, 4), 1));
                both[r] = of_two(steps[r][i], steps[r][i + 1]);
            }
            for (int n = 0; n < N; ++n) {
                __m512i bytes = _mm512_loadu_si512(of.xs[n] + column);
                __m512 each = _mm512_loadu_ps(of.fine[n] + column / QUAD);
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
