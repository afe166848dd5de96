// Tokens that are taken through the layers together, and the pieces that attending is cut into.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "attention.hpp"
#include "model.hpp"

namespace {

constexpr int64_t MOST_ALONE = 2;     // up to which each thread prepares rows for itself
constexpr int64_t TOKENS_AT_ONCE = 16;  // of a prompt that one thread attends with

// One token of a pass.
struct Token {
    int64_t id, position;
    Sequence* sequence;
    float* logits;  // where those after it go; null if nobody asks
};

int64_t segments(int64_t position) { return position / SEGMENT + 1; }

// What a thread attends to at a time.
struct Piece {
    int64_t token;
    int32_t head;
    int64_t what;  // of a single token the segment; else how many tokens
};

// Tokens that are taken through the layers together.
struct Pass {
    const std::vector<Token> tokens;
    const int64_t count;
    const bool alone;   // each thread prepares rows for itself, which takes less than waiting
    bool single = true;  // one token of each sequence, which takes a thread for each segment
    int64_t most_segments = 0;
    std::vector<int64_t> all, asked;  // tokens, and those that logits are asked after
    std::vector<Piece> pieces;

    Pass(std::vector<Token> given, const Shape& s)
        : tokens(std::move(given)), count(int64_t(tokens.size())), alone(count <= MOST_ALONE) {
        for (int64_t n = 0; n < count; ++n) {
            if (n > 0 && tokens[n].sequence == tokens[n - 1].sequence) single = false;
            all.push_back(n);
            if (tokens[n].logits != nullptr) asked.push_back(n);
            most_segments = std::max(most_segments, segments(tokens[n].position));
        }
        if (single)
            for (int64_t n = 0; n < count; ++n)
                for (int32_t head = 0; head < s.kv_heads; ++head)
                    for (int64_t segment = 0; segment < segments(tokens[n].position); ++segment)
                        pieces.push_back({n, head, segment});
        else
            for (int64_t n = 0; n < count;) n = cut(n, s.kv_heads);
    }

    // Whether logits are asked after any token of a piece of a prompt.
    bool asks(const Piece& piece) const {
        const auto next = std::lower_bound(asked.begin(), asked.end(), piece.token);
        return next != asked.end() && *next < piece.token + piece.what;
    }

   private:
    // Cut the tokens of the sequence that token n is of; return the one after them. A head's pieces
    // follow each other, and find its keys and values in the cache. There are two of few tokens, too: heads
    // may be fewer than what threads share out evenly.
    int64_t cut(int64_t n, int32_t kv_heads) {
        int64_t end = n + 1;
        while (end < count && tokens[end].sequence == tokens[n].sequence) ++end;
        const int64_t half = (end - n + 7) / 8 * 4, each = std::min(TOKENS_AT_ONCE, half);
        for (int32_t head = 0; head < kv_heads; ++head)
            for (int64_t at = n; at < end; at += each)
                pieces.push_back({at, head, std::min(each, end - at)});
        return end;
    }
};

}  // namespace
