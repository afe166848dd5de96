// Some rows of integers times some rows of rounded activations, on any processor.
#pragma once

#include <algorithm>
#include <cstdint>

#include "lanes.hpp"
#include "matrix.hpp"
#include "rows.hpp"

namespace {

// Each ACTIVATION_GROUP of `count` integers, which weight(i) returns, times as many activations.
template <typename Weight>
float products(int32_t begin, int32_t count, Weight weight, const int8_t* xs, const float* scales) {
    float sum = 0;
    for (int32_t i = begin; i < begin + count; i += ACTIVATION_GROUP) {
        int32_t whole = 0;
        for (int j = i; j < i + ACTIVATION_GROUP; ++j) whole += int32_t(weight(j)) * int32_t(xs[j]);
        sum += float(whole) * scales[i / ACTIVATION_GROUP];
    }
    return sum;
}

template <int R, int N, bool>
void tile_of_int8(const Matrix& m, const Rows& x, int32_t row, int64_t first, float* out, int64_t step) {
    const int32_t groups = m.columns / m.group;
    for (int r = 0; r < R; ++r) {
        const int8_t* weights = static_cast<const int8_t*>(m.weight) + int64_t(row + r) * m.columns;
        const float* scales = static_cast<const float*>(m.scales) + int64_t(row + r) * groups;
        const auto weight = [&](int32_t i) { return weights[i]; };
        for (int n = 0; n < N; ++n) {
            float sum = 0;
            for (int32_t group = 0; group < groups; ++group)
                sum += scales[group] * products(group * m.group, m.group, weight,
                                                x.rounded(first + n), x.scales(first + n));
            out[n * step + r] = sum;
        }
    }
}

template <int R, int N>
void tile_of_int4(const Matrix& m, const Rows& x, int32_t row, int64_t first, float* out, int64_t step) {
    const int32_t groups = m.columns / m.group;
    for (int r = 0; r < R; ++r) {
        const uint8_t* weights = static_cast<const uint8_t*>(m.weight) + int64_t(row + r) * m.columns / 2;
        const uint16_t* scales = static_cast<const uint16_t*>(m.scales) + int64_t(row + r) * groups;
        const uint16_t* minima = m.minima + int64_t(row + r) * groups;
        const auto weight = [&](int32_t i) {
            const int32_t block = i / BLOCK;
            return weights[block / 2 * BLOCK + i % BLOCK] >> block % 2 * 4 & 15;
        };
        for (int n = 0; n < N; ++n) {
            float sum = 0;
            for (int32_t block = 0; block < m.columns / BLOCK; ++block) {
                const int32_t group = block * BLOCK / m.group;
                sum += from_float16(scales[group]) * products(block * BLOCK, BLOCK, weight,
                                                              x.rounded(first + n), x.scales(first + n));
                sum += x.sums(first + n)[block] * from_float16(minima[group]);
            }
            out[n * step + r] = sum;
        }
    }
}

}  // namespace
