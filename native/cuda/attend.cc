// Attention of a layer, as engine/mla.cc has it: over latents for few tokens, over keys and values made from them for prompts.
#include <algorithm>
#include <cmath>

#include "attention.h"
#include "copies.h"
#include "products.h"
#include "recipe.h"

namespace perigee::cuda {

namespace {

// Whatever the checkpoint's eps: see engine/mla.cc.
constexpr float kLatentEps = 1e-6f;

Rows only_float(const Rows& rows) { return {rows.cols, rows.f32, nullptr, nullptr, nullptr, nullptr}; }

float softmax_scale(const ModelConfig& c) {
  return c.attention_factor * c.attention_factor / std::sqrt(static_cast<float>(c.query_dim()));
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

}  // namespace

cudaError_t attend(Part& p, const Step& s, uint32_t layer) {
  const ModelConfig& c = p.options.config;
  const Layer& w = p.layer(layer);
  CUDA_TRY(norm(p, s, w[Vector::AttnNorm]));
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

}  // namespace perigee::cuda
