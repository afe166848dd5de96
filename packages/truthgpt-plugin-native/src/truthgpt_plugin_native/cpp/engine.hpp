// Decoders of the Llama family, for any number of sequences at different positions at once.
//
// Every token has the same bits whether it comes alone, in a prompt or beside other sequences: what
// is computed of it is summed in one order, and nothing is shared but what is read.
//
// Weights are in tensors that the caller keeps alive; integers that products read in another order are
// copied when an engine begins.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#include "attention.hpp"
#include "lanes.hpp"
#include "multiply.hpp"
#include "packed_matrices.hpp"
#include "pass.hpp"
#include "products.hpp"
#include "rows.hpp"
#include "team.hpp"

namespace {

int32_t padded(int32_t numbers) { return (numbers + LANES - 1) / LANES * LANES; }

constexpr int64_t NOBODY = -1;

// What a thread writes that no other reads.
struct Scratch {
    Rows alone;
    std::vector<float> outs, queries, scores, sums, key, keys, values;
    std::vector<Query> piece_queries;
    std::vector<Partial> piece_partials, next_partials;
    int64_t asking = NOBODY;  // the head of a single token whose queries `piece_queries` has

    Scratch(const Shape& s, int32_t longest, Rounding rounding)
        : alone(MOST_ALONE, longest, rounding),
          queries(rows_of_piece(s) * padded(s.head_dim)),
          scores(rows_of_piece(s) * SEGMENT),
          sums(rows_of_piece(s) * padded(s.head_dim)),
          key(padded(s.head_dim)),
          keys(SEGMENT * padded(s.head_dim)),
          values(SEGMENT * padded(s.head_dim)),
          piece_queries(rows_of_piece(s)),
          piece_partials(rows_of_piece(s)),
          next_partials(rows_of_piece(s)) {
        for (size_t row = 0; row < next_partials.size(); ++row)
            next_partials[row].values = sums.data() + row * padded(s.head_dim);
    }

    // Queries that attend to the same keys together.
    static size_t rows_of_piece(const Shape& s) { return size_t(TOKENS_AT_ONCE) * (s.heads / s.kv_heads); }
};

class Engine : public std::enable_shared_from_this<Engine> {
   public:
    Engine(Team& team, const Shape& shape, const Layer* layers, const float* norm, const Matrix& head,
           const Matrix& embedding)
        : team_(team),
          s(shape),
          width_(padded(shape.head_dim)),
          layout_(shape.layers, shape.kv_heads, width_, shape.cache),
          layers_(layers, layers + shape.layers),
          norm_(norm),
          head_(head),
          embedding_(embedding),
          longest_(std::max({shape.hidden, shape.intermediate, shape.heads * shape.head_dim})) {
        std::vector<Matrix*> matrices = {&head_};
        for (Layer& layer : layers_)
            for (Matrix* m : {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down})
                matrices.push_back(m);
        for (const Matrix* m : matrices) rounding_.add(*m);
        // Rounding what it reads costs a third of all nats that rounding costs, and prompts do not read it.
        packed_ = pack_matrices(team, matrices, &head_);
        for (int32_t t = 0; t < team.threads(); ++t) scratch_.emplace_back(s, longest_, rounding_);
    }

    Sequence* open(int64_t positions) const { return new Sequence(layout_, positions); }

    // A sequence that begins as another, which no pass is writing to meanwhile.
    Sequence* fork(const Sequence& other, int64_t length, int64_t positions) {
        std::lock_guard<std::mutex> one_at_a_time(passing_);
        Sequence* made = open(positions);
        made->share(other, length);
        return made;
    }

    int64_t cache_bytes() const { return layout_.all / SEGMENT; }

    void angles(const float* cosines, const float* sines) {
        std::lock_guard<std::mutex> one_at_a_time(passing_);
        cosines_ = cosines;
        sines_ = sines;
    }

    // Append tokens to sequences, in passes of so many.
    void forward(const std::vector<Token>& tokens) {
        // Two threads of Python may use one model.
        std::lock_guard<std::mutex> one_at_a_time(passing_);
        for (size_t first = 0; first < tokens.size(); first += MOST_TOKENS) {
            const size_t last = std::min(tokens.size(), first + size_t(MOST_TOKENS));
            auto pass = std::make_shared<const Pass>(
                std::vector<Token>(tokens.begin() + first, tokens.begin() + last), s);
            for (const Token& token : pass->tokens) token.sequence->reserve(token.position);
            reserve(*pass);
            // A thread that is late may still be in it when the engine is freed.
            team_.run([self = shared_from_this(), pass](Worker& worker) { self->run(*pass, worker); });
            for (const Token& token : pass->tokens) token.sequence->length = token.position + 1;
        }
    }

