// A matrix of integers times many rows of activations, as those of a prompt.
//
// Weights become floating-point numbers a few rows at a time, in memory that stays in the cache of
// one core until they are multiplied. The rows of activations lie side by side in the lanes of
// vectors, so that weights are used as they are stored: a number is sent to all lanes.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "products.hpp"

extern "C" {

// GOMP_parallel of the OpenMP runtime that torch computes with. Other threads would have to share
// the cores with its own, since these spin while they wait.
using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

}  // extern "C"

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, TILE = 12;
#elif defined(__aarch64__)
constexpr int LANES = 4, TILE = 12;
#elif defined(__AVX__)
constexpr int LANES = 8, TILE = 6;
#else
constexpr int LANES = 4, TILE = 6;
#endif
// TILE rows of weights times WIDTH rows of activations are summed in registers: two vectors for
// each row of weights, and some left for what is multiplied.
constexpr int WIDTH = 2 * LANES;
constexpr int DEPTH = 320;    // columns at a time: a tile's weights and activations fit a first cache
constexpr int MOST_ROWS = 48;  // of weights at a time: as many numbers fit a second cache
constexpr int64_t MOST_COUNT = 256;  // rows of activations at a time

typedef float Lanes __attribute__((vector_size(LANES * sizeof(float))));

Lanes load(const float* from) {
    Lanes lanes;
    std::memcpy(&lanes, from, sizeof lanes);
    return lanes;
}

// sums[r][i] += the sum over k of weights[r][k] * x[k][i]
void multiply_tile(const float* weights, const float* x, int32_t depth, float* sums) {
    Lanes left[TILE], right[TILE];
#pragma GCC unroll 12
    for (int r = 0; r < TILE; ++r) {
        left[r] = load(sums + r * WIDTH);
        right[r] = load(sums + r * WIDTH + LANES);
    }
    for (int32_t k = 0; k < depth; ++k) {
        const Lanes a = load(x + k * WIDTH), b = load(x + k * WIDTH + LANES);
#pragma GCC unroll 12
        for (int r = 0; r < TILE; ++r) {
            const float weight = weights[r * DEPTH + k];
            left[r] += weight * a;
            right[r] += weight * b;
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < TILE; ++r) {
        std::memcpy(sums + r * WIDTH, &left[r], sizeof left[r]);
        std::memcpy(sums + r * WIDTH + LANES, &right[r], sizeof right[r]);
    }
}

// `count` rows of activations times a matrix, computed by several threads.
class Prompt {
   public:
    Prompt(const Linear& m, const float* x, int64_t count, float* out, int32_t threads,
           std::vector<float>& packed)
        : m_(m),
          x_(x),
          count_(count),
          out_(out),
          panels_((count + WIDTH - 1) / WIDTH),
          packed_(packed) {
        // So few at a time that there is work for all threads, in whole tiles.
        const int64_t fair = (m.rows + 2 * threads - 1) / (2 * threads);
        rows_ = int32_t(std::clamp<int64_t>((fair + TILE - 1) / TILE * TILE, TILE, MOST_ROWS));
        // Even parts, each of whole pairs of blocks.
        const int32_t parts = (m.columns + DEPTH - 1) / DEPTH, pair = 2 * BLOCK;
        depth_ = (m.columns + parts * pair - 1) / (parts * pair) * pair;
        const size_t needed = size_t(panels_) * m.columns * WIDTH;
        if (packed_.size() < needed) packed_.resize(needed);
    }

    // Put activations side by side: (panel, column, row of activations in the panel).
    void pack() {
        for (int64_t panel; (panel = next_panel_.fetch_add(1)) < panels_;) {
            float* to = packed_.data() + panel * m_.columns * WIDTH;
            for (int i = 0; i < WIDTH; ++i) {
                const int64_t row = panel * WIDTH + i;
                const float* from = x_ + row * m_.columns;
                for (int32_t k = 0; k < m_.columns; ++k)
                    to[k * WIDTH + i] = row < count_ ? from[k] : 0.0f;
            }
        }
    }

    void multiply() {
        // Kept by each thread, since new pages take longer than the numbers.
        static thread_local std::vector<float> weights(MOST_ROWS * DEPTH), sums;
        const size_t needed = size_t(panels_) * MOST_ROWS * WIDTH;
        if (sums.size() < needed) sums.resize(needed);
        for (int64_t first; (first = next_row_.fetch_add(rows_)) < m_.rows;) {
            const int32_t rows = int32_t(std::min<int64_t>(rows_, m_.rows - first));
            const int32_t whole = (rows + TILE - 1) / TILE * TILE;
            std::fill_n(sums.begin(), needed, 0.0f);
            for (int32_t column = 0; column < m_.columns; column += depth_) {
                const int32_t depth = std::min(depth_, m_.columns - column);
                for (int32_t r = 0; r < whole; ++r) {
                    float* to = weights.data() + r * DEPTH;
                    if (r < rows)
                        convert_part(m_, first + r, column, depth, to);
                    else
                        std::fill_n(to, depth, 0.0f);
                }
                for (int64_t panel = 0; panel < panels_; ++panel)
                    for (int32_t r = 0; r < whole; r += TILE)
                        multiply_tile(
                            weights.data() + r * DEPTH,
                            packed_.data() + (panel * m_.columns + column) * WIDTH, depth,
                            sums.data() + (panel * MOST_ROWS + r) * WIDTH);
            }
            for (int64_t row = 0; row < count_; ++row) {
                const float* from =
                    sums.data() + row / WIDTH * MOST_ROWS * WIDTH + row % WIDTH;
                float* to = out_ + row * m_.rows + first;
                for (int32_t r = 0; r < rows; ++r) to[r] = from[r * WIDTH];
            }
        }
    }

   private:
    const Linear& m_;
    const float* x_;
    const int64_t count_;
    float* out_;
    const int64_t panels_;
    int32_t rows_, depth_;
    std::vector<float>& packed_;
    std::atomic<int64_t> next_panel_{0}, next_row_{0};
};

}  // namespace
