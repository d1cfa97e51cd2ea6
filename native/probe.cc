// Test-only addon: one kernel at a time on the bytes of an ArrayBuffer, the native twin of engine/probe.cc. Where a kernel
// takes a pointer, the caller gives a byte offset; 0 is null.
//
//   tables                                     names of the tables this CPU runs, fastest first
//   call(buffer, kernel, table, ...numbers)    table: an index into tables
#include <napi.h>

#include <vector>

#include "../engine/math.h"
#include "cpu.h"

namespace {

using namespace perigee;

std::vector<const Kernels*> runnable() {
  std::vector<const Kernels*> tables;
  for (int i = 0; i < kernel_count(); i++)
    if (cpu_runs(kernels_at(i))) tables.push_back(&kernels_at(i));
  return tables;
}

// The arguments of one call, taken in order.
class Arguments {
 public:
  Arguments(const Napi::CallbackInfo& info, uint32_t first)
      : info_(info), memory_(static_cast<uint8_t*>(info[0].As<Napi::ArrayBuffer>().Data())), next_(first) {}

  double number() { return info_[next_++].As<Napi::Number>().DoubleValue(); }
  uint32_t count() { return uint32_t(number()); }
  float real() { return float(number()); }

  template <typename T>
  T* at() {
    const size_t offset = size_t(number());
    return offset == 0 ? nullptr : address<T>(offset);
  }

  template <typename T>
  T* address(size_t offset) {
    return reinterpret_cast<T*>(memory_ + offset);
  }

 private:
  const Napi::CallbackInfo& info_;
  uint8_t* memory_;
  uint32_t next_;
};

// Braced initializers are evaluated from left to right, so the order here is the order of the arguments.

double matmul(const Kernels& k, Arguments& in) {
  const uint32_t type = in.count(), exact = in.count();
  const MatmulArgs args = {in.at<const uint8_t>(),
                           in.at<const uint8_t>(),
                           in.at<const int32_t>(),
                           in.at<float>(),
                           in.count(),
                           in.count(),
                           in.count(),
                           in.count(),
                           in.count()};
  k.matmul[type][exact](args);
  return 0;
}

double attention(const Kernels& k, Arguments& in) {
  const float* q = in.at<const float>();
  const auto* offsets = in.at<const int32_t>();
  AttentionArgs args = {q,
                        nullptr,
                        in.at<const int32_t>(),
                        in.at<float>(),
                        in.at<float>(),
                        in.count(),
                        in.real(),
                        in.count(),
                        in.count(),
                        in.count(),
                        in.count(),
                        in.count()};
  int32_t longest = 0;
  for (uint32_t r = 0; r < args.rows; r++) longest = args.lengths[r] > longest ? args.lengths[r] : longest;
  std::vector<const float*> pages;
  for (uint32_t p = 0; p * args.page_tokens < uint32_t(longest); p++)
    pages.push_back(in.address<const float>(size_t(uint32_t(offsets[p]))));
  args.pages = pages.data();
  k.attention(args);
  return 0;
}

double dequantize(const Kernels& k, Arguments& in) {
  const auto type = DType(in.count());
  const auto* w = in.at<const uint8_t>();
  const uint32_t cols = in.count();
  k.dequantize(type, w, cols, in.at<float>());
  return 0;
}

double quantize(const Kernels& k, Arguments& in) {
  const Activation kind = activation_for(DType(in.count()), false);
  const auto* x = in.at<const float>();
  const uint32_t cols = in.count();
  k.quantize(kind, x, cols, in.at<uint8_t>());
  return 0;
}

double rms_norm(const Kernels& k, Arguments& in) {
  const auto *x = in.at<const float>(), *weight = in.at<const float>();
  const float eps = in.real();
  const uint32_t n = in.count();
  k.rms_norm(x, weight, eps, n, in.at<float>());
  return 0;
}

double silu_mul(const Kernels& k, Arguments& in) {
  auto* gate = in.at<float>();
  const auto* up = in.at<const float>();
  k.silu_mul(gate, up, in.count());
  return 0;
}

double sigmoid(const Kernels& k, Arguments& in) {
  auto* x = in.at<float>();
  k.sigmoid(x, in.count());
  return 0;
}

double softmax(const Kernels& k, Arguments& in) {
  auto* x = in.at<float>();
  k.softmax(x, in.count());
  return 0;
}

double axpy(const Kernels& k, Arguments& in) {
  const float a = in.real();
  const auto* x = in.at<const float>();
  const uint32_t n = in.count();
  k.axpy(a, x, n, in.at<float>());
  return 0;
}

double twelve_bits_of(const Kernels& k, Arguments& in) {
  auto* x = in.at<float>();
  k.twelve_bits(x, in.count());
  return 0;
}

double activation_row(const Kernels&, Arguments& in) {
  const auto type = DType(in.count());
  const bool exact = in.count() != 0;
  return double(activation_row_bytes(activation_for(type, exact), in.count()));
}

double exp_floats(const Kernels&, Arguments& in) {
  auto* x = in.at<float>();
  for (uint32_t i = 0, n = in.count(); i < n; i++) x[i] = exp_float(x[i]);
  return 0;
}

constexpr struct {
  const char* name;
  double (*run)(const Kernels&, Arguments&);
} kCalls[] = {
    {"matmul", matmul},
    {"attention", attention},
    {"dequantize", dequantize},
    {"quantize", quantize},
    {"rms_norm", rms_norm},
    {"silu_mul", silu_mul},
    {"sigmoid", sigmoid},
    {"softmax", softmax},
    {"axpy", axpy},
    {"twelve_bits", twelve_bits_of},
    {"activation_row_bytes", activation_row},
    {"exp_float", exp_floats},
    {"exp", [](const Kernels&, Arguments& in) { return exp_double(in.number()); }},
    {"log", [](const Kernels&, Arguments& in) { return log_double(in.number()); }},
    {"sin", [](const Kernels&, Arguments& in) { return sin_cos_double(in.number()).sin; }},
    {"cos", [](const Kernels&, Arguments& in) { return sin_cos_double(in.number()).cos; }},
};

Napi::Value call(const Napi::CallbackInfo& info) {
  const std::string kernel = info[1].As<Napi::String>();
  const std::vector<const Kernels*> tables = runnable();
  const uint32_t table = info[2].As<Napi::Number>();
  for (const auto& known : kCalls)
    if (kernel == known.name && table < tables.size()) {
      Arguments in(info, 3);
      return Napi::Number::New(info.Env(), known.run(*tables[table], in));
    }
  Napi::Error::New(info.Env(), "no kernel " + kernel + " in table " + std::to_string(table))
      .ThrowAsJavaScriptException();
  return info.Env().Undefined();
}

Napi::Object start(Napi::Env env, Napi::Object exports) {
  Napi::Array names = Napi::Array::New(env);
  for (const Kernels* table : runnable()) names.Set(names.Length(), Napi::String::New(env, table->name));
  exports.Set("tables", names);
  exports.Set("call", Napi::Function::New(env, call));
  return exports;
}

}  // namespace

NODE_API_MODULE(probe, start)
