// Matrices of integers times one vector of activations.
#pragma once

#include <vector>

#include "numbers.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

extern "C" {

// A matrix of shape (rows, columns), row by row. Of integers, each `group` in a row has a scale
// of its own; of INT4, also a minimum, and weight = integer * scale + minimum.
struct Linear {
    const void* weight;      // INT4: 64 columns are 32 bytes; the last 32 of them the high halves
    const void* scales;      // of INT8 float32, of INT4 float16
    const uint16_t* minima;  // float16
    const float* bias;       // null if there is none
    int32_t rows, columns;
    int32_t kind, group;
};

}  // extern "C"

namespace {

constexpr int BLOCK = 32;  // activations are rounded in blocks of this many, each by its own scale
constexpr int AHEAD = 4096;  // so many bytes before they are needed memory is asked for them

enum Kind : int32_t { FLOAT32 = 0, BFLOAT16 = 1, INT8 = 2, INT4 = 3 };

// Activations as a matrix product reads them: exact, and rounded to 8 bits in blocks.
struct Activations {
    std::vector<float> exact;
    std::vector<int8_t> rounded;
    std::vector<float> scales, sums;  // of each block; sums of what it was rounded to

    // With room for eight blocks more than are filled: they are read.
    explicit Activations(int32_t longest)
        : exact(longest + BLOCK),
          rounded(longest + BLOCK),
          scales(longest / BLOCK + 9),
          sums(longest / BLOCK + 9) {}

    void round(int32_t length) {
        for (int32_t block = 0; block * BLOCK < length; ++block) {
            const float* from = exact.data() + block * BLOCK;
            int8_t* to = rounded.data() + block * BLOCK;
            float largest = 0;
            uint32_t unusual = 0;
            for (int i = 0; i < BLOCK; ++i) largest = std::max(largest, std::fabs(from[i]));
            // By their bits: no option of the compiler lets it assume that there is no NaN.
            for (int i = 0; i < BLOCK; ++i) unusual |= is_not_finite(from[i]);
            const float scale = unusual ? NAN : largest / 127.0f;
            const float inverse = 127.0f / largest;
            // An integer of NaN, or of what is beyond all integers, is not defined. Activations
            // this small have no inverse in float32, and are nothing beside any others.
            if (unusual || is_not_finite(inverse)) {
                std::fill_n(to, BLOCK, int8_t(0));
                scales[block] = sums[block] = unusual ? NAN : 0.0f;
                continue;
            }
            scales[block] = scale;
            int32_t sum = 0;
            for (int i = 0; i < BLOCK; ++i) {
                const int32_t nearest = static_cast<int32_t>(std::nearbyint(from[i] * inverse));
                to[i] = static_cast<int8_t>(nearest);
                sum += nearest;
            }
            sums[block] = scale * float(sum);
        }
        std::fill_n(sums.begin() + (length + BLOCK - 1) / BLOCK, 8, 0.0f);
    }
};

float dot_float32(const float* a, const float* b, int32_t length) {
    float sum = 0;
    for (int32_t i = 0; i < length; ++i) sum += a[i] * b[i];
    return sum;
}

float dot_bfloat16(const uint16_t* a, const float* b, int32_t length) {
    float sum = 0;
    for (int32_t i = 0; i < length; ++i) sum += from_bfloat16(a[i]) * b[i];
    return sum;
}

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

float total(__m256 v) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_shuffle_ps(half, half, 1)));
}

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

