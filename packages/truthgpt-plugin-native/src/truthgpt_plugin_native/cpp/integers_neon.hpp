// Some rows of integers times some rows of rounded activations, with NEON.
//
// Each lane of a sum has every fourth octet. What the products of an octet add up to is exact, so
// processors with and without the instruction for it come to the same bits.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "lanes.hpp"
#include "matrix.hpp"
#include "rows.hpp"

namespace {

// A block of integers of 8 bits.
struct Bytes {
    int8x16_t low, high;
};

inline Bytes bytes_at(const int8_t* from) { return {vld1q_s8(from), vld1q_s8(from + 16)}; }

// Sums of four neighboring products.
inline int32x4_t quads(int8x16_t a, int8x16_t b) {
#if defined(__ARM_FEATURE_DOTPROD)
    return vdotq_s32(vdupq_n_s32(0), a, b);
#else
    // Two products of at most 128 * 127 fit into 16 bits.
    const int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(b)), high = vmull_high_s8(a, b);
    return vpaddlq_s16(vpaddq_s16(low, high));
#endif
}

// What the products of each octet add up to.
inline Lanes octets(Bytes a, Bytes b) {
    return (Lanes)vcvtq_f32_s32(vpaddq_s32(quads(a.low, b.low), quads(a.high, b.high)));
}

inline float from_half(uint16_t bits) {
    __fp16 half;
    std::memcpy(&half, &bits, sizeof half);
    return half;
}

// ONE_SCALE: a row of weights has one scale, which what comes out is multiplied by.
template <int R, int N, bool ONE_SCALE>
void tile_of_int8(const Matrix& m, const Rows& x, int32_t row, int64_t first, float* out, int64_t step) {
    const int32_t groups = m.columns / m.group, in_group = m.group / BLOCK;
    const int8_t *weights[R], *xs[N];
    const float *scales[R], *fine[N];
    for (int r = 0; r < R; ++r) {
        weights[r] = static_cast<const int8_t*>(m.weight) + int64_t(row + r) * m.columns;
        scales[r] = static_cast<const float*>(m.scales) + int64_t(row + r) * groups;
    }
    for (int n = 0; n < N; ++n) xs[n] = x.rounded(first + n), fine[n] = x.scales(first + n);
    Lanes sums[R][N] = {};
    int32_t block = 0;
    for (int32_t group = 0; group < groups; ++group) {
        for (const int32_t end = block + in_group; block < end; ++block) {
            Bytes ws[R];
            for (int r = 0; r < R; ++r) {
                if (block % 2 == 0) prefetch(weights[0] + block * BLOCK * R + r * 64 + AHEAD);
                ws[r] = bytes_at(weights[r] + block * BLOCK);
            }
            for (int n = 0; n < N; ++n) {
                const Bytes numbers = bytes_at(xs[n] + block * BLOCK);
                const Lanes each = load(fine[n] + block * (BLOCK / ACTIVATION_GROUP));
                for (int r = 0; r < R; ++r)
                    sums[r][n] = fused(octets(ws[r], numbers), ONE_SCALE ? each : each * same(scales[r][group]),
                                       sums[r][n]);
            }
        }
    }
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n)
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r)
            out[n * step + r] = total(sums[r][n]) * (ONE_SCALE ? scales[r][0] : 1.0f);
}

template <int R, int N>
void tile_of_int4(const Matrix& m, const Rows& x, int32_t row, int64_t first, float* out, int64_t step) {
    const int32_t blocks = m.columns / BLOCK, groups = m.columns / m.group, in_group = m.group / BLOCK;
    const uint8_t* weights[R];
    const uint16_t *scales[R], *minima[R];
    const int8_t* xs[N];
    const float *fine[N], *of_blocks[N];
    for (int r = 0; r < R; ++r) {
        weights[r] = static_cast<const uint8_t*>(m.weight) + int64_t(row + r) * m.columns / 2;
        scales[r] = static_cast<const uint16_t*>(m.scales) + int64_t(row + r) * groups;
        minima[r] = m.minima + int64_t(row + r) * groups;
    }
    for (int n = 0; n < N; ++n) {
        xs[n] = x.rounded(first + n), fine[n] = x.scales(first + n);
        of_blocks[n] = x.sums(first + n);
    }
    Lanes sums[R][N] = {};
    int32_t group = 0, in = 0;
    for (int32_t begin = 0; begin < blocks; begin += LANES) {
        const int32_t count = std::min(LANES, blocks - begin);
        float steps[R][LANES];
        Lanes lows[R] = {};
        for (int32_t i = 0; i < count; ++i) {
            for (int r = 0; r < R; ++r) {
                steps[r][i] = from_half(scales[r][group]);
                lows[r][i] = from_half(minima[r][group]);
            }
            if (++in == in_group) in = 0, ++group;
        }
        for (int r = 0; r < R; ++r) {
            prefetch(weights[0] + int64_t(begin) * (BLOCK / 2) * R + r * 64 + AHEAD);
            for (int n = 0; n < N; ++n) sums[r][n] = fused(lows[r], load(of_blocks[n] + begin), sums[r][n]);
        }
        for (int32_t i = 0; i < count; i += 2) {
            const int64_t column = int64_t(begin + i) * BLOCK;
            Bytes low[R], high[R];
            for (int r = 0; r < R; ++r) {
                const uint8x16_t first_half = vld1q_u8(weights[r] + column / 2);
                const uint8x16_t second_half = vld1q_u8(weights[r] + column / 2 + 16);
                const uint8x16_t mask = vdupq_n_u8(15);
                low[r] = {vreinterpretq_s8_u8(vandq_u8(first_half, mask)),
                          vreinterpretq_s8_u8(vandq_u8(second_half, mask))};
                high[r] = {vreinterpretq_s8_u8(vshrq_n_u8(first_half, 4)),
                           vreinterpretq_s8_u8(vshrq_n_u8(second_half, 4))};
            }
            for (int n = 0; n < N; ++n) {
                const Bytes numbers = bytes_at(xs[n] + column), next = bytes_at(xs[n] + column + BLOCK);
                const Lanes each = load(fine[n] + column / ACTIVATION_GROUP);
                const Lanes each_next = load(fine[n] + (column + BLOCK) / ACTIVATION_GROUP);
                for (int r = 0; r < R; ++r) {
                    const Lanes sum = fused(octets(low[r], numbers), each * same(steps[r][i]), sums[r][n]);
                    sums[r][n] = fused(octets(high[r], next), each_next * same(steps[r][i + 1]), sum);
                }
            }
        }
    }
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n)
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) out[n * step + r] = total(sums[r][n]);
}

}  // namespace
