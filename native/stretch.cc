#include "stretch.h"

#include <algorithm>

#include "../engine/barrier.h"

namespace perigee {

namespace {

// Fewer activation rows in all leave a rank some 100 microseconds of work: not worth the ranks' looking at one another.
constexpr uint32_t kFewestRows = 64;

// A piece: some 100 microseconds, of as many activation rows as kernels meet decoded weights with, and of strips of 32 weight
// rows. (Single strips of 16 activation rows took a seventh longer than whole matrices.)
constexpr uint32_t kPieceTokens = 128, kStripRows = 32;
constexpr uint64_t kPieceProducts = 1 << 24;

uint64_t parts(uint64_t n, uint64_t largest) { return (n + largest - 1) / largest; }

// How a job is cut.
struct Cut {
  uint32_t rows, columns, pieces;  // weight rows of a piece; pieces of the same rows; all pieces

  explicit Cut(const Job& job) : rows(job.rows), columns(1), pieces(1) {
    if (job.kind != JobKind::Matmul || job.rows == 0 || job.n == 0) return;
    columns = static_cast<uint32_t>(parts(job.n, kPieceTokens));
    const uint64_t strip = uint64_t{kStripRows} * job.cols * parts(job.n, columns);
    rows = static_cast<uint32_t>(std::min<uint64_t>(job.rows, kStripRows * parts(kPieceProducts, strip)));
    pieces = columns * static_cast<uint32_t>(parts(job.rows, rows));
  }

  // Piece `index`: the tokens of some rows, then the next rows.
  JobPart part(const Job& job, uint32_t index) const {
    const uint32_t row = index / columns * rows, column = index % columns;
    return {row, std::min(row + rows, job.rows), job.n * column / columns, job.n * (column + 1) / columns};
  }
};

}  // namespace

void Stretch::open(const Job* jobs, uint32_t count, const uint8_t* input, uint8_t* output) {
  jobs_ = jobs;
  input_ = input;
  output_ = output;
  first_.assign(1, 0);
  for (uint32_t i = 0; i < count; i++) first_.push_back(first_.back() + Cut(jobs[i]).pieces);
  done_.store(0);
  left_.store(((left_.load() >> 32) + 1) << 32 | first_.back());
}

// The next piece, if one is left. What the stretch holds stays as it is until all its pieces are done.
bool Stretch::run_piece(const Kernels& kernels) {
  uint64_t left = left_.load();
  do {
    if (static_cast<uint32_t>(left) == 0) return false;
  } while (!left_.compare_exchange_weak(left, left - 1));
  const uint32_t index = first_.back() - static_cast<uint32_t>(left);
  const auto job = static_cast<size_t>(std::upper_bound(first_.begin(), first_.end(), index) - first_.begin() - 1);
  run_job(kernels, jobs_[job], Cut(jobs_[job]).part(jobs_[job], index - first_[job]), input_, output_);
  done_.fetch_add(1);
  return true;
}

void Stretch::await() const {
  for (uint32_t looks = 0; done_.load() < first_.back(); looks++) looks < 20'000 ? relax() : rest();
}

void Stretch::run(const Kernels& kernels, Stretch* ranks, uint32_t count, uint32_t own, const Job* jobs,
                  uint32_t jobs_count, const uint8_t* input, uint8_t* output) {
  uint64_t rows = 0;
  for (uint32_t i = 0; i < jobs_count; i++) rows += jobs[i].n;
  if (count == 1 || rows < kFewestRows) return run_jobs(kernels, jobs, jobs_count, input, output);
  ranks[own].open(jobs, jobs_count, input, output);
  while (ranks[own].run_piece(kernels)) {}
  for (bool helped = true; helped;) {
    helped = false;
    for (uint32_t next = 1; next < count; next++) helped |= ranks[(own + next) % count].run_piece(kernels);
  }
  ranks[own].await();
}

}  // namespace perigee