// Row after row, so that weights are one stream through memory: several rows side by side would
// share the loads of x, and take three times as long where the weights are not in a cache.
float dot_int8(const Linear& m, int32_t row, const Activations& x) {
    const int32_t blocks = m.columns / BLOCK, blocks_in_scale = m.group / BLOCK;
    const int8_t* weights = static_cast<const int8_t*>(m.weight) + int64_t(row) * m.columns;
    const float* scales =
        static_cast<const float*>(m.scales) + int64_t(row) * (m.columns / m.group);
    const auto add = [&](int32_t block, float scale, __m256 sum) {
        const __m256i xs = _mm256_loadu_si256(
            reinterpret_cast<const __m256i*>(x.rounded.data() + block * BLOCK));
        const __m256i ws =
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights + block * BLOCK));
        const __m256i products = quads(_mm256_abs_epi8(xs), _mm256_sign_epi8(ws, xs));
        return _mm256_fmadd_ps(_mm256_cvtepi32_ps(products),
                               _mm256_set1_ps(x.scales[block] * scale), sum);
    };
    __m256 even = _mm256_setzero_ps(), odd = even;
    if (blocks_in_scale == 1) {
        int32_t block = 0;
        for (; block + 2 <= blocks; block += 2) {
            _mm_prefetch(reinterpret_cast<const char*>(weights + block * BLOCK + AHEAD), _MM_HINT_T0);
            if (block % 16 == 0)
                _mm_prefetch(reinterpret_cast<const char*>(scales + block + AHEAD / BLOCK), _MM_HINT_T0);
            even = add(block, scales[block], even);
            odd = add(block + 1, scales[block + 1], odd);
        }
        if (block < blocks) even = add(block, scales[block], even);
    } else {
        for (int32_t first = 0, group = 0; first < blocks; first += blocks_in_scale, ++group) {
            int32_t block = first;
            for (; block + 2 <= first + blocks_in_scale; block += 2) {
                _mm_prefetch(reinterpret_cast<const char*>(weights + block * BLOCK + AHEAD), _MM_HINT_T0);
                even = add(block, scales[group], even);
                odd = add(block + 1, scales[group], odd);
            }
            if (block < first + blocks_in_scale) even = add(block, scales[group], even);
        }
    }
    return total(_mm256_add_ps(even, odd));
}

// Of eight blocks the scales or minima: groups of 32 << shift columns share one. `left` of them
// are in memory from `halves` on; what is read beyond a row is multiplied by nothing.
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

float dot_int4(const Linear& m, int32_t row, const Activations& x) {
    const int32_t blocks = m.columns / BLOCK, groups = m.columns / m.group;
    int32_t shift = 0;
    while (BLOCK << shift < m.group) ++shift;
    const uint8_t* weights = static_cast<const uint8_t*>(m.weight) + int64_t(row) * m.columns / 2;
    const uint16_t* scales = static_cast<const uint16_t*>(m.scales) + int64_t(row) * groups;
    const uint16_t* minima = m.minima + int64_t(row) * groups;
    const int64_t left = int64_t(m.rows - row) * groups;
    const __m256i low = _mm256_set1_epi8(15);
    __m256 even = _mm256_setzero_ps(), odd = even, least = even;
    for (int32_t first = 0; first < blocks; first += 8) {
        const int32_t count = std::min(8, blocks - first), group = first >> shift;
        alignas(32) float both[8];
        _mm256_store_ps(both, _mm256_mul_ps(of_blocks(scales + group, left - group, shift),
                                            _mm256_loadu_ps(x.scales.data() + first)));
        least = _mm256_fmadd_ps(of_blocks(minima + group, left - group, shift),
                                _mm256_loadu_ps(x.sums.data() + first), least);
        for (int32_t i = 0; i < count; i += 2) {
            const uint8_t* pair = weights + (first + i) * BLOCK / 2;
            const int8_t* xs = x.rounded.data() + (first + i) * BLOCK;
            _mm_prefetch(reinterpret_cast<const char*>(pair + AHEAD / 2), _MM_HINT_T0);
            const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(pair));
            const __m256i lows = _mm256_and_si256(bytes, low);
            const __m256i highs = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), low);
            const __m256i x0 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(xs));
            const __m256i x1 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(xs + BLOCK));
            even = _mm256_fmadd_ps(_mm256_cvtepi32_ps(quads(lows, x0)),
                                   _mm256_broadcast_ss(both + i), even);
            odd = _mm256_fmadd_ps(_mm256_cvtepi32_ps(quads(highs, x1)),
                                  _mm256_broadcast_ss(both + i + 1), odd);
        }
    }
    return total(_mm256_add_ps(_mm256_add_ps(even, odd), least));
}

#else

float dot_int8(const Linear& m, int32_t row, const Activations& x) {
    const int8_t* weights = static_cast<const int8_t*>(m.weight) + int64_t(row) * m.columns;
    const float* scales =
        static_cast<const float*>(m.scales) + int64_t(row) * (m.columns / m.group);
    float sum = 0;
    for (int32_t block = 0; block < m.columns / BLOCK; ++block) {
        int32_t products = 0;
        for (int i = block * BLOCK; i < (block + 1) * BLOCK; ++i)
            products += int32_t(weights[i]) * int32_t(x.rounded[i]);
        sum += float(products) * x.scales[block] * scales[block * BLOCK / m.group];
    }
    return sum;
}

