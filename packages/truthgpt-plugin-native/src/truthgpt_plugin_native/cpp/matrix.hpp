// Matrices times rows of activations, with the same bits whatever rows come together.
//
// Each number that comes out is a sum of its own, in an order that depends on nothing but the length
// of a row: LANES partial sums, each over every LANES-th column, added up in the end. How many rows
// of weights and of activations are multiplied at once only decides how often memory is read.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "numbers.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

extern "C" {

// A matrix of shape (rows, columns), row by row. Of integers, each `group` in a row has a scale
// of its own; of INT4, also a minimum, and weight = integer * scale + minimum.
struct Matrix {
    const void* weight;      // INT4: 64 columns are 32 bytes; the last 32 of them the high halves
    const void* scales;      // of INT8 float32, of INT4 float16
    const uint16_t* minima;  // float16
    const float* bias;       // null if there is none
    int32_t rows, columns;
    int32_t kind, group;
};

}  // extern "C"

namespace {

enum Kind : int32_t { FLOAT32 = 0, BFLOAT16 = 1, INT8 = 2, INT4 = 3 };

constexpr int BLOCK = 32;  // of integers, what a group of columns is a multiple of
constexpr int QUAD = 4;    // activations that are rounded by one scale
constexpr int LANES = 8;
constexpr int64_t AHEAD = 4096;  // so many bytes before they are needed memory is asked for them

typedef float Lanes __attribute__((vector_size(LANES * sizeof(float))));

inline Lanes load(const float* from) {
    Lanes lanes;
    std::memcpy(&lanes, from, sizeof lanes);
    return lanes;
}

inline Lanes load(const uint16_t* from) {
#if defined(__AVX2__)
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return (Lanes)_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16);
#else
    Lanes lanes;
    for (int i = 0; i < LANES; ++i) lanes[i] = from_bfloat16(from[i]);
    return lanes;
#endif
}

inline Lanes same(float value) {
    return Lanes{value, value, value, value, value, value, value, value};
}

// One rounding where the machine can, and the same everywhere in this file.
inline Lanes fused(Lanes a, Lanes b, Lanes c) {
#if defined(__AVX2__) && defined(__FMA__)
    return (Lanes)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

inline float total(Lanes v) {
    const float a = v[0] + v[4], b = v[1] + v[5], c = v[2] + v[6], d = v[3] + v[7];
    return (a + c) + (b + d);
}

inline void prefetch(const void* at) { __builtin_prefetch(at, 0, 3); }

// Round a block of activations: what each QUAD of them is multiplied by goes to `scales`. Returns what
// the rounded numbers add up to. An integer of NaN, or of what is beyond all integers, is not defined:
// there the scale is NaN. Activations too small to have an inverse are nothing beside any others.
#if defined(__AVX2__)
inline float round_block(const float* from, int8_t* to, float* scales) {
    const __m256i infinite = _mm256_set1_epi32(0x7f800000);
    const __m256 most = _mm256_set1_ps(127.0f);
    __m256i integers[4];
    for (int i = 0; i < 4; ++i) {
        const __m256 numbers = _mm256_loadu_ps(from + i * 8);
        // By their bits, which are in the order of the numbers and lose no NaN.
        __m256i largest = _mm256_and_si256((__m256i)numbers, _mm256_set1_epi32(0x7fffffff));
        largest = _mm256_max_epi32(largest, _mm256_shuffle_epi32(largest, 0xb1));
        largest = _mm256_max_epi32(largest, _mm256_shuffle_epi32(largest, 0x4e));
        const __m256 inverse = _mm256_div_ps(most, (__m256)largest);
        const __m256i usual = _mm256_cmpgt_epi32(infinite, largest);
        const __m256i used = _mm256_and_si256(usual, _mm256_cmpgt_epi32(infinite, (__m256i)inverse));
        integers[i] = _mm256_and_si256(used, _mm256_cvtps_epi32(_mm256_mul_ps(numbers, inverse)));
        const __m256 scale = _mm256_and_ps((__m256)used, _mm256_div_ps((__m256)largest, most));
        const __m256 each = _mm256_blendv_ps(_mm256_set1_ps(NAN), scale, (__m256)usual);
        scales[i * 2] = _mm_cvtss_f32(_mm256_castps256_ps128(each));
        scales[i * 2 + 1] = _mm_cvtss_f32(_mm256_extractf128_ps(each, 1));
    }
    // Packing goes by halves of vectors: quads 0, 2, 4, 6, 1, 3, 5, 7.
    const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(integers[0], integers[1]),
                                              _mm256_packs_epi32(integers[2], integers[3]));
    const __m256i bytes =
        _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), bytes);
    const __m256i sums = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes),
                                           _mm256_set1_epi16(1));
    return total((Lanes)_mm256_mul_ps(_mm256_cvtepi32_ps(sums), _mm256_loadu_ps(scales)));
}
#else
inline float round_block(const float* from, int8_t* to, float* scales) {
    float all = 0.0f;
    for (int quad = 0; quad < BLOCK / QUAD; ++quad, from += QUAD, to += QUAD) {
        uint32_t most = 0;
        for (int i = 0; i < QUAD; ++i) most = std::max(most, bits_of(from[i]) & 0x7fffffffu);
        const bool usual = most < 0x7f800000u;
        float largest;
        std::memcpy(&largest, &most, sizeof largest);
        const float inverse = 127.0f / largest;
        if (!usual || is_not_finite(inverse)) {
            std::fill_n(to, QUAD, int8_t(0));
            scales[quad] = usual ? 0.0f : NAN;
        } else {
            for (int i = 0; i < QUAD; ++i)
                to[i] = static_cast<int8_t>(std::nearbyint(from[i] * inverse));
            scales[quad] = largest / 127.0f;
        }
        all += scales[quad] * float(to[0] + to[1] + to[2] + to[3]);
    }
    return all;
}
#endif

