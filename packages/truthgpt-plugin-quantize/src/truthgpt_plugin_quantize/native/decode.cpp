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
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <functional>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

constexpr int BLOCK = 32;  // activations are rounded in blocks of this many, each by its own scale
constexpr int AHEAD = 4096;  // bytes that memory is asked for before they are needed

enum Kind : int32_t { FLOAT32 = 0, BFLOAT16 = 1, INT8 = 2 };
enum Activation : int32_t { SILU = 0, GELU_TANH = 1 };

}  // namespace

extern "C" {

// A matrix of shape (rows, columns), row by row. Of integers, each `group` in a row is to be
// multiplied by a scale of its own.
struct Linear {
    const void* weight;
    const float* scales;
    const float* bias;  // null if there is none
    int32_t rows, columns;
    int32_t kind, group;
};

struct Layer {
    const float *attention_norm, *mlp_norm;
    const float *q_norm, *k_norm;  // null if there are none
    Linear q, k, v, o, gate, up, down;
};

struct Shape {
    int32_t hidden, intermediate, heads, kv_heads, head_dim, rotary_dim, layers, vocabulary;
    int32_t activation, cache_kind, embedding_kind;
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

uint32_t is_not_finite(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return (bits & 0x7f800000) == 0x7f800000;
}

// The compiler makes vectors of loops over this one, and none of loops over std::exp.
inline float exponential(float x) {
    x = std::min(std::max(x, -87.0f), 88.0f);
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
    return p * power;
}

// Activations as a matrix product reads them: exact, and rounded to 8 bits in blocks.
struct Activations {
    std::vector<float> exact;
    std::vector<int8_t> rounded;
    std::vector<float> scales;

    explicit Activations(int32_t longest)
        : exact(longest + BLOCK),
          rounded(longest + BLOCK),
          scales(longest / BLOCK + 1) {}

    void round(int32_t length) {
        for (int32_t block = 0; block * BLOCK < length; ++block) {
            const float* from = exact.data() + block * BLOCK;
            int8_t* to = rounded.data() + block * BLOCK;
            float largest = 0;
            uint32_t unusual = 0;
            for (int i = 0; i < BLOCK; ++i) largest = std::max(largest, std::fabs(from[i]));
            // By their bits: no option of the compiler lets it assume that there is no NaN.
            for (int i = 0; i < BLOCK; ++i) unusual |= is_not_finite(from[i]);
            const float scale = unusual ? NAN : largest / 127.0f;
            const float inverse = largest > 0 ? 127.0f / largest : 0.0f;
            for (int i = 0; i < BLOCK; ++i)
                to[i] = static_cast<int8_t>(static_cast<int32_t>(std::nearbyint(from[i] * inverse)));
            scales[block] = scale;
        }
    }
};

float dot_float32(const float* a, const float* b, int32_t length) {
    float sum = 0;
    for (int32_t i = 0; i < length; ++i) sum += a[i] * b[i];
    return sum;
}

float dot_bfloat16(const uint16_t* a, const float* b, int32_t length) {
    float sum = 0;
    for (int32_t i = 0; i < length; ++i) sum += from_bfloat16(a[i]) * b[i];
    return sum;
}

#if defined(__AVX2__) && defined(__FMA__)

float total(__m256 v) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_shuffle_ps(half, half, 1)));
}

// Sums of four neighbouring products: unsigned times signed bytes.
inline __m256i quads(__m256i unsigned_bytes, __m256i signed_bytes) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
    return _mm256_dpbusd_epi32(_mm256_setzero_si256(), unsigned_bytes, signed_bytes);
#elif defined(__AVXVNNI__)
    return _mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), unsigned_bytes, signed_bytes);
#else
    // Two products of at most 127 * 127 fit into 16 bits.
    return _mm256_madd_epi16(_mm256_maddubs_epi16(unsigned_bytes, signed_bytes),
                             _mm256_set1_epi16(1));
#endif
}

