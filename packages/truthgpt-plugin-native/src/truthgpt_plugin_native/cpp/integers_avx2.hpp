// Some rows of integers times some rows of rounded activations, with AVX2.
#pragma once

#include <algorithm>
#include <cstdint>

#include "integers.hpp"
#include "lanes.hpp"
#include "matrix.hpp"
#include "rows.hpp"

namespace {

// Sums of four neighboring products: unsigned times signed bytes.
inline __m256i quads(__m256i unsigned_bytes, __m256i signed_bytes) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
    return _mm256_dpbusd_epi32(_mm256_setzero_si256(), unsigned_bytes, signed_bytes);
#elif defined(__AVXVNNI__)
    return _mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), unsigned_bytes, signed_bytes);
#else
    // Two products of at most 127 * 127 fit into 16 bits.
    return _mm256_madd_epi16(_mm256_maddubs_epi16(unsigned_bytes, signed_bytes),
                             _mm256_set1_epi16(1));
#endif
}

inline __m256i bytes_at(const void* from) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}

// ONE_SCALE: a row of weights has one scale, which what comes out is multiplied by.
template <int R, int N, bool ONE_SCALE>
void tile_of_int8(const Matrix& m, const Rows& x, int32_t row, int64_t first, float* out, int64_t step) {
    const int32_t groups = m.columns / m.group, in_group = m.group / BLOCK;
    const Int8Operands<R, N> of(m, x, row, first);
    __m256 sums[R][N];
    for (int r = 0; r < R; ++r)
        for (int n = 0; n < N; ++n) sums[r][n] = _mm256_setzero_ps();
    int32_t block = 0;
    for (int32_t group = 0; group < groups; ++group) {
        __m256 steps[R];
        for (int r = 0; r < R; ++r) steps[r] = _mm256_broadcast_ss(of.scales[r] + group);
        for (const int32_t end = block + in_group; block < end; ++block) {
            __m256i ws[R], sizes[R];
            for (int r = 0; r < R; ++r) {
                const int8_t* at = of.weights[r] + block * BLOCK;
                if (block % 2 == 0) prefetch(of.weights[0] + block * BLOCK * R + r * 64 + AHEAD);
                ws[r] = bytes_at(at);
                sizes[r] = _mm256_abs_epi8(ws[r]);
            }
            for (int n = 0; n < N; ++n) {
                __m256i bytes = bytes_at(of.xs[n] + block * BLOCK);
                __m256 each = _mm256_loadu_ps(of.fine[n] + block * (BLOCK / PER_SCALE));
                hold(bytes);
                hold(each);
                for (int r = 0; r < R; ++r) {
                    const __m256i products = quads(sizes[r], _mm256_sign_epi8(bytes, ws[r]));
                    sums[r][n] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(products),
                                                 ONE_SCALE ? each : _mm256_mul_ps(each, steps[r]),
                                                 sums[r][n]);
                }
            }
        }
    }
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n)
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r)
            out[n * step + r] = total((EightLanes)sums[r][n]) * (ONE_SCALE ? of.scales[r][0] : 1.0f);
}

template <int R, int N>
void tile_of_int4(const Matrix& m, const Rows& x, int32_t row, int64_t first, float* out, int64_t step) {
    const int32_t blocks = m.columns / BLOCK;
    const Int4Operands<R, N> of(m, x, row, first);
    const __m256i low = _mm256_set1_epi8(15);
    __m256 sums[R][N];
    for (int r = 0; r < R; ++r)
        for (int n = 0; n < N; ++n) sums[r][n] = _mm256_setzero_ps();
    for (int32_t begin = 0; begin < blocks; begin += 8) {
        const int32_t count = std::min(8, blocks - begin);
        alignas(32) float steps[R][8];
        for (int r = 0; r < R; ++r) {
            _mm256_store_ps(steps[r], of.scales(r, begin));
            const __m256 lows = of.minima(r, begin);
            for (int n = 0; n < N; ++n)
                sums[r][n] = _mm256_fmadd_ps(lows, _mm256_loadu_ps(of.sums[n] + begin), sums[r][n]);
        }
        for (int32_t i = 0; i < count; i += 2) {
            const int64_t column = int64_t(begin + i) * BLOCK;
            for (int r = 0; r < R; ++r) {
                const uint8_t* pair = of.weights[r] + column / 2;
                if (i % 4 == 0) prefetch(of.weights[0] + column / 2 * R + r * 64 + AHEAD);
                const __m256i bytes = bytes_at(pair);
                const __m256i lows = _mm256_and_si256(bytes, low);
                const __m256i highs = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), low);
                const __m256 low_step = _mm256_broadcast_ss(steps[r] + i);
                const __m256 high_step = _mm256_broadcast_ss(steps[r] + i + 1);
                for (int n = 0; n < N; ++n) {
                    const __m256 low_each = _mm256_loadu_ps(of.fine[n] + column / PER_SCALE);
                    const __m256 high_each = _mm256_loadu_ps(of.fine[n] + (column + BLOCK) / PER_SCALE);
                    __m256 sum = sums[r][n];
                    sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(quads(lows, bytes_at(of.xs[n] + column))),
                                          _mm256_mul_ps(low_step, low_each), sum);
                    sum = _mm256_fmadd_ps(
                        _mm256_cvtepi32_ps(quads(highs, bytes_at(of.xs[n] + column + BLOCK))),
                        _mm256_mul_ps(high_step, high_each), sum);
                    sums[r][n] = sum;
                }
            }
        }
    }
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n)
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r)
            out[n * step + r] = total((EightLanes)sums[r][n]);
}

}  // namespace