// Rows of activations as products read them: exact or, for integers, rounded to 8 bits.
//
// Each QUAD of numbers has a scale of its own. Instructions that multiply bytes add up so many products
// in a lane of their result, so that finer scales than one for many blocks cost no more time.
class Rows {
   public:
    Rows(int32_t rows, int32_t columns)
        : columns_((columns + 2 * BLOCK - 1) / (2 * BLOCK) * (2 * BLOCK)),
          blocks_(columns_ / BLOCK + LANES),
          exact_(size_t(rows) * columns_),
          rounded_(size_t(rows) * columns_),
          scales_(size_t(rows) * columns_ / QUAD),
          sums_(size_t(rows) * blocks_) {}

    float* exact(int64_t row) { return exact_.data() + row * columns_; }
    const float* exact(int64_t row) const { return exact_.data() + row * columns_; }
    const int8_t* rounded(int64_t row) const { return rounded_.data() + row * columns_; }
    const float* scales(int64_t row) const { return scales_.data() + row * (columns_ / QUAD); }
    // Of each block, what its rounded numbers add up to.
    const float* sums(int64_t row) const { return sums_.data() + row * blocks_; }

    // Round `length` numbers of a row, a multiple of BLOCK.
    void round(int64_t row, int32_t length) {
        const float* from = exact(row);
        int8_t* to = rounded_.data() + row * columns_;
        float *scales = scales_.data() + row * (columns_ / QUAD), *sums = sums_.data() + row * blocks_;
        const int32_t blocks = length / BLOCK;
        for (int32_t block = 0; block < blocks; ++block)
            sums[block] = round_block(from + block * BLOCK, to + block * BLOCK,
                                      scales + block * (BLOCK / QUAD));
        // Vectors of eight blocks read beyond the last.
        std::fill_n(sums + blocks, 8, 0.0f);
    }

   private:
    const int32_t columns_, blocks_;
    std::vector<float> exact_;
    std::vector<int8_t> rounded_;
    std::vector<float> scales_, sums_;
};

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
                prefetch(reinterpret_cast<const char*>(weights[r] + k) + AHEAD);
            ws[r] = load(weights[r] + k);
        }
        for (int n = 0; n < N; ++n) {
            const Lanes numbers = load(xs[n] + k);
            for (int r = 0; r < R; ++r) sums[r][n] = fused(ws[r], numbers, sums[r][n]);
        }
    }
    if (whole < m.columns) {
        for (int r = 0; r < R; ++r) {
            Stored rest[LANES] = {};
            std::copy_n(weights[r] + whole, m.columns - whole, rest);
            const Lanes ws = load(rest);
            for (int n = 0; n < N; ++n) sums[r][n] = fused(ws, load(xs[n] + whole), sums[r][n]);
        }
    }
    for (int n = 0; n < N; ++n)
        for (int r = 0; r < R; ++r) out[n * step + r] = total(sums[r][n]);
}

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

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
    const int32_t blocks = m.columns / BLOCK, in_group = m.group / BLOCK;
    const int32_t groups = m.columns / m.group;
    const int8_t* weights[R];
    const float* scales[R];
    for (int r = 0; r < R; ++r) {
        weights[r] = static_cast<const int8_t*>(m.weight) + int64_t(row + r) * m.columns;
        scales[r] = static_cast<const float*>(m.scales) + int64_t(row + r) * groups;
    }
    __m256 sums[R][N];
    for (int r = 0; r < R; ++r)
        for (int n = 0; n < N; ++n) sums[r][n] = _mm256_setzero_ps();
    for (int32_t begin = 0; begin < blocks; begin += in_group) {
        __m256 steps[R];
        for (int r = 0; r < R; ++r) steps[r] = _mm256_broadcast_ss(scales[r] + begin / in_group);
        for (int32_t block = begin; block < begin + in_group; ++block) {
            __m256i ws[R], sizes[R];
            for (int r = 0; r < R; ++r) {
                const int8_t* at = weights[r] + block * BLOCK;
                if (block % 2 == 0) prefetch(at + AHEAD);
                ws[r] = bytes_at(at);
                sizes[r] = _mm256_abs_epi8(ws[r]);
            }
            for (int n = 0; n < N; ++n) {
                const __m256i xs = bytes_at(x.rounded(first + n) + block * BLOCK);
                const __m256 fine = _mm256_loadu_ps(x.scales(first + n) + block * (BLOCK / QUAD));
                for (int r = 0; r < R; ++r) {
                    const __m256i products = quads(sizes[r], _mm256_sign_epi8(xs, ws[r]));
                    sums[r][n] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(products),
                                                 ONE_SCALE ? fine : _mm256_mul_ps(fine, steps[r]),
                                                 sums[r][n]);
                }
            }
        }
    }
    for (int n = 0; n < N; ++n)
        for (int r = 0; r < R; ++r)
            out[n * step + r] = total((Lanes)sums[r][n]) * (ONE_SCALE ? scales[r][0] : 1.0f);
}

