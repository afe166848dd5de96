// Memory that is read from one end to the other, in large pages where the system has them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace {

constexpr size_t LARGE_PAGE = size_t(2) << 20;

struct Free {
    void operator()(uint8_t* memory) const { std::free(memory); }
};

// So many bytes, whose values are not set; they begin where vectors may.
inline std::unique_ptr<uint8_t, Free> large_pages(size_t bytes) {
    const bool large = bytes >= LARGE_PAGE;
    void* memory = nullptr;
    if (posix_memalign(&memory, large ? LARGE_PAGE : 64, bytes) != 0) throw std::bad_alloc();
#if defined(__linux__)
    // If it has none, small ones are slower and nothing else.
    if (large) madvise(memory, bytes, MADV_HUGEPAGE);
#endif
    return std::unique_ptr<uint8_t, Free>(static_cast<uint8_t*>(memory));
}

}  // namespace
