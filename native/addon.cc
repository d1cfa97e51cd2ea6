// The Node addon: kernel tables, and the engine as an object.
#include <napi.h>

#include "engine_object.h"
#include "self_check.h"

namespace {

using namespace perigee;

// () -> [name, refusal or ''][], fastest first
Napi::Value tables(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  auto all = Napi::Array::New(env);
  for (int index = 0; index < kernel_count(); index++) {
    const char* refusal = table_refusal(kernels_at(index));
    auto table = Napi::Array::New(env, 2);
    table.Set(0u, Napi::String::New(env, kernels_at(index).name));
    table.Set(1u, Napi::String::New(env, refusal ? refusal : ""));
    all.Set(static_cast<uint32_t>(index), table);
  }
  return all;
}

// (config, limits) -> bytes of the arena; 0 for a shape the engine refuses
Napi::Value engine_bytes(const Napi::CallbackInfo& info) {
  ModelConfig config;
  Limits limits;
  plain_struct(info[0], config);
  plain_struct(info[1], limits);
  return Napi::Number::New(info.Env(), static_cast<double>(perigee::engine_bytes(config, limits)));
}

// (type, raw, rows, columns) -> Float32Array [rows][columns]; null where they do not fit together
Napi::Value dequantize(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const uint32_t type = info[0].As<Napi::Number>().Uint32Value();
  const auto raw = info[1].As<Napi::Uint8Array>();
  const uint32_t rows = info[2].As<Napi::Number>().Uint32Value(), cols = info[3].As<Napi::Number>().Uint32Value();
  const BlockShape block = type < kDTypeCount ? block_shape(DType(type)) : BlockShape{0, 0};
  if (block.elements == 0 || cols % block.elements) return env.Null();
  const size_t bytes = row_bytes(DType(type), cols);
  if (raw.ByteLength() != bytes * rows) return env.Null();
  auto floats = Napi::Float32Array::New(env, size_t{rows} * cols);
  for (uint32_t r = 0; r < rows; r++)
    kScalarKernels.dequantize(DType(type), raw.Data() + r * bytes, cols, floats.Data() + size_t{r} * cols);
  return floats;
}

Napi::Object init(Napi::Env env, Napi::Object exports) {
  exports.Set("tables", Napi::Function::New(env, tables, "tables"));
  exports.Set("engineBytes", Napi::Function::New(env, ::engine_bytes, "engineBytes"));
  exports.Set("dequantize", Napi::Function::New(env, dequantize, "dequantize"));
  exports.Set("NativeEngine", EngineObject::define(env));
  return exports;
}

}  // namespace

NODE_API_MODULE(perigee, init)