   private:
    // Memory for a pass: a thread that finds none in the middle of it could not go on.
    void reserve(const Pass& pass) {
        const int64_t rows = (pass.count + 15) / 16 * 16;
        const size_t partials = pass.single ? size_t(s.heads) * pass.count * pass.most_segments : 0;
        partials_.resize(std::max(partials_.size(), partials));
        partial_values_.resize(std::max(partial_values_.size(), partials * width_));
        if (rows <= reserved_) return;
        stream_.resize(rows * s.hidden);
        q_.resize(rows * s.heads * s.head_dim);
        k_.resize(rows * s.kv_heads * s.head_dim);
        v_.resize(rows * s.kv_heads * s.head_dim);
        attended_.resize(rows * s.heads * width_);
        gated_.resize(rows * s.intermediate);
        x_ = std::make_unique<Rows>(int32_t(rows), longest_, rounding_);
        for (Scratch& each : scratch_) each.outs.resize(size_t(rows) * 2 * MOST_ROWS);
        reserved_ = rows;
    }

    // Take pieces that read rows of activations. `prepare(rows, n)` fills row n, once for all threads
    // or, where that takes less than waiting, once for each. `piece(at, rows, scratch)` reads them.
    template <typename Prepare, typename Piece>
    void with_rows(const Pass& pass, Worker& worker, int64_t count, int64_t pieces, Prepare prepare,
                   Piece piece) {
        if (!pass.alone)
            worker.phase(count, [&](int64_t n) { prepare(*x_, n); });
        Scratch& own = scratch_[worker.thread()];
        worker.phase(
            pieces,
            [&] {
                if (pass.alone)
                    for (int64_t n = 0; n < count; ++n) prepare(own.alone, n);
            },
            [&](int64_t at) { piece(at, pass.alone ? own.alone : *x_, own); });
    }

    // Multiply rows of activations by matrices that share them; `prepare` as for `with_rows`.
    // `take(matrix, n, first, count, numbers)` gets what came out.
    template <typename Prepare, typename Take>
    void multiply_all(const Pass& pass, Worker& worker, const std::vector<const Matrix*>& matrices,
                      int64_t count, Prepare prepare, Take take) {
        int64_t rows = 0;
        for (const Matrix* m : matrices) rows += m->rows;
        const int32_t each = rows_at_once(rows, team_);
        int64_t pieces = 0;
        for (const Matrix* m : matrices) pieces += (m->rows + each - 1) / each;
        with_rows(pass, worker, count, pieces, prepare, [&](int64_t piece, const Rows& x, Scratch& own) {
            size_t at = 0;
            for (; piece >= (matrices[at]->rows + each - 1) / each; ++at)
                piece -= (matrices[at]->rows + each - 1) / each;
            const Matrix& m = *matrices[at];
            const int32_t first = int32_t(piece) * each, last = std::min(m.rows, first + each);
            multiply(m, x, first, last, count, own.outs.data(), each);
            for (int64_t n = 0; n < count; ++n)
                take(int(at), n, first, last - first, own.outs.data() + n * each);
        });
    }

    void run(const Pass& pass, Worker& worker) {
        worker.phase(pass.count, [&](int64_t n) {
            float* row = stream_.data() + n * s.hidden;
            read_row(embedding_, pass.tokens[n].id, row);
            for (int32_t i = 0; i < s.hidden; ++i) row[i] *= s.embedding_scale;
        });
        for (int32_t index = 0; index < s.layers; ++index) {
            const Layer& layer = layers_[index];
            multiply_all(
                pass, worker, {&layer.q, &layer.k, &layer.v}, pass.count,
                [&](Rows& rows, int64_t n) { normalize_into(rows, n, n, layer.attention_norm); },
                [&](int m, int64_t n, int32_t first, int32_t count, const float* numbers) {
                    std::vector<float>& to = m == 0 ? q_ : m == 1 ? k_ : v_;
                    const int64_t step = int64_t(m == 0 ? s.heads : s.kv_heads) * s.head_dim;
                    std::copy_n(numbers, count, to.data() + n * step + first);
                });
            switch (s.cache) {
                case FLOAT32: attend<float>(pass, worker, layer, index); break;
                case BFLOAT16: attend<uint16_t>(pass, worker, layer, index); break;
                default: attend<int8_t>(pass, worker, layer, index);
            }
            // What comes after the last keys and values serves logits alone.
            const std::vector<int64_t>& wanted = index + 1 < s.layers ? pass.all : pass.asked;
            if (wanted.empty()) return;
            multiply_all(
                pass, worker, {&layer.o}, int64_t(wanted.size()),
                [&](Rows& rows, int64_t n) { gather(pass, rows, n, wanted[n]); },
                [&](int, int64_t n, int32_t first, int32_t count, const float* numbers) {
                    add(wanted[n], first, count, numbers);
                });
            mlp(pass, worker, layer, wanted);
        }
        multiply_all(
            pass, worker, {&head_}, int64_t(pass.asked.size()),
            [&](Rows& rows, int64_t n) { normalize_into<FINE_GROUP>(rows, n, pass.asked[n], norm_); },
            [&](int, int64_t n, int32_t first, int32_t count, const float* numbers) {
                std::copy_n(numbers, count, pass.tokens[pass.asked[n]].logits + first);
            });
    }

