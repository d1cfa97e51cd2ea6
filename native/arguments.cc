#include "arguments.h"

#include <algorithm>

namespace perigee {

namespace {

bool copy_ints(const Napi::Value& from, int32_t* to, size_t most) {
  const auto ints = from.As<Napi::Int32Array>();
  if (ints.ElementLength() > most) return false;
  std::copy_n(ints.Data(), ints.ElementLength(), to);
  return true;
}

}  // namespace

uint32_t u32(const Napi::Value& value) { return value.As<Napi::Number>().Uint32Value(); }

Napi::Value thrown(Napi::Env env, const std::string& what) {
  Napi::Error::New(env, what).ThrowAsJavaScriptException();
  return env.Undefined();
}

Napi::Value resolved(Napi::Env env, int32_t outcome) {
  const auto deferred = Napi::Promise::Deferred::New(env);
  deferred.Resolve(Napi::Number::New(env, outcome));
  return deferred.Promise();
}

bool fill_step(const Napi::CallbackInfo& info, const Limits& limits, StepBlock& block) {
  const auto tables = info[3].As<Napi::Array>();
  block.tokens_count = static_cast<uint32_t>(info[0].As<Napi::Int32Array>().ElementLength());
  block.outputs_count = static_cast<uint32_t>(info[4].As<Napi::Int32Array>().ElementLength());
  block.sequences_count = tables.Length();
  if (info[1].As<Napi::Int32Array>().ElementLength() != block.tokens_count) return false;
  if (info[2].As<Napi::Int32Array>().ElementLength() != block.tokens_count) return false;
  if (block.sequences_count > limits.batch_sequences) return false;
  for (uint32_t s = 0; s < block.sequences_count; s++) {
    const Napi::Value table = tables.Get(s);
    if (!copy_ints(table, block.page_tables + size_t{s} * block.table_stride, block.table_stride)) return false;
  }
  return copy_ints(info[0], block.tokens, limits.batch_tokens) &&
         copy_ints(info[1], block.positions, limits.batch_tokens) &&
         copy_ints(info[2], block.sequences, limits.batch_tokens) &&
         copy_ints(info[4], block.outputs, limits.batch_outputs);
}

}  // namespace perigee
