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

// out[n * step + r] is what sums[r][n] adds up to.
template <int R, int N>
[[gnu::always_inline]] inline void write_totals(const Lanes (&sums)[R][N], float* out, int64_t step) {
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
#if defined(__AVX512F__)
        if constexpr (R == 4) {
            _mm_storeu_ps(out + n * step, totals(sums[0][n], sums[1][n], sums[2][n], sums[3][n]));
            continue;
        }
#endif
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) out[n * step + r] = total(sums[r][n]);
    }
}

// R rows of weights times N rows of activations: out[n * step + r].
template <typename Stored, int R, int N>
[[gnu::always_inline]] inline void tile_of_floats(const Matrix& m, const Rows& x, int32_t row, int64_t first, float* out, int64_t step) {
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
        // Or g++ would keep all sums in memory, above as well.
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
            Stored rest[LANES] = {};
            std::copy_n(weights[r] + whole, m.columns - whole, rest);
            const Lanes ws = load(rest);
            for (int n = 0; n < N; ++n) sums[r][n] = fused(ws, load(xs[n] + whole), sums[r][n]);
        }
    }
    write_totals(sums, out, step);
}

#if defined(__AVX512BF16__)

// Products of two neighbors are added to a lane at once, so that there are LANES sums as well.
template <int R, int N>
[[gnu::always_inline]] inline void tile_of_bfloat16(const Matrix& m, const Rows& x, int32_t row, int64_t first, float* out,
                      int64_t step) {
    constexpr int AT_ONCE = 2 * LANES;
    const uint16_t *weights[R], *xs[N];
    for (int r = 0; r < R; ++r)
        weights[r] = static_cast<const uint16_t*>(m.weight) + int64_t(row + r) * m.columns;
    for (int n = 0; n < N; ++n) xs[n] = x.halves(first + n);
    Lanes sums[R][N] = {};
    const auto added = [](Lanes sum, __m512i ws, __m512i numbers) {
        return (Lanes)_mm512_dpbf16_ps((__m512)sum, (__m512bh)ws, (__m512bh)numbers);
    };
    // Masks take time, but where memory takes longer: there vectors without them are read more slowly.
    const int32_t whole = R * N == 1 ? 0 : m.columns / AT_ONCE * AT_ONCE;
    for (int32_t k = 0; k < whole; k += AT_ONCE) {
        __m512i ws[R];
        for (int r = 0; r < R; ++r) {
            ask_ahead<R>(weights[0] + k * R, r);
            ws[r] = _mm512_loadu_si512(weights[r] + k);
        }
        for (int n = 0; n < N; ++n) {
            __m512i numbers = _mm512_loadu_si512(xs[n] + k);
            hold(numbers);
            for (int r = 0; r < R; ++r) sums[r][n] = added(sums[r][n], ws[r], numbers);
        }
    }
    for (int32_t k = whole; k < m.columns; k += AT_ONCE) {
        const int32_t left = m.columns - k;
        const __mmask32 there = left >= AT_ONCE ? ~__mmask32(0) : (__mmask32(1) << left) - 1;
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
            ask_ahead<R>(weights[0] + k * R, r);
            const __m512i ws = _mm512_maskz_loadu_epi16(there, weights[r] + k);
            for (int n = 0; n < N; ++n)
                sums[r][n] = added(sums[r][n], ws, _mm512_maskz_loadu_epi16(there, xs[n] + k));
        }
    }
    write_totals(sums, out, step);
}

#else

template <int R, int N>
[[gnu::always_inline]] inline void tile_of_bfloat16(const Matrix& m, const Rows& x, int32_t row, int64_t first, float* out,
                      int64_t step) {
    tile_of_floats<uint16_t, R, N>(m, x, row, first, out, step);
}

#endif

}  // namespace
