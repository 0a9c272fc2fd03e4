#include "base/parallel.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "base/error.h"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace hesplit {

namespace {

constexpr std::size_t kMaxThreads = 1024;

std::size_t default_threads() {
    if (const char* text = std::getenv("OMP_NUM_THREADS")) {
        const long value = std::strtol(text, nullptr, 10);
        if (value > 0) {
            return std::min(static_cast<std::size_t>(value), kMaxThreads);
        }
    }
    return std::max<std::size_t>(1, std::thread::hardware_concurrency());
}

std::atomic<std::size_t>& thread_setting() {
    static std::atomic<std::size_t> setting{default_threads()};
    return setting;
}

struct Job {
    std::size_t count = 0;
    const std::function<void(std::size_t)>* body = nullptr;
    std::atomic<std::size_t> next{0};
    std::mutex error_mutex;
    std::exception_ptr error;

    void work() {
        for (std::size_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) {
            try {
                (*body)(i);
            } catch (...) {
                const std::lock_guard<std::mutex> lock(error_mutex);
                if (!error) {
                    error = std::current_exception();
                }
                next.store(count);
            }
        }
    }
};

class Pool {
  public:
    explicit Pool(std::size_t workers) {
        threads_.reserve(workers);
        for (std::size_t i = 0; i < workers; ++i) {
            threads_.emplace_back([this] { loop(); });
        }
    }
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    ~Pool() {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            stop_ = true;
        }
        wake_.notify_all();
        for (std::thread& thread : threads_) {
            thread.join();
        }
    }

    std::size_t workers() const { return threads_.size(); }

    void run(Job& job) {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            job_ = &job;
            ++generation_;
            running_ = threads_.size();
        }
        wake_.notify_all();
        job.work();
        std::unique_lock<std::mutex> lock(mutex_);
        done_.wait(lock, [this] { return running_ == 0; });
        job_ = nullptr;
    }

  private:
    void loop() {
        std::size_t seen = 0;
        for (;;) {
            Job* job = nullptr;
            {
                std::unique_lock<std::mutex> lock(mutex_);
                wake_.wait(lock, [&] { return stop_ || generation_ != seen; });
                if (stop_) {
                    return;
                }
                seen = generation_;
                job = job_;
            }
            job->work();
            {
                const std::lock_guard<std::mutex> lock(mutex_);
                --running_;
            }
            done_.notify_one();
        }
    }

    std::vector<std::thread> threads_;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::condition_variable done_;
    Job* job_ = nullptr;
    std::size_t generation_ = 0;
    std::size_t running_ = 0;
    bool stop_ = false;
};

// The pool and the lock that one loop at a time holds. Leaked on purpose: threads must not be joined while the process
// exits.
struct Shared {
    std::mutex busy;
    std::unique_ptr<Pool> pool;
};

Shared* make_shared_state();

std::atomic<Shared*>& shared_slot() {
    static std::atomic<Shared*> slot{make_shared_state()};
    return slot;
}

Shared* make_shared_state() {
#if defined(__unix__) || defined(__APPLE__)
    // Threads do not survive fork: the child forgets the parent's pool (whose lock may be held) and makes its own.
    static const int registered = pthread_atfork(nullptr, nullptr, [] { shared_slot().store(new Shared); });
    (void)registered;
#endif
    return new Shared;
}

thread_local bool inside_loop = false;

void run_serially(std::size_t count, const std::function<void(std::size_t)>& body) {
    for (std::size_t i = 0; i < count; ++i) {
        body(i);
    }
}

}  // namespace

void set_num_threads(std::size_t count) {
    if (count < 1 || count > kMaxThreads) {
        throw ParameterError("the number of threads must be between 1 and 1024");
    }
    thread_setting().store(count);
}

std::size_t num_threads() {
    return thread_setting().load();
}

void parallel_for(std::size_t count, const std::function<void(std::size_t)>& body) {
    const std::size_t threads = std::min(num_threads(), count);
    if (threads <= 1 || inside_loop) {
        return run_serially(count, body);
    }
    Shared& shared = *shared_slot().load();
    std::unique_lock<std::mutex> lock(shared.busy, std::try_to_lock);
    if (!lock.owns_lock()) {
        return run_serially(count, body);
    }
    const std::size_t workers = num_threads() - 1;
    if (!shared.pool || shared.pool->workers() != workers) {
        shared.pool.reset();
        shared.pool = std::make_unique<Pool>(workers);
    }
    Job job;
    job.count = count;
    const std::function<void(std::size_t)> marked = [&body](std::size_t i) {
        inside_loop = true;
        struct Reset {
            ~Reset() { inside_loop = false; }
        } reset;
        body(i);
    };
    job.body = &marked;
    shared.pool->run(job);
    if (job.error) {
        std::rethrow_exception(job.error);
    }
}

}  // namespace hesplit
