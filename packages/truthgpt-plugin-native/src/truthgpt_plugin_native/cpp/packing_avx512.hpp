// Rows of integers put side by side: a vector has four columns of sixteen rows.
//
// So each lane adds up a number of its own, the scales of rows are vectors, and nothing is left to be
// added up across lanes. Packing takes as long as the products of some ten rows of activations.
#pragma once

#include <algorithm>
#include <cstdint>

#include "integers.hpp"
#include "lanes.hpp"
#include "matrix.hpp"

namespace {

constexpr int32_t SIDE_BY_SIDE = 16;       // rows in a vector
constexpr int32_t PACKED_VECTORS = 2;      // that are packed together
constexpr int32_t QUADS = BLOCK / 4;       // in a block of columns

// `bytes` is 128 more than an int8, and an int4 as it is.
struct Packed {
    alignas(64) uint8_t bytes[PART_BLOCKS * QUADS][PACKED_VECTORS][64];
    alignas(64) float steps[PART_BLOCKS][PACKED_VECTORS][SIDE_BY_SIDE];
    alignas(64) float minima[PART_BLOCKS][PACKED_VECTORS][SIDE_BY_SIDE];
};

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

// Pack blocks [begin, end) of rows [first, last) as vector v. `next` is asked for meanwhile.
inline void pack_int8(const Matrix& m, int32_t first, int32_t last, int32_t begin, int32_t end, int v,
                      const char* next, Packed& to) {
    const SixteenRows rows(m.weight, m.columns, first, last);
    OfGroups<float> steps(m.scales, m.columns / m.group, first, last);
    const __m512i offset = _mm512_set1_epi8(-128);
    for (int32_t block = begin; block < end; ++block) {
        for (int i = 0; i < 8; ++i) prefetch_far(next + (block - begin) * 512 + i * 64);
        for (int half = 0; half < 2; ++half) {
            __m512i words[4];
            rows.words(int64_t(block) * BLOCK + half * 16, words);
            for (int i = 0; i < 4; ++i)
                _mm512_store_si512(to.bytes[(block - begin) * QUADS + half * 4 + i][v],
                                   _mm512_xor_si512(words[i], offset));
        }
        _mm512_store_ps(to.steps[block - begin][v], steps.of(block * BLOCK / m.group));
    }
}

// `begin` and `end` are even.
inline void pack_int4(const Matrix& m, int32_t first, int32_t last, int32_t begin, int32_t end, int v,
                      const char* next, Packed& to) {
    const SixteenRows rows(m.weight, m.columns / 2, first, last);
    OfGroups<uint16_t> steps(m.scales, m.columns / m.group, first, last);
    OfGroups<uint16_t> minima(m.minima, m.columns / m.group, first, last);
    const __m512i low = _mm512_set1_epi8(15);
    for (int32_t block = begin; block < end; block += 2) {
        for (int i = 0; i < 8; ++i) prefetch_far(next + (block - begin) / 2 * 512 + i * 64);
        for (int half = 0; half < 2; ++half) {
            __m512i words[4];
            rows.words(int64_t(block) / 2 * BLOCK + half * 16, words);
            for (int i = 0; i < 4; ++i) {
                const int32_t quad = (block - begin) * QUADS + half * 4 + i;
                _mm512_store_si512(to.bytes[quad][v], _mm512_and_si512(words[i], low));
                _mm512_store_si512(to.bytes[quad + QUADS][v],
                                   _mm512_and_si512(_mm512_srli_epi16(words[i], 4), low));
            }
        }
        for (int32_t each = block; each < block + 2; ++each) {
            _mm512_store_ps(to.steps[each - begin][v], steps.of(each * BLOCK / m.group));
            _mm512_store_ps(to.minima[each - begin][v], minima.of(each * BLOCK / m.group));
        }
    }
}

}  // namespace
