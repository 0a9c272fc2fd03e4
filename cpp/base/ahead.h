// Work done before it is asked for: one job at a time, on a thread of its own.
//
// A client encrypts zeros for its next request, and a server multiplies the next request's c1 (which follows from an
// announced seed alone) with its weights, while the other side computes. A second core, or a peer that is another
// machine, makes that time free.
//
// Threads do not survive a fork. The child finds no job; what its parent prepared at random must not be used twice, so
// whoever keeps a result of a job keeps the process id with it.
#pragma once

#include <functional>
#include <memory>

namespace hesplit {

// Whether clients and servers work ahead; initially not: it pays where a core is idle, and costs where none is.
void set_work_ahead(bool wanted);
bool work_ahead();

// Identifies this process.
long process_id();

// Not safe to use from several threads.
class Ahead {
  public:
    Ahead();
    ~Ahead();
    Ahead(const Ahead&) = delete;
    Ahead& operator=(const Ahead&) = delete;

    // Whether work ahead is wanted and pays: where other programs keep the CPUs busy, a job that the caller has to wait
    // for costs more than it saves, and the next ones are left out, more of them each time.
    bool pays();
    // Waits for the last job, then begins another. What a job throws is lost.
    void start(std::function<void()> job);
    // Returns when the last job has ended; does it here if it has not begun.
    void wait();

  private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace hesplit
