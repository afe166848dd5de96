// Some rows of integers times some rows of rounded activations, with AVX-512 VNNI.
//
// Its instruction multiplies unsigned bytes by signed ones. Weights of int8 are made unsigned by adding
// 128, and 128 times the sum of each block of activations is what is taken away again.
//
// A number is added up in one order, whether its row of weights is read as it lies or packed. Of each
// block the octets' products are integers, which are multiplied by the activations' scales and added in
// twos; what that comes to is multiplied by the weights' scale. In a part of PART_BLOCKS every fourth
// block is added to the same sum, then the four sums to each other; then part is added to part.
#pragma once

#include <algorithm>
#include <cstdint>

#include "few_avx512.hpp"
#include "lanes.hpp"
#include "matrix.hpp"
#include "packing_avx512.hpp"
#include "rows.hpp"

namespace {

constexpr int SUMS_OF_PART = 4, OCTETS = BLOCK / OCTET;

// V vectors of packed rows times N rows of activations: of a part of the columns, added to what is in
// out[n * step + row], or to nothing if it is the first.
template <int V, int N, bool MINIMA>
void tile_of_packed(const Packed& packed, const Rows& x, int64_t first, int32_t begin, int32_t end,
                    const __mmask16* there, float* out, int64_t step) {
    const int8_t* xs[N];
    const float *fine[N], *of_blocks[N];
    for (int n = 0; n < N; ++n) {
        xs[n] = x.rounded(first + n) + int64_t(begin) * BLOCK;
        fine[n] = x.scales(first + n) + begin * OCTETS;
        of_blocks[n] = x.sums(first + n) + begin;
    }
    __m512 parts[N][V];
    for (int from = 0; from < SUMS_OF_PART; ++from) {
        __m512 sums[N][V];
        for (int n = 0; n < N; ++n)
            for (int v = 0; v < V; ++v) sums[n][v] = _mm512_setzero_ps();
        for (int32_t block = from; block < end - begin; block += SUMS_OF_PART) {
            __m512 inner[N][V];
#pragma GCC unroll 2
            for (int half = 0; half < 2; ++half) {
                __m512i ws[4][V];
                for (int i = 0; i < 4; ++i)
                    for (int v = 0; v < V; ++v)
                        ws[i][v] = _mm512_load_si512(packed.bytes[block * QUADS + half * 4 + i][v]);
                for (int n = 0; n < N; ++n) {
                    __m512i words[4];
                    for (int i = 0; i < 4; ++i) {
                        int32_t word;
                        std::memcpy(&word, xs[n] + block * BLOCK + half * 16 + i * 4, sizeof word);
                        words[i] = _mm512_set1_epi32(word);
                        compute_here(words[i]);
                    }
                    const float* scales = fine[n] + block * OCTETS + half * 2;
                    const __m512 low = _mm512_set1_ps(scales[0]), high = _mm512_set1_ps(scales[1]);
                    for (int v = 0; v < V; ++v) {
                        const __m512i zero = _mm512_setzero_si512();
                        const __m512 lows = _mm512_mul_ps(
                            _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(
                                _mm512_dpbusd_epi32(zero, ws[0][v], words[0]), ws[1][v], words[1])),
                            low);
                        const __m512 highs = _mm512_mul_ps(
                            _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(
                                _mm512_dpbusd_epi32(zero, ws[2][v], words[2]), ws[3][v], words[3])),
                            high);
                        const __m512 both = _mm512_add_ps(lows, highs);
                        inner[n][v] = half == 0 ? both : _mm512_add_ps(inner[n][v], both);
                        compute_here(inner[n][v]);
                    }
                }
            }
            for (int v = 0; v < V; ++v) {
                const __m512 steps = _mm512_load_ps(packed.steps[block][v]);
                for (int n = 0; n < N; ++n) {
                    if (MINIMA)
                        sums[n][v] = _mm512_fmadd_ps(_mm512_load_ps(packed.minima[block][v]),
                                                     _mm512_set1_ps(of_blocks[n][block]), sums[n][v]);
                    else
                        inner[n][v] =
                            _mm512_add_ps(inner[n][v], _mm512_set1_ps(of_blocks[n][block] * -128.0f));
                    sums[n][v] = _mm512_fmadd_ps(inner[n][v], steps, sums[n][v]);
                    compute_here(sums[n][v]);
                }
            }
        }
        for (int n = 0; n < N; ++n)
            for (int v = 0; v < V; ++v)
                parts[n][v] = from == 0 ? sums[n][v] : _mm512_add_ps(parts[n][v], sums[n][v]);
    }
    for (int n = 0; n < N; ++n)
        for (int v = 0; v < V; ++v) {
            float* to = out + n * step + v * SIDE_BY_SIDE;
            const __m512 before = _mm512_maskz_loadu_ps(there[v], to);
            _mm512_mask_storeu_ps(to, there[v],
                                  begin == 0 ? parts[n][v] : _mm512_add_ps(before, parts[n][v]));
        }
}

template <int V, int N, bool MINIMA>
void tiles_of_packed(const Packed& packed, const Rows& x, int64_t n, int64_t count, int32_t begin,
                     int32_t end, const __mmask16* there, float* out, int64_t step) {
    for (; n + N <= count; n += N)
        tile_of_packed<V, N, MINIMA>(packed, x, n, begin, end, there, out + n * step, step);
    if constexpr (N > 1)
        if (n < count)
            tiles_of_packed<V, N - 1, MINIMA>(packed, x, n, count, begin, end, there, out, step);
}

// Rows [first, last) of m, at most V vectors of them, times `count` rows of activations.
template <int V, bool MINIMA>
void strip_of_integers(const Matrix& m, const Rows& x, int32_t first, int32_t last, int64_t count, float* out,
                       int64_t step) {
    Packed packed;
    __mmask16 there[V];
    for (int v = 0; v < V; ++v) {
        const int32_t rows = std::min(SIDE_BY_SIDE, last - first - v * SIDE_BY_SIDE);
        there[v] = __mmask16((1 << rows) - 1);
    }
    // The next strip lies behind this one. It is asked for as it lies: memory is slower for several
    // streams than for one.
    const int64_t bytes_of_row = MINIMA ? m.columns / 2 : m.columns;
    const char* next = static_cast<const char*>(m.weight) + last * bytes_of_row;
    const int32_t blocks = m.columns / BLOCK;
    for (int32_t begin = 0; begin < blocks; begin += PART_BLOCKS) {
        const int32_t end = std::min(blocks, begin + PART_BLOCKS);
        for (int v = 0; v < V; ++v) {
            const int32_t from = first + v * SIDE_BY_SIDE;
            if (MINIMA) pack_int4(m, from, last, begin, end, v, next, packed);
            else pack_int8(m, from, last, begin, end, v, next, packed);
            next += (end - begin) * bytes_of_row / blocks * SIDE_BY_SIDE;
        }
        tiles_of_packed<V, 4, MINIMA>(packed, x, 0, count, begin, end, there, out, step);
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
    for (int32_t row = first; row < last; row += PACKED_VECTORS * SIDE_BY_SIDE) {
        const int32_t end = std::min(last, row + PACKED_VECTORS * SIDE_BY_SIDE);
        if (end - row > SIDE_BY_SIDE)
            strip_of_integers<2, MINIMA>(m, x, row, end, count, out + row - first, step);
        else
            strip_of_integers<1, MINIMA>(m, x, row, end, count, out + row - first, step);
    }
}

}  // namespace
