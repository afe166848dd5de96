// Rows of activations, exact and rounded.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#include "lanes.hpp"
#include "matrix.hpp"

namespace {

// Activations that are rounded by one scale: those that meet the output embedding, and others. Half as
// many cost half as many nats and, where integers are packed, products a sixth more time.
constexpr int FINE_GROUP = 8;
#if defined(PACKED_INTEGERS)
constexpr int ACTIVATION_GROUP = 16;
#else
constexpr int ACTIVATION_GROUP = FINE_GROUP;
#endif

// How many activations each stored scale is of, at least. Vectors of AVX2 have two lanes for eight, and
// their scale is there for either.
#if defined(__AVX2__) && !defined(PACKED_INTEGERS)
constexpr int PER_SCALE = FINE_GROUP / 2;
#else
constexpr int PER_SCALE = FINE_GROUP;
#endif

template <int GROUP>
constexpr int SCALES_OF_BLOCK = BLOCK * FINE_GROUP / (GROUP * PER_SCALE);

constexpr int BEYOND = 8;  // blocks that vectors read beyond the last

#if defined(__AVX512BF16__)
constexpr bool BFLOAT16_ROUNDS = true;  // activations are rounded for weights of bfloat16
#else
constexpr bool BFLOAT16_ROUNDS = false;
#endif

// What activations are rounded to, for the matrices that they meet.
struct Rounding {
    bool bytes = false, halves = false;

