// Matrices of integers that an engine keeps packed, where products read them so.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "large_pages.hpp"
#include "matrix.hpp"
#include "multiply.hpp"
#include "team.hpp"

namespace {

#if defined(PACKED_INTEGERS)

template <bool MINIMA>
struct SizesOfPacked {
    int64_t strips, bytes, scales;  // bytes of the matrix, and of its scales or minima

    explicit SizesOfPacked(const Matrix& m) : strips((m.rows + STRIP - 1) / STRIP) {
        const int64_t blocks = m.columns / BLOCK;
        bytes = strips * blocks * PACKED_BLOCK / (MINIMA ? 2 : 1);
        scales = strips * (((blocks - 1) >> shift_of(m)) + 1) * STRIP * int64_t(sizeof(Scale<MINIMA>));
    }

    int64_t all() const { return bytes + (MINIMA ? 2 : 1) * scales; }
};

// Pack all of m into `memory`, and let m be the packed one.
template <bool MINIMA>
void pack_all(Worker& worker, const Matrix& m, const Matrix& to) {
    worker.phase(SizesOfPacked<MINIMA>(m).strips, [&](int64_t strip) {
        const int32_t first = int32_t(strip) * STRIP;
        const auto next = static_cast<const char*>(m.weight) +
                          int64_t(std::min(m.rows, first + STRIP)) * m.columns / (MINIMA ? 2 : 1);
        pack(m, first, m.rows, 0, m.columns / BLOCK, next, strip_of<MINIMA>(to, strip));
    });
}

template <bool MINIMA>
Matrix packed_in(uint8_t* memory, const Matrix& m, bool fine) {
    const SizesOfPacked<MINIMA> sizes(m);
    Matrix packed = m;
    packed.kind = MINIMA ? (fine ? FINE_PACKED_INT4 : PACKED_INT4) : (fine ? FINE_PACKED_INT8 : PACKED_INT8);
    packed.weight = memory;
    packed.scales = memory + sizes.bytes;
    packed.minima = MINIMA ? reinterpret_cast<uint16_t*>(memory + sizes.bytes + sizes.scales) : nullptr;
    return packed;
}

// Let matrices of integers be packed ones from now on, and one of them fine. Returns their memory.
inline std::unique_ptr<uint8_t, Free> pack_matrices(Team& team, const std::vector<Matrix*>& all,
                                                    const Matrix* fine) {
    struct Job {
        Matrix from, to;
    };
    auto jobs = std::make_shared<std::vector<Job>>();
    int64_t bytes = 0;
    for (Matrix* m : all)
        if (m->kind == INT8 || m->kind == INT4)
            bytes += m->kind == INT8 ? SizesOfPacked<false>(*m).all() : SizesOfPacked<true>(*m).all();
    auto memory = large_pages(size_t(bytes));
    uint8_t* at = memory.get();
    for (Matrix* m : all) {
        if (m->kind != INT8 && m->kind != INT4) continue;
        const bool minima = m->kind == INT4;
        jobs->push_back({*m, minima ? packed_in<true>(at, *m, m == fine) : packed_in<false>(at, *m, m == fine)});
        at += minima ? SizesOfPacked<true>(*m).all() : SizesOfPacked<false>(*m).all();
        *m = jobs->back().to;
    }
    team.run([jobs](Worker& worker) {
        for (const Job& job : *jobs)
            if (job.from.kind == INT4) pack_all<true>(worker, job.from, job.to);
            else pack_all<false>(worker, job.from, job.to);
    });
    return memory;
}

#else

inline std::unique_ptr<uint8_t, Free> pack_matrices(Team&, const std::vector<Matrix*>&, const Matrix*) {
    return nullptr;
}

#endif

}  // namespace
