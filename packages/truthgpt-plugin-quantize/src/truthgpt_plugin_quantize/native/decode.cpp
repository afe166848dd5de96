// One token at a time through a decoder of the Llama family, all of it in one call.
//
// What a step computes besides its matrix products is little, and takes longer than they
// do when each of its hundreds of parts is started from Python or from another parallel
// region. Here the threads run the whole step side by side and meet only where one needs
// what another has computed, at a barrier that spins.
//
// Nothing here owns a weight: all pointers are into tensors that the caller keeps alive.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <mutex>
#include <new>
#include <vector>

#include "products.hpp"
#include "prompts.hpp"
#include "threads.hpp"

extern "C" {

enum Activation : int32_t { SILU = 0, GELU_TANH = 1 };

struct Layer {
    const float *attention_norm, *mlp_norm;
    const float *q_norm, *k_norm;  // null if there are none
    Linear q, k, v, o, gate, up, down;
};

struct Shape {
    int32_t hidden, intermediate, heads, kv_heads, head_dim, rotary_dim, layers, vocabulary;
    int32_t activation, cache_kind;
    float epsilon, attention_scale, embedding_scale;
};

// Keys and values of one layer: (kv_heads, positions, head_dim), with these steps in elements.
struct Cache {
    void *keys, *values;
    int64_t* length;  // becomes the number of positions that are filled
    int64_t head_step, position_step;
};

}  // extern "C"

namespace {

struct Scratch {
    Activations x, y;
    std::vector<float> query, key, scores, rows;

    Scratch(int32_t longest, int32_t head_dim)
        : x(longest), y(longest), query(head_dim), key(head_dim) {}
};

class Decoder {
   public:
    Decoder(Pool& pool, const Shape& shape, const Layer* layers, const float* norm,
            const Linear& head, const Linear& embedding, const float* cosines, const float* sines)
        : pool_(pool),
          s(shape),
          layers_(layers, layers + shape.layers),
          norm_(norm),
          head_(head),
          embedding_(embedding),
          cosines_(cosines),
          sines_(sines),
          stream_(shape.hidden),
          q_(shape.heads * shape.head_dim),
          k_(shape.kv_heads * shape.head_dim),
          v_(shape.kv_heads * shape.head_dim),
          attended_(shape.heads * shape.head_dim),
          gated_(shape.intermediate) {
        const int32_t longest =
            std::max({shape.hidden, shape.intermediate, shape.heads * shape.head_dim});
        for (int32_t t = 0; t < pool.threads(); ++t) scratch_.emplace_back(longest, s.head_dim);
    }

    void step(int64_t token, int64_t position, const Cache* caches, float* logits) {
        // Two sequences of one model may be decoded in two threads of Python.
        std::lock_guard<std::mutex> one_at_a_time(stepping_);
        token_ = token;
        position_ = position;
        caches_ = caches;
        logits_ = logits;
        pool_.run([this](int32_t thread) { run(thread); });
        for (int32_t layer = 0; layer < s.layers; ++layer) *caches[layer].length = position + 1;
    }

   private:
    void project(const Linear& m, const Activations& x, int32_t thread, float* out) const {
        int32_t first, last;
        part(m.rows, thread, pool_.threads(), &first, &last);
        multiply(m, x, first, last, out + first);
    }

    void project_and_add(const Linear& m, const Activations& x, int32_t thread, Scratch& own) {
        int32_t first, last;
        part(m.rows, thread, pool_.threads(), &first, &last);
        own.rows.resize(std::max<size_t>(own.rows.size(), last - first));
        multiply(m, x, first, last, own.rows.data());
        for (int32_t row = first; row < last; ++row) stream_[row] += own.rows[row - first];
    }

    void rotate(float* x) const {
        const float* cosines = cosines_ + position_ * s.rotary_dim;
        const float* sines = sines_ + position_ * s.rotary_dim;
        const int32_t half = s.rotary_dim / 2;
        for (int32_t i = 0; i < half; ++i) {
            const float a = x[i], b = x[i + half];
            x[i] = a * cosines[i] - b * sines[i];
            x[i + half] = b * cosines[i + half] + a * sines[i + half];
        }
    }

    template <typename Stored>
    static float load(Stored stored) {
        if constexpr (sizeof(Stored) == 2) return from_bfloat16(stored);
        else return stored;
    }