// The scales, or the minima, of eight blocks of int4: groups of 32 << shift columns share one. `left`
// of them are in memory from `halves` on; what is read beyond a row is multiplied by nothing.
inline __m256 of_blocks(const uint16_t* halves, int64_t left, int32_t shift) {
    __m128i packed;
    if (left >= 8) {
        packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(halves));
    } else {
        alignas(16) uint16_t few[8] = {};
        std::copy_n(halves, left, few);
        packed = _mm_load_si128(reinterpret_cast<const __m128i*>(few));
    }
    const __m256i each =
        _mm256_srl_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm_cvtsi32_si128(shift));
    return _mm256_permutevar8x32_ps(_mm256_cvtph_ps(packed), each);
}

template <int R, int N>
void tile_of_int4(const Matrix& m, const Rows& x, int32_t row, int64_t first, float* out, int64_t step) {
    const int32_t blocks = m.columns / BLOCK, groups = m.columns / m.group;
    int32_t shift = 0;
    while (BLOCK << shift < m.group) ++shift;
    const uint8_t* weights[R];
    for (int r = 0; r < R; ++r)
        weights[r] = static_cast<const uint8_t*>(m.weight) + int64_t(row + r) * m.columns / 2;
    const __m256i low = _mm256_set1_epi8(15);
    __m256 sums[R][N], least[R][N];
    for (int r = 0; r < R; ++r)
        for (int n = 0; n < N; ++n) sums[r][n] = least[r][n] = _mm256_setzero_ps();
    for (int32_t begin = 0; begin < blocks; begin += 8) {
        const int32_t count = std::min(8, blocks - begin), group = begin >> shift;
        alignas(32) float steps[R][8];
        for (int r = 0; r < R; ++r) {
            const int64_t at = int64_t(row + r) * groups + group;
            const int64_t left = int64_t(m.rows) * groups - at;
            _mm256_store_ps(steps[r],
                            of_blocks(static_cast<const uint16_t*>(m.scales) + at, left, shift));
            const __m256 lows = of_blocks(m.minima + at, left, shift);
            for (int n = 0; n < N; ++n)
                least[r][n] = _mm256_fmadd_ps(lows, _mm256_loadu_ps(x.sums(first + n) + begin), least[r][n]);
        }
        for (int32_t i = 0; i < count; i += 2) {
            for (int r = 0; r < R; ++r) {
                const uint8_t* pair = weights[r] + (begin + i) * BLOCK / 2;
                if (i % 4 == 0) prefetch(pair + AHEAD / 2);
                const __m256i bytes = bytes_at(pair);
                const __m256i lows = _mm256_and_si256(bytes, low);
                const __m256i highs = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), low);
                const __m256 low_step = _mm256_broadcast_ss(steps[r] + i);
                const __m256 high_step = _mm256_broadcast_ss(steps[r] + i + 1);
                for (int n = 0; n < N; ++n) {
                    const int8_t* xs = x.rounded(first + n) + (begin + i) * BLOCK;
                    const float* fine = x.scales(first + n) + (begin + i) * (BLOCK / QUAD);
                    __m256 sum = sums[r][n];
                    sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(quads(lows, bytes_at(xs))),
                                          _mm256_mul_ps(low_step, _mm256_loadu_ps(fine)), sum);
                    sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(quads(highs, bytes_at(xs + BLOCK))),
                                          _mm256_mul_ps(high_step, _mm256_loadu_ps(fine + 8)), sum);
                    sums[r][n] = sum;
                }
            }
        }
    }
    for (int n = 0; n < N; ++n)
        for (int r = 0; r < R; ++r)
            out[n * step + r] = total((Lanes)_mm256_add_ps(sums[r][n], least[r][n]));
}

