// Rows of integers put side by side: a vector has four columns of sixteen rows.
//
// So each lane adds up a number of its own, the scales of rows are vectors, and nothing is left to be
// added up across lanes. Packing takes as long as the products of some ten rows of activations, so an
// engine does it once, when it begins; what PyTorch calls is packed when it is used.
#pragma once

#include <algorithm>
#include <cstdint>

#include "integers.hpp"
#include "lanes.hpp"
#include "matrix.hpp"

namespace {

constexpr int32_t SIDE_BY_SIDE = 16;       // rows in a vector
constexpr int32_t PACKED_VECTORS = 2;      // that are packed together
constexpr int32_t STRIP = PACKED_VECTORS * SIDE_BY_SIDE;
constexpr int32_t QUADS = BLOCK / 4;       // in a block of columns
constexpr int64_t PACKED_BLOCK = int64_t(BLOCK) * STRIP;  // numbers

// A strip of rows from block 0 on. Bytes are 128 more than an int8; int4 are as they are, in halves of
// bytes, a block and the one after it. Blocks may share scales: those of block b are at b >> shift.
template <bool MINIMA>
struct Strip {
    uint8_t (*bytes)[PACKED_VECTORS][64];
    Scale<MINIMA> (*steps)[PACKED_VECTORS][SIDE_BY_SIDE];
    uint16_t (*minima)[PACKED_VECTORS][SIDE_BY_SIDE];
    int32_t shift;
};

// Whole matrices have no scale twice, if their groups are such that a shift says where they are.
inline int32_t shift_of(const Matrix& m) {
    const int32_t blocks = m.group / BLOCK;
    if (m.group == m.columns) return 31;
    return (blocks & (blocks - 1)) == 0 ? __builtin_ctz(unsigned(blocks)) : 0;
}

// A strip of a packed matrix: all bytes, then all scales, then all minima of a matrix follow each other.
template <bool MINIMA>
Strip<MINIMA> strip_of(const Matrix& m, int64_t index) {
    const int32_t blocks = m.columns / BLOCK, shift = shift_of(m);
    Strip<MINIMA> strip;
    const auto in = [&](auto& part, const void* all, int64_t each) {
        using Rows = std::remove_reference_t<decltype(part)>;
        part = static_cast<Rows>(const_cast<void*>(all)) + index * each;
    };
    in(strip.bytes, m.weight, int64_t(blocks) * QUADS / (MINIMA ? 2 : 1));
    in(strip.steps, m.scales, ((blocks - 1) >> shift) + 1);
    in(strip.minima, m.minima, ((blocks - 1) >> shift) + 1);
    strip.shift = shift;
    return strip;
}

// Sixteen rows that follow each other; where there are fewer, the last one again.
struct SixteenRows {
    const uint8_t* at[SIDE_BY_SIDE];

    SixteenRows(const void* rows, int64_t bytes_of_row, int32_t first, int32_t last) {
        for (int32_t r = 0; r < SIDE_BY_SIDE; ++r)
            at[r] = static_cast<const uint8_t*>(rows) + std::min(first + r, last - 1) * bytes_of_row;
    }

    // Four neighboring words of 32 bits of each row, the first words in the first vector.
    void words(int64_t offset, __m512i to[4]) const {
        __m512i rows[4];
        for (int r = 0; r < 4; ++r) {
            const auto part = [&](int quarter) {
                return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at[quarter * 4 + r] + offset));
            };
            rows[r] = _mm512_castsi128_si512(part(0));
            rows[r] = _mm512_mask_broadcast_i32x4(rows[r], 0x00f0, part(1));
            rows[r] = _mm512_mask_broadcast_i32x4(rows[r], 0x0f00, part(2));
            rows[r] = _mm512_mask_broadcast_i32x4(rows[r], 0xf000, part(3));
        }
        const __m512i low01 = _mm512_unpacklo_epi32(rows[0], rows[1]);
        const __m512i low23 = _mm512_unpacklo_epi32(rows[2], rows[3]);
        const __m512i high01 = _mm512_unpackhi_epi32(rows[0], rows[1]);
        const __m512i high23 = _mm512_unpackhi_epi32(rows[2], rows[3]);
        to[0] = _mm512_unpacklo_epi64(low01, low23);
        to[1] = _mm512_unpackhi_epi64(low01, low23);
        to[2] = _mm512_unpacklo_epi64(high01, high23);
        to[3] = _mm512_unpackhi_epi64(high01, high23);
    }
};

inline float as_float(float value) { return value; }
inline float as_float(uint16_t value) { return from_float16(value); }

// Of each of sixteen rows, the number of one group, from `values`, which has `groups` for each row.
template <typename Stored>
class OfGroups {
   public:
    OfGroups(const void* values, int32_t groups, int32_t first, int32_t last)
        : rows_(values, int64_t(groups) * sizeof(Stored), first, last), groups_(groups) {}

    // Groups are asked for in order.
    __m512 of(int32_t group) {
        if (groups_ < AT_ONCE) return one(group);
        if (group < begin_ || group >= begin_ + AT_ONCE) {
            begin_ = std::min(group, groups_ - AT_ONCE);
            __m512i words[4];
            rows_.words(int64_t(begin_) * sizeof(Stored), words);
            for (int i = 0; i < 4; ++i) spread(words[i], i);
        }
        return found_[group - begin_];
    }

   private:
    static constexpr int32_t AT_ONCE = 16 / sizeof(Stored);

