// The Node addon: kernel tables, and the engine as an object.
#include <napi.h>

#include "cpu.h"
#include "cuda_door.h"
#include "engine_object.h"
#include "limits.h"
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

// A measurement on a thread of Node's pool, which starts those that measure.
class Measuring : public Napi::AsyncWorker {
 public:
  Measuring(Napi::Env env, uint32_t threads, const Kernels& table, std::vector<int32_t> cpus)
      : AsyncWorker(env), done_(env), threads_(threads), table_(table), cpus_(std::move(cpus)) {}
  Napi::Promise promise() const { return done_.Promise(); }

  void Execute() override { limits_ = measure_limits(threads_, table_, cpus_); }
  void OnOK() override {
    auto result = Napi::Array::New(Env(), 2);
    result.Set(0u, Napi::Number::New(Env(), limits_.read_gb_per_second));
    result.Set(1u, Napi::Number::New(Env(), limits_.int8_gops));
    done_.Resolve(result);
  }

 private:
  Napi::Promise::Deferred done_;
  uint32_t threads_;
  const Kernels& table_;
  std::vector<int32_t> cpus_;
  MachineLimits limits_ = {};
};

// (threads, isa, cpus) -> Promise<[GB read a second, 10^9 8-bit operations a second]>
Napi::Value measure(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const uint32_t threads = info[0].As<Napi::Number>().Uint32Value();
  const Kernels* table = kernels_named(info[1].As<Napi::String>().Utf8Value().c_str());
  const auto cpus = info[2].As<Napi::Int32Array>();
  if (!table || !cpu_runs(*table) || threads == 0) {
    Napi::Error::New(env, "this CPU does not run that table").ThrowAsJavaScriptException();
    return env.Undefined();
  }
  auto* measuring =
      new Measuring(env, threads, *table, std::vector<int32_t>(cpus.Data(), cpus.Data() + cpus.ElementLength()));
  const Napi::Promise promise = measuring->promise();
  measuring->Queue();
  return promise;
}

Napi::Object init(Napi::Env env, Napi::Object exports) {
  exports.Set("tables", Napi::Function::New(env, tables, "tables"));
  exports.Set("engineBytes", Napi::Function::New(env, ::engine_bytes, "engineBytes"));
  exports.Set("dequantize", Napi::Function::New(env, dequantize, "dequantize"));
  exports.Set("measure", Napi::Function::New(env, measure, "measure"));
  exports.Set("NativeEngine", EngineObject::define(env));
  define_cuda(env, exports);
  return exports;
}

}  // namespace

NODE_API_MODULE(perigee, init)
