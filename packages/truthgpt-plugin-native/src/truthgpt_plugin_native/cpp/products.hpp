// Rows of activations times one matrix, for models whose layers PyTorch calls one by one.
#pragma once

#include <algorithm>
#include <memory>

#include "multiply.hpp"
#include "rows.hpp"
#include "team.hpp"

namespace {

constexpr int64_t MOST_TOKENS = 256;  // rows of activations that are multiplied together
constexpr int32_t MOST_ROWS = 64;     // of a matrix that a thread multiplies at a time

constexpr int32_t LEAST_ROWS = 32;    // which are whole cache lines of results, and whole strips

// How many rows of a matrix a thread multiplies at a time: enough pieces for all threads.
int32_t rows_at_once(int64_t rows, const Team& team) {
    const int64_t fair = rows / (8 * team.threads());
    return int32_t(std::clamp<int64_t>(fair / LEAST_ROWS * LEAST_ROWS, LEAST_ROWS, MOST_ROWS));
}

// out[n * m.rows + row] is row n of x, of m.columns numbers, times a row of m, plus its bias.
void multiply_rows(Team& team, const Matrix& m, const float* x, int64_t count, float* out) {
    const int32_t each = rows_at_once(m.rows, team);
    Rounding rounding;
    rounding.add(m);
    for (int64_t begin = 0; begin < count; begin += MOST_TOKENS) {
        const int64_t part = std::min(MOST_TOKENS, count - begin);
        const float* from = x + begin * m.columns;
        float* to = out + begin * m.rows;
        // A thread that is late finds the phases complete; until then it reads this.
        auto rows = std::make_shared<Rows>(int32_t(part), m.columns, rounding);
        team.run([=](Worker& worker) {
            worker.phase(part, [&](int64_t n) {
                std::copy_n(from + n * m.columns, m.columns, rows->exact(n));
                rows->round(n, m.columns);
            });
            worker.phase((m.rows + each - 1) / each, [&](int64_t piece) {
                const int32_t first = int32_t(piece) * each, last = std::min(m.rows, first + each);
                multiply(m, *rows, first, last, part, to + first, m.rows);
            });
        });
    }
}

}  // namespace