    __m512 one(int32_t group) const {
        alignas(64) float each[SIDE_BY_SIDE];
        for (int32_t r = 0; r < SIDE_BY_SIDE; ++r) {
            Stored value;
            std::memcpy(&value, rows_.at[r] + group * sizeof(Stored), sizeof value);
            each[r] = as_float(value);
        }
        return _mm512_load_ps(each);
    }

    void spread(__m512i words, int i) {
        if constexpr (sizeof(Stored) == 4) {
            found_[i] = _mm512_castsi512_ps(words);
        } else {
            found_[2 * i] = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(words));
            found_[2 * i + 1] = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(words, 16)));
        }
    }

    const SixteenRows rows_;
    const int32_t groups_;
    int32_t begin_ = -AT_ONCE;
    __m512 found_[AT_ONCE];
};

// Put blocks [begin, end) of rows [first, last) side by side, as the first of a strip. `next` is asked
// for meanwhile. Of int4 `begin` and `end` are even.
template <bool MINIMA>
void pack(const Matrix& m, int32_t first, int32_t last, int32_t begin, int32_t end, const char* next,
          const Strip<MINIMA>& to) {
    constexpr int32_t TOGETHER = MINIMA ? 2 : 1;  // blocks in a vector of bytes
    const int64_t bytes_of_row = m.columns / TOGETHER;
    const auto halves = [](__m512 exact, uint16_t* at) {
        _mm256_store_si256(reinterpret_cast<__m256i*>(at), _mm512_cvtps_ph(exact, 0));
    };
    for (int v = 0; v < PACKED_VECTORS; ++v) {
        const int32_t from = first + v * SIDE_BY_SIDE;
        const SixteenRows rows(m.weight, bytes_of_row, from, last);
        OfGroups<Scale<MINIMA>> steps(m.scales, m.columns / m.group, from, last);
        OfGroups<uint16_t> minima(MINIMA ? m.minima : m.scales, m.columns / m.group, from, last);
        for (int32_t block = begin; block < end; block += TOGETHER) {
            for (int i = 0; i < 8; ++i) prefetch_far(next + i * 64);
            next += 512;
            for (int half = 0; half < 2; ++half) {
                __m512i words[4];
                rows.words(int64_t(block) / TOGETHER * BLOCK + half * 16, words);
                for (int i = 0; i < 4; ++i) {
                    if (!MINIMA) words[i] = _mm512_xor_si512(words[i], _mm512_set1_epi8(-128));
                    _mm512_store_si512(to.bytes[(block - begin) / TOGETHER * QUADS + half * 4 + i][v], words[i]);
                }
            }
            for (int32_t each = block; each < block + TOGETHER; ++each) {
                const int32_t group = each * BLOCK / m.group, at = (each - begin) >> to.shift;
                if constexpr (MINIMA) {
                    halves(steps.of(group), to.steps[at][v]);
                    halves(minima.of(group), to.minima[at][v]);
                } else {
                    _mm512_store_ps(to.steps[at][v], steps.of(group));
                }
            }
        }
    }
}

// Some blocks of a strip, as products read them: a byte for each number. The scales of block b are at
// (first + b) >> shift.
struct Part {
    const uint8_t (*bytes)[PACKED_VECTORS][64];
    const float (*steps)[PACKED_VECTORS][SIDE_BY_SIDE];
    const float (*minima)[PACKED_VECTORS][SIDE_BY_SIDE];
    int32_t first, shift;
};

// Memory for a part of int4.
struct PartBytes {
    alignas(64) uint8_t bytes[PART_BLOCKS * QUADS][PACKED_VECTORS][64];
    alignas(64) float steps[PART_BLOCKS][PACKED_VECTORS][SIDE_BY_SIDE];
    alignas(64) float minima[PART_BLOCKS][PACKED_VECTORS][SIDE_BY_SIDE];
};

inline Part part_of(const Strip<false>& strip, int32_t begin, int32_t, PartBytes&) {
    return {strip.bytes + int64_t(begin) * QUADS, strip.steps, nullptr, begin, strip.shift};
}

inline Part part_of(const Strip<true>& strip, int32_t begin, int32_t end, PartBytes& to) {
    const __m512i low = _mm512_set1_epi8(15);
    for (int32_t block = 0; block < end - begin; block += 2)
        for (int quad = 0; quad < QUADS; ++quad)
            for (int v = 0; v < PACKED_VECTORS; ++v) {
                const int64_t at = int64_t(begin + block) / 2 * QUADS + quad;
                const __m512i both = _mm512_load_si512(strip.bytes[at][v]);
                _mm512_store_si512(to.bytes[block * QUADS + quad][v], _mm512_and_si512(both, low));
                _mm512_store_si512(to.bytes[(block + 1) * QUADS + quad][v],
                                   _mm512_and_si512(_mm512_srli_epi16(both, 4), low));
            }
    const auto exact = [](const uint16_t* from) {
        return _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(from)));
    };
    for (int32_t block = 0; block < end - begin; ++block)
        for (int v = 0; v < PACKED_VECTORS; ++v) {
            const int32_t at = (begin + block) >> strip.shift;
            _mm512_store_ps(to.steps[block][v], exact(strip.steps[at][v]));
            _mm512_store_ps(to.minima[block][v], exact(strip.minima[at][v]));
        }
    return {to.bytes, to.steps, to.minima, 0, 0};
}

}  // namespace
