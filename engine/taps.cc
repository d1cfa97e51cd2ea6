#include "taps.h"
#include "state.h"

namespace perigee {

uint32_t tap_width(const ModelConfig& c, Tap tap) {
  switch (tap) {
    case Tap::Embedding:
    case Tap::FeedForward:
    case Tap::Residual:
      return c.hidden;
    case Tap::Latent:
      return c.latent_dim();
    case Tap::Attention:
      return c.heads * c.value_dim;
    case Tap::RouterScores:
      return c.experts;
    case Tap::RouterChoices:
      return c.experts_used;
    case Tap::Count:
      break;
  }
  return 0;
}

bool tap_exists(const ModelConfig& c, Tap tap, uint32_t layer) {
  if (layer >= c.layers || tap >= Tap::Count) return false;
  if (tap == Tap::Embedding) return layer == 0;
  return (tap != Tap::RouterScores && tap != Tap::RouterChoices) || layer >= c.dense_layers;
}

namespace {

float* tap_at(const Engine& e, Tap tap, uint32_t layer, uint32_t t) {
  const size_t row = static_cast<size_t>(layer) * e.limits.batch_tokens + t;
  return e.taps.of[static_cast<uint32_t>(tap)] + row * tap_width(e.config, tap);
}

}  // namespace

void lay_out_taps(Arena& arena, const ModelConfig& c, const Limits& l, Taps& taps) {
  for (uint32_t i = 0; i < static_cast<uint32_t>(Tap::Count) && l.taps; i++) {
    const Tap tap = static_cast<Tap>(i);
    const size_t layers = tap == Tap::Embedding ? 1 : c.layers;
    taps.of[i] = arena.take<float>(layers * l.batch_tokens * tap_width(c, tap));
  }
}

void tap_columns(Engine& e, Tap tap, uint32_t layer, const float* own, size_t stride, Range columns) {
  if (!e.limits.taps) return;
  for (uint32_t t = 0; t < e.step.tokens_count; t++)
    __builtin_memcpy(tap_at(e, tap, layer, t) + columns.begin, own + t * stride, columns.size() * sizeof(float));
}

void tap_residual(Engine& e, const Rank& rank, Tap tap, uint32_t layer) {
  tap_columns(e, tap, layer, e.x + rank.hidden_rows.begin, e.config.hidden, rank.hidden_rows);
}

void tap_row(Engine& e, Tap tap, uint32_t layer, uint32_t t, const void* row) {
  if (e.limits.taps) __builtin_memcpy(tap_at(e, tap, layer, t), row, tap_width(e.config, tap) * sizeof(float));
}

const void* engine_tap(const Engine& e, Tap tap, uint32_t layer, uint32_t* width) {
  if (!e.limits.taps || !tap_exists(e.config, tap, layer)) return nullptr;
  *width = tap_width(e.config, tap);
  return tap_at(e, tap, layer, 0);
}

}  // namespace perigee
