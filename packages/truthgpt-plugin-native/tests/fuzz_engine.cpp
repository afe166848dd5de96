// Random models, and random ways through them, for AddressSanitizer, UBSan and ThreadSanitizer.
//
//     fuzz_engine SEED COUNT [FILE]
//
// Every model reads a text whole, then in parts beside other sequences; every logit has to have the
// same bits. Products of whole numbers, which are exact in any order, have to be those of plain
// arithmetic. All memory is as large as it has to be and no larger.
//
// FILE gets the logits of all models that are not broken, each model's divided by the largest: float32.

#include <cstdio>
#include <cstdlib>
#include <random>

#include "../src/truthgpt_plugin_native/cpp/engine.cpp"

namespace {

std::mt19937 chance;

int pick(int low, int high) { return std::uniform_int_distribution<int>(low, high)(chance); }

// Blocks of exactly so many bytes, freed at the end.
struct Memory {
    std::vector<void*> blocks;
    ~Memory() {
        for (void* each : blocks) std::free(each);
    }
    template <typename T>
    T* of(size_t count) {
        blocks.push_back(std::malloc(count * sizeof(T)));
        return static_cast<T*>(blocks.back());
    }
    float* floats(size_t count, float scale = 1.0f, float middle = 0.0f) {
        float* made = of<float>(count);
        std::normal_distribution<float> normal(middle, scale);
        for (size_t i = 0; i < count; ++i) made[i] = normal(chance);
        return made;
    }
};

uint16_t half_of(float value) {
    // Good enough for numbers between 2 ** -14 and 2 ** 15.
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return uint16_t((bits >> 16 & 0x8000) | ((((bits >> 23) & 255) - 112) << 10) | (bits >> 13 & 1023));
}

Matrix matrix(Memory& memory, int rows, int columns, int kind) {
    if (columns % 32 != 0 && kind >= INT8) kind = FLOAT32;
    if (columns % 64 != 0 && kind == INT4) kind = INT8;
    Matrix m{};
    m.rows = rows, m.columns = columns, m.kind = kind, m.group = columns;
    const size_t count = size_t(rows) * columns;
    m.bias = pick(0, 1) ? memory.floats(rows, 0.1f) : nullptr;
    if (kind == FLOAT32) {
        m.weight = memory.floats(count, 0.2f);
    } else if (kind == BFLOAT16) {
        uint16_t* made = memory.of<uint16_t>(count);
        for (size_t i = 0; i < count; ++i) made[i] = to_bfloat16(std::normal_distribution<float>(0, 0.2f)(chance));
        m.weight = made;
    } else {
        uint8_t* made = memory.of<uint8_t>(kind == INT8 ? count : count / 2);
        for (size_t i = 0; i < (kind == INT8 ? count : count / 2); ++i) {
            made[i] = uint8_t(pick(0, 255));
            if (kind == INT8 && made[i] == 128) made[i] = 0;
        }
        m.weight = made;
        if (kind == INT4 || pick(0, 1))
            for (int group = 32; group <= 128; group *= 2)
                if (columns % group == 0 && (kind == INT8 || group >= 32) && pick(0, 1)) m.group = group;
        if (kind == INT4 && m.group == columns) m.group = 32;
        const size_t groups = count / m.group;
        if (kind == INT8) {
            m.scales = memory.floats(groups, 0.0001f, 0.002f);
        } else {
            uint16_t *scales = memory.of<uint16_t>(groups), *minima = memory.of<uint16_t>(groups);
            for (size_t i = 0; i < groups; ++i) {
                scales[i] = half_of(0.01f + 0.01f * float(pick(0, 9)));
                minima[i] = half_of(-0.1f - 0.01f * float(pick(0, 9)));
            }
            m.scales = scales, m.minima = minima;
        }
    }
    return m;
}

// Make all that a matrix stands for whole numbers, or halves of them.
void make_exact(Matrix& m) {
    const size_t count = size_t(m.rows) * m.columns;
    if (m.kind == FLOAT32) {
        float* weights = const_cast<float*>(static_cast<const float*>(m.weight));
        for (size_t i = 0; i < count; ++i) weights[i] = float(pick(-127, 127));
    } else if (m.kind == BFLOAT16) {
        uint16_t* weights = const_cast<uint16_t*>(static_cast<const uint16_t*>(m.weight));
        for (size_t i = 0; i < count; ++i) weights[i] = to_bfloat16(float(pick(-127, 127)));
    } else {
        for (size_t i = 0; i < count / m.group; ++i) {
            const float scale = pick(0, 1) ? 0.5f : 1.0f;
            if (m.kind == INT8) {
                const_cast<float*>(static_cast<const float*>(m.scales))[i] = scale;
            } else {
                const_cast<uint16_t*>(static_cast<const uint16_t*>(m.scales))[i] = half_of(scale);
                const_cast<uint16_t*>(m.minima)[i] = half_of(float(-pick(1, 15)));
            }
        }
    }
    if (m.bias != nullptr)
        for (int32_t row = 0; row < m.rows; ++row) const_cast<float*>(m.bias)[row] = float(pick(-9, 9));
}

bool multiplies_right(void* team, int kind) {
    Memory memory;
    const int rows = pick(1, 70), count = pick(1, 40);
    const int columns = kind == INT4 ? 64 * pick(1, 6) : kind == INT8 ? 32 * pick(1, 12) : pick(1, 300);
    Matrix m = matrix(memory, rows, columns, kind);
    make_exact(m);
    // Of each group the largest is 127, or twice that: rounded to 8 bits, they are what they were.
    float* x = memory.of<float>(size_t(count) * m.columns);
    for (int64_t i = 0; i < int64_t(count) * m.columns; i += ACTIVATION_GROUP) {
        const int64_t group = std::min<int64_t>(ACTIVATION_GROUP, int64_t(count) * m.columns - i);
        const int largest = pick(0, int(group) - 1);
        const float step = float(pick(1, 2));
        for (int64_t n = 0; n < group; ++n)
            x[i + n] = step * float(n == largest ? (pick(0, 1) ? 127 : -127) : pick(-127, 127));
    }
    float* out = memory.of<float>(size_t(count) * m.rows);
    if (!rows_multiply(team, &m, x, count, out)) return false;
    std::vector<float> weights(m.columns);
    for (int32_t row = 0; row < m.rows; ++row) {
        read_row(m, row, weights.data());
        for (int n = 0; n < count; ++n) {
            double sum = m.bias == nullptr ? 0.0 : m.bias[row];
            for (int32_t i = 0; i < m.columns; ++i) sum += double(weights[i]) * x[int64_t(n) * m.columns + i];
            if (double(out[int64_t(n) * m.rows + row]) != sum) return false;
        }
    }
    return true;
}

void* some_team() {
    static void* const teams[] = {team_new(1), team_new(2), team_new(4)};
    return teams[pick(0, 2)];
}

bool same_bits(unsigned seed, std::FILE* file) {
    chance.seed(seed);
    Memory memory;
    Shape s{};
    s.kv_heads = pick(1, 3), s.heads = s.kv_heads * pick(1, 5);
    s.head_dim = 2 * pick(1, 20), s.rotary_dim = s.head_dim;
    s.hidden = pick(0, 1) ? 64 * pick(1, 3) : 4 * pick(4, 40);
    s.intermediate = pick(0, 1) ? 64 * pick(1, 4) : pick(9, 200);
    s.layers = pick(1, 3), s.vocabulary = pick(5, 150);
    s.activation = pick(0, 1), s.cache = pick(FLOAT32, INT8);
    s.epsilon = 1e-5f, s.attention_scale = 0.3f, s.embedding_scale = 1.5f;
    const int positions = pick(2, 400), q = s.heads * s.head_dim, kv = s.kv_heads * s.head_dim;
    std::vector<Layer> layers;
    for (int i = 0; i < s.layers; ++i) {
        Layer layer{};
        layer.attention_norm = memory.floats(s.hidden, 0.1f, 1.0f);
        layer.mlp_norm = memory.floats(s.hidden, 0.1f, 1.0f);
        if (pick(0, 1)) layer.q_norm = memory.floats(s.head_dim, 0.1f, 1.0f);
        if (pick(0, 1)) layer.k_norm = memory.floats(s.head_dim, 0.1f, 1.0f);
        layer.q = matrix(memory, q, s.hidden, pick(0, 3));
        layer.k = matrix(memory, kv, s.hidden, pick(0, 3));
        layer.v = matrix(memory, kv, s.hidden, pick(0, 3));
        layer.o = matrix(memory, s.hidden, q, pick(0, 3));
        layer.gate = matrix(memory, s.intermediate, s.hidden, pick(0, 3));
        layer.up = matrix(memory, s.intermediate, s.hidden, pick(0, 3));
        layer.down = matrix(memory, s.hidden, s.intermediate, pick(0, 3));
        layer.window = pick(0, 1) ? pick(1, positions) : 0;
        layers.push_back(layer);
    }
    const Matrix embedding = matrix(memory, s.vocabulary, s.hidden, pick(0, 3));
    const Matrix head = matrix(memory, s.vocabulary, s.hidden, pick(0, 3));
    // One after the other: compilers evaluate arguments in different orders.
    const float* norm = memory.floats(s.hidden, 0.1f, 1.0f);
    const float* cosines = memory.floats(size_t(positions) * s.rotary_dim);
    const float* sines = memory.floats(size_t(positions) * s.rotary_dim);
    void* engine = engine_new(some_team(), &s, layers.data(), norm, &head, &embedding);
    engine_angles(engine, cosines, sines);

    // What is broken has no defined bits, and still must not break anything else.
    const bool broken = pick(0, 9) == 0;
    if (broken) {
        const float extremes[] = {NAN, INFINITY, -INFINITY, 3e38f, -3e38f, 1e-45f};
        Layer& layer = layers[pick(0, s.layers - 1)];
        const float* broken_norm = pick(0, 1) ? layer.attention_norm : layer.mlp_norm;
        const_cast<float*>(broken_norm)[pick(0, s.hidden - 1)] = extremes[pick(0, 5)];
    }

    std::vector<int64_t> ids(positions);
    for (auto& id : ids) id = pick(0, s.vocabulary - 1);
    const size_t all = size_t(positions) * s.vocabulary;
    std::vector<float> whole(all);
    void* one = sequence_new(engine, positions);
    const int64_t length = positions;
    engine_forward(engine, 1, &one, &length, ids.data(), 1, s.vocabulary, whole.data());
    sequence_free(one);
    if (file != nullptr && !broken) {
        float largest = 0.0f;
        for (const float logit : whole) largest = std::max(largest, std::abs(logit));
        for (const float logit : whole) {
            const float part = logit / largest;
            std::fwrite(&part, sizeof part, 1, file);
        }
    }

    bool same = true;
    const int count = pick(1, 6);
    std::vector<void*> sequences;
    for (int i = 0; i < count; ++i) sequences.push_back(sequence_new(engine, positions));
    std::vector<int64_t> done(count);
    for (bool more = true; more;) {
        std::vector<void*> which;
        std::vector<int64_t> counts, given;
        std::vector<std::pair<int, int64_t>> expected;
        more = false;
        for (int i = 0; i < count; ++i) {
            if (done[i] == positions) continue;
            more = true;
            if (pick(0, 3) == 0) continue;
            if (done[i] > 3 && pick(0, 9) == 0) sequence_crop(sequences[i], done[i] -= 2);
            if (done[i] > 0 && pick(0, 7) == 0) {
                // Another goes on from what both have, and then what it writes is its own.
                const int64_t shared = pick(1, int(done[i]));
                void* other = sequence_fork(engine, sequences[i], shared, positions);
                const int64_t strays = std::min<int64_t>(positions - shared, pick(1, 40));
                std::vector<int64_t> stray(strays);
                for (auto& id : stray) id = pick(0, s.vocabulary - 1);
                std::vector<float> logits(s.vocabulary);
                if (strays > 0)
                    engine_forward(engine, 1, &other, &strays, stray.data(), 0, s.vocabulary, logits.data());
                sequence_crop(other, shared);
                if (pick(0, 1)) std::swap(sequences[i], other), done[i] = shared;
                sequence_free(other);
            }
            const int64_t next = std::min<int64_t>(positions - done[i], pick(0, 2) ? 1 : pick(1, 150));
            which.push_back(sequences[i]), counts.push_back(next);
            for (int64_t n = 0; n < next; ++n) {
                given.push_back(ids[done[i] + n]);
                expected.emplace_back(i, done[i] + n);
            }
            done[i] += next;
        }
        if (which.empty()) continue;
        std::vector<float> logits(given.size() * s.vocabulary);
        engine_forward(engine, int64_t(which.size()), which.data(), counts.data(), given.data(), 1, s.vocabulary, logits.data());
        for (size_t n = 0; n < expected.size(); ++n)
            same = same && std::memcmp(logits.data() + n * s.vocabulary, whole.data() + expected[n].second * s.vocabulary,
                                       s.vocabulary * sizeof(float)) == 0;
    }
    for (void* each : sequences) sequence_free(each);
    engine_free(engine);
    return same || broken;
}

}  // namespace

int main(int count, char** arguments) {
    const unsigned first = count > 1 ? unsigned(std::atoi(arguments[1])) : 0;
    const unsigned models = count > 2 ? unsigned(std::atoi(arguments[2])) : 20;
    std::FILE* const file = count > 3 ? std::fopen(arguments[3], "wb") : nullptr;
    for (unsigned seed = first; seed < first + models; ++seed) {
        if (!same_bits(seed, file)) {
            std::printf("other bits with seed %u\n", seed);
            return 1;
        }
        for (const int kind : {FLOAT32, BFLOAT16, INT8, INT4})
            if (!multiplies_right(some_team(), kind)) {
                std::printf("wrong products of kind %d with seed %u\n", kind, seed);
                return 1;
            }
    }
    if (file != nullptr) std::fclose(file);
    std::printf("%u models on %s\n", models, engine_kernel());
}
