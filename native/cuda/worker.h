// A thread that runs jobs in the order they come.
#pragma once
#include <pthread.h>
#include <signal.h>

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

namespace perigee::cuda {

class Worker {
 public:
  Worker() : thread_([this] { run(); }) {}
  ~Worker() { quit(); }

  void post(std::function<void()> job) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      jobs_.push_back(std::move(job));
    }
    there_is_.notify_one();
  }

  // Ends when the running job has; what waits is dropped.
  void quit() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      quitting_ = true;
    }
    there_is_.notify_one();
    if (thread_.joinable()) thread_.join();
  }

 private:
  void run() {
    // The process's signals are Node's business.
    sigset_t all;
    sigfillset(&all);
    for (const int fault : {SIGBUS, SIGSEGV, SIGILL, SIGFPE, SIGTRAP}) sigdelset(&all, fault);
    pthread_sigmask(SIG_SETMASK, &all, nullptr);
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      there_is_.wait(lock, [this] { return quitting_ || !jobs_.empty(); });
      if (quitting_) return;
      const std::function<void()> job = std::move(jobs_.front());
      jobs_.pop_front();
      lock.unlock();
      job();
      lock.lock();
    }
  }

  std::mutex mutex_;
  std::condition_variable there_is_;
  std::deque<std::function<void()>> jobs_;
  bool quitting_ = false;
  std::thread thread_;  // last: it uses the others
};

}  // namespace perigee::cuda
