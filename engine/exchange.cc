#include "exchange.h"
#include "layers.h"

namespace perigee {

namespace {

// Some 50 ms of looking: the device answers within one unless it is idle or busy with a long prompt, and then being 50
// microseconds late does not matter.
#if defined(__x86_64__)
constexpr uint32_t kLooks = 1'000'000;  // with a pause of 40 to 140 cycles each
#else
constexpr uint32_t kLooks = 20'000'000;
#endif

uint32_t look(const ExchangeWord& word) { return __atomic_load_n(&word.value, __ATOMIC_ACQUIRE); }
void set(ExchangeWord& word, uint32_t value) { __atomic_store_n(&word.value, value, __ATOMIC_RELEASE); }

// False when the device has failed. Leaves the step when it was aborted.
bool await_layer(Engine& e, uint32_t number) {
  // Where ranks are more than cores, looking would keep others from their work.
  const uint32_t looks = e.limits.spins > 0 ? kLooks : 0;
  for (uint32_t i = 0; look(e.exchange->asked) < number; i += i < looks) {
    if (look(e.exchange->failed)) return false;
    if (__atomic_load_n(&e.barrier.aborted, __ATOMIC_ACQUIRE)) leave_step();
    if (i < looks) {
      relax();
    } else {
      rest();
    }
  }
  return true;
}

// sum[t] = the routed experts of the step's tokens, own rows.
void write_sums(Engine& e, Rank& rank, uint32_t layer) {
  const Weight& down = e.weight(rank, layer, Slot::ExpertDown);
  const Exchange& exchange = *e.exchange;
  open_shared(e, rank);
  add_expert_downs(e, rank, layer);
  run_shared(e, rank, Stage::ExpertsOut);
  for (uint32_t t = 0; t < e.step.tokens_count; t++) {
    float* sum = exchange.sum + static_cast<size_t>(t) * e.config.hidden + down.row_begin;
    sum_experts(e, rank, layer, t, exchange.weight, sum);
  }
  stage_done(Stage::ExpertsOut);
}

}  // namespace

Exchange* lay_out_exchange(Arena& arena, const ModelConfig& c, const Limits& l) {
  const size_t t = l.batch_tokens;
  arena.align(kExchangeAlignment);
  const uint64_t begin = arena.used();
  Exchange* placed = arena.take<Exchange>(1);
  Exchange measured;
  Exchange& exchange = placed ? *placed : measured;
  exchange = {};
  const auto floats = [&](size_t count) {
    arena.align(256);
    return arena.take<float>(count);
  };
  exchange.h = floats(t * c.hidden);
  exchange.weight = floats(t * c.experts_used);
  exchange.sum = floats(t * c.hidden);
  arena.align(256);
  exchange.chosen = arena.take<int32_t>(t * c.experts_used);
  arena.align(kExchangeAlignment);
  exchange.bytes = arena.used() - begin;
  return placed;
}

void serve_experts(Engine& e, Rank& rank) {
  Exchange& exchange = *e.exchange;
  for (uint32_t layer = e.config.dense_layers; layer < e.config.layers; layer++) {
    const uint32_t number = layer - e.config.dense_layers + 1;
    if (rank.index == 0) exchange.leave = !await_layer(e, number);
    meet(e);
    if (exchange.leave) return;
    open_shared(e, rank);
    const ExpertInput x = put_expert_input(e, rank, layer, exchange.h);
    experts_in(e, rank, layer, x, exchange.chosen);
    meet(e);
    write_sums(e, rank, layer);
    meet(e);
    if (rank.index == 0) set(exchange.done, number);
  }
}

Exchange* engine_exchange(Engine& e) { return e.exchange; }

Status engine_begin_experts(Engine& e, uint32_t tokens) {
  if (!e.exchange || tokens == 0 || tokens > e.limits.batch_tokens) return Status::BadStep;
  e.step.tokens_count = tokens;
  set(e.exchange->asked, 0);
  set(e.exchange->done, 0);
  set(e.exchange->failed, 0);
  return Status::Ok;
}

}  // namespace perigee
