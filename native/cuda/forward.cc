// The recipe, as engine/model.cc, mla.cc and ffn.cc have it. What a stage leaves for the residual is added by the norm that
// comes next.
#include "forward.h"

#include <algorithm>

#include "copies.h"
#include "products.h"
#include "recipe.h"

namespace perigee::cuda {

Rows forms_for(const Rows& rows, uint32_t n) {
  Rows forms = rows;
  if (n <= kFewRows) forms.wide = nullptr;
  if (n > kQuantizedRows) forms.q = nullptr, forms.scale = forms.sum = nullptr;
  return forms;
}

cudaError_t tap(Part& p, const Step& s, Tap tap, uint32_t layer, const void* from) {
  if (!p.options.limits.taps) return cudaSuccess;
  const uint32_t width = tap_width(p.options.config, tap);
  float* to =
      p.b.taps[static_cast<size_t>(tap)] + uint64_t{layer - p.range.begin} * p.options.limits.batch_tokens * width;
  CUDA_TRY(cudaMemcpyAsync(to, from, uint64_t{s.n} * width * sizeof(float), cudaMemcpyDeviceToDevice, p.stream));
  return cudaSuccess;
}

void forget_pending(Part& p) {
  p.pending = p.also_pending = nullptr;
  p.pending_wait = {};
}

cudaError_t await_pending(Part& p) {
  if (p.pending_wait.number == 0) return cudaSuccess;
  const Await wait = p.pending_wait;
  p.pending_wait = {};
  return await_experts(p.stream, wait.exchange, wait.number, wait.milliseconds);
}

cudaError_t norm(Part& p, const Step& s, const float* weight) {
  Rows h = forms_for(p.b.h, s.n);
  if (s.streaming) h.wide = p.b.h.wide;  // for routed experts
  const AddNorm args = {p.b.x,   p.pending, p.also_pending, weight, p.options.config.rms_eps, s.n,
                        nullptr, h,         p.pending_wait};
  forget_pending(p);
  return add_norm(p.stream, args);
}

namespace {

// x as `layer` or what follows the last one begins with it.
cudaError_t complete_residual(Part& p, const Step& s, uint32_t layer) {
  const uint64_t count = uint64_t{s.n} * p.options.config.hidden;
  if (p.pending) CUDA_TRY(add_to(p.stream, p.pending, count, p.b.x));
  CUDA_TRY(await_pending(p));
  if (p.also_pending) CUDA_TRY(add_to(p.stream, p.also_pending, count, p.b.x));
  forget_pending(p);
  if (layer > p.range.begin) CUDA_TRY(tap(p, s, Tap::Residual, layer - 1, p.b.x));
  if (!s.residuals) return cudaSuccess;
  CUDA_TRY(
      cudaMemcpyAsync(p.b.x, s.residuals + layer * count, count * sizeof(float), cudaMemcpyHostToDevice, p.stream));
  return cudaSuccess;
}

// y (+)= W_down silu(W_gate h) * (W_up h) of few rows.
cudaError_t feed_few(Part& p, uint32_t n, const Matrix& gate, const Matrix& up, const Output& down,
                     cudaStream_t stream) {
  Rows mid = p.b.mid;
  mid.cols = gate.rows;
  CUDA_TRY(gate_up_few(stream, p.b.h, n, gate, up, forms_for(mid, n)));
  return multiply_few(stream, mid, n, &down, 1);
}

// delta (+)= the same of any number of rows.
cudaError_t feed_forward(Part& p, const Step& s, const Matrix& gate, const Matrix& up, const Matrix& down, bool add) {
  if (s.n <= kFewRows) return feed_few(p, s.n, gate, up, {&down, p.b.delta, down.rows, add}, p.stream);
  Rows mid = p.b.mid;
  mid.cols = gate.rows;
  // Blocks of about the same size: none is left with few rows, which would want other forms.
  const uint32_t blocks = (s.n + kWideRows - 1) / kWideRows, rows = (s.n + blocks - 1) / blocks;
  for (uint32_t t = 0; t < s.n; t += rows) {
    const uint32_t n = std::min(rows, s.n - t);
    const Output products[] = {{&gate, p.b.gate, gate.rows, false}, {&up, p.b.up, up.rows, false}};
    CUDA_TRY(multiply(p.stream, row_at(forms_for(p.b.h, n), t), n, products, 2, p.b.space));
    Rows product = forms_for(mid, n);
    if (product.wide) product.f32 = nullptr;
    CUDA_TRY(silu_mul(p.stream, p.b.gate, p.b.up, n, product));
    const Output out = {&down, p.b.delta + uint64_t{t} * down.rows, down.rows, add};
    CUDA_TRY(multiply(p.stream, product, n, &out, 1, p.b.space));
  }
  return cudaSuccess;
}

cudaError_t dense_ffn(Part& p, const Step& s, uint32_t layer) {
  const Layer& w = p.layer(layer);
  CUDA_TRY(norm(p, s, w[Vector::FfnNorm]));
  CUDA_TRY(feed_forward(p, s, w[Slot::FfnGate], w[Slot::FfnUp], w[Slot::FfnDown], false));
  CUDA_TRY(tap(p, s, Tap::FeedForward, layer, p.b.delta));
  p.pending = p.b.delta;
  return p.mark(Stage::Dense);
}

// Chooses, and hands MoE layer `number` over to the ranks; 0: they take no part.
cudaError_t choose_experts(Part& p, const Step& s, uint32_t layer, uint32_t number) {
  const ModelConfig& c = p.options.config;
  const Layer& w = p.layer(layer);
  Router args = {};
  args.w = w[Slot::Router].packed;
  args.type = w[Slot::Router].type;
  args.bias = w[Vector::RouterBias];
  args.h = p.b.h.f32;
  args.n = s.n;
  args.hidden = c.hidden;
  args.experts = c.experts;
  args.used = c.experts_used;
  args.groups = c.groups;
  args.groups_used = c.groups_used;
  args.sigmoid = c.gating == Gating::Sigmoid;
  args.normalize = c.normalize_weights != 0;
  args.weight_scale = c.weight_scale;
  args.scores = p.b.scores;
  args.chosen = p.b.chosen;
  args.weight = p.b.weight;
  args.counts = p.b.counts + uint64_t{layer - p.range.begin} * c.experts;
  args.arrived = p.b.arrived;
  if (number > 0) args.hand_over = {*p.exchange, number, w.resident > 0 ? w.slot_of : nullptr};
  CUDA_TRY(route(p.stream, args));
  CUDA_TRY(tap(p, s, Tap::RouterScores, layer, p.b.scores));
  return tap(p, s, Tap::RouterChoices, layer, p.b.chosen);
}

// delta = the routed experts that the device computes; false in `any` when there are none.
cudaError_t routed_experts(Part& p, const Step& s, uint32_t layer, bool* any) {
  const ModelConfig& c = p.options.config;
  const Layer& w = p.layer(layer);
  if (s.streaming || (w.resident > 0 && s.n > kFewRows)) {
    const bool more = s.streaming && layer + 1 < p.range.end;
    const int32_t next = more ? static_cast<int32_t>(layer) + 1 : ExpertStream::kNoLayer;
    *any = true;
    return p.experts->run(p.stream, layer, next, {p.b.h.wide, p.b.chosen, p.b.weight, s.n, p.b.delta, !s.streaming});
  }
  *any = w.resident > 0;
  if (!*any) return cudaSuccess;
  const RoutedFew args = {
      &w[Slot::ExpertGate], &w[Slot::ExpertUp], &w[Slot::ExpertDown],           w.slot_of, p.b.chosen, p.b.weight,
      c.experts_used,       c.experts,          forms_for(p.b.expert_mid, s.n), p.b.delta};
  return route_few(p.stream, p.b.h, s.n, args);
}

// The shared expert on a stream of its own, beside the router and the routed ones: with few tokens each of these is too small
// to fill the device.
cudaError_t share_beside(Part& p, const Step& s, const Layer& w) {
  CUDA_TRY(cudaEventRecord(p.forked, p.stream));
  CUDA_TRY(cudaStreamWaitEvent(p.side, p.forked));
  CUDA_TRY(feed_few(p, s.n, w[Slot::SharedGate], w[Slot::SharedUp],
                    {&w[Slot::SharedDown], p.b.shared, p.options.config.hidden, false}, p.side));
  CUDA_TRY(cudaEventRecord(p.joined, p.side));
  return cudaSuccess;
}

cudaError_t moe_ffn(Part& p, const Step& s, uint32_t layer) {
  const ModelConfig& c = p.options.config;
  const Layer& w = p.layer(layer);
  const uint32_t number = layer - c.dense_layers + 1;
  const bool by_ranks = p.exchange && !s.streaming;
  const bool beside = c.shared_width && s.n <= kFewRows && !by_ranks && !p.options.profile && !p.options.limits.taps;
  CUDA_TRY(norm(p, s, w[Vector::FfnNorm]));
  if (beside) CUDA_TRY(share_beside(p, s, w));
  CUDA_TRY(choose_experts(p, s, layer, by_ranks ? number : 0));
  CUDA_TRY(p.mark(Stage::Router));
  bool any = false;
  CUDA_TRY(routed_experts(p, s, layer, &any));
  CUDA_TRY(p.mark(Stage::ExpertsIn));
  if (beside) {
    CUDA_TRY(cudaStreamWaitEvent(p.stream, p.joined));
    p.pending = any ? p.b.delta : nullptr;
    p.also_pending = p.b.shared;
    return cudaSuccess;
  }
  if (c.shared_width) {
    CUDA_TRY(feed_forward(p, s, w[Slot::SharedGate], w[Slot::SharedUp], w[Slot::SharedDown], any));
    any = true;
  }
  CUDA_TRY(p.mark(Stage::ExpertsOut));
  if (by_ranks) p.pending_wait = {*p.exchange, number, p.options.wait_milliseconds};
  // Otherwise the next norm waits, which is sooner.
  if (p.options.profile || p.options.limits.taps) CUDA_TRY(await_pending(p));
  CUDA_TRY(p.mark(Stage::Wait));
  p.pending = any ? p.b.delta : nullptr;
  p.also_pending = by_ranks ? p.exchange->sum : nullptr;
  if (p.options.limits.taps && p.also_pending) {
    if (!any) CUDA_TRY(cudaMemsetAsync(p.b.delta, 0, uint64_t{s.n} * c.hidden * sizeof(float), p.stream));
    CUDA_TRY(add_to(p.stream, p.also_pending, uint64_t{s.n} * c.hidden, p.b.delta));
    p.pending = p.b.delta;
    p.also_pending = nullptr;
  }
  return tap(p, s, Tap::FeedForward, layer, p.b.delta);
}

// Logits of the wanted rows, few at a time: their matrix is too large to be unpacked.
cudaError_t head(Part& p, const Step& s, float* logits) {
  const ModelConfig& c = p.options.config;
  const int32_t* wanted = p.input(p.inputs.outputs);
  for (uint32_t i = 0; i < s.outputs; i += kFewRows) {
    const uint32_t n = std::min(kFewRows, s.outputs - i);
    const Rows h = forms_for(p.b.h, n);
    CUDA_TRY(add_norm(p.stream, {p.b.x, nullptr, nullptr, p.output_norm, c.rms_eps, n, wanted + i, h}));
    const Output out = {&p.output, p.b.logits, c.vocabulary, false};
    CUDA_TRY(multiply_few(p.stream, h, n, &out, 1));
    CUDA_TRY(cudaMemcpyAsync(logits + uint64_t{i} * c.vocabulary, p.b.logits,
                             uint64_t{n} * c.vocabulary * sizeof(float), cudaMemcpyDeviceToHost, p.stream));
  }
  return p.mark(Stage::Head);
}

}  // namespace

cudaError_t forward(Part& p, const Step& s, float* logits) {
  const ModelConfig& c = p.options.config;
  forget_pending(p);
  CUDA_TRY(p.mark(Stage::Count));
  if (p.first()) {
    CUDA_TRY(look_up(p.stream, p.token_embd.type, p.token_embd.packed, c.hidden, p.input(p.inputs.tokens), s.n, p.b.x));
    CUDA_TRY(tap(p, s, Tap::Embedding, 0, p.b.x));
    CUDA_TRY(p.mark(Stage::Embed));
  }
  for (uint32_t layer = p.range.begin; layer < p.range.end; layer++) {
    if (p.options.limits.taps) CUDA_TRY(complete_residual(p, s, layer));  // otherwise by the norm
    CUDA_TRY(attend(p, s, layer));
    CUDA_TRY(layer < c.dense_layers ? dense_ffn(p, s, layer) : moe_ffn(p, s, layer));
  }
  CUDA_TRY(complete_residual(p, s, p.range.end));
  return p.last() ? head(p, s, logits) : cudaSuccess;
}

}  // namespace perigee::cuda
