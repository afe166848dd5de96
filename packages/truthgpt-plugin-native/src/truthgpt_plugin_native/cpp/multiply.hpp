// Matrices times rows of activations, with the same bits whatever rows come together.
//
// How many rows of weights and of activations are multiplied at once only decides how often memory is
// read.
#pragma once

#include <algorithm>
#include <cstdint>

#include "tiles.hpp"

namespace {

// How many rows of weights and of activations are multiplied at once, so that sums stay in registers.
#if defined(__AVX512F__)
constexpr int FLOAT_ROWS = 4, FLOAT_TOKENS = 6;
#elif defined(NEON)
constexpr int FLOAT_ROWS = 4, FLOAT_TOKENS = 4;
#else
constexpr int FLOAT_ROWS = 3, FLOAT_TOKENS = 4;
#endif

struct OfFloats {
    static constexpr int ROWS = FLOAT_ROWS, TOKENS = FLOAT_TOKENS, AT_ONCE = 4 * FLOAT_TOKENS;
    static constexpr bool EXACT = true;
};

struct Float32 : OfFloats {
    template <int R, int N, typename... Arguments>
    [[gnu::always_inline]] static void tile(const Arguments&... arguments) {
        tile_of_floats<float, R, N>(arguments...);
    }
};

struct BFloat16 : OfFloats {
    template <int R, int N, typename... Arguments>
    [[gnu::always_inline]] static void tile(const Arguments&... arguments) {
        tile_of_bfloat16<R, N>(arguments...);
    }
};

#if !defined(PACKED_INTEGERS)
struct OfIntegers {
    static constexpr int ROWS = 2, TOKENS = 4, AT_ONCE = 16;
    static constexpr bool EXACT = false;
};

template <bool ONE_SCALE>
struct Int8 : OfIntegers {
    template <int R, int N, typename... Arguments>
    [[gnu::always_inline]] static void tile(const Arguments&... arguments) {
        tile_of_int8<R, N, ONE_SCALE>(arguments...);
    }
};

struct Int4 : OfIntegers {
    template <int R, int N, typename... Arguments>
    [[gnu::always_inline]] static void tile(const Arguments&... arguments) {
        tile_of_int4<R, N>(arguments...);
    }
};
#endif

// R rows of m times rows [n, end) of activations, which are a multiple of N. On its own, or g++ keeps
// sums in memory.
template <typename Kind, int R, int N>
[[gnu::noinline]] void tiles(const Matrix& m, const Rows& x, int32_t row, int64_t n, int64_t end, float* out,
                             int64_t step) {
    for (; n < end; n += N) Kind::template tile<R, N>(m, x, row, n, out + n * step, step);
}

// R rows of m times rows [n, end) of activations, N at a time, and what is left together.
template <typename Kind, int R, int N>
[[gnu::always_inline]] inline void strip(const Matrix& m, const Rows& x, int32_t row, int64_t n, int64_t end,
                                         float* out, int64_t step) {
    const int64_t whole = end - (end - n) % N;
    if (n < whole) tiles<Kind, R, N>(m, x, row, n, whole, out, step);
    if constexpr (N > 1)
        if (whole < end) strip<Kind, R, N - 1>(m, x, row, whole, end, out, step);
}

// Rows [first, last) of m times one row of activations.
template <typename Kind>
[[gnu::noinline]] void one_by_one(const Matrix& m, const Rows& x, int32_t first, int32_t last, float* out) {
    for (int32_t row = first; row < last; ++row) Kind::template tile<1, 1>(m, x, row, 0, out + row - first, 1);
}

template <typename Kind>
void multiply_as(const Matrix& m, const Rows& x, int32_t first, int32_t last, int64_t count, float* out,
                 int64_t step) {
    // With one row of activations, floats are read row after row: memory is slower for several streams
    // than for one. Of integers there are fewer bytes, and computing takes longer.
    if (count == 1 && Kind::EXACT) return one_by_one<Kind>(m, x, first, last, out);
    // So many rows of activations meet all of these weights before the next: few enough for a cache,
    // and some, since only the first of them wait for the weights.
    constexpr int64_t AT_ONCE = Kind::AT_ONCE;
    for (int64_t n = 0; n < count; n += AT_ONCE) {
        const int64_t end = std::min(count, n + AT_ONCE);
        int32_t row = first;
        for (; row + Kind::ROWS <= last; row += Kind::ROWS)
            strip<Kind, Kind::ROWS, Kind::TOKENS>(m, x, row, n, end, out + row - first, step);
        for (; row < last; ++row)
            strip<Kind, 1, Kind::TOKENS>(m, x, row, n, end, out + row - first, step);
    }
}

// Rows [first, last) of m times `count` rows of activations, each plus the bias, into
// out[n * step + row - first].
void multiply(const Matrix& m, const Rows& x, int32_t first, int32_t last, int64_t count, float* out,
              int64_t step) {
    const auto with = [&](auto kind) {
        multiply_as<decltype(kind)>(m, x, first, last, count, out, step);
    };
#if defined(PACKED_INTEGERS)
    const auto packed = [&](auto minima, auto group) {
        multiply_packed<minima(), group()>(m, x, first, last, count, out, step);
    };
#endif
    switch (m.kind) {
        case FLOAT32: with(Float32()); break;
        case BFLOAT16: with(BFloat16()); break;
#if defined(PACKED_INTEGERS)
        case INT8: multiply_integers<false>(m, x, first, last, count, out, step); break;
        case INT4: multiply_integers<true>(m, x, first, last, count, out, step); break;
        case PACKED_INT8: packed(std::false_type(), std::integral_constant<int, ACTIVATION_GROUP>()); break;
        case PACKED_INT4: packed(std::true_type(), std::integral_constant<int, ACTIVATION_GROUP>()); break;
        case FINE_PACKED_INT8: packed(std::false_type(), std::integral_constant<int, FINE_GROUP>()); break;
        default: packed(std::true_type(), std::integral_constant<int, FINE_GROUP>());
#else
        case INT8: m.group == m.columns ? with(Int8<true>()) : with(Int8<false>()); break;
        default: with(Int4());
#endif
    }
    if (m.bias != nullptr)
        for (int64_t n = 0; n < count; ++n)
            for (int32_t row = first; row < last; ++row) out[n * step + row - first] += m.bias[row];
}

}  // namespace
