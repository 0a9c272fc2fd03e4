#include "base/ahead.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#include <unistd.h>
#endif

namespace hesplit {

namespace {

std::atomic<bool>& setting() {
    static std::atomic<bool> wanted{false};
    return wanted;
}

}  // namespace

void set_work_ahead(bool wanted) {
    setting().store(wanted);
}

bool work_ahead() {
    return setting().load();
}

long process_id() {
#if defined(__unix__) || defined(__APPLE__)
    return static_cast<long>(getpid());
#else
    return 0;
#endif
}

namespace {

// Waking a thread costs the one who wakes it tens of microseconds on a virtual machine, more than a job is worth. So a
// worker that had a job a moment ago looks for the next by itself; only one that has slept for long is woken.
constexpr std::chrono::microseconds kNap{50};
constexpr int kNaps = 200;

// A caller that waits for longer than this would have been faster alone.
constexpr std::chrono::microseconds kPatience{60};
constexpr int kFewestSkipped = 16, kMostSkipped = 4096;

// A fork waits until no job is running, so that a child never inherits a lock that one of them held.
struct Running {
    std::mutex mutex;
    std::condition_variable none;
    int jobs = 0;
};

Running& running() {
    static Running* const state = [] {
#if defined(__unix__) || defined(__APPLE__)
        pthread_atfork(
            [] {
                Running& all = running();
                std::unique_lock<std::mutex> lock(all.mutex);
                all.none.wait(lock, [&all] { return all.jobs == 0; });
                lock.release();
            },
            [] { running().mutex.unlock(); }, [] { running().mutex.unlock(); });
#endif
        return new Running;  // never freed: workers may outlive static objects
    }();
    return *state;
}

void run(const std::function<void()>& job) {
    Running& all = running();
    {
        const std::lock_guard<std::mutex> lock(all.mutex);
        ++all.jobs;
    }
    try {
        job();
    } catch (...) {
        // Its result is missing, and computed when it is asked for: the error comes up there.
    }
    const std::lock_guard<std::mutex> lock(all.mutex);
    if (--all.jobs == 0) {
        all.none.notify_all();
    }
}

}  // namespace

struct Ahead::State {
    long process = process_id();
    std::mutex mutex;
    std::condition_variable changed;
    std::function<void()> job;  // not begun yet
    bool busy = false;          // not begun or not ended yet
    bool asleep = false;
    bool stop = false;
    int skip = 0;     // jobs to leave out, touched by the caller only
    int skipped = 0;  // how many were left out the last time
    std::thread thread{[this] { loop(); }};

    void loop() {
        std::unique_lock<std::mutex> lock(mutex);
        for (int naps = 0; !stop;) {
            if (job) {
                std::function<void()> current = std::move(job);
                job = nullptr;
                lock.unlock();
                run(current);
                current = nullptr;
                lock.lock();
                busy = false;
                changed.notify_all();
                naps = 0;
            } else if (naps < kNaps) {
                lock.unlock();
                std::this_thread::sleep_for(kNap);
                lock.lock();
                ++naps;
            } else {
                asleep = true;
                changed.wait(lock, [this] { return stop || job; });
                asleep = false;
            }
        }
    }
};

Ahead::Ahead() = default;

Ahead::~Ahead() {
    if (!state_) {
        return;
    }
    if (state_->process != process_id()) {
        state_.release();  // after a fork: the thread is not there to be joined
        return;
    }
    {
        const std::lock_guard<std::mutex> lock(state_->mutex);
        state_->stop = true;
    }
    state_->changed.notify_all();
    state_->thread.join();
}

void Ahead::start(std::function<void()> job) {
    wait();
    if (!state_) {
        state_ = std::make_unique<State>();
    }
    bool asleep = false;
    {
        const std::lock_guard<std::mutex> lock(state_->mutex);
        state_->job = std::move(job);
        state_->busy = true;
        asleep = state_->asleep;
    }
    if (asleep) {
        state_->changed.notify_all();
    }
}

void Ahead::wait() {
    if (!state_) {
        return;
    }
    if (state_->process != process_id()) {
        state_.release();
        return;
    }
    std::unique_lock<std::mutex> lock(state_->mutex);
    if (state_->job) {
        const std::function<void()> job = std::move(state_->job);
        state_->job = nullptr;
        lock.unlock();
        run(job);
        lock.lock();
        state_->busy = false;
        return;
    }
    if (!state_->busy) {
        return;
    }
    const auto start = std::chrono::steady_clock::now();
    state_->changed.wait(lock, [this] { return !state_->busy; });
    if (std::chrono::steady_clock::now() - start > kPatience) {
        state_->skip = state_->skipped = std::clamp(2 * state_->skipped, kFewestSkipped, kMostSkipped);
    }
}

bool Ahead::pays() {
    if (!work_ahead()) {
        return false;
    }
    if (state_ && state_->skip > 0) {
        --state_->skip;
        return false;
    }
    return true;
}

}  // namespace hesplit