    template <int GROUP = ACTIVATION_GROUP>
    void normalize_into(Rows& rows, int64_t row, int64_t n, const float* norm) {
        normalize_row(stream_.data() + n * s.hidden, norm, s.hidden, s.epsilon, rows.exact(row));
        clear(rows, row, s.hidden);
        rows.round<GROUP>(row, s.hidden);
    }

    // Rows are used for what is longer, too, and vectors read up to LANES - 1 numbers beyond.
    static void clear(Rows& rows, int64_t row, int32_t length) {
        std::fill(rows.exact(row) + length, rows.exact(row) + padded(length), 0.0f);
    }

    void add(int64_t n, int32_t first, int32_t count, const float* numbers) {
        float* to = stream_.data() + n * s.hidden + first;
        for (int32_t i = 0; i < count; ++i) to[i] += numbers[i];
    }

    void rotate(float* x, int64_t position) const {
        const float* cosines = cosines_ + position * s.rotary_dim;
        const float* sines = sines_ + position * s.rotary_dim;
        const int32_t half = s.rotary_dim / 2;
        for (int32_t i = 0; i < half; ++i) {
            const float a = x[i], b = x[i + half];
            x[i] = a * cosines[i] - b * sines[i];
            x[i + half] = b * cosines[i + half] + a * sines[i + half];
        }
    }

    // Put a query where products read it, and return its scale.
    template <typename Stored>
    float query_of(const Pass& pass, const Layer& layer, int64_t n, int32_t head, float* to) const {
        std::copy_n(q_.data() + (n * s.heads + head) * s.head_dim, s.head_dim, to);
        std::fill(to + s.head_dim, to + width_, 0.0f);
        if (layer.q_norm != nullptr) normalize_row(to, layer.q_norm, s.head_dim, s.epsilon, to);
        rotate(to, pass.tokens[n].position);
#if defined(__AVX512BF16__)
        if constexpr (IN_PAIRS<Stored>) round_to_bfloat16(to, width_, to);
#endif
        if constexpr (INTEGERS<Stored>) return round_query(to, width_);
        return 1.0f;
    }

    template <typename Stored>
    void write(const Pass& pass, const Layer& layer, int32_t index, int64_t n, int32_t head, float* key) const {
        const int64_t at = (n * s.kv_heads + head) * s.head_dim;
        std::copy_n(k_.data() + at, s.head_dim, key);
        if (layer.k_norm != nullptr) normalize_row(key, layer.k_norm, s.head_dim, s.epsilon, key);
        rotate(key, pass.tokens[n].position);
        pass.tokens[n].sequence->template write<Stored>(index, head, pass.tokens[n].position, key,
                                                    v_.data() + at, s.head_dim);
    }

    template <typename Stored>
    void attend(const Pass& pass, Worker& worker, const Layer& layer, int32_t index) {
        Scratch& own = scratch_[worker.thread()];
        if (!pass.single)
            worker.phase(pass.count, [&](int64_t n) {
                for (int32_t head = 0; head < s.kv_heads; ++head)
                    write<Stored>(pass, layer, index, n, head, own.key.data());
            });
        worker.phase(int64_t(pass.pieces.size()), [&] { own.asking = NOBODY; }, [&](int64_t at) {
            const Piece& piece = pass.pieces[at];
            if (index + 1 == s.layers && !pass.single && !pass.asks(piece)) return;
            const Piece* next = at + 1 < int64_t(pass.pieces.size()) ? &piece + 1 : nullptr;
            if (pass.single) attend_alone<Stored>(pass, layer, index, piece, next, own);
            else attend_together<Stored>(pass, layer, index, piece, own);
        });
    }

