// Numbers of 16 bits, and what vectors are made of.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

float from_bfloat16(uint16_t bits) {
    uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
}

uint16_t to_bfloat16(float value) {
    uint32_t wide;
    std::memcpy(&wide, &value, sizeof wide);
    if (value != value) return 0x7fc0;
    return static_cast<uint16_t>((wide + 0x7fff + ((wide >> 16) & 1)) >> 16);
}

float from_float16(uint16_t bits) {
    const uint32_t sign = uint32_t(bits & 0x8000) << 16, rest = bits & 0x7fff;
    // Moved to the exponents of float32, by a product: it makes subnormal numbers normal.
    uint32_t wide = rest << 13;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    value *= 5.192296858534828e33f;  // 2 ** 112
    std::memcpy(&wide, &value, sizeof wide);
    wide |= sign;
    std::memcpy(&value, &wide, sizeof value);
    return value;
}

inline uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

bool is_not_finite(float value) { return (bits_of(value) & 0x7f800000) == 0x7f800000; }

// The compiler makes vectors of loops over this one, and none of loops over std::exp.
inline float exponential(float exact) {
    // In this order NaN becomes a bound: an integer of NaN is not defined.
    const float x = std::min(88.0f, std::max(-87.0f, exact));
    float n = std::nearbyint(x * 1.44269504088896341f);
    float r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return exact == exact ? p * power : exact;
}

}  // namespace
