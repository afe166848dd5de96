// Some rows of integers times some rows of rounded activations, with AVX-512 VNNI.
//
// Its instruction multiplies unsigned bytes by signed ones. Weights of int8 are made unsigned by adding
// 128, and 128 times the sum of each block of activations is what is taken away again.
//
// A number is added up in one order, whether its row of weights is read as it lies or packed. Of each
// group of activations the products add up to an integer, which is multiplied by their scale; what a
// block comes to is multiplied by the weights' scale. In a part of PART_BLOCKS every fourth block is
// added to the same sum, then the four sums to each other; then part is added to part.
#pragma once

#include <algorithm>
#include <cstdint>

#include "few_avx512.hpp"
#include "lanes.hpp"
#include "matrix.hpp"
#include "packing_avx512.hpp"
#include "rows.hpp"

namespace {

constexpr int SUMS_OF_PART = 4;

// One block of a strip of packed rows times N rows of activations, added to `sums`.
template <int N, bool MINIMA, int GROUP>
inline void add_block(const Part& part, int32_t block, const int8_t* const xs[N], const float* const fine[N],
                      const float* const of_blocks[N], __m512 sums[N][PACKED_VECTORS]) {
    constexpr int V = PACKED_VECTORS;
    __m512 inner[N][V];
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
        __m512i ws[4][V];
        for (int i = 0; i < 4; ++i)
            for (int v = 0; v < V; ++v)
                ws[i][v] = _mm512_load_si512(part.bytes[block * QUADS + half * 4 + i][v]);
        for (int n = 0; n < N; ++n) {
            __m512i words[4];
            for (int i = 0; i < 4; ++i) {
                int32_t word;
                std::memcpy(&word, xs[n] + block * BLOCK + half * 16 + i * 4, sizeof word);
                words[i] = _mm512_set1_epi32(word);
                compute_here(words[i]);
            }
            const float* scales = fine[n] + block * SCALES_OF_BLOCK<GROUP> + half * (16 / GROUP);
            for (int v = 0; v < V; ++v) {
                for (int from = 0; from < 4; from += GROUP / 4) {
                    __m512i products = _mm512_setzero_si512();
                    for (int i = from; i < from + GROUP / 4; ++i)
                        products = _mm512_dpbusd_epi32(products, ws[i][v], words[i]);
                    const __m512 exact = _mm512_cvtepi32_ps(products);
                    const __m512 scale = _mm512_set1_ps(scales[from * 4 / GROUP]);
                    inner[n][v] = half + from == 0 ? _mm512_mul_ps(exact, scale)
                                                   : _mm512_fmadd_ps(exact, scale, inner[n][v]);
                }
                compute_here(inner[n][v]);
            }
        }
    }
    const int32_t group = (part.first + block) >> part.shift;
    for (int v = 0; v < V; ++v) {
        const __m512 steps = _mm512_load_ps(part.steps[group][v]);
        for (int n = 0; n < N; ++n) {
            if (MINIMA)
                sums[n][v] = _mm512_fmadd_ps(_mm512_load_ps(part.minima[group][v]),
                                             _mm512_set1_ps(of_blocks[n][block]), sums[n][v]);
            else
                inner[n][v] = _mm512_add_ps(inner[n][v], _mm512_set1_ps(of_blocks[n][block] * -128.0f));
            sums[n][v] = _mm512_fmadd_ps(inner[n][v], steps, sums[n][v]);
            compute_here(sums[n][v]);
        }
    }
}

