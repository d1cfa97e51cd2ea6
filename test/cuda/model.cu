// The forward pass on the device: its stages and logits beside the engine's on the CPU, and the time of a token of models as large
// as the real ones. `model small` only compares, `model tiny` the least of it, `model times` only measures.
#include <chrono>

#include "../../native/rank_thread.h"
#include "beside_engine.cuh"

using namespace perigee;
using cuda::ModelOptions;
using cuda::Part;

namespace {

constexpr uint32_t kPageTokens = 64;

struct Sequence {
  uint32_t id, begin, count;
};

// Fills a step of the given stretches of sequences; each has its own pages. Logits of every token up to 16.
void fill(StepBlock& block, uint32_t vocabulary, uint32_t pages_each, const std::vector<Sequence>& stretches) {
  block.tokens_count = block.outputs_count = 0;
  block.sequences_count = static_cast<uint32_t>(stretches.size());
  for (uint32_t s = 0; s < stretches.size(); s++) {
    const Sequence& of = stretches[s];
    for (uint32_t p = 0; p < pages_each; p++)  // scattered
      block.page_tables[s * block.table_stride + p] =
          static_cast<int32_t>(of.id * pages_each + (p * 5 + 3) % pages_each);
    for (uint32_t i = 0; i < of.count; i++) {
      const uint32_t t = block.tokens_count++;
      block.tokens[t] = static_cast<int32_t>((of.begin + i) * 37 + of.id * 101 + 7) % static_cast<int32_t>(vocabulary);
      block.positions[t] = static_cast<int32_t>(of.begin + i);
      block.sequences[t] = static_cast<int32_t>(s);
    }
  }
  const uint32_t n = block.tokens_count, wanted = std::min(n, 16u);
  for (uint32_t i = 0; i < wanted; i++) block.outputs[block.outputs_count++] = static_cast<int32_t>(n - wanted + i);
}

struct Asked {
  const char* what;
  std::vector<Sequence> stretches;
};
const std::vector<Asked> kSteps = {{"one token", {{0, 0, 1}}},
                                   {"prompt of 9", {{1, 0, 9}}},
                                   {"prompt of 100", {{0, 0, 100}}},
                                   {"token behind it", {{0, 100, 1}}},
                                   {"again, captured", {{0, 101, 1}}},
                                   {"again, replayed", {{0, 102, 1}}},
                                   {"batch of 3 sequences", {{0, 103, 1}, {1, 9, 5}, {2, 0, 2}}},
                                   {"30 tokens of 2", {{1, 14, 20}, {2, 2, 10}}},
                                   {"70 tokens, most short", {{0, 104, 1}, {1, 34, 40}, {2, 12, 29}}},
                                   {"long among short", {{0, 105, 1}, {3, 0, 90}, {1, 74, 3}}},
                                   {"rest of a prompt", {{3, 90, 100}}},
                                   {"4 sequences", {{0, 106, 1}, {1, 77, 1}, {2, 41, 1}, {3, 190, 1}}},
                                   {"two pairs", {{0, 107, 2}, {2, 42, 2}}},
                                   {"two pairs, captured", {{0, 109, 2}, {2, 44, 2}}}};
const std::vector<Asked> kTinySteps = {
    {"prompt of 20", {{0, 0, 20}}}, {"token", {{0, 20, 1}}}, {"captured", {{0, 21, 1}}}, {"replayed", {{0, 22, 1}}}};

ModelConfig small_config(bool low_rank) {
  ModelConfig c = check::small_config(3);
  if (!low_rank) c.q_rank = 0;
  return c;
}

// Like K2's, but for the number of heads.
ModelConfig wide_config() {
  ModelConfig c = small_config(true);
  c.layers = 2;
  c.hidden = 1024;
  c.heads = 16;
  c.q_rank = 512;
  c.kv_rank = 512;
  c.nope_dim = c.value_dim = 128;
  c.rope_dim = 64;
  c.dense_width = 1024;
  c.expert_width = c.shared_width = 512;
  return c;
}

Limits limits_of(uint32_t batch, uint32_t context, uint32_t sequences, bool taps) {
  Limits l = {};
  l.ranks = 1;
  l.batch_tokens = batch;
  l.batch_outputs = std::min(batch, 16u);
  l.batch_sequences = sequences;
  l.page_tokens = kPageTokens;
  l.pages = sequences * context / kPageTokens;
  l.context = context;
  l.taps = taps;
  return l;
}

ModelOptions options_of(const ModelConfig& c, const Limits& l, uint32_t parts, bool resident) {
  ModelOptions o = {c, l, {}, std::vector<int32_t>(c.layers, 0), false, 2000};
  for (uint32_t p = 0; p < parts; p++) o.parts.push_back({0, c.layers * p / parts, c.layers * (p + 1) / parts});
  for (uint32_t layer = c.dense_layers; layer < c.layers && resident; layer++)
    o.resident[layer] = static_cast<int32_t>(c.experts);
  return o;
}

// As `perigee conform` has it: stages with the engine's residuals put in, then logits of a run on the device's own values and
// without taps, which is where graphs are. That one may diverge by 1e-3, or by twice what activations in bf16 do to the engine.
void compare(const char* name, const ModelConfig& c, const check::Types& types, uint32_t parts,
             const std::vector<Asked>& steps = kSteps) {
  const Limits tapped = limits_of(128, 512, 4, true), plain = limits_of(128, 512, 4, false);
  Limits in_bf16 = plain;
  in_bf16.exact = 2;
  const check::RandomModel model(c, types);
  check::OnCpu cpu(model, tapped), rounded(model, in_bf16);
  const auto forced = check::on_device(model, options_of(c, tapped, parts, true));
  const auto own = check::on_device(model, options_of(c, plain, parts, true));
  const uint32_t pages_each = plain.context / kPageTokens;
  check::StageErrors errors;
  double kl = 0, of_rounding = 0;
  for (const Asked& asked : steps) {
    StepBlock& there = *engine_step_block(*cpu.engine);
    for (StepBlock* block : {&there, engine_step_block(*rounded.engine), &forced->block(), &own->block()})
      fill(*block, c.vocabulary, pages_each, asked.stretches);
    if (engine_check_step(*cpu.engine) != Status::Ok || !own->block_is_sound()) check::must("a bad step");
    engine_forward(*cpu.engine, 0);
    engine_forward(*rounded.engine, 0);
    std::string failure;
    forced->step(false, &failure, check::residuals_of(*cpu.engine, there.tokens_count).data());
    check::must(failure);
    own->step(false, &failure);
    check::must(failure);
    check::compare_taps(*forced, *cpu.engine, there.tokens_count, errors);
    const uint32_t rows = there.outputs_count;
    errors.add(check::kTapCount, 0, forced->block().logits, there.logits, size_t{rows} * c.vocabulary);
    kl += check::divergence(there.logits, own->block().logits, rows, c.vocabulary) / steps.size();
    of_rounding +=
        check::divergence(there.logits, engine_step_block(*rounded.engine)->logits, rows, c.vocabulary) / steps.size();
  }
  printf("     %s:", name);
  for (size_t i = 0; i < check::kTapCount; i++) printf(" %s %.1e", check::kTaps[i].name, errors.worst(i));
  printf(" logits %.1e\n", errors.worst(check::kTapCount));
  char line[160];
  snprintf(line, sizeof line, "%s: %zu steps, every stage within %.0e of its inputs", name, steps.size(),
           check::kStage);
  check::expect(errors.within(), line);
  snprintf(line, sizeof line, "%s: on its own values KL %.1e, activations in bf16 %.1e", name, kl, of_rounding);
  check::expect(kl <= std::max(1e-3, 2 * of_rounding), line);
}

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

struct Speed {
  double bytes;  // of weights that a token reads
  ModelOptions options;
  std::unique_ptr<Part> part;
};

Speed large(const ModelConfig& c, const Limits& limits, bool resident) {
  Speed to = {0, options_of(c, limits, 1, resident), nullptr};
  check::must(cuda::DeviceModel::refusal(to.options));
  return to;
}

// A few random rows again and again, on the device: times depend on where weights lie, not on what they are.
uint8_t* repeated(DType type, MatrixShape shape, std::mt19937& from) {
  const uint32_t distinct = std::min(16u, shape.rows);
  const auto rows = check::random_rows(type, distinct, shape.cols, distinct, from);
  const size_t bytes = shape.rows * row_bytes(type, shape.cols);
  uint8_t* raw = check::device<uint8_t>(bytes);
  MUST(cudaMemcpy(raw, rows.data(), rows.size(), cudaMemcpyHostToDevice));
  for (size_t done = rows.size(); done < bytes; done *= 2)
    MUST(cudaMemcpy(raw + done, raw, std::min(done, bytes - done), cudaMemcpyDeviceToDevice));
  return raw;
}

void load(Speed& to, const check::Types& types) {
  const ModelConfig& c = to.options.config;
  to.part = std::make_unique<Part>(to.options, to.options.parts[0]);
  MUST(to.part->open());
  std::map<std::tuple<DType, uint32_t, uint32_t>, uint8_t*> made;
  std::mt19937 from(3);
  check::for_each_matrix(c, [&](Slot slot, uint32_t layer, MatrixShape shape) {
    const DType type = check::type_of(types, slot);
    const bool routed = slot >= Slot::ExpertGate && slot <= Slot::ExpertDown;
    const uint64_t bytes = shape.rows * row_bytes(type, shape.cols);
    if (routed && to.options.resident[layer] == 0) return;
    uint8_t*& raw = made[{type, shape.rows, shape.cols}];
    if (!raw) raw = repeated(type, shape, from);
    for (uint32_t i = 0; i < shape.count; i++) MUST(to.part->upload(slot, layer, type, i, raw, bytes));
    if (slot != Slot::TokenEmbd) to.bytes += double(bytes) * (routed ? c.experts_used : shape.count);
  });
  for (const auto& [key, raw] : made) cudaFree(raw);
  std::vector<std::vector<float>> vectors(size_t{c.layers} * cuda::kVectors);
  const uint32_t lengths[] = {c.hidden, c.hidden, c.hidden, c.q_rank, c.kv_rank, c.experts};
  for (size_t i = 0; i < vectors.size(); i++) {
    const bool bias = i % cuda::kVectors == static_cast<size_t>(Vector::RouterBias);
    vectors[i].assign(lengths[i % cuda::kVectors], bias ? 0.0f : 1.0f);
  }
  MUST(to.part->start(vectors.data()));
}

// Median milliseconds of a step by graph, and by stage without.
void time_tokens(const char* name, Speed& s, uint32_t n, uint32_t position, float* logits) {
  Part& part = *s.part;
  cuda::StepInputs inputs(s.options.limits);
  std::vector<int32_t> words(inputs.words, 0);
  const uint32_t pages_each = s.options.limits.context / kPageTokens;
  cuda::Step step = {n, n, cuda::positions_bucket(position + 1, s.options.limits.context), false, false, {}};
  for (uint32_t t = 0; t < n; t++) {
    words[inputs.tokens + t] = static_cast<int32_t>(17 * t + 5);
    words[inputs.positions + t] = static_cast<int32_t>(position);
    words[inputs.sequences + t] = words[inputs.outputs + t] = static_cast<int32_t>(t);
    for (uint32_t p = 0; p < pages_each; p++)
      words[inputs.page_tables + t * inputs.table_stride + p] = static_cast<int32_t>(t * pages_each + p);
    step.runs.push_back({t, 1, t, static_cast<int32_t>(position)});
  }
  MUST(cudaMemcpy(part.b.inputs, words.data(), words.size() * sizeof(int32_t), cudaMemcpyHostToDevice));
  cuda::StepGraphs graphs;
  cudaEvent_t begin, end;
  MUST(cudaEventCreate(&begin));
  MUST(cudaEventCreate(&end));
  std::vector<double> times;
  for (int i = 0; i < 25; i++) {
    MUST(cudaEventRecord(begin, part.stream));
    MUST(graphs.run(part, step, logits));
    MUST(cudaEventRecord(end, part.stream));
    MUST(cudaEventSynchronize(end));
    float passed;
    MUST(cudaEventElapsedTime(&passed, begin, end));
    if (i > 4) times.push_back(passed);
  }
  std::sort(times.begin(), times.end());
  const double median = times[times.size() / 2], least = s.bytes / 4.3e9;
  printf(
      "%-10s n %2u: %.3f ms a step, %.1f tokens/s; weights alone %.3f ms at 4.3 TB/s (%.0f %%; n > 1: of dense "
      "parts)\n",
      name, n, median, 1000 * n / median, least, 100 * least / median);
  if (n > 1) return;
  static const char* const names[] = {"embed",      "qkv",         "query", "attention", "attention-out", "router",
                                      "experts-in", "experts-out", "dense", "head",      "wait"};
  double stages[cuda::kStages] = {};
  s.options.profile = true;
  for (int i = 0; i < 5; i++) {
    MUST(cuda::forward(part, step, logits));
    MUST(cudaStreamSynchronize(part.stream));
    MUST(part.collect_times(stages));
  }
  s.options.profile = false;
  if (s.options.config.layers == 61)
    check::figure("GPU part of a token of Kimi K2, Q8_0", median, "ms", check::Asked::AtMost, 3.5);
  printf("  stage by stage, launched one by one (ms):");
  for (size_t i = 0; i < cuda::kStages; i++) printf(" %s %.3f", names[i], stages[i] / 5);
  printf("\n");
  fflush(stdout);
}

void time_prompt(const char* name, Speed& s, uint32_t n, float* logits) {
  Part& part = *s.part;
  cuda::StepInputs inputs(s.options.limits);
  std::vector<int32_t> words(inputs.words, 0);
  for (uint32_t t = 0; t < n; t++) words[inputs.tokens + t] = words[inputs.positions + t] = static_cast<int32_t>(t);
  for (uint32_t p = 0; p * kPageTokens < n; p++) words[inputs.page_tables + p] = static_cast<int32_t>(p);
  words[inputs.outputs] = static_cast<int32_t>(n - 1);
  MUST(cudaMemcpy(part.b.inputs, words.data(), words.size() * sizeof(int32_t), cudaMemcpyHostToDevice));
  const cuda::Step step = {n, 1, n, false, false, {{0, n, 0, 0}}};
  double best = 1e9;
  for (int i = 0; i < 3; i++) {
    const double before = seconds();
    MUST(cuda::forward(part, step, logits));
    MUST(cudaStreamSynchronize(part.stream));
    best = std::min(best, seconds() - before);
  }
  printf("%-10s prompt of %u: %.1f ms, %.0f tokens/s\n", name, n, 1e3 * best, n / best);
  fflush(stdout);
}

ModelConfig k2_config() {
  ModelConfig c = check::small_config(61);
  check::widen_to_k2(c);
  c.vocabulary = 163840;
  return c;
}

ModelConfig moonlight_config() {
  ModelConfig c = wide_config();
  c.layers = 27;
  c.hidden = 2048;
  c.vocabulary = 163840;
  c.q_rank = 0;
  c.dense_width = 11264;
  c.experts = 64;
  c.experts_used = 6;
  c.expert_width = 1408;
  c.shared_width = 2816;
  return c;
}

constexpr check::Types kQ8 = {DType::Q8_0, DType::Q8_0, DType::Q8_0, DType::Q8_0, DType::Q8_0};

void compare_all() {
  constexpr check::Types mixed = {DType::Q4_K, DType::Q4_K, DType::Q6_K, DType::Q8_0, DType::Q6_K};
  constexpr check::Types floats = {DType::F32, DType::F32, DType::F32, DType::F32, DType::F32};
  compare("F32", small_config(true), floats, 1);
  compare("Q8_0", small_config(true), kQ8, 1);
  compare("Q4_K mix, no q_rank", small_config(false), mixed, 1);
  compare("Q8_0, two parts", small_config(true), kQ8, 2);
  compare("Q8_0, K2's heads", wide_config(), kQ8, 1);
}

void time_all() {
  float* logits;
  MUST(cudaHostAlloc(&logits, size_t{16} * 163840 * sizeof(float), 0));
  {
    Speed k2 = large(k2_config(), limits_of(16, 2048, 16, false), false);
    load(k2, kQ8);
    for (const uint32_t n : {1u, 2u, 4u, 8u, 16u}) time_tokens("K2 dense", k2, n, 1023, logits);
  }
  {
    constexpr check::Types k_m = {DType::Q4_K, DType::Q4_K, DType::Q5_0, DType::Q8_0, DType::Q6_K};
    Speed moonlight = large(moonlight_config(), limits_of(2048, 4096, 16, false), true);
    load(moonlight, k_m);
    for (const uint32_t n : {1u, 4u, 16u}) time_tokens("Moonlight", moonlight, n, 1023, logits);
    for (const uint32_t n : {128u, 512u, 2048u}) time_prompt("Moonlight", moonlight, n, logits);
  }
}

}  // namespace

int main(int count, char** arguments) {
  RankThread mine = {};
  mine.kernels = kernels_named(check::kTable);
  rank_thread = &mine;
  const std::string only = count > 1 ? arguments[1] : "";
  if (only == "tiny") {
    compare("Q8_0", check::small_config(2), kQ8, 1, kTinySteps);
    return check::done();
  }
  if (only != "times") compare_all();
  if (only != "small") time_all();
  return check::done();
}
