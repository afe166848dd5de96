// Keys and values of one sequence, and how they lie in memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "attention_integers.hpp"
#include "attention_pairs.hpp"
#include "lanes.hpp"
#include "large_pages.hpp"
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
    // What to ask for while either is read; null for nothing.
    const char *after_keys = nullptr, *after_values = nullptr;
};

// How keys and values of SEGMENT positions lie in memory, of all layers: keys as (layer, head, position /
// LANES, dimension, position % LANES), so that a vector has one dimension of several positions; values as
// (layer, head, position, dimension). In pairs: keys as (..., position / LANES, dimension / 2, position %
// LANES, dimension % 2), values as (..., position / 2, dimension, position % 2). Integers are in pairs,
// too; their scales as (layer, head, position / LANES, group, position % LANES) for keys and (layer, head,
// position) for values.
struct Layout {
    enum Part { KEYS, VALUES, KEY_SCALES, VALUE_SCALES, PARTS };

    int32_t heads;
    int64_t bytes[PARTS], begin[PARTS];  // of a position of a head, and where they begin
    int64_t all = 0;

    // `kind` is FLOAT32, BFLOAT16 or INT8.
    Layout(int32_t layers, int32_t heads_of_layer, int32_t width, int32_t kind) : heads(heads_of_layer) {
        const int64_t number = kind == FLOAT32 ? 4 : kind == BFLOAT16 ? 2 : 1, scale = kind == INT8 ? 4 : 0;
        bytes[KEYS] = bytes[VALUES] = width * number;
        bytes[KEY_SCALES] = groups_of(width) * scale;
        bytes[VALUE_SCALES] = scale;
        for (int part = 0; part < PARTS; ++part) {
            begin[part] = all;
            all += int64_t(layers) * heads * SEGMENT * bytes[part];
        }
    }

    // Where a part of a position of a segment is.
    int64_t at(Part part, int32_t layer, int32_t head, int64_t position) const {
        return begin[part] + ((int64_t(layer) * heads + head) * SEGMENT + position) * bytes[part];
    }
};

// Keys and values of one sequence, in segments. Sequences that begin alike share them, until one writes
// to what another has: then it takes a copy.
class Sequence {
   public:
    Sequence(const Layout& layout, int64_t positions) : layout_(layout) {
        segments_.reserve(size_t((positions + SEGMENT - 1) / SEGMENT));
    }
    Sequence(const Sequence&) = delete;
    Sequence& operator=(const Sequence&) = delete;

    // Have memory of its own for a position, which follows those that there is memory for.
    void reserve(int64_t position) {
        const size_t segment = size_t(position / SEGMENT);
        if (segment < segments_.size() && segments_[segment].use_count() == 1) return;
        std::shared_ptr<uint8_t> own(large_pages(size_t(layout_.all)));
        if (segment < segments_.size()) {
            std::memcpy(own.get(), segments_[segment].get(), size_t(layout_.all));
            segments_[segment] = std::move(own);
        } else {
            // What is behind the last position is multiplied by nothing, and has to be numbers.
            std::memset(own.get(), 0, size_t(layout_.all));
            segments_.push_back(std::move(own));
        }
    }

    // Those of a head, from `position` on, which is a multiple of LANES, to the end of its segment.
    template <typename Stored>
    Kept<Stored> from(int32_t layer, int32_t head, int64_t position) const {
        return {at<Stored>(Layout::KEYS, layer, head, position), at<Stored>(Layout::VALUES, layer, head, position),
                at<float>(Layout::KEY_SCALES, layer, head, position),
                at<float>(Layout::VALUE_SCALES, layer, head, position)};
    }

    // Write the key and value of a position, each of `dimensions` numbers.
    template <typename Stored>
    void write(int32_t layer, int32_t head, int64_t position, const float* key, const float* value,
               int32_t dimensions) {
        constexpr int32_t PAIR = TOGETHER<Stored>;
        const int64_t first = position / LANES * LANES, lane = position % LANES;
        Stored* keys = at<Stored>(Layout::KEYS, layer, head, first) + lane * PAIR;
        Stored* values = at<Stored>(Layout::VALUES, layer, head, position / PAIR * PAIR) + position % PAIR;
        const auto key_at = [=](int32_t i) { return keys + i / PAIR * PAIR * LANES + i % PAIR; };
        if constexpr (INTEGERS<Stored>) {
            float* scales = at<float>(Layout::KEY_SCALES, layer, head, first) + lane;
            for (int32_t i = 0; i < dimensions; i += KEY_GROUP, scales += LANES)
                *scales = round_to_bytes(key + i, std::min(KEY_GROUP, dimensions - i),
                                         [&](int32_t n, int8_t number) { *key_at(i + n) = number; });
            *at<float>(Layout::VALUE_SCALES, layer, head, position) =
                round_to_bytes(value, dimensions, [&](int32_t i, int8_t number) { values[i * PAIR] = number; });
        } else {
            for (int32_t i = 0; i < dimensions; ++i) put(key[i], key_at(i));
            for (int32_t i = 0; i < dimensions; ++i) put(value[i], values + i * PAIR);
        }
    }

    // Begin with the first positions of another sequence of the same model.
    void share(const Sequence& other, int64_t positions) {
        const auto count = ptrdiff_t((positions + SEGMENT - 1) / SEGMENT);
        segments_.assign(other.segments_.begin(), other.segments_.begin() + count);
        length = positions;
    }

    void crop(int64_t positions) {
        segments_.resize(std::min(segments_.size(), size_t((positions + SEGMENT - 1) / SEGMENT)));
        length = positions;
    }

    int64_t length = 0;

   private:
    template <typename T>
    T* at(Layout::Part part, int32_t layer, int32_t head, int64_t position) const {
        uint8_t* segment = segments_[size_t(position / SEGMENT)].get();
        return reinterpret_cast<T*>(segment + layout_.at(part, layer, head, position % SEGMENT));
    }

    const Layout& layout_;  // of the engine, which outlives its sequences
    std::vector<std::shared_ptr<uint8_t>> segments_;
};

}  // namespace
