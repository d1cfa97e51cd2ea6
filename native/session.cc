#include "session.h"

#include <signal.h>
#include <string.h>

#include "../engine/barrier.h"
#include "limits.h"

namespace perigee {

namespace {

// Small enough to show progress and to stop in between, large enough for the disk.
constexpr uint64_t kLoadBytes = 16u << 20;

// The process's signals are Node's business; only faults are delivered to the thread that caused them.
void block_signals() {
  sigset_t all;
  sigfillset(&all);
  for (const int fault : {SIGBUS, SIGSEGV, SIGILL, SIGFPE, SIGTRAP}) sigdelset(&all, fault);
  pthread_sigmask(SIG_SETMASK, &all, nullptr);
}

}  // namespace

Session::Session(const ModelConfig& config, const Limits& limits, std::vector<int32_t> cpus,
                 std::function<void()> heard)
    : config_(config),
      limits_(limits),
      cpus_(std::move(cpus)),
      heard_(std::move(heard)),
      spans_(limits.ranks),
      threads_(limits.ranks),
      stretches_(limits.ranks) {}

Session::~Session() {
  quit();
  join();
}

bool Session::allocate(const std::vector<uint64_t>& made) {
  if (!arena_->allocate(engine_bytes(config_, limits_))) return false;
  for (const uint64_t bytes : made) {
    made_.push_back(std::make_shared<Area>());
    if (!made_.back()->allocate(bytes)) return false;
  }
  return true;
}

Status Session::create(const char* isa) {
  const Kernels* kernels = kernels_named(isa);
  for (uint32_t rank = 0; rank < limits_.ranks; rank++) {
    threads_[rank].kernels = kernels;
    threads_[rank].stretches = stretches_.data();
    threads_[rank].ranks = limits_.ranks;
    threads_[rank].index = rank;
  }
  return engine_create(arena_->base(), arena_->bytes(), config_, limits_, isa, &engine_);
}

int Session::map(const char* path) {
  files_.push_back(std::make_shared<MappedFile>());
  return files_.back()->map(path);
}

Bound Session::bind(uint32_t rank, Slot slot, uint32_t layer, DType type, uint32_t row_begin, uint32_t rows,
                    uint32_t cols, int32_t file, const double* offsets, uint32_t count) {
  const bool made = file == kMade;
  if (rank >= made_.size() || (!made && static_cast<size_t>(file) >= files_.size())) return Bound::WrongShape;
  Location* at = engine_bind(*engine_, rank, slot, layer, type, row_begin, rows, cols, count);
  if (!at) return Bound::WrongShape;
  const uint8_t* base = made ? made_[rank]->base() : files_[static_cast<size_t>(file)]->base();
  const uint64_t size = made ? made_[rank]->bytes() : files_[static_cast<size_t>(file)]->bytes();
  const uint64_t bytes = uint64_t{row_bytes(type, cols)} * rows;
  for (uint32_t i = 0; i < count; i++) {
    const auto offset = static_cast<uint64_t>(offsets[i]);
    if (bytes > size || offset > size - bytes) return Bound::BeyondFile;
    at[i] = {reinterpret_cast<uintptr_t>(base + offset), 0, 0};
    if (bytes > 0) note_span(rank, {base + offset, bytes, made});
  }
  return Bound::Ok;
}

// Joined to the last where both touch.
void Session::note_span(uint32_t rank, Span span) {
  std::vector<Span>& spans = spans_[rank];
  if (!spans.empty() && spans.back().made == span.made && spans.back().begin + spans.back().bytes == span.begin) {
    spans.back().bytes += span.bytes;
  } else {
    spans.push_back(span);
  }
}

bool Session::set_vector(Vector vector, uint32_t layer, DType type, const uint8_t* raw, size_t bytes) {
  uint32_t length = 0;
  float* to = engine_vector(*engine_, vector, layer, &length);
  const BlockShape block = static_cast<uint32_t>(type) < kDTypeCount ? block_shape(type) : BlockShape{0, 0};
  if (!to || block.elements == 0 || length % block.elements || bytes != row_bytes(type, length)) return false;
  kScalarKernels.dequantize(type, raw, length, to);
  return true;
}

bool Session::write_made(uint32_t rank, uint64_t offset, const uint8_t* bytes, size_t count) {
  if (rank >= made_.size() || count > made_[rank]->bytes() || offset > made_[rank]->bytes() - count) return false;
  memcpy(made_[rank]->base() + offset, bytes, count);
  return true;
}

bool Session::start() {
  struct Start {
    Session* session;
    uint32_t rank;
  };
  for (uint32_t rank = 0; rank < limits_.ranks; rank++) {
    pthread_t handle;
    auto* what = new Start{this, rank};
    const auto run = [](void* started) -> void* {
      const std::unique_ptr<Start> mine(static_cast<Start*>(started));
      mine->session->run_rank(mine->rank);
      return nullptr;
    };
    if (pthread_create(&handle, nullptr, run, what) != 0) {
      delete what;
      return false;
    }
    handles_.push_back(handle);
  }
  return true;
}

void Session::step() {
  sequence_.fetch_add(1);
  wake_all(reinterpret_cast<int32_t*>(&sequence_));
}

void Session::quit() {
  if (quit_.exchange(1)) return;
  if (engine_) engine_abort(*engine_);
  step();
}

void Session::join() {
  for (const pthread_t handle : handles_) pthread_join(handle, nullptr);
  handles_.clear();
}

const MappedFile* Session::lost_file(size_t* index) const {
  for (size_t i = 0; i < files_.size(); i++) {
    files_[i]->check_size();
    if (files_[i]->lost_at.load() == MappedFile::kWhole) continue;
    *index = i;
    return files_[i].get();
  }
  return nullptr;
}

void Session::load_rank(uint32_t rank) {
  for (const Span& span : spans_[rank]) {
    for (uint64_t done = 0; done < span.bytes && !quitting(); done += kLoadBytes) {
      const uint64_t bytes = span.bytes - done < kLoadBytes ? span.bytes - done : kLoadBytes;
      populate(span.begin + done, bytes, span.made);
      loaded_bytes_.fetch_add(bytes);
    }
  }
}

void Session::run_rank(uint32_t rank) {
  block_signals();
  if (rank < cpus_.size()) pin_to(cpus_[rank]);
  RankThread& mine = threads_[rank];
  rank_thread = &mine;
  load_rank(rank);
  arrive();
  for (int32_t seen = 0;;) {
    while (sequence_.load() == seen) wait_while_equal(reinterpret_cast<int32_t*>(&sequence_), seen);
    seen = sequence_.load();
    if (quitting()) break;
    mine.last = milliseconds();
    if (_setjmp(mine.outside) == 0) engine_forward(*engine_, rank);
    arrive();
  }
  stopped_.fetch_add(1);
  heard_();
}

// The last rank to finish reports for all.
void Session::arrive() {
  if (arrived_.fetch_add(1) + 1 < limits_.ranks) return;
  arrived_.store(0);
  finished_.fetch_add(1);
  heard_();
}

}  // namespace perigee