    int64_t first_seen(const Layer& layer, int64_t position) const {
        return layer.window > 0 ? std::max<int64_t>(0, position + 1 - layer.window) : 0;
    }

    // The query heads of one token that share a key head, and one segment.
    template <typename Stored>
    void attend_alone(const Pass& pass, const Layer& layer, int32_t index, const Piece& piece,
                      const Piece* next, Scratch& own) {
        const int32_t shared = s.heads / s.kv_heads;
        const Token& token = pass.tokens[piece.token];
        const int64_t begin = piece.what * SEGMENT, end = std::min(begin + SEGMENT, token.position + 1);
        const int64_t first = first_seen(layer, token.position);
        if (end == token.position + 1) write<Stored>(pass, layer, index, piece.token, piece.head, own.key.data());
        const int64_t at = (piece.what * pass.count + piece.token) * s.heads + piece.head * shared;
        Partial* found = partials_.data() + at;
        for (int32_t h = 0; h < shared; ++h)
            found[h] = {-INFINITY, 0.0f, partial_values_.data() + (at + h) * width_};
        if (first >= end) return;
        const int64_t asking = piece.token * s.kv_heads + piece.head;
        for (int32_t h = 0; h < shared; ++h) {
            Query& query = own.piece_queries[h];
            if (own.asking != asking) {
                float* numbers = own.queries.data() + h * width_;
                const float scale = query_of<Stored>(pass, layer, piece.token, piece.head * shared + h, numbers);
                query = {numbers, scale, 0, 0};
            }
            query.first = first, query.last = end;
        }
        own.asking = asking;
        Kept<Stored> kept = token.sequence->from<Stored>(index, piece.head, begin);
        kept.after_keys = reinterpret_cast<const char*>(kept.values);
        if (next != nullptr) {
            const Sequence& sequence = *pass.tokens[next->token].sequence;
            const Kept<Stored> after = sequence.from<Stored>(index, next->head, next->what * SEGMENT);
            kept.after_values = reinterpret_cast<const char*>(after.keys);
            if constexpr (INTEGERS<Stored>) {
                ask_for(after.key_scales, SEGMENT * groups_of(width_));
                ask_for(after.value_scales, SEGMENT);
            }
        }
        attend_to(kept, begin, own.piece_queries.data(),
                  shared, s.attention_scale, width_, own.scores.data(), found);
    }

    // All query heads that share a key head, of some tokens of one sequence, and all segments. Each
    // segment is read from memory, and made what products read, once for all of them.
    template <typename Stored>
    void attend_together(const Pass& pass, const Layer& layer, int32_t index, const Piece& piece, Scratch& own) {
        const int32_t shared = s.heads / s.kv_heads;
        Sequence& sequence = *pass.tokens[piece.token].sequence;
        const int64_t total = piece.what * shared;
        std::vector<Query>& queries = own.piece_queries;
        std::vector<Partial>& all = own.piece_partials;
        int64_t first = INT64_MAX, last = 0;
        for (int64_t row = 0; row < total; ++row) {
            const int64_t n = piece.token + row / shared, position = pass.tokens[n].position;
            const int32_t head = piece.head * shared + int32_t(row % shared);
            float* query = own.queries.data() + row * width_;
            const float scale = query_of<Stored>(pass, layer, n, head, query);
            queries[row] = {query, scale, first_seen(layer, position), position + 1};
            first = std::min(first, queries[row].first);
            last = std::max(last, queries[row].last);
            all[row] = Partial();
            all[row].values = attended_.data() + (n * s.heads + head) * width_;
        }
        std::vector<Partial>& next = own.next_partials;
        for (int64_t begin = first / SEGMENT * SEGMENT; begin < last; begin += SEGMENT) {
            const int64_t positions = (std::min(SEGMENT, last - begin) + LANES - 1) / LANES * LANES;
            const Kept<Stored> kept = sequence.from<Stored>(index, piece.head, begin);
            Kept<Read<Stored>> read = {to_read(kept.keys, positions * width_, own.keys.data()),
                                       to_read(kept.values, positions * width_, own.values.data()),
                                       kept.key_scales, kept.value_scales};
            // Of others all is read by now.
            if constexpr (std::is_same_v<Stored, Read<Stored>>) {
                read.after_keys = reinterpret_cast<const char*>(kept.values);
                if (begin + SEGMENT < last)
                    read.after_values = reinterpret_cast<const char*>(
                        sequence.from<Stored>(index, piece.head, begin + SEGMENT).keys);
            }
            attend_to(read, begin, queries.data(), total, s.attention_scale, width_, own.scores.data(),
                      next.data());
            for (int64_t row = 0; row < total; ++row) merge(all[row], next[row], s.attention_scale, width_);
        }
        for (int64_t row = 0; row < total; ++row) divide(all[row], width_);
    }