    template <typename Stored>
    void attend(const Layer& layer, const Cache& cache, int32_t thread, Scratch& own) {
        const int32_t shared = s.heads / s.kv_heads, d = s.head_dim;
        const int32_t first = s.heads * thread / pool_.threads(),
                      last = s.heads * (thread + 1) / pool_.threads();
        own.scores.resize(std::max<size_t>(own.scores.size(), position_ + 1));
        float* scores = own.scores.data();
        for (int32_t head = first; head < last; ++head) {
            const int32_t kv = head / shared;
            Stored* keys = static_cast<Stored*>(cache.keys) + kv * cache.head_step;
            Stored* values = static_cast<Stored*>(cache.values) + kv * cache.head_step;
            float *query = own.query.data(), *key = own.key.data();
            std::copy_n(q_.data() + head * d, d, query);
            std::copy_n(k_.data() + kv * d, d, key);
            const float* value = v_.data() + kv * d;
            if (layer.q_norm != nullptr) normalize(query, layer.q_norm, d, s.epsilon, query);
            if (layer.k_norm != nullptr) normalize(key, layer.k_norm, d, s.epsilon, key);
            rotate(query);
            rotate(key);
            if (head % shared == 0) {
                Stored* key_now = keys + position_ * cache.position_step;
                Stored* value_now = values + position_ * cache.position_step;
                for (int32_t i = 0; i < d; ++i) {
                    if constexpr (sizeof(Stored) == 2) {
                        key_now[i] = to_bfloat16(key[i]);
                        value_now[i] = to_bfloat16(value[i]);
                    } else {
                        key_now[i] = key[i];
                        value_now[i] = value[i];
                    }
                }
            }
            float largest = 0;
            for (int32_t i = 0; i < d; ++i) largest += query[i] * key[i];
            scores[position_] = largest;
            for (int64_t p = 0; p < position_; ++p) {
                const Stored* at = keys + p * cache.position_step;
                float sum = 0;
                for (int32_t i = 0; i < d; ++i) sum += query[i] * load(at[i]);
                scores[p] = sum;
                largest = std::max(largest, sum);
            }
            float sum = 0;
            for (int64_t p = 0; p <= position_; ++p) {
                scores[p] = exponential((scores[p] - largest) * s.attention_scale);
                sum += scores[p];
            }
            float* out = attended_.data() + head * d;
            const float last_weight = scores[position_] / sum;
            for (int32_t i = 0; i < d; ++i) out[i] = last_weight * value[i];
            for (int64_t p = 0; p < position_; ++p) {
                const Stored* at = values + p * cache.position_step;
                const float weight = scores[p] / sum;
                for (int32_t i = 0; i < d; ++i) out[i] += weight * load(at[i]);
            }
        }
    }

    void gate(int32_t thread, const Layer& layer, const Activations& x, Scratch& own) {
        int32_t first, last;
        part(s.intermediate, thread, pool_.threads(), &first, &last);
        own.rows.resize(std::max<size_t>(own.rows.size(), last - first));
        float *gates = gated_.data() + first, *ups = own.rows.data();
        multiply(layer.gate, x, first, last, gates);
        multiply(layer.up, x, first, last, ups);
        const int32_t count = last - first;
        if (s.activation == SILU) {
            for (int32_t i = 0; i < count; ++i)
                gates[i] = gates[i] / (1.0f + exponential(-gates[i])) * ups[i];
        } else {
            for (int32_t i = 0; i < count; ++i) {
                const float g = gates[i];
                const float inner = 1.5957691216057308f * (g + 0.044715f * g * g * g);
                gates[i] = g / (1.0f + exponential(-inner)) * ups[i];
            }
        }
    }

    void run(int32_t thread) {
        Scratch& own = scratch_[thread];
        if (thread == 0) embed();
        pool_.barrier.wait();
        for (int32_t index = 0; index < s.layers; ++index) {
            const Layer& layer = layers_[index];
            // Every thread normalizes and rounds all of it: less work than waiting for others.
            normalize(stream_.data(), layer.attention_norm, s.hidden, s.epsilon, own.x.exact.data());
            own.x.round(s.hidden);
            project(layer.q, own.x, thread, q_.data());
            project(layer.k, own.x, thread, k_.data());
            project(layer.v, own.x, thread, v_.data());
            pool_.barrier.wait();
            if (s.cache_kind == BFLOAT16)
                attend<uint16_t>(layer, caches_[index], thread, own);
            else
                attend<float>(layer, caches_[index], thread, own);
            pool_.barrier.wait();
            std::copy(attended_.begin(), attended_.end(), own.y.exact.begin());
            own.y.round(s.heads * s.head_dim);
            project_and_add(layer.o, own.y, thread, own);
            pool_.barrier.wait();
            normalize(stream_.data(), layer.mlp_norm, s.hidden, s.epsilon, own.x.exact.data());
            own.x.round(s.hidden);
            gate(thread, layer, own.x, own);
            pool_.barrier.wait();
            std::copy(gated_.begin(), gated_.end(), own.y.exact.begin());
            own.y.round(s.intermediate);
            project_and_add(layer.down, own.y, thread, own);
            pool_.barrier.wait();
        }
        normalize(stream_.data(), norm_, s.hidden, s.epsilon, own.x.exact.data());
        own.x.round(s.hidden);
        project(head_, own.x, thread, logits_);
    }