    void add(const Matrix& m) {
        bytes |= m.kind == INT8 || m.kind == INT4;
        halves |= m.kind == BFLOAT16 && BFLOAT16_ROUNDS;
    }
};

// Round a block of activations: what PER_SCALE of them are multiplied by goes to `scales`. Returns what
// the rounded numbers add up to. An integer of NaN, or of what is beyond all integers, is not defined:
// there the scale is NaN. Activations too small to have an inverse are nothing beside any others.
#if defined(PACKED_INTEGERS)
// What `combine` makes of the lanes of each group, in all of them.
template <int GROUP, typename Combine>
__m512i in_groups_of(__m512i lanes, Combine combine) {
    if constexpr (GROUP == 16) lanes = combine(lanes, _mm512_shuffle_i32x4(lanes, lanes, 0x4e));
    lanes = combine(lanes, _mm512_shuffle_i32x4(lanes, lanes, 0xb1));
    lanes = combine(lanes, _mm512_shuffle_epi32(lanes, _MM_PERM_ENUM(0x4e)));
    return combine(lanes, _mm512_shuffle_epi32(lanes, _MM_PERM_ENUM(0xb1)));
}

template <int GROUP>
inline float round_block(const float* from, int8_t* to, float* scales) {
    const __m512i infinite = _mm512_set1_epi32(0x7f800000);
    const __m512 most = _mm512_set1_ps(127.0f);
    float all = 0.0f;
    for (int i = 0; i < BLOCK; i += 16) {
        const __m512 numbers = _mm512_loadu_ps(from + i);
        // By their bits, which are in the order of the numbers and lose no NaN.
        const __m512i largest = in_groups_of<GROUP>(
            _mm512_and_si512((__m512i)numbers, _mm512_set1_epi32(0x7fffffff)),
            [](__m512i a, __m512i b) { return _mm512_max_epi32(a, b); });
        const __m512 inverse = _mm512_div_ps(most, (__m512)largest);
        const __mmask16 usual = _mm512_cmpgt_epi32_mask(infinite, largest);
        const __mmask16 used = usual & _mm512_cmpgt_epi32_mask(infinite, (__m512i)inverse);
        const __m512i integers = _mm512_maskz_cvtps_epi32(used, _mm512_mul_ps(numbers, inverse));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), _mm512_cvtepi32_epi8(integers));
        const __m512 each = _mm512_mask_mov_ps(
            _mm512_set1_ps(NAN), usual,
            _mm512_maskz_mul_ps(used, (__m512)largest, _mm512_set1_ps(1.0f / 127.0f)));
        const __m512i sums =
            in_groups_of<GROUP>(integers, [](__m512i a, __m512i b) { return _mm512_add_epi32(a, b); });
        const __m512 products = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), each);
        for (int lane = 0; lane < 16; lane += GROUP) {
            *scales++ = each[lane];
            all += products[lane];
        }
    }
    return all;
}
#elif defined(__AVX2__)
template <int>
inline float round_block(const float* from, int8_t* to, float* scales) {
    const __m256i infinite = _mm256_set1_epi32(0x7f800000);
    const __m256 most = _mm256_set1_ps(127.0f);
    __m256i integers[4];
    __m256 each[4];
    for (int i = 0; i < 4; ++i) {
        const __m256 numbers = _mm256_loadu_ps(from + i * 8);
        // By their bits, which are in the order of the numbers and lose no NaN.
        __m256i largest = _mm256_and_si256((__m256i)numbers, _mm256_set1_epi32(0x7fffffff));
        largest = _mm256_max_epi32(largest, _mm256_shuffle_epi32(largest, 0xb1));
        largest = _mm256_max_epi32(largest, _mm256_shuffle_epi32(largest, 0x4e));
        largest = _mm256_max_epi32(largest, _mm256_permute2x128_si256(largest, largest, 1));
        const __m256 inverse = _mm256_div_ps(most, (__m256)largest);
        const __m256i usual = _mm256_cmpgt_epi32(infinite, largest);
        const __m256i used = _mm256_and_si256(usual, _mm256_cmpgt_epi32(infinite, (__m256i)inverse));
        integers[i] = _mm256_and_si256(used, _mm256_cvtps_epi32(_mm256_mul_ps(numbers, inverse)));
        const __m256 scale = _mm256_and_ps((__m256)used, _mm256_div_ps((__m256)largest, most));
        each[i] = _mm256_blendv_ps(_mm256_set1_ps(NAN), scale, (__m256)usual);
    }
    // Each lane of a vector has the same scale.
    const __m256 steps = _mm256_blend_ps(_mm256_blend_ps(each[0], each[1], 0x22),
                                         _mm256_blend_ps(each[2], each[3], 0x88), 0xcc);
    const __m256 each_of_two = _mm256_permutevar_ps(_mm256_permute2f128_ps(steps, steps, 0),
                                                    _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3));
    _mm256_storeu_ps(scales, each_of_two);
    // Packing goes by halves of vectors: fours of numbers 0, 2, 4, 6, 1, 3, 5, 7.
    const __m256i in_order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(integers[0], integers[1]),
                                              _mm256_packs_epi32(integers[2], integers[3]));
    const __m256i bytes = _mm256_permutevar8x32_epi32(packed, in_order);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), bytes);
    const __m256i sums = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes),
                                           _mm256_set1_epi16(1));
    return total((EightLanes)_mm256_mul_ps(_mm256_cvtepi32_ps(sums), each_of_two));
}
#else
// Returns what the rounded numbers add up to.
inline int round_together(const float* from, float inverse, int8_t* to) {
#if defined(NEON)
    const int32x4_t low = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(from), inverse));
    const int32x4_t high = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(from + 4), inverse));
    const int16x8_t all = vcombine_s16(vmovn_s32(low), vmovn_s32(high));
    vst1_s8(to, vmovn_s16(all));
    return vaddvq_s16(all);
#else
    int sum = 0;
    for (int i = 0; i < ACTIVATION_GROUP; ++i) sum += to[i] = static_cast<int8_t>(std::nearbyint(from[i] * inverse));
    return sum;
#endif
}

template <int>
inline float round_block(const float* from, int8_t* to, float* scales) {
    float all = 0.0f;
    for (int i = 0; i < BLOCK / ACTIVATION_GROUP; ++i, from += ACTIVATION_GROUP, to += ACTIVATION_GROUP) {
        uint32_t most = 0;
        for (int j = 0; j < ACTIVATION_GROUP; ++j) most = std::max(most, bits_of(from[j]) & 0x7fffffffu);
        const bool usual = most < 0x7f800000u;
        float largest;
        std::memcpy(&largest, &most, sizeof largest);
        const float inverse = 127.0f / largest;
        int sum = 0;
        if (!usual || is_not_finite(inverse)) {
            std::fill_n(to, ACTIVATION_GROUP, int8_t(0));
            scales[i] = usual ? 0.0f : NAN;
        } else {
            sum = round_together(from, inverse, to);
            scales[i] = largest / 127.0f;
        }
        all += scales[i] * float(sum);
    }
    return all;
}
#endif

