// One loaded model: its memory, its engine, and a thread per rank. No JavaScript here.
#pragma once
#include <pthread.h>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "../engine/engine.h"
#include "memory.h"
#include "rank_thread.h"

namespace perigee {

// How a step ended. Mirrored in src/runtime/native-runtime.ts.
enum class Outcome : int32_t { Done, Refused, Closed, FileLost };

enum class Bound : int32_t { Ok, WrongShape, BeyondFile };

// Where the matrices of one binding lie: in a file, or in the rank's area of made bytes.
constexpr int32_t kMade = -1;

class Session {
 public:
  // `heard` is called by a rank's thread when all ranks have finished loading or a step, and when one has ended.
  Session(const ModelConfig& config, const Limits& limits, std::vector<int32_t> cpus, std::function<void()> heard);
  ~Session();  // stops and joins

  // Allocates the arena, and `made[r]` bytes for rank r. False when there is no room.
  bool allocate(const std::vector<uint64_t>& made);
  Status create(const char* isa);
  // 0, or the errno.
  int map(const char* path);

  Bound bind(uint32_t rank, Slot slot, uint32_t layer, DType type, uint32_t row_begin, uint32_t rows, uint32_t cols,
             int32_t file, const double* offsets, uint32_t count);
  bool set_vector(Vector vector, uint32_t layer, DType type, const uint8_t* raw, size_t bytes);
  bool write_made(uint32_t rank, uint64_t offset, const uint8_t* bytes, size_t count);

  // Starts the threads: each brings its weights into memory first. False when the system gives no more threads.
  bool start();
  // Wakes the ranks for the step that lies in the step block.
  void step();
  // Tells the ranks to end as soon as they can, out of a running step too.
  void quit();
  void join();

  // How often all ranks have finished together: 1 after loading, one more after each step.
  int32_t finished() const { return finished_.load(); }
  // All threads that were started are about to end.
  bool stopped() const { return stopped_.load() == handles_.size(); }
  bool quitting() const { return quit_.load() != 0; }
  uint64_t loaded_bytes() const { return loaded_bytes_.load(); }

  Engine& engine() { return *engine_; }
  const ModelConfig& config() const { return config_; }
  const Limits& limits() const { return limits_; }
  // Memory that others may hold on to when the session is gone.
  const std::shared_ptr<Area>& arena() const { return arena_; }
  const std::vector<std::shared_ptr<Area>>& made() const { return made_; }
  const std::vector<std::shared_ptr<MappedFile>>& files() const { return files_; }
  const double* stage_milliseconds(uint32_t rank) const { return threads_[rank].stage_milliseconds; }
  // The file of which bytes were found missing, or null; its index goes to `index`.
  const MappedFile* lost_file(size_t* index) const;

 private:
  struct Span {
    const uint8_t* begin;
    uint64_t bytes;
    bool made;
  };

  void run_rank(uint32_t rank);
  void load_rank(uint32_t rank);
  void arrive();
  void note_span(uint32_t rank, Span span);

  ModelConfig config_;
  Limits limits_;
  std::vector<int32_t> cpus_;
  std::function<void()> heard_;
  std::shared_ptr<Area> arena_ = std::make_shared<Area>();
  std::vector<std::shared_ptr<Area>> made_;  // [ranks]
  std::vector<std::shared_ptr<MappedFile>> files_;
  std::vector<std::vector<Span>> spans_;  // [ranks] what each rank reads
  std::vector<RankThread> threads_;       // [ranks]
  std::vector<Stretch> stretches_;        // [ranks]
  std::vector<pthread_t> handles_;
  Engine* engine_ = nullptr;

  std::atomic<int32_t> sequence_{0};  // steps asked for; the word that idle ranks sleep on
  std::atomic<int32_t> finished_{0};
  std::atomic<int32_t> quit_{0};
  std::atomic<uint32_t> arrived_{0};
  std::atomic<uint32_t> stopped_{0};
  std::atomic<uint64_t> loaded_bytes_{0};
};

}  // namespace perigee