    void embed() {
        read_row(embedding_, token_, stream_.data());
        for (float& each : stream_) each *= s.embedding_scale;
    }

    Pool& pool_;
    const Shape s;
    const std::vector<Layer> layers_;
    const float* norm_;
    const Linear head_;
    const Linear embedding_;
    const float *cosines_, *sines_;
    std::vector<float> stream_, q_, k_, v_, attended_, gated_;
    std::vector<Scratch> scratch_;
    std::mutex stepping_;
    int64_t token_ = 0, position_ = 0;
    const Cache* caches_ = nullptr;
    float* logits_ = nullptr;
};

constexpr int64_t CONVERTED_AT_ONCE = 1 << 14;  // numbers, 64 KiB of float32

template <typename Work>
void side_by_side(Parallel parallel, int32_t threads, Work& work) {
    if (parallel == nullptr || threads == 1)
        work();
    else
        parallel([](void* it) { (*static_cast<Work*>(it))(); }, &work, threads, 0);
}

}  // namespace

extern "C" {

// Null if the threads cannot be started.
void* pool_new(int32_t threads) {
    try {
        Pool* pool = new Pool(threads);
        pool->start();  // if it fails half-way, those that run go on waiting in what is kept
        return pool;
    } catch (const std::exception&) {
        return nullptr;
    }
}

void* decoder_new(void* pool, const Shape* shape, const Layer* layers, const float* norm,
                  const Linear* head, const Linear* embedding, const float* cosines,
                  const float* sines) {
    try {
        return new Decoder(*static_cast<Pool*>(pool), *shape, layers, norm, *head, *embedding,
                           cosines, sines);
    } catch (const std::exception&) {
        return nullptr;
    }
}

void decoder_free(void* decoder) { delete static_cast<Decoder*>(decoder); }

void decoder_step(void* decoder, int64_t token, int64_t position, const Cache* caches,
                  float* logits) {
    static_cast<Decoder*>(decoder)->step(token, position, caches, logits);
}

// All weights of a matrix of integers as numbers of a kind, FLOAT32 or BFLOAT16. If there is no
// `parallel`, one thread does it all.
void convert(Parallel parallel, int32_t threads, const Linear* m, void* out, int32_t kind) {
    const int64_t at_once = std::max<int64_t>(1, CONVERTED_AT_ONCE / m->columns);
    std::atomic<int64_t> next{0};
    auto work = [&] {
        for (int64_t row; (row = next.fetch_add(at_once)) < m->rows;) {
            for (const int64_t end = std::min<int64_t>(m->rows, row + at_once); row < end; ++row) {
                const int64_t at = row * m->columns;
                if (kind == BFLOAT16)
                    convert_part(*m, row, 0, m->columns, static_cast<uint16_t*>(out) + at);
                else
                    convert_part(*m, row, 0, m->columns, static_cast<float*>(out) + at);
            }
        }
    };
    side_by_side(parallel, threads, work);
}

// `count` rows of activations times a matrix of integers. Returns 0 if there is no memory for it.
int32_t prompt(Parallel parallel, int32_t threads, const Linear* m, const float* x, int64_t count,
               float* out) {
    static thread_local std::vector<float> packed;
    try {
        for (int64_t first = 0; first < count; first += MOST_COUNT) {
            Prompt rows(*m, x + first * m->columns, std::min(MOST_COUNT, count - first),
                        out + first * m->rows, threads, packed);
            auto pack = [&] { rows.pack(); };
            side_by_side(parallel, threads, pack);
            auto multiply = [&] { rows.multiply(); };
            side_by_side(parallel, threads, multiply);
        }
    } catch (const std::bad_alloc&) {
        return 0;
    }
    return 1;
}

// `count` rows of activations times one matrix.
void linear(void* pool, const Linear* m, const float* x, int32_t count, float* out) {
    Pool& threads = *static_cast<Pool*>(pool);
    Activations activations(m->columns);
    for (int32_t i = 0; i < count; ++i) {
        std::copy_n(x + int64_t(i) * m->columns, m->columns, activations.exact.begin());
        activations.round(m->columns);
        float* row = out + int64_t(i) * m->rows;
        threads.run([&](int32_t thread) {
            int32_t first, last;
            part(m->rows, thread, threads.threads(), &first, &last);
            multiply(*m, activations, first, last, row + first);
        });
    }
}

}  // extern "C"