#else

// Each QUAD of `count` integers, which weight(i) returns, times as many activations.
template <typename Weight>
float products(int32_t begin, int32_t count, Weight weight, const int8_t* xs, const float* scales) {
    float sum = 0;
    for (int32_t i = begin; i < begin + count; i += QUAD) {
        int32_t quad = 0;
        for (int j = i; j < i + QUAD; ++j) quad += int32_t(weight(j)) * int32_t(xs[j]);
        sum += float(quad) * scales[i / QUAD];
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

#endif

template <int R, int N>
void tile(const Matrix& m, const Rows& x, int32_t row, int64_t first, float* out, int64_t step) {
    switch (m.kind) {
        case FLOAT32: return tile_of_floats<float, R, N>(m, x, row, first, out, step);
        case BFLOAT16: return tile_of_floats<uint16_t, R, N>(m, x, row, first, out, step);
        case INT8:
            return m.group == m.columns ? tile_of_int8<R, N, true>(m, x, row, first, out, step)
                                        : tile_of_int8<R, N, false>(m, x, row, first, out, step);
        default: return tile_of_int4<R, N>(m, x, row, first, out, step);
    }
}

// R rows of m times rows [n, end) of activations.
template <int R>
void strip(const Matrix& m, const Rows& x, int32_t row, int64_t n, int64_t end, float* out, int64_t step) {
    for (; n + 4 <= end; n += 4) tile<R, 4>(m, x, row, n, out + n * step, step);
    switch (end - n) {
        case 3: return tile<R, 3>(m, x, row, n, out + n * step, step);
        case 2: return tile<R, 2>(m, x, row, n, out + n * step, step);
        case 1: return tile<R, 1>(m, x, row, n, out + n * step, step);
    }
}

// Rows [first, last) of m times `count` rows of activations, each plus the bias, into
// out[n * step + row - first].
//
// Of one row of activations, row after row, so that weights are one stream through memory: several
// side by side take longer where the weights are not in a cache. Of more, some at a time share loads,
// and as many rows of activations as a first cache holds meet all of these weights before the next.
void multiply(const Matrix& m, const Rows& x, int32_t first, int32_t last, int64_t count, float* out,
              int64_t step) {
    const bool exact = m.kind == FLOAT32 || m.kind == BFLOAT16;
    const int64_t most = exact ? 4 : 16;
    for (int64_t n = 0; n < count; n += most) {
        const int64_t end = std::min(count, n + most);
        int32_t row = first;
        if (exact && count > 1)
            for (; row + 3 <= last; row += 3) strip<3>(m, x, row, n, end, out + row - first, step);
        if (count > 1)
            for (; row + 2 <= last; row += 2) strip<2>(m, x, row, n, end, out + row - first, step);
        for (; row < last; ++row) strip<1>(m, x, row, n, end, out + row - first, step);
    }
    if (m.bias != nullptr)
        for (int64_t n = 0; n < count; ++n)
            for (int32_t row = first; row < last; ++row) out[n * step + row - first] += m.bias[row];
}

// The numbers that one row of m stands for.
void read_row(const Matrix& m, int64_t row, float* out) {
    const int32_t groups = m.columns / (m.group > 0 ? m.group : m.columns);
    const int64_t begin = row * m.columns;
    for (int32_t i = 0; i < m.columns; ++i) {
        const int64_t scale = row * groups + (groups > 1 ? i / m.group : 0);
        switch (m.kind) {
            case FLOAT32:
                out[i] = static_cast<const float*>(m.weight)[begin + i];
                break;
            case BFLOAT16:
                out[i] = from_bfloat16(static_cast<const uint16_t*>(m.weight)[begin + i]);
                break;
            case INT8:
                out[i] = static_cast<const int8_t*>(m.weight)[begin + i] *
                         static_cast<const float*>(m.scales)[scale];
                break;
            default: {
                const int32_t block = i / BLOCK;
                const uint8_t byte = static_cast<const uint8_t*>(
                    m.weight)[begin / 2 + block / 2 * BLOCK + i % BLOCK];
                out[i] = (byte >> block % 2 * 4 & 15) *
                             from_float16(static_cast<const uint16_t*>(m.scales)[scale]) +
                         from_float16(m.minima[scale]);
            }
        }
    }
}

}  // namespace
