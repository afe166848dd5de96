// Keys and values of one sequence, and how they lie in memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#include "attention_integers.hpp"
#include "attention_pairs.hpp"
#include "lanes.hpp"
#include "matrix.hpp"

namespace {

inline void put(float value, float* to) { *to = value; }
inline void put(float value, uint16_t* to) { *to = to_bfloat16(value); }

// Numbers of a key or value that lie together in a vector of several positions or dimensions.
template <typename Stored>
constexpr int32_t TOGETHER = IN_PAIRS<Stored> || INTEGERS<Stored> ? 2 : 1;

// Keys and values of one head, from the beginning of a segment on.
template <typename Stored>
struct Kept {
    const Stored *keys, *values;
    const float *key_scales, *value_scales;  // of integers
};

// Of one sequence, all layers: keys as (layer, head, position / LANES, dimension, position % LANES),
// so that a vector has one dimension of several positions; values as (layer, head, position,
// dimension). In pairs: keys as (..., position / LANES, dimension / 2, position % LANES, dimension % 2),
// values as (..., position / 2, dimension, position % 2). Integers are in pairs, too; their scales as
// (layer, head, position / LANES, group, position % LANES) for keys and (layer, head, position) for
// values. Memory that no position has filled is not touched.
class Sequence {
   public:
    // `kind` is FLOAT32, BFLOAT16 or INT8.
    Sequence(int32_t layers, int32_t heads, int32_t width, int64_t positions, int32_t kind)
        : heads_(heads),
          blocks_(int64_t(layers) * heads),
          capacity_((positions + SEGMENT - 1) / SEGMENT * SEGMENT) {
        size_t all = 0;
        for (int part = 0; part < PARTS; ++part) {
            bytes_[part] = bytes_of(part, width, kind);
            begin_[part] = all;
            all += size_t(blocks_) * capacity_ * bytes_[part];
        }
        memory_ = static_cast<uint8_t*>(std::calloc(all, 1));
        if (memory_ == nullptr) throw std::bad_alloc();
    }
    ~Sequence() { std::free(memory_); }
    Sequence(const Sequence&) = delete;
    Sequence& operator=(const Sequence&) = delete;

    // Those of a head, from `position` on, which is a multiple of LANES.
    template <typename Stored>
    Kept<Stored> from(int32_t layer, int32_t head, int64_t position) const {
        return {at<Stored>(KEYS, layer, head, position), at<Stored>(VALUES, layer, head, position),
                at<float>(KEY_SCALES, layer, head, position), at<float>(VALUE_SCALES, layer, head, position)};
    }

    // Write the key and value of a position, each of `dimensions` numbers.
    template <typename Stored>
    void write(int32_t layer, int32_t head, int64_t position, const float* key, const float* value,
               int32_t dimensions) {
        constexpr int32_t PAIR = TOGETHER<Stored>;
        const int64_t first = position / LANES * LANES, lane = position % LANES;
        Stored* keys = at<Stored>(KEYS, layer, head, first) + lane * PAIR;
        Stored* values = at<Stored>(VALUES, layer, head, position / PAIR * PAIR) + position % PAIR;
        const auto key_at = [=](int32_t i) { return keys + i / PAIR * PAIR * LANES + i % PAIR; };
        if constexpr (INTEGERS<Stored>) {
            float* scales = at<float>(KEY_SCALES, layer, head, first) + lane;
            for (int32_t i = 0; i < dimensions; i += KEY_GROUP, scales += LANES)
                *scales = round_to_bytes(key + i, std::min(KEY_GROUP, dimensions - i),
                                         [&](int32_t n, int8_t number) { *key_at(i + n) = number; });
            *at<float>(VALUE_SCALES, layer, head, position) =
                round_to_bytes(value, dimensions, [&](int32_t i, int8_t number) { values[i * PAIR] = number; });
        } else {
            for (int32_t i = 0; i < dimensions; ++i) put(key[i], key_at(i));
            for (int32_t i = 0; i < dimensions; ++i) put(value[i], values + i * PAIR);
        }
    }

    // Begin with the first positions of another sequence of the same model.
    void copy(const Sequence& other, int64_t positions) {
        // Keys of LANES positions lie together.
        const size_t used = size_t((positions + LANES - 1) / LANES * LANES);
        for (int part = 0; part < PARTS; ++part) {
            const size_t row = bytes_[part];
            for (int64_t block = 0; block < blocks_; ++block)
                std::memcpy(memory_ + begin_[part] + block * capacity_ * row,
                            other.memory_ + other.begin_[part] + block * other.capacity_ * row, used * row);
        }
        length = positions;
    }

    // What a position takes, of all layers and heads.
    static int64_t bytes_of_position(int32_t layers, int32_t heads, int32_t width, int32_t kind) {
        int64_t all = 0;
        for (int part = 0; part < PARTS; ++part) all += int64_t(layers) * heads * bytes_of(part, width, kind);
        return all;
    }

    int64_t length = 0;

   private:
    enum Part { KEYS, VALUES, KEY_SCALES, VALUE_SCALES, PARTS };

    static int32_t bytes_of(int part, int32_t width, int32_t kind) {
        if (part == KEYS || part == VALUES) return width * (kind == FLOAT32 ? 4 : kind == BFLOAT16 ? 2 : 1);
        if (kind != INT8) return 0;
        return (part == KEY_SCALES ? groups_of(width) : 1) * int32_t(sizeof(float));
    }

    template <typename T>
    T* at(Part part, int32_t layer, int32_t head, int64_t position) const {
        const int64_t row = (int64_t(layer) * heads_ + head) * capacity_ + position;
        return reinterpret_cast<T*>(memory_ + begin_[part] + row * bytes_[part]);
    }

    const int32_t heads_;
    const int64_t blocks_, capacity_;
    int32_t bytes_[PARTS];  // of a position of a head
    size_t begin_[PARTS];
    uint8_t* memory_;
};

}  // namespace