// Memory that begins at a cache line, so that a vector of numbers lies in one.
template <typename T>
struct OfLines {
    using value_type = T;
    static constexpr std::align_val_t LINE{64};

    T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), LINE)); }
    void deallocate(T* memory, size_t) { ::operator delete(memory, LINE); }
    bool operator==(const OfLines&) const { return true; }
    bool operator!=(const OfLines&) const { return false; }
};

template <typename T>
using Lines = std::vector<T, OfLines<T>>;

// Rows of activations as products read them: exact, for integers rounded to 8 bits, and for weights of
// bfloat16 rounded to that, if the machine multiplies it.
class Rows {
   public:
    Rows(int32_t rows, int32_t columns, Rounding to)
        : to_(to),
          columns_((columns + 2 * BLOCK - 1) / (2 * BLOCK) * (2 * BLOCK)),
          blocks_(columns_ / BLOCK + std::max(LANES, BEYOND)),
          exact_(size_t(rows) * columns_),
          rounded_(to.bytes ? size_t(rows) * columns_ : 0),
          halves_(to.halves ? size_t(rows) * columns_ : 0),
          scales_(to.bytes ? size_t(rows) * columns_ / PER_SCALE : 0),
          sums_(to.bytes ? size_t(rows) * blocks_ : 0) {}

    float* exact(int64_t row) { return exact_.data() + row * columns_; }
    const float* exact(int64_t row) const { return exact_.data() + row * columns_; }
    const int8_t* rounded(int64_t row) const { return rounded_.data() + row * columns_; }
    const uint16_t* halves(int64_t row) const { return halves_.data() + row * columns_; }
    const float* scales(int64_t row) const { return scales_.data() + row * (columns_ / PER_SCALE); }
    // Of each block, what its rounded numbers add up to.
    const float* sums(int64_t row) const { return sums_.data() + row * blocks_; }

    // Round `length` numbers of a row; to bytes in groups of so many.
    template <int GROUP = ACTIVATION_GROUP>
    void round(int64_t row, int32_t length) {
        if (to_.halves) round_to_halves(row, length);
        if (to_.bytes) round_to_bytes<GROUP>(row, length);
    }

   private:
    // Those of whole blocks: rows of integers have no others.
    template <int GROUP>
    void round_to_bytes(int64_t row, int32_t length) {
        const float* from = exact(row);
        int8_t* to = rounded_.data() + row * columns_;
        float *scales = scales_.data() + row * (columns_ / PER_SCALE), *sums = sums_.data() + row * blocks_;
        const int32_t blocks = length / BLOCK;
        for (int32_t block = 0; block < blocks; ++block)
            sums[block] = round_block<GROUP>(from + block * BLOCK, to + block * BLOCK,
                                             scales + block * SCALES_OF_BLOCK<GROUP>);
        std::fill_n(sums + blocks, BEYOND, 0.0f);
    }

    void round_to_halves([[maybe_unused]] int64_t row, [[maybe_unused]] int32_t length) {
#if defined(__AVX512BF16__)
        uint16_t* to = halves_.data() + row * columns_;
        for (int32_t i = 0; i < length; i += 16) {
            const __mmask16 there = length - i >= 16 ? 0xffff : __mmask16((1 << (length - i)) - 1);
            const __m512 numbers = _mm512_maskz_loadu_ps(there, exact(row) + i);
            _mm256_mask_storeu_epi16(to + i, there, (__m256i)_mm512_cvtneps_pbh(numbers));
        }
#endif
    }

    const Rounding to_;
    const int32_t columns_, blocks_;
    Lines<float> exact_;
    Lines<int8_t> rounded_;
    Lines<uint16_t> halves_;
    Lines<float> scales_;
    std::vector<float> sums_;
};

}  // namespace