// Row after row, so that weights are one stream through memory: several rows side by side would
// share the loads of x, and take three times as long where the weights are not in a cache.
float dot_int8(const Linear& m, int32_t row, const Activations& x) {
    const int32_t blocks = m.columns / BLOCK, blocks_in_scale = m.group / BLOCK;
    const int8_t* weights = static_cast<const int8_t*>(m.weight) + int64_t(row) * m.columns;
    const float* scales = m.scales + int64_t(row) * (m.columns / m.group);
    const auto add = [&](int32_t block, float scale, __m256 sum) {
        const __m256i xs = _mm256_loadu_si256(
            reinterpret_cast<const __m256i*>(x.rounded.data() + block * BLOCK));
        const __m256i ws =
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights + block * BLOCK));
        const __m256i products = quads(_mm256_abs_epi8(xs), _mm256_sign_epi8(ws, xs));
        return _mm256_fmadd_ps(_mm256_cvtepi32_ps(products),
                               _mm256_set1_ps(x.scales[block] * scale), sum);
    };
    __m256 even = _mm256_setzero_ps(), odd = even;
    if (blocks_in_scale == 1) {
        int32_t block = 0;
        for (; block + 2 <= blocks; block += 2) {
            _mm_prefetch(reinterpret_cast<const char*>(weights + block * BLOCK + AHEAD), _MM_HINT_T0);
            if (block % 16 == 0)
                _mm_prefetch(reinterpret_cast<const char*>(scales + block + AHEAD / BLOCK), _MM_HINT_T0);
            even = add(block, scales[block], even);
            odd = add(block + 1, scales[block + 1], odd);
        }
        if (block < blocks) even = add(block, scales[block], even);
    } else {
        for (int32_t first = 0, group = 0; first < blocks; first += blocks_in_scale, ++group) {
            int32_t block = first;
            for (; block + 2 <= first + blocks_in_scale; block += 2) {
                _mm_prefetch(reinterpret_cast<const char*>(weights + block * BLOCK + AHEAD), _MM_HINT_T0);
                even = add(block, scales[group], even);
                odd = add(block + 1, scales[group], odd);
            }
            if (block < first + blocks_in_scale) even = add(block, scales[group], even);
        }
    }
    return total(_mm256_add_ps(even, odd));
}

#else

float dot_int8(const Linear& m, int32_t row, const Activations& x) {
    const int8_t* weights = static_cast<const int8_t*>(m.weight) + int64_t(row) * m.columns;
    const float* scales = m.scales + int64_t(row) * (m.columns / m.group);
    float sum = 0;
    for (int32_t block = 0; block < m.columns / BLOCK; ++block) {
        int32_t products = 0;
        for (int i = block * BLOCK; i < (block + 1) * BLOCK; ++i)
            products += int32_t(weights[i]) * int32_t(x.rounded[i]);
        sum += float(products) * x.scales[block] * scales[block * BLOCK / m.group];
    }
    return sum;
}

#endif

// Rows [first, last) of m times x, each plus the bias.
void multiply(const Linear& m, const Activations& x, int32_t first, int32_t last, float* out) {
    int32_t row = first;
    switch (m.kind) {
        case INT8:
            for (; row < last; ++row) out[row - first] = dot_int8(m, row, x);
            break;
        case FLOAT32:
            for (; row < last; ++row)
                out[row - first] = dot_float32(
                    static_cast<const float*>(m.weight) + int64_t(row) * m.columns,
                    x.exact.data(), m.columns);
            break;
        case BFLOAT16:
            for (; row < last; ++row)
                out[row - first] = dot_bfloat16(
                    static_cast<const uint16_t*>(m.weight) + int64_t(row) * m.columns,
                    x.exact.data(), m.columns);
            break;
    }
    if (m.bias != nullptr)
        for (row = first; row < last; ++row) out[row - first] += m.bias[row];
}

void normalize(const float* x, const float* weight, int32_t length, float epsilon, float* out) {
    float squares = 0;
    for (int32_t i = 0; i < length; ++i) squares += x[i] * x[i];
    const float factor = 1.0f / std::sqrt(squares / length + epsilon);
    for (int32_t i = 0; i < length; ++i) out[i] = x[i] * factor * weight[i];
}

constexpr int SPINS = 4096;  // some 50 microseconds

void relax() {
#if defined(__x86_64__)
    _mm_pause();
#endif
}

class Barrier {
   public:
    explicit Barrier(int threads) : threads_(threads) {}

