// A matrix as it is stored.
#pragma once

#include <algorithm>
#include <cstdint>

#include "numbers.hpp"

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

// Those that an engine has packed are not read but multiplied; FINE ones by activations that are rounded
// in smaller groups.
enum Kind : int32_t {
    FLOAT32 = 0, BFLOAT16 = 1, INT8 = 2, INT4 = 3,
    PACKED_INT8 = 4, PACKED_INT4 = 5, FINE_PACKED_INT8 = 6, FINE_PACKED_INT4 = 7
};

constexpr int BLOCK = 32;  // of integers, what a group of columns is a multiple of

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