    // Put what the heads of token n attended to side by side.
    void gather(const Pass& pass, Rows& rows, int64_t row, int64_t n) {
        for (int32_t head = 0; head < s.heads; ++head) {
            float* to = rows.exact(row) + head * s.head_dim;
            if (!pass.single) {
                std::copy_n(attended_.data() + (n * s.heads + head) * width_, s.head_dim, to);
                continue;
            }
            Partial all;
            all.values = to;
            for (int64_t g = 0; g < segments(pass.tokens[n].position); ++g)
                merge(all, partials_[(g * pass.count + n) * s.heads + head], s.attention_scale, s.head_dim);
            divide(all, s.head_dim);
        }
        clear(rows, row, s.heads * s.head_dim);
        rows.round(row, s.heads * s.head_dim);
    }

    Lanes activated(Lanes g) const {
        const Lanes one = same(1.0f);
        if (s.activation == SILU) return g / (one + exponential(-g));
        const Lanes inner = same(1.5957691216057308f) * (g + same(0.044715f) * g * g * g);
        return g / (one + exponential(-inner));
    }

    // Always in whole vectors: a number has the same bits wherever a piece begins and ends.
    void gate(const float* gates, const float* ups, int32_t count, float* to) const {
        int32_t i = 0;
        for (; i + LANES <= count; i += LANES)
            store(activated(load(gates + i)) * load(ups + i), to + i);
        if (i == count) return;
        float rest[3][LANES] = {};
        std::copy_n(gates + i, count - i, rest[0]);
        std::copy_n(ups + i, count - i, rest[1]);
        store(activated(load(rest[0])) * load(rest[1]), rest[2]);
        std::copy_n(rest[2], count - i, to + i);
    }

    void mlp(const Pass& pass, Worker& worker, const Layer& layer, const std::vector<int64_t>& tokens) {
        const int64_t count = int64_t(tokens.size());
        const int32_t each = rows_at_once(s.intermediate, team_);
        with_rows(
            pass, worker, count, (s.intermediate + each - 1) / each,
            [&](Rows& rows, int64_t n) { normalize_into(rows, n, tokens[n], layer.mlp_norm); },
            [&](int64_t piece, const Rows& x, Scratch& own) {
                const int32_t first = int32_t(piece) * each, last = std::min(s.intermediate, first + each);
                float *gates = own.outs.data(), *ups = gates + count * each;
                multiply(layer.gate, x, first, last, count, gates, each);
                multiply(layer.up, x, first, last, count, ups, each);
                for (int64_t n = 0; n < count; ++n)
                    gate(gates + n * each, ups + n * each, last - first,
                         gated_.data() + n * s.intermediate + first);
            });
        multiply_all(
            pass, worker, {&layer.down}, count,
            [&](Rows& rows, int64_t n) {
                std::copy_n(gated_.data() + n * s.intermediate, s.intermediate, rows.exact(n));
                clear(rows, n, s.intermediate);
                rows.round(n, s.intermediate);
            },
            [&](int, int64_t n, int32_t first, int32_t length, const float* numbers) {
                add(tokens[n], first, length, numbers);
            });
    }

    Team& team_;
    const Shape s;
    const int32_t width_;
    const Layout layout_;
    std::vector<Layer> layers_;
    const float* norm_;
    Matrix head_;
    const Matrix embedding_;
    std::unique_ptr<uint8_t, Free> packed_;
    const int32_t longest_;
    Rounding rounding_;
    const float *cosines_ = nullptr, *sines_ = nullptr;
    std::vector<Scratch> scratch_;
    std::mutex passing_;

    // Written by the pass under way, each number by one piece of a phase.
    int64_t reserved_ = 0;
    std::vector<Partial> partials_;
    std::vector<float> partial_values_;
    std::vector<float> stream_, q_, k_, v_, attended_, gated_;
    std::unique_ptr<Rows> x_;
};

}  // namespace