// A strip of packed rows times N rows of activations: of a part of the columns, added to what is in
// out[n * step + row], or to nothing if it is the first. `next`, if it is not null, is asked for.
template <int N, bool MINIMA, int GROUP>
void tile_of_packed(const Part& part, const Rows& x, int64_t first, int32_t begin, int32_t end,
                    const char* next, const __mmask16* there, float* out, int64_t step) {
    constexpr int V = PACKED_VECTORS;
    constexpr int64_t BYTES = PACKED_BLOCK / (MINIMA ? 2 : 1);
    const int8_t* xs[N];
    const float *fine[N], *of_blocks[N];
    for (int n = 0; n < N; ++n) {
        xs[n] = x.rounded(first + n) + int64_t(begin) * BLOCK;
        fine[n] = x.scales(first + n) + begin * SCALES_OF_BLOCK<GROUP>;
        of_blocks[n] = x.sums(first + n) + begin;
    }
    const int32_t blocks = end - begin;
    const auto ask = [&] {
        if (next == nullptr) return;
        for (int i = 0; i < BYTES; i += 64) prefetch_far(next + i);
        next += BYTES;
    };
    __m512 parts[N][V];
    if constexpr (N <= 2) {
        // Weights are read as they lie: with so few activations memory is what takes long.
        __m512 sums[SUMS_OF_PART][N][V];
        for (auto& each : sums)
            for (int n = 0; n < N; ++n)
                for (int v = 0; v < V; ++v) each[n][v] = _mm512_setzero_ps();
        for (int32_t block = 0; block < blocks; block += SUMS_OF_PART)
#pragma GCC unroll 4
            for (int from = 0; from < SUMS_OF_PART; ++from)
                if (block + from < blocks) {
                    ask();
                    add_block<N, MINIMA, GROUP>(part, block + from, xs, fine, of_blocks, sums[from]);
                }
        for (int n = 0; n < N; ++n)
            for (int v = 0; v < V; ++v) {
                parts[n][v] = sums[0][n][v];
                for (int from = 1; from < SUMS_OF_PART; ++from)
                    parts[n][v] = _mm512_add_ps(parts[n][v], sums[from][n][v]);
            }
    } else {
        for (int from = 0; from < SUMS_OF_PART; ++from) {
            __m512 sums[N][V];
            for (int n = 0; n < N; ++n)
                for (int v = 0; v < V; ++v) sums[n][v] = _mm512_setzero_ps();
            for (int32_t block = from; block < blocks; block += SUMS_OF_PART) {
                ask();
                add_block<N, MINIMA, GROUP>(part, block, xs, fine, of_blocks, sums);
            }
            for (int n = 0; n < N; ++n)
                for (int v = 0; v < V; ++v)
                    parts[n][v] = from == 0 ? sums[n][v] : _mm512_add_ps(parts[n][v], sums[n][v]);
        }
    }
    for (int n = 0; n < N; ++n)
        for (int v = 0; v < V; ++v) {
            float* to = out + n * step + v * SIDE_BY_SIDE;
            const __m512 before = _mm512_maskz_loadu_ps(there[v], to);
            _mm512_mask_storeu_ps(to, there[v],
                                  begin == 0 ? parts[n][v] : _mm512_add_ps(before, parts[n][v]));
        }
}

template <int N, bool MINIMA, int GROUP>
void tiles_of_packed(const Part& part, const Rows& x, int64_t n, int64_t count, int32_t begin, int32_t end,
                     const char* next, const __mmask16* there, float* out, int64_t step) {
    for (; n + N <= count; n += N, next = nullptr)
        tile_of_packed<N, MINIMA, GROUP>(part, x, n, begin, end, next, there, out + n * step, step);
    if constexpr (N > 1)
        if (n < count) tiles_of_packed<N - 1, MINIMA, GROUP>(part, x, n, count, begin, end, next, there, out, step);
}

// Blocks [begin, end) of a strip that has `rows` rows, times `count` rows of activations.
template <bool MINIMA, int GROUP>
void multiply_part(const Part& part, const Rows& x, int32_t rows, int32_t begin, int32_t end, int64_t count,
                   const char* next, float* out, int64_t step) {
    __mmask16 there[PACKED_VECTORS];
    for (int v = 0; v < PACKED_VECTORS; ++v)
        there[v] = __mmask16((1 << std::clamp(rows - v * SIDE_BY_SIDE, 0, SIDE_BY_SIDE)) - 1);
    tiles_of_packed<4, MINIMA, GROUP>(part, x, 0, count, begin, end, next, there, out, step);
}

