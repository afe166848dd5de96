// Attending to the keys and values of sequences, a segment of positions at a time.
//
// A segment is the same positions however a prompt is cut up: what is attended to comes to the same
// bits. Several threads may each take a segment of one query, as one may take them all.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "attention_integers.hpp"
#include "attention_pairs.hpp"
#include "lanes.hpp"
#include "sequence.hpp"

namespace {

constexpr int MOST_QUERIES = 4;  // that share what is read

// What attending to some positions has come to: the weighted sum of their values, not yet divided.
// Of no positions, `largest` and `sum` are what they are to begin with.
struct Partial {
    float largest = -INFINITY, sum = 0.0f;
    float* values = nullptr;

    bool is_empty() const { return sum == 0.0f && largest == -INFINITY; }
};

// N queries times the keys of B vectors of positions.
template <typename Stored, int N, int B>
void scores_of(const Stored* keys, const float* const* queries, int32_t width, float* const* scores) {
    Lanes sums[N][B] = {};
    for (int32_t i = 0; i < width; ++i) {
        Lanes each[B];
        for (int b = 0; b < B; ++b) {
            each[b] = load(keys + (b * width + i) * LANES);
            hold(each[b]);
        }
        for (int n = 0; n < N; ++n) {
            const Lanes query = same(queries[n][i]);
            for (int b = 0; b < B; ++b) sums[n][b] = fused(query, each[b], sums[n][b]);
        }
    }
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n)
#pragma GCC unroll 4
        for (int b = 0; b < B; ++b) store(sums[n][b], scores[n] + b * LANES);
}

// Positions [first, last) of the values, D vectors of each, weighted by N queries and added.
template <typename Stored, int N, int D>
void weigh(const Stored* values, const float* const* weights, int64_t first, int64_t last,
           int32_t width, float* const* sums) {
    Lanes found[N][D];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n)
#pragma GCC unroll 4
        for (int d = 0; d < D; ++d) found[n][d] = load(sums[n] + d * LANES);
    for (int64_t p = first; p < last; ++p) {
        Lanes each[D];
        for (int d = 0; d < D; ++d) {
            each[d] = load(values + p * width + d * LANES);
            hold(each[d]);
        }
        for (int n = 0; n < N; ++n) {
            const Lanes weight = same(weights[n][p]);
            for (int d = 0; d < D; ++d) found[n][d] = fused(weight, each[d], found[n][d]);
        }
    }
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n)
#pragma GCC unroll 4
        for (int d = 0; d < D; ++d) store(found[n][d], sums[n] + d * LANES);
}

template <typename Stored, int N>
void weigh_all(const Stored* values, const float* const* weights, int64_t first, int64_t last,
               int32_t width, float* const* sums) {
    if (first >= last) return;
    float* to[N];
    int32_t d = 0;
    for (; d + 4 * LANES <= width; d += 4 * LANES) {
        for (int n = 0; n < N; ++n) to[n] = sums[n] + d;
        weigh<Stored, N, 4>(values + d, weights, first, last, width, to);
    }
    for (; d < width; d += LANES) {
        for (int n = 0; n < N; ++n) to[n] = sums[n] + d;
        weigh<Stored, N, 1>(values + d, weights, first, last, width, to);
    }
}

// What products read of keys and values, where they are of many queries.
template <typename Stored>
using Read = std::conditional_t<INTEGERS<Stored>, int16_t, std::conditional_t<IN_PAIRS<Stored>, Stored, float>>;

// A multiple of LANES numbers.
template <typename Stored>
const Read<Stored>* to_read(const Stored* from, int64_t count, float* to) {
    if constexpr (std::is_same_v<Stored, Read<Stored>>) {
        return from;
    } else if constexpr (INTEGERS<Stored>) {
        return widen(from, count, to);
    } else {
        for (int64_t i = 0; i < count; i += LANES) store(load(from + i), to + i);
        return to;
    }
}

// One query, and where it may look: the positions [first, last). For pairs and integers, its numbers are
// rounded; of integers `scale` makes the numbers again.
struct Query {
    const float* numbers;
    float scale;
    int64_t first, last;
};

// Make weights of the scores of positions [first, last) of a segment. Of others, up to whole vectors,
// they become nothing beside the largest, which is 1.
inline void soften(float* row, int64_t first, int64_t last, float scale, Partial& found) {
    found.largest = -INFINITY;
    found.sum = 0.0f;
    if (first >= last) return;
    const int64_t begin = first / LANES * LANES, end = (last + LANES - 1) / LANES * LANES;
    std::fill(row + begin, row + first, -INFINITY);
    std::fill(row + last, row + end, -INFINITY);
    Lanes most = same(-INFINITY);
    for (int64_t p = begin; p < end; p += LANES) most = larger(load(row + p), most);
    found.largest = largest_of(most);
    const Lanes largest = same(found.largest), scales = same(scale);
    Lanes sum = {};
    for (int64_t p = begin; p < end; p += LANES) {
        const Lanes weights = exponential((load(row + p) - largest) * scales);
        store(weights, row + p);
        sum += weights;
    }
    found.sum = total(sum);
}

// Values of positions [first[n], last[n]), weighted by row n of `rows`. What one query may not look at
// is not even multiplied by zero: it may be NaN.
template <typename Stored, int N>
void weigh_seen(const Stored* values, const float* const* rows, const int64_t* first, const int64_t* last,
                int32_t width, float* const* sums) {
    const int64_t latest = *std::max_element(first, first + N), common = *std::min_element(last, last + N);
    for (int n = 0; n < N; ++n)
        weigh_all<Stored, 1>(values, rows + n, first[n], latest < common ? latest : last[n], width, sums + n);
    if (latest >= common) return;
    weigh_all<Stored, N>(values, rows, latest, common, width, sums);
    for (int n = 0; n < N; ++n)
        weigh_all<Stored, 1>(values, rows + n, common, last[n], width, sums + n);
}

