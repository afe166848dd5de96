// Threads that share work piece by piece, so that one that has lost its core holds up no other.
//
// A run is a sequence of phases, each of so many pieces. Every thread takes the next piece of the
// phase that is open; the one that finishes a phase's last piece opens the next. A thread that wakes
// up late finds phases closed, passes over them, and joins the one that is open, if the run is not
// over. What a run reads outside its pieces has to be its own, for such a thread to find it unchanged.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

constexpr int SPINS = 2048;  // some 30 microseconds

inline void relax() {
#if defined(__x86_64__)
    _mm_pause();
#endif
}

class Team;

// One thread's way through the phases of a run.
class Worker {
   public:
    Worker(Team& team, int32_t thread, uint64_t run);

    int32_t thread() const { return thread_; }

    // Take pieces of the next phase until it is complete. `prepare` is called before the first
    // piece that this thread takes, and not at all if it takes none.
    template <typename Prepare, typename Piece>
    void phase(int64_t pieces, Prepare prepare, Piece piece);

    template <typename Piece>
    void phase(int64_t pieces, Piece piece) {
        phase(pieces, [] {}, piece);
    }

   private:
    Team& team_;
    const int32_t thread_;
    uint64_t phase_;
};

class Team {
   public:
    using Work = std::function<void(Worker&)>;

    // It is never deleted: its threads wait until the process ends.
    explicit Team(int32_t threads) : threads_(threads) {}

    void start() {
        for (int32_t t = 1; t < threads_; ++t) std::thread([this, t] { follow(t); }).detach();
    }

    int32_t threads() const { return threads_; }

    // Let all threads do a work; return when all of its phases are complete. Some may then still be
    // passing over them, so the work is kept until the last has let go of it.
    void run(Work work) {
        std::lock_guard<std::mutex> one_at_a_time(running_);
        const uint64_t number = (ticket_.load(std::memory_order_relaxed) >> RUN) + 1;
        auto next = std::make_shared<const Run>(Run{std::move(work), number});
        // All of the run before is complete; its threads that are late have other numbers.
        ticket_.store((number << RUN) + FIRST, std::memory_order_release);
        if (threads_ > 1) {
            {
                std::lock_guard<std::mutex> lock(mutex_);
                run_ = next;
                turn_.fetch_add(1, std::memory_order_release);
            }
            wake_.notify_all();
        }
        Worker first(*this, 0, number);
        next->work(first);
    }

   private:
    friend class Worker;

    // A ticket is the number of the run, that of the phase in it, and that of the next piece.
    static constexpr int PHASE = 18, RUN = 32;
    static constexpr uint64_t FIRST = uint64_t(1) << PHASE;  // of the phases
    static constexpr int64_t MOST_PIECES = int64_t(1) << 17;

    struct Run {
        Work work;
        uint64_t number;
    };

    void follow(int32_t thread) {
        uint64_t seen = 0;
        while (true) {
            // The next token usually comes at once, and waking a sleeping thread takes longer.
            for (int spins = 0; spins < SPINS && turn_.load(std::memory_order_acquire) == seen; ++spins)
                relax();
            std::shared_ptr<const Run> run;
            {
                std::unique_lock<std::mutex> lock(mutex_);
                wake_.wait(lock, [&] { return turn_.load(std::memory_order_relaxed) != seen; });
                seen = turn_.load(std::memory_order_relaxed);
                run = run_;
            }
            Worker worker(*this, thread, run->number);
            run->work(worker);
        }
    }

    const int32_t threads_;
    std::mutex running_, mutex_;
    std::condition_variable wake_;
    std::atomic<uint64_t> turn_{0};
    std::shared_ptr<const Run> run_;
    alignas(64) std::atomic<uint64_t> ticket_{FIRST};
    alignas(64) std::atomic<int64_t> done_{0};
};

inline Worker::Worker(Team& team, int32_t thread, uint64_t run)
    : team_(team), thread_(thread), phase_(run << (Team::RUN - Team::PHASE)) {}

template <typename Prepare, typename Piece>
void Worker::phase(int64_t pieces, Prepare prepare, Piece piece) {
    if (pieces <= 0) return;
    const uint64_t mine = ++phase_;
    const int64_t each = (pieces + Team::MOST_PIECES - 1) / Team::MOST_PIECES;
    const int64_t parts = (pieces + each - 1) / each;
    bool prepared = false;
    for (int spins = 0;;) {
        uint64_t ticket = team_.ticket_.load(std::memory_order_acquire);
        const uint64_t open = ticket >> Team::PHASE;
        const int64_t next = int64_t(ticket & (Team::FIRST - 1));
        if (open > mine) return;
        if (open == mine && next < parts) {
            if (!team_.ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel))
                continue;
            // From here on the phase stays open until this part is done.
            if (!prepared) prepare();
            prepared = true;
            const int64_t end = std::min(pieces, (next + 1) * each);
            for (int64_t at = next * each; at < end; ++at) piece(at);
            if (team_.done_.fetch_add(1, std::memory_order_acq_rel) + 1 == parts) {
                team_.done_.store(0, std::memory_order_relaxed);
                team_.ticket_.store((mine + 1) << Team::PHASE, std::memory_order_release);
                return;
            }
            spins = 0;
        } else if (++spins < SPINS) {
            relax();
        } else {
            std::this_thread::yield();
        }
    }
}

}  // namespace