// Rows [first, last) of a packed matrix times `count` rows of activations; `first` begins a strip.
template <bool MINIMA, int GROUP>
void multiply_packed(const Matrix& m, const Rows& x, int32_t first, int32_t last, int64_t count, float* out,
                     int64_t step) {
    const int32_t blocks = m.columns / BLOCK;
    for (int32_t row = first; row < last; row += STRIP) {
        const Strip<MINIMA> strip = strip_of<MINIMA>(m, row / STRIP);
        for (int32_t begin = 0; begin < blocks; begin += PART_BLOCKS) {
            const int32_t end = std::min(blocks, begin + PART_BLOCKS);
            // What comes next lies behind it.
            const auto next = reinterpret_cast<const char*>(strip.bytes + end * QUADS / (MINIMA ? 2 : 1));
            PartBytes bytes;
            multiply_part<MINIMA, GROUP>(part_of(strip, begin, end, bytes), x, last - row, begin, end, count,
                                         next, out + row - first, step);
        }
    }
}

// Rows [first, last) of m, at most a strip of them, packed to be multiplied.
template <bool MINIMA>
void strip_of_integers(const Matrix& m, const Rows& x, int32_t first, int32_t last, int64_t count, float* out,
                       int64_t step) {
    alignas(64) uint8_t packed[PART_BLOCKS * QUADS][PACKED_VECTORS][64];
    alignas(64) Scale<MINIMA> steps[PART_BLOCKS][PACKED_VECTORS][SIDE_BY_SIDE];
    alignas(64) uint16_t minima[PART_BLOCKS][PACKED_VECTORS][SIDE_BY_SIDE];
    // The next strip lies behind this one. It is asked for as it lies: memory is slower for several
    // streams than for one.
    const int64_t bytes_of_row = MINIMA ? m.columns / 2 : m.columns;
    const char* next = static_cast<const char*>(m.weight) + last * bytes_of_row;
    const int32_t blocks = m.columns / BLOCK;
    for (int32_t begin = 0; begin < blocks; begin += PART_BLOCKS) {
        const int32_t end = std::min(blocks, begin + PART_BLOCKS);
        const Strip<MINIMA> strip = {packed, steps, minima, 0};
        pack(m, first, last, begin, end, next, strip);
        next += (end - begin) * bytes_of_row / blocks * STRIP;
        PartBytes bytes;
        multiply_part<MINIMA, ACTIVATION_GROUP>(part_of(strip, 0, end - begin, bytes), x, last - first, begin,
                                                end, count, nullptr, out, step);
    }
}

template <int N, bool MINIMA>
void tiles_of_few(const Matrix& m, const Rows& x, int32_t row, int32_t last, int64_t n, int64_t count,
                  float* out, int64_t step) {
    for (; n + N <= count; n += N) tile_of_few<N, MINIMA>(m, x, row, last, n, out + n * step, step);
    if constexpr (N > 1)
        if (n < count) tiles_of_few<N - 1, MINIMA>(m, x, row, last, n, count, out, step);
}

template <bool MINIMA>
void multiply_integers(const Matrix& m, const Rows& x, int32_t first, int32_t last, int64_t count, float* out,
                       int64_t step) {
    if (count <= MOST_FEW) {
        for (int32_t row = first; row < last; row += FEW_ROWS)
            tiles_of_few<4, MINIMA>(m, x, row, std::min(last, row + FEW_ROWS), 0, count, out + row - first,
                                    step);
        return;
    }
    for (int32_t row = first; row < last; row += STRIP)
        strip_of_integers<MINIMA>(m, x, row, std::min(last, row + STRIP), count, out + row - first, step);
}

}  // namespace
