// What a door (wasm/, native/) must supply to the core. Sleeping and leaving a step stand in barrier.h.
#pragma once
#include "job.h"

namespace perigee {

// Runs `count` jobs on shard `shard`: job offsets refer to `input` and `output`. Only output bytes [output_begin,
// output_end) are written. Under WASM the regions are copied to the shard and back; natively they are used in place.
void shard_call(uint32_t shard, const Job* jobs, uint32_t count, const uint8_t* input, uint32_t input_bytes,
                uint8_t* output, uint32_t output_begin, uint32_t output_end);

// Parts of a step, for the profile. The door adds the time since the rank's last call to this stage.
enum class Stage : uint32_t {
  Embed,
  QKV,
  Query,
  Attention,
  AttentionOut,
  Router,
  ExpertsIn,
  ExpertsOut,
  Dense,
  Head,
  Wait,
  Count
};
void stage_done(Stage stage);

}  // namespace perigee
