// The recipe, as engine/model.cc, mla.cc and ffn.cc have it. What a stage leaves for the residual is added by the norm that
// comes next.
#include "forward.h"

#include <algorithm>
#include <cmath>

#include "attention.h"
#include "copies.h"
#include "products.h"

namespace perigee::cuda {

namespace {

// Whatever the checkpoint's eps: see engine/mla.cc.
constexpr float kLatentEps = 1e-6f;

Rows row_at(const Rows& rows, uint64_t row) {
  Rows at = rows;
  const uint64_t padded = row * padded_cols(rows.cols);
  if (at.f32) at.f32 += row * rows.cols;
  if (at.wide) at.wide += row * rows.cols;
  if (at.q) at.q += padded, at.scale += padded / 32, at.sum += padded / 16;
  return at;
}

// The forms that products of `n` rows read.
Rows forms_for(const Rows& rows, uint32_t n) {
  Rows forms = rows;
  if (n <= kQuantizedRows) {
    forms.wide = nullptr;
  } else {
    forms.q = nullptr;
    forms.scale = forms.sum = nullptr;
  }
  return forms;
}

Rows only_float(const Rows& rows) { return {rows.cols, rows.f32, nullptr, nullptr, nullptr, nullptr}; }

float softmax_scale(const ModelConfig& c) {
  return c.attention_factor * c.attention_factor / std::sqrt(static_cast<float>(c.query_dim()));
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

// x += what is pending, h = RMSNorm(x).
cudaError_t norm(Part& p, const Step& s, const float* weight) {
  Rows h = forms_for(p.b.h, s.n);
  if (s.streaming || s.n > kFewRows) h.wide = p.b.h.wide;  // for routed experts
  const AddNorm args = {p.b.x,   p.pending, p.also_pending, weight, p.options.config.rms_eps, s.n,
                        nullptr, h,         p.pending_wait};
  forget_pending(p);
  return add_norm(p.stream, args);
}

// The same without a norm.
cudaError_t add_pending(Part& p, const Step& s) {
  const uint64_t count = uint64_t{s.n} * p.options.config.hidden;
  if (p.pending) CUDA_TRY(add_to(p.stream, p.pending, count, p.b.x));
  CUDA_TRY(await_pending(p));
  if (p.also_pending) CUDA_TRY(add_to(p.stream, p.also_pending, count, p.b.x));
  forget_pending(p);
  return cudaSuccess;
}

PagedLatents latents_of(const Part& p, uint32_t layer) {
  const ModelConfig& c = p.options.config;
  return {p.pages(layer), p.input(p.inputs.page_tables), p.inputs.table_stride, p.options.limits.page_tokens, c.kv_rank,
          c.rope_dim};
}

// qkv = [W_qa h | W_kva h]; without a low-rank query the plain projection goes to q.
cudaError_t project_inputs(Part& p, const Step& s, const Layer& w) {
  const ModelConfig& c = p.options.config;
  const uint32_t width = c.q_rank + c.latent_dim();
  const Output to_qkv = {&w[Slot::AttnKVA], p.b.qkv + c.q_rank, width, false};
  const Output to_q = c.q_rank ? Output{&w[Slot::AttnQA], p.b.qkv, width, false}
                               : Output{&w[Slot::AttnQ], p.b.q, c.heads * c.query_dim(), false};
  const Output outputs[] = {to_q, to_qkv};
  return multiply(p.stream, forms_for(p.b.h, s.n), s.n, outputs, 2, p.b.space);
}

cudaError_t store(Part& p, const Step& s, const Layer& w, uint32_t layer) {
  const ModelConfig& c = p.options.config;
  Latents args = {};
  args.qkv = p.b.qkv;
  args.q_norm = w[Vector::QANorm];
  args.kv_norm = w[Vector::KVANorm];
  args.eps = kLatentEps;
  args.rope = p.b.rope;
  args.sequences = p.input(p.inputs.sequences);
  args.positions = p.input(p.inputs.positions);
  args.page_tables = p.input(p.inputs.page_tables);
  args.table_stride = p.inputs.table_stride;
  args.page_tokens = p.options.limits.page_tokens;
  args.q_rank = c.q_rank;
  args.kv_rank = c.kv_rank;
  args.rope_dim = c.rope_dim;
  args.n = s.n;
  args.pages = p.pages(layer);
  args.query = forms_for(p.b.query, s.n);
  return store_latents(p.stream, args);
}

// The KV rows that this step stored, out of their pages.
cudaError_t tap_latents(Part& p, const Step& s, uint32_t layer) {
  if (!p.options.limits.taps) return cudaSuccess;
  const uint64_t width = p.options.config.latent_dim();
  float* to =
      p.b.taps[static_cast<size_t>(Tap::Latent)] + (layer - p.range.begin) * p.options.limits.batch_tokens * width;
  for (const Run& run : s.runs) {
    for (uint32_t i = 0; i < run.count; i += kLatentRows) {
      const uint32_t rows = std::min(kLatentRows, run.count - i);
      CUDA_TRY(gather_latents(p.stream, latents_of(p, layer), run.sequence, static_cast<uint32_t>(run.first) + i, rows,
                              p.b.absorbed));
      CUDA_TRY(to_float(p.stream, p.b.absorbed, rows * width, to + (run.begin + i) * width));
    }
  }
  return cudaSuccess;
}

// Tokens begin .. end over latents: queries go into latent space, sums of latents come out of it.
cudaError_t attend_absorbed(Part& p, const Step& s, uint32_t layer, uint32_t begin, uint32_t end) {
  const ModelConfig& c = p.options.config;
  const Layer& w = p.layer(layer);
  const int32_t *positions = p.input(p.inputs.positions), *sequences = p.input(p.inputs.sequences);
  const bool all = s.n <= kFewRows;
  const Rows values = all ? forms_for(p.b.values, s.n) : only_float(p.b.values);
  for (uint32_t t = begin; t < end; t += kFewRows) {
    const AbsorbFew args = {&w[Slot::AttnKB],
                            p.b.q + uint64_t{t} * c.heads * c.query_dim(),
                            p.b.rope,
                            positions + t,
                            c.nope_dim,
                            c.rope_dim,
                            p.b.absorbed + uint64_t{t - begin} * c.heads * c.latent_dim()};
    CUDA_TRY(absorb_few(p.stream, std::min(kFewRows, end - t), args));
  }
  CUDA_TRY(p.mark(Stage::Query));
  CUDA_TRY(attend_latents(
      p.stream, {latents_of(p, layer), p.b.absorbed, sequences + begin, positions + begin, end - begin, c.heads,
                 s.most_positions, all && s.pairs, softmax_scale(c), p.b.latent, p.b.attention_space}));
  CUDA_TRY(p.mark(Stage::Attention));
  for (uint32_t t = begin; t < end; t += kFewRows) {
    CUDA_TRY(expand_few(p.stream, std::min(kFewRows, end - t), w[Slot::AttnVB],
                        p.b.latent + uint64_t{t - begin} * c.heads * c.kv_rank, row_at(values, t)));
  }
  return cudaSuccess;
}

// A long run over keys and values that are made from latents, a chunk of the context at a time.
cudaError_t attend_expanded(Part& p, uint32_t layer, const Run& run) {
  const ModelConfig& c = p.options.config;
  const Layer& w = p.layer(layer);
  const uint64_t row = run.begin;
  CUDA_TRY(rope_queries(p.stream, p.b.q + row * c.heads * c.query_dim(), p.b.rope, p.input(p.inputs.positions) + row,
                        run.count, c.heads, c.nope_dim, c.rope_dim, p.b.roped));
  CUDA_TRY(p.mark(Stage::Query));
  const uint32_t context = static_cast<uint32_t>(run.first) + run.count;
  for (uint32_t first = 0; first < context; first += kKeyChunk) {
    const uint32_t keys = std::min(kKeyChunk, context - first);
    CUDA_TRY(gather_latents(p.stream, latents_of(p, layer), run.sequence, first, keys, p.b.keys));
    const auto expand = [&](const bf16* heads, uint32_t width, bf16* to) {
      Gemm product = {};
      product.a = p.b.keys;
      product.m = keys;
      product.k = product.b_stride = c.kv_rank;
      product.a_stride = c.latent_dim();
      product.b = heads;
      product.n = product.y_stride = c.heads * width;
      product.y_wide = to;
      product.batch = 1;
      return gemm(p.stream, product);
    };
    CUDA_TRY(expand(w.k_b, c.nope_dim, p.b.k_nope));
    CUDA_TRY(expand(w.v_b, c.value_dim, p.b.v));
    PromptAttention args = {};
    args.q = p.b.roped;
    args.k_nope = p.b.k_nope;
    args.k_rope = p.b.keys + c.kv_rank;
    args.v = p.b.v;
    args.k_rope_stride = c.latent_dim();
    args.n = run.count;
    args.heads = c.heads;
    args.nope_dim = c.nope_dim;
    args.rope_dim = c.rope_dim;
    args.value_dim = c.value_dim;
    args.keys = keys;
    args.first_key = static_cast<int32_t>(first);
    args.first_query = run.first;
    args.scale = softmax_scale(c);
    args.out = p.b.values.f32 + row * c.heads * c.value_dim;
    args.lse = p.b.lse + row * c.heads;
    args.merge = first > 0;
    CUDA_TRY(attend_prompt(p.stream, args));
  }
  return p.mark(Stage::Attention);
}

cudaError_t attend_runs(Part& p, const Step& s, uint32_t layer) {
  for (size_t i = 0; i < s.runs.size();) {
    if (s.runs[i].count > kShortRun) {
      CUDA_TRY(attend_expanded(p, layer, s.runs[i++]));
      continue;
    }
    const uint32_t begin = s.runs[i].begin;
    uint32_t end = begin;
    for (; i < s.runs.size() && s.runs[i].count <= kShortRun; i++) {
      if (end + s.runs[i].count - begin > kLatentRows) break;
      end += s.runs[i].count;
    }
    CUDA_TRY(attend_absorbed(p, s, layer, begin, end));
  }
  // Rows of few have got their forms already.
  if (s.n <= kFewRows) return cudaSuccess;
  return fill_forms(p.stream, forms_for(p.b.values, s.n), s.n);
}

cudaError_t attend(Part& p, const Step& s, uint32_t layer) {
  const ModelConfig& c = p.options.config;
  const Layer& w = p.layer(layer);
  CUDA_TRY(norm(p, s, w[Vector::AttnNorm]));
  if (layer > p.range.begin) CUDA_TRY(tap(p, s, Tap::Residual, layer - 1, p.b.x));
  CUDA_TRY(project_inputs(p, s, w));
  CUDA_TRY(store(p, s, w, layer));
  CUDA_TRY(p.mark(Stage::QKV));
  CUDA_TRY(tap_latents(p, s, layer));
  if (c.q_rank) {
    const Output queries = {&w[Slot::AttnQB], p.b.q, c.heads * c.query_dim(), false};
    CUDA_TRY(multiply(p.stream, forms_for(p.b.query, s.n), s.n, &queries, 1, p.b.space));
  }
  CUDA_TRY(attend_runs(p, s, layer));
  CUDA_TRY(tap(p, s, Tap::Attention, layer, p.b.values.f32));
  const Output projected = {&w[Slot::AttnOutput], p.b.delta, c.hidden, false};
  CUDA_TRY(multiply(p.stream, forms_for(p.b.values, s.n), s.n, &projected, 1, p.b.space));
  p.pending = p.b.delta;
  return p.mark(Stage::AttentionOut);
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

// Many tokens ask for most experts: a resident few would not spare the ranks much, so those do all, unless all are resident.
bool ranks_leave_residents(const ModelConfig& c, const Layer& w, const Step& s) {
  return w.resident > 0 && (s.n <= kFewRows || w.resident == static_cast<int32_t>(c.experts));
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
  if (number > 0) args.hand_over = {*p.exchange, number, ranks_leave_residents(c, w, s) ? w.slot_of : nullptr};
  CUDA_TRY(route(p.stream, args));
  CUDA_TRY(tap(p, s, Tap::RouterScores, layer, p.b.scores));
  return tap(p, s, Tap::RouterChoices, layer, p.b.chosen);
}

// delta = the routed experts that the device computes; false in `any` when there are none.
cudaError_t routed_experts(Part& p, const Step& s, uint32_t layer, bool* any) {
  const ModelConfig& c = p.options.config;
  const Layer& w = p.layer(layer);
  const bool all = w.resident == static_cast<int32_t>(c.experts);
  *any = true;
  if (s.streaming || (all && s.n > kFewRows)) {
    const int32_t next = layer + 1 < p.range.end ? static_cast<int32_t>(layer) + 1 : ExpertStream::kNoLayer;
    return p.experts->run(p.stream, layer, next, {p.b.h.wide, p.b.chosen, p.b.weight, s.n, p.b.delta});
  }
  *any = all || ranks_leave_residents(c, w, s);
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
    CUDA_TRY(attend(p, s, layer));
    CUDA_TRY(layer < c.dense_layers ? dense_ffn(p, s, layer) : moe_ffn(p, s, layer));
  }
  CUDA_TRY(add_pending(p, s));
  CUDA_TRY(tap(p, s, Tap::Residual, p.range.end - 1, p.b.x));
  return p.last() ? head(p, s, logits) : cudaSuccess;
}

}  // namespace perigee::cuda