// The positions of a segment, which begins at `begin`, that a query may look at.
struct Seen {
    int64_t first, last;

    Seen(const Query& query, int64_t begin)
        : first(std::clamp<int64_t>(query.first - begin, 0, SEGMENT)),
          last(std::clamp<int64_t>(query.last - begin, 0, SEGMENT)) {}
};

// The scores of N queries, each a row of SEGMENT numbers.
template <typename Stored, int N>
void score(const Kept<Stored>& kept, int64_t begin, const Query* queries, int32_t width, float* scores) {
    const float* numbers[N];
    [[maybe_unused]] float scales[N];
    float* to[N];
    int64_t end = 0;
    for (int n = 0; n < N; ++n) {
        numbers[n] = queries[n].numbers;
        scales[n] = queries[n].scale;
        end = std::max(end, Seen(queries[n], begin).last);
    }
    // As many sums as registers hold.
    constexpr int AT_ONCE = N < 4 || LANES != 8 ? 4 : 2;
    for (int64_t p = 0; p < end; p += AT_ONCE * LANES) {
        for (int n = 0; n < N; ++n) to[n] = scores + n * SEGMENT + p;
        const Stored* keys = kept.keys + p * width;
        if constexpr (INTEGERS<Stored>) {
            const float* key_scales = kept.key_scales + p * groups_of(width);
            const char* ahead = kept.after_keys == nullptr ? nullptr : kept.after_keys + p * width;
            scores_of_integers<Stored, N, AT_ONCE>(keys, key_scales, numbers, scales, width, ahead, to);
        }
#if defined(__AVX512BF16__)
        else if constexpr (IN_PAIRS<Stored>) {
            const char* ahead = kept.after_keys == nullptr ? nullptr : kept.after_keys + p * width * 2;
            scores_of_pairs<N, AT_ONCE>(keys, numbers, width, ahead, to);
        }
#endif
        else scores_of<Stored, N, AT_ONCE>(keys, numbers, width, to);
    }
}

// The values that N rows of weights come to.
template <typename Stored, int N>
void weigh_by(const Kept<Stored>& kept, int64_t begin, const Query* queries, int32_t width, float* weights,
              Partial* found) {
    float *rows[N], *sums[N];
    int64_t first[N], last[N];
    for (int n = 0; n < N; ++n) {
        const Seen seen(queries[n], begin);
        first[n] = seen.first, last[n] = seen.last;
        rows[n] = weights + n * SEGMENT;
        sums[n] = found[n].values;
        std::fill_n(sums[n], width, 0.0f);
    }
    if constexpr (INTEGERS<Stored>)
        weigh_seen_integers<Stored, N>(kept.values, kept.value_scales, rows, first, last, width, kept.after_values, sums);
#if defined(__AVX512BF16__)
    else if constexpr (IN_PAIRS<Stored>) weigh_seen_pairs<N>(kept.values, rows, SEGMENT, first, last, width, kept.after_values, sums);
#endif
    else weigh_seen<Stored, N>(kept.values, rows, first, last, width, sums);
}

// Call what takes a constant of at most MOST_QUERIES with as many of `count`, and with their place.
template <typename Take>
void in_groups(int64_t count, Take take) {
    for (int64_t at = 0; at < count; at += MOST_QUERIES) {
        switch (count - at) {
            case 1: take(std::integral_constant<int, 1>(), at); break;
            case 2: take(std::integral_constant<int, 2>(), at); break;
            case 3: take(std::integral_constant<int, 3>(), at); break;
            default: take(std::integral_constant<int, 4>(), at);
        }
    }
}

// Let queries attend to the positions of one segment, from `begin` on, whose keys and values these are.
// All of them meet the keys before any meets the values: a first cache holds either. `scores` has room
// for SEGMENT numbers of each.
template <typename Stored>
void attend_to(const Kept<Stored>& kept, int64_t begin, const Query* queries, int64_t count, float scale,
               int32_t width, float* scores, Partial* found) {
    // What comes after is asked for once.
    Kept<Stored> again = kept;
    again.after_keys = again.after_values = nullptr;
    in_groups(count, [&](auto n, int64_t at) {
        score<Stored, n()>(at == 0 ? kept : again, begin, queries + at, width, scores + at * SEGMENT);
    });
    for (int64_t n = 0; n < count; ++n) {
        const Seen seen(queries[n], begin);
        soften(scores + n * SEGMENT, seen.first, seen.last, scale, found[n]);
    }
    in_groups(count, [&](auto n, int64_t at) {
        weigh_by<Stored, n()>(at == 0 ? kept : again, begin, queries + at, width, scores + at * SEGMENT, found + at);
    });
}

// Add what a later segment came to, in the order of segments.
void merge(Partial& all, const Partial& next, float scale, int32_t width) {
    if (next.is_empty()) return;
    if (all.is_empty()) {
        all.largest = next.largest;
        all.sum = next.sum;
        std::copy_n(next.values, width, all.values);
        return;
    }
    const float largest = next.largest > all.largest ? next.largest : all.largest;
    const float before = exponential((all.largest - largest) * scale);
    const float after = exponential((next.largest - largest) * scale);
    all.sum = all.sum * before + next.sum * after;
    for (int32_t i = 0; i < width; ++i) all.values[i] = all.values[i] * before + next.values[i] * after;
    all.largest = largest;
}

void divide(const Partial& all, int32_t width) {
    const float inverse = 1.0f / all.sum;
    for (int32_t i = 0; i < width; ++i) all.values[i] *= inverse;
}

}  // namespace