float dot_int4(const Linear& m, int32_t row, const Activations& x) {
    const int32_t groups = m.columns / m.group;
    const uint8_t* weights = static_cast<const uint8_t*>(m.weight) + int64_t(row) * m.columns / 2;
    const uint16_t* scales = static_cast<const uint16_t*>(m.scales) + int64_t(row) * groups;
    const uint16_t* minima = m.minima + int64_t(row) * groups;
    float sum = 0;
    for (int32_t block = 0; block < m.columns / BLOCK; ++block) {
        const uint8_t* bytes = weights + block / 2 * BLOCK;
        const int8_t* xs = x.rounded.data() + block * BLOCK;
        const int shift = block % 2 * 4;
        int32_t products = 0;
        for (int i = 0; i < BLOCK; ++i) products += (bytes[i] >> shift & 15) * int32_t(xs[i]);
        const int32_t group = block * BLOCK / m.group;
        sum += float(products) * x.scales[block] * from_float16(scales[group]);
        sum += x.sums[block] * from_float16(minima[group]);
    }
    return sum;
}

#endif

// The numbers that one row of m stands for.
void read_row(const Linear& m, int64_t row, float* out) {
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
            case INT4: {
                const int32_t block = i / BLOCK;
                const uint8_t byte = static_cast<const uint8_t*>(
                    m.weight)[begin / 2 + block / 2 * BLOCK + i % BLOCK];
                out[i] = (byte >> block % 2 * 4 & 15) *
                             from_float16(static_cast<const uint16_t*>(m.scales)[scale]) +
                         from_float16(m.minima[scale]);
                break;
            }
        }
    }
}

void store(float value, float* out) { *out = value; }
void store(float value, uint16_t* out) { *out = to_bfloat16(value); }

// As `read_row`, of `count` columns from `first` on, for integers and in vectors. Both are multiples
// of BLOCK, `first` of two blocks; Number is float, or uint16_t for bfloat16.
template <typename Number>
void convert_part(const Linear& m, int64_t row, int32_t first, int32_t count, Number* out) {
    const int32_t groups = m.columns / m.group, blocks = m.group / BLOCK;
    int64_t group = row * groups + first / m.group;
    int32_t left = blocks - first % m.group / BLOCK;  // blocks until the next group
    // Bytes could be part of what is written, for all that the compiler knows.
    Number* __restrict to = out;
    if (m.kind == INT8) {
        const int8_t* __restrict from =
            static_cast<const int8_t*>(m.weight) + row * m.columns + first;
        const float* __restrict scales = static_cast<const float*>(m.scales);
        float scale = scales[group];
        for (int32_t end = count / BLOCK, block = 0; block < end; ++block, --left) {
            if (left == 0) {
                scale = scales[++group];
                left = blocks;
            }
            for (int i = 0; i < BLOCK; ++i)
                store(float(from[block * BLOCK + i]) * scale, to + block * BLOCK + i);
        }
        return;
    }
    const uint8_t* __restrict from =
        static_cast<const uint8_t*>(m.weight) + (row * m.columns + first) / 2;
    const uint16_t* __restrict scales = static_cast<const uint16_t*>(m.scales);
    float scale = from_float16(scales[group]), least = from_float16(m.minima[group]);
    for (int32_t end = count / BLOCK, block = 0; block < end; ++block, --left) {
        if (left == 0) {
            ++group;
            scale = from_float16(scales[group]);
            least = from_float16(m.minima[group]);
            left = blocks;
        }
        const uint8_t* __restrict bytes = from + block / 2 * BLOCK;
        const int shift = block % 2 * 4;
        for (int i = 0; i < BLOCK; ++i)
            store(float(bytes[i] >> shift & 15) * scale + least, to + block * BLOCK + i);
    }
}

// Rows [first, last) of m times x, each plus the bias.
void multiply(const Linear& m, const Activations& x, int32_t first, int32_t last, float* out) {
    int32_t row = first;
    switch (m.kind) {
        case INT8:
            for (; row < last; ++row) out[row - first] = dot_int8(m, row, x);
            break;
        case INT4:
            for (; row < last; ++row) out[row - first] = dot_int4(m, row, x);
            break;
        case FLOAT32:
            for (; row < last; ++row)
                out[row - first] = dot_float32(
                    static_cast<const float*>(m.weight) + int64_t(row) * m.columns,
                    x.exact.data(), m.columns);
            break;
        case BFLOAT16:
            for (; row < last; ++row)
                out[row - first] = dot_bfloat16(
                    static_cast<const uint16_t*>(m.weight) + int64_t(row) * m.columns,
                    x.exact.data(), m.columns);
            break;
    }
    if (m.bias != nullptr)
        for (row = first; row < last; ++row) out[row - first] += m.bias[row];
}

}  // namespace
