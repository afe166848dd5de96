// Threads that work side by side and meet at a barrier that spins.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

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

}  // namespace
