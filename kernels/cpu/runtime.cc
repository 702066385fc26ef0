/* The threads and the clock that the kernels use. */
#include <algorithm>
#include <chrono>
#include <thread>
#include <vector>

#include "kernels.h"

namespace intlm {

void parallel(int64_t count, int threads, void* context, void (*task)(void*, int64_t, int)) {
  std::atomic<int64_t> next{0};
  auto work = [&](int worker) {
    for (int64_t index; (index = next.fetch_add(1)) < count;) task(context, index, worker);
  };
  std::vector<std::thread> others;
  for (int i = 1; i < std::min<int64_t>(threads, count); ++i) others.emplace_back(work, i);
  work(0);
  for (auto& other : others) other.join();
}

Barrier::Barrier(int workers) : workers_(workers), lines_(new Line[workers]) {}
Barrier::~Barrier() { delete[] lines_; }

void Barrier::wait(int worker) {
  const uint32_t round = lines_[worker].round.load(std::memory_order_relaxed) + 1;
  lines_[worker].round.store(round, std::memory_order_release);
  /* The others arrive within about a microsecond, unless a worker has no core. */
  for (int other = 0, spins = 0; other < workers_; ++other)
    while ((int32_t)(lines_[other].round.load(std::memory_order_acquire) - round) < 0)
      if (++spins > 4096) std::this_thread::yield();
}

bool measuring = false;
static std::atomic<int64_t> spent[kPhases];

void spend(Phase phase, int64_t nanoseconds) { spent[phase] += nanoseconds; }

int64_t now() { return std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1); }

void start_measuring() {
  for (auto& phase : spent) phase = 0;
  measuring = true;
}

void stop_measuring(int64_t* nanoseconds) {
  measuring = false;
  std::copy(std::begin(spent), std::end(spent), nanoseconds);
}

}  // namespace intlm
