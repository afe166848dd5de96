// Some rows of weights times some rows of activations.
//
// Each number that comes out is a sum of its own, in an order that depends on nothing but the length
// of a row: LANES partial sums, each over every LANES-th number, added up in the end. For integers see
// the code for each kind of processor.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "lanes.hpp"
#include "matrix.hpp"
#include "rows.hpp"

#if defined(PACKED_INTEGERS)
#include "integers_avx512.hpp"
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include "integers_avx2.hpp"
#elif defined(NEON)
#include "integers_neon.hpp"
#else
#include "integers_plain.hpp"
#endif

namespace {

// Ask for cache line r of R that come later. What several rows are read of is asked for sooner, and to
// a second cache: with one row memory is as busy as it can be.
template <int R>
inline void ask_ahead(const void* at, int r) {
    const char* line = static_cast<const char*>(at) + r * 64;
    if constexpr (R > 1) prefetch_far(line + 2 * AHEAD);
    else prefetch(line + AHEAD);
}

// R rows of weights times N rows of activations: out[n * step + r].
template <typename Stored, int R, int N>
void tile_of_floats(const Matrix& m, const Rows& x, int32_t row, int64_t first, float* out, int64_t step) {
    const Stored* weights[R];
    const float* xs[N];
    for (int r = 0; r < R; ++r)
        weights[r] = static_cast<const Stored*>(m.weight) + int64_t(row + r) * m.columns;
    for (int n = 0; n < N; ++n) xs[n] = x.exact(first + n);
    Lanes sums[R][N] = {};
    const int32_t whole = m.columns / LANES * LANES;
    for (int32_t k = 0; k < whole; k += LANES) {
        Lanes ws[R];
        for (int r = 0; r < R; ++r) {
            if (k % (64 / sizeof(Stored)) == 0)
                ask_ahead<R>(weights[0] + k * R, r);
            ws[r] = load(weights[r] + k);
        }
        for (int n = 0; n < N; ++n) {
            Lanes numbers = load(xs[n] + k);
            hold(numbers);
            for (int r = 0; r < R; ++r) sums[r][n] = fused(ws[r], numbers, sums[r][n]);
        }
    }
    if (whole < m.columns) {
#if defined(NEON)  // there g++ does not by itself
#pragma GCC unroll 4
#endif
        for (int r = 0; r < R; ++r) {
            Stored rest[LANES] = {};
            std::copy_n(weights[r] + whole, m.columns - whole, rest);
            const Lanes ws = load(rest);
            for (int n = 0; n < N; ++n) sums[r][n] = fused(ws, load(xs[n] + whole), sums[r][n]);
        }
    }
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n)
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r)
            out[n * step + r] = total(sums[r][n]);
}

#if defined(__AVX512BF16__)

// Products of two neighbors are added to a lane at once, so that there are LANES sums as well.
template <int R, int N>
void tile_of_bfloat16(const Matrix& m, const Rows& x, int32_t row, int64_t first, float* out,
                      int64_t step) {
    constexpr int AT_ONCE = 2 * LANES;
    const uint16_t *weights[R], *xs[N];
    for (int r = 0; r < R; ++r)
        weights[r] = static_cast<const uint16_t*>(m.weight) + int64_t(row + r) * m.columns;
    for (int n = 0; n < N; ++n) xs[n] = x.halves(first + n);
    __m512 sums[R][N];
    for (int r = 0; r < R; ++r)
        for (int n = 0; n < N; ++n) sums[r][n] = _mm512_setzero_ps();
    for (int32_t k = 0; k < m.columns; k += AT_ONCE) {
        const int32_t left = m.columns - k;
        const __mmask32 there = left >= AT_ONCE ? ~__mmask32(0) : (__mmask32(1) << left) - 1;
        __m512i ws[R];
        for (int r = 0; r < R; ++r) {
            ask_ahead<R>(weights[0] + k * R, r);
            ws[r] = _mm512_maskz_loadu_epi16(there, weights[r] + k);
        }
        for (int n = 0; n < N; ++n) {
            __m512i numbers = _mm512_maskz_loadu_epi16(there, xs[n] + k);
            hold(numbers);
            for (int r = 0; r < R; ++r)
                sums[r][n] = _mm512_dpbf16_ps(sums[r][n], (__m512bh)ws[r], (__m512bh)numbers);
        }
    }
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n)
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) out[n * step + r] = total((Lanes)sums[r][n]);
}

#else

template <int R, int N>
void tile_of_bfloat16(const Matrix& m, const Rows& x, int32_t row, int64_t first, float* out,
                      int64_t step) {
    tile_of_floats<uint16_t, R, N>(m, x, row, first, out, step);
}

#endif

}  // namespace
