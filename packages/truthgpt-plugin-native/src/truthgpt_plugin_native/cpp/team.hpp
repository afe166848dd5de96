// Threads that share work piece by piece, so that one that has lost its core holds up no other.
//
// A run is a sequence of phases, each of so many pieces. Every thread has a share of them, one after
// the other, so that what it reads is one stream through memory; when it is through with its own it
// takes the next of another's. The one that finishes a phase's last piece opens the next phase. A
// thread that wakes up late finds phases closed, passes over them, and joins the one that is open, if
// the run is not over. What a run reads outside its pieces has to be its own, for such a thread to find
// it unchanged.
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
    explicit Team(int32_t threads) : threads_(threads), tickets_(new Ticket[size_t(threads)]) {}

    void start() {
        for (int32_t t = 1; t < threads_; ++t) std::thread([this, t] { follow(t); }).detach();
    }

    int32_t threads() const { return threads_; }

    // Let all threads do a work; return when all of its phases are complete. Some may then still be
    // passing over them, so the work is kept until the last has let go of it.
    void run(Work work) {
        std::lock_guard<std::mutex> one_at_a_time(running_);
        const uint64_t number = ++runs_;
        auto next = std::make_shared<const Run>(Run{std::move(work), number});
        // All of the run before is complete; its threads that are late have other numbers.
        open((number << (RUN - PHASE)) + 1);
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

    // A ticket is the number of the run, that of the phase in it, and that of the next piece of a
    // thread's share: each thread has one, and others take from it, too.
    static constexpr int PHASE = 18, RUN = 32;
    static constexpr uint64_t FIRST = uint64_t(1) << PHASE;  // of the phases
    static constexpr int64_t MOST_PIECES = int64_t(1) << 17;

    struct alignas(64) Ticket {
        std::atomic<uint64_t> value{0};
    };

    struct Run {
        Work work;
        uint64_t number;
    };

    // Offer the pieces of a phase. Where a thread is interrupted in here, others may have come to a
    // later phase meanwhile: no ticket goes back.
    void open(uint64_t phase) {
        for (int32_t t = 0; t < threads_; ++t) {
            uint64_t before = tickets_[t].value.load(std::memory_order_relaxed);
            while (before < phase << PHASE &&
                   !tickets_[t].value.compare_exchange_weak(before, phase << PHASE,
                                                            std::memory_order_acq_rel)) {
            }
        }
    }

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
    uint64_t runs_ = 0;
    const std::unique_ptr<Ticket[]> tickets_;
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
    const int32_t threads = team_.threads_;
    bool prepared = false;
    int32_t from = 0;  // how many threads further on the one is whose share is taken from
    for (int spins = 0;;) {
        const int32_t owner = (thread_ + from) % threads;
        std::atomic<uint64_t>& value = team_.tickets_[owner].value;
        uint64_t ticket = value.load(std::memory_order_acquire);
        const uint64_t open = ticket >> Team::PHASE;
        if (open > mine) return;
        const int64_t begin = parts * owner / threads, end = parts * (owner + 1) / threads;
        const int64_t next = begin + int64_t(ticket & (Team::FIRST - 1));
        if (open == mine && next < end) {
            if (!value.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel)) continue;
            // From here on the phase stays open until this part is done.
            if (!prepared) prepare();
            prepared = true;
            const int64_t last = std::min(pieces, (next + 1) * each);
            for (int64_t at = next * each; at < last; ++at) piece(at);
            if (team_.done_.fetch_add(1, std::memory_order_acq_rel) + 1 == parts) {
                team_.done_.store(0, std::memory_order_relaxed);
                team_.open(mine + 1);
                return;
            }
            spins = 0;
        } else if (from + 1 < threads) {
            ++from;
        } else if (++spins < SPINS) {
            from = 0;
            relax();
        } else {
            from = 0;
            std::this_thread::yield();
        }
    }
}

}  // namespace