    void wait() {
        if (threads_ == 1) return;
        const unsigned turn = turn_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) == threads_ - 1) {
            arrived_.store(0, std::memory_order_relaxed);
            turn_.store(turn + 1, std::memory_order_release);
            return;
        }
        // Others may need this core: after some microseconds they get it.
        for (int spins = 0; turn_.load(std::memory_order_acquire) == turn; ++spins) {
            if (spins < SPINS)
                relax();
            else
                std::this_thread::yield();
        }
    }

   private:
    const int threads_;
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<unsigned> turn_{0};
};

// Threads that wait for work, and run it side by side with the one that has it.
class Pool {
   public:
    // It is never deleted: its threads wait until the process ends.
    explicit Pool(int32_t threads) : barrier(threads), threads_(threads) {}

    void start() {
        for (int32_t t = 1; t < threads_; ++t)
            std::thread([this, t] { wait_for_work(t); }).detach();
    }

    int32_t threads() const { return threads_; }

    // Call work(0) here and work(1), work(2), ... on the others; return when all are done.
    void run(const std::function<void(int32_t)>& work) {
        std::lock_guard<std::mutex> one_at_a_time(running_);
        if (threads_ > 1) {
            {
                std::lock_guard<std::mutex> lock(mutex_);
                work_ = &work;
                turn_.fetch_add(1, std::memory_order_release);
            }
            wake_.notify_all();
        }
        work(0);
        barrier.wait();
    }

    Barrier barrier;

   private:
    void wait_for_work(int32_t thread) {
        uint64_t seen = 0;
        while (true) {
            // The next token usually comes at once, and waking a sleeping thread takes longer.
            for (int spins = 0; spins < SPINS && turn_.load(std::memory_order_acquire) == seen; ++spins)
                relax();
            const std::function<void(int32_t)>* work;
            {
                std::unique_lock<std::mutex> lock(mutex_);
                wake_.wait(lock, [&] { return turn_.load(std::memory_order_relaxed) != seen; });
                seen = turn_.load(std::memory_order_relaxed);
                work = work_;
            }
            (*work)(thread);
            barrier.wait();
        }
    }

    const int32_t threads_;
    std::mutex running_, mutex_;
    std::condition_variable wake_;
    std::atomic<uint64_t> turn_{0};
    const std::function<void(int32_t)>* work_ = nullptr;
};

// The part of `count` rows that a thread computes, in whole cache lines of results.
void part(int32_t count, int32_t thread, int32_t threads, int32_t* first, int32_t* last) {
    const int32_t unit = 16, units = (count + unit - 1) / unit;
    *first = std::min(count, int32_t(int64_t(units) * thread / threads) * unit);
    *last = std::min(count, int32_t(int64_t(units) * (thread + 1) / threads) * unit);
}

struct Scratch {
    Activations x, y;
    std::vector<float> query, key, scores, rows;

    Scratch(int32_t longest, int32_t head_dim)
        : x(longest), y(longest), query(head_dim), key(head_dim) {}
};

class Decoder {
   public:
    Decoder(Pool& pool, const Shape& shape, const Layer* layers, const float* norm,
            const Linear& head, const void* embedding, const float* cosines, const float* sines)
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
        if (s.embedding_kind == BFLOAT16) {
            const uint16_t* row = static_cast<const uint16_t*>(embedding_) + token_ * s.hidden;
            for (int32_t i = 0; i < s.hidden; ++i) stream_[i] = from_bfloat16(row[i]) * s.embedding_scale;
        } else {
            const float* row = static_cast<const float*>(embedding_) + token_ * s.hidden;
            for (int32_t i = 0; i < s.hidden; ++i) stream_[i] = row[i] * s.embedding_scale;
        }
    }

    Pool& pool_;
    const Shape s;
    const std::vector<Layer> layers_;
    const float* norm_;
    const Linear head_;
    const void* embedding_;
    const float *cosines_, *sines_;
    std::vector<float> stream_, q_, k_, v_, attended_, gated_;
    std::vector<Scratch> scratch_;
    std::mutex stepping_;
    int64_t token_ = 0, position_ = 0;
    const Cache* caches_ = nullptr;
    float* logits_ = nullptr;
};

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
                  const Linear* head, const void* embedding, const float* cosines,
                  const float* sines) {
    try {
        return new Decoder(*static_cast<Pool*>(pool), *shape, layers, norm, *head, embedding,
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
