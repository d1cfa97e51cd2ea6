// The two ends of the model: token embedding and logits.
#include "door.h"
#include "layers.h"

namespace perigee {

void embed(Engine& e, Rank& rank) {
  const Weight& table = e.weight(rank, 0, Slot::TokenEmbd);
  const uint32_t hidden = e.config.hidden;
  ShardBatch& batch = rank.batch;
  batch.reset(batch.own_input);
  for (uint32_t t = 0; t < e.step.tokens_count; t++) {
    const uint32_t row = static_cast<uint32_t>(e.step.tokens[t]) - table.row_begin;
    if (row < table.rows) batch.look_up(table, row);
  }
  batch.run();
  size_t next = 0;
  for (uint32_t t = 0; t < e.step.tokens_count; t++) {
    const uint32_t row = static_cast<uint32_t>(e.step.tokens[t]) - table.row_begin;
    if (row >= table.rows) continue;
    __builtin_memcpy(e.x + static_cast<size_t>(t) * hidden, batch.result(batch.jobs[next++].y / sizeof(float)),
                     hidden * sizeof(float));
  }
  stage_done(Stage::Embed);
}

void head(Engine& e, Rank& rank) {
  const Weight& output = e.weight(rank, 0, Slot::Output);
  const uint32_t n = e.step.outputs_count, hidden = e.config.hidden;
  if (n == 0) return;
  const Range own = own_rows(e, rank, n);
  for (uint32_t i = own.begin; i < own.end; i++) {
    const float* x = e.x + static_cast<size_t>(e.step.outputs[i]) * hidden;
    e.kernels->rms_norm(x, e.output_norm, e.config.rms_eps, hidden, rank.h + static_cast<size_t>(i) * hidden);
  }
  ShardBatch& batch = rank.batch;
  open_shared(e, rank);
  const uint32_t x = batch.put(output.type, rank.h, n, hidden, hidden, own);
  const size_t y = batch.multiply(output, 0, x, kAllRows, n);
  run_shared(e, rank, Stage::Head);
  for (uint32_t i = 0; i < n; i++) {
    __builtin_memcpy(e.step.logits + static_cast<size_t>(i) * e.config.vocabulary + output.row_begin,
                     batch.result(y + static_cast<size_t>(i) * output.rows), output.rows * sizeof(float));
  }
  stage_done(Stage::Head);
}

}  // namespace perigee
