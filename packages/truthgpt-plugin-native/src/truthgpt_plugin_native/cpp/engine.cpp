// What Python calls.

#include <cstdint>
#include <exception>
#include <memory>
#include <utility>
#include <vector>

#include "engine.hpp"
#include "products.hpp"

namespace {

Engine& of(void* engine) { return **static_cast<std::shared_ptr<Engine>*>(engine); }

}  // namespace

extern "C" {

// Null if the threads cannot be started.
void* team_new(int32_t threads) {
    try {
        Team* team = new Team(threads);
        team->start();  // if it fails half-way, those that run go on waiting in what is kept
        return team;
    } catch (const std::exception&) {
        return nullptr;
    }
}

// The instructions that this code is made of. With others it rounds differently.
const char* engine_kernel() {
#if defined(__AVX512BF16__)
    return "avx512-bf16";
#elif defined(__AVX512VNNI__)
    return "avx512-vnni";
#elif defined(__AVX512F__)
    return "avx512";
#elif defined(__AVX2__) && defined(__FMA__)
    return "avx2";
#elif defined(__x86_64__)
    return "x86-64";
#elif defined(NEON) && defined(__ARM_FEATURE_DOTPROD)
    return "neon-dotprod";
#elif defined(NEON)
    return "neon";
#else
    return "plain";
#endif
}

// Whether engines have copies of matrices of integers, and read others no longer, but for embeddings.
int32_t engine_packs() {
#if defined(PACKED_INTEGERS)
    return 1;
#else
    return 0;
#endif
}

void* engine_new(void* team, const Shape* shape, const Layer* layers, const float* norm,
                 const Matrix* head, const Matrix* embedding) {
    try {
        return new std::shared_ptr<Engine>(std::make_shared<Engine>(
            *static_cast<Team*>(team), *shape, layers, norm, *head, *embedding));
    } catch (const std::exception&) {
        return nullptr;
    }
}

void engine_free(void* engine) { delete static_cast<std::shared_ptr<Engine>*>(engine); }

// Of the keys and values of one position.
int64_t engine_cache_bytes(void* engine) { return of(engine).cache_bytes(); }

void engine_angles(void* engine, const float* cosines, const float* sines) {
    of(engine).angles(cosines, sines);
}

void* sequence_new(void* engine, int64_t positions) {
    try {
        return of(engine).open(positions);
    } catch (const std::exception&) {
        return nullptr;
    }
}

// A new sequence that begins with the first `length` tokens of another; null if there is no memory.
void* sequence_fork(void* engine, void* sequence, int64_t length, int64_t positions) {
    try {
        return of(engine).fork(*static_cast<Sequence*>(sequence), length, positions);
    } catch (const std::exception&) {
        return nullptr;
    }
}

void sequence_free(void* sequence) { delete static_cast<Sequence*>(sequence); }

void sequence_crop(void* sequence, int64_t length) { static_cast<Sequence*>(sequence)->crop(length); }

// Append `counts[i]` of the tokens to each of `sequences`, all tokens one after the other. Logits go
// into `logits`, of every token if `all`, else of the last of each sequence. Returns 0 if there is no
// memory for it; the sequences are then as long as before.
int32_t engine_forward(void* engine, int64_t sequences, void* const* which, const int64_t* counts,
                       const int64_t* ids, int32_t all, int64_t vocabulary, float* logits) {
    std::vector<std::pair<Sequence*, int64_t>> before;
    try {
        std::vector<Token> tokens;
        for (int64_t i = 0; i < sequences; ++i) {
            Sequence* sequence = static_cast<Sequence*>(which[i]);
            before.emplace_back(sequence, sequence->length);
            for (int64_t n = 0; n < counts[i]; ++n) {
                float* to = nullptr;
                if (all || n + 1 == counts[i]) {
                    to = logits;
                    logits += vocabulary;
                }
                tokens.push_back({*ids++, sequence->length + n, sequence, to});
            }
        }
        of(engine).forward(tokens);
    } catch (const std::exception&) {
        for (auto& [sequence, length] : before) sequence->crop(length);
        return 0;
    }
    return 1;
}

// Multiply `count` rows of x, each of as many numbers as the matrix has columns, into `out`. Returns 0
// if there is no memory for it.
int32_t rows_multiply(void* team, const Matrix* matrix, const float* x, int64_t count, float* out) {
    try {
        multiply_rows(*static_cast<Team*>(team), *matrix, x, count, out);
    } catch (const std::exception&) {
        return 0;
    }
    return 1;
}

}  // extern "C"
