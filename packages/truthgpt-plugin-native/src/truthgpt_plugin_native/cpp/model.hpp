// A model as the caller describes it. All pointers are into tensors that the caller keeps alive.
#pragma once

#include "matrix.hpp"

extern "C" {

enum Activation : int32_t { SILU = 0, GELU_TANH = 1 };

struct Layer {
    const float *attention_norm, *mlp_norm;
    const float *q_norm, *k_norm;  // null if there are none
    Matrix q, k, v, o, gate, up, down;
    int64_t window;  // how many positions a token attends to; 0: all
};

struct Shape {
    int32_t hidden, intermediate, heads, kv_heads, head_dim, rotary_dim, layers, vocabulary;
    int32_t activation, cache;  // cache: the kind that keys and values are kept in, not INT4
    float epsilon, attention_scale, embedding_scale;
};

}  // extern "C"
