// What JavaScript sees of GPUs.
#include "../cuda_door.h"

#include "cuda_object.h"
#include "devices.h"

namespace perigee::cuda {

namespace {

// () -> CudaSupport
Napi::Value cuda_support(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  std::vector<DeviceInfo> devices;
  const std::string why = find_devices(devices);
  auto support = Napi::Object::New(env);
  support.Set("available", Napi::Boolean::New(env, why.empty()));
  if (!why.empty()) {
    support.Set("why", Napi::String::New(env, why));
    return support;
  }
  auto list = Napi::Array::New(env);
  for (const DeviceInfo& device : devices) {
    auto entry = Napi::Object::New(env);
    entry.Set("index", Napi::Number::New(env, device.index));
    entry.Set("name", Napi::String::New(env, device.name));
    entry.Set("capability", Napi::String::New(env, device.capability));
    entry.Set("memoryBytes", Napi::Number::New(env, static_cast<double>(device.memory_bytes)));
    entry.Set("freeBytes", Napi::Number::New(env, static_cast<double>(device.free_bytes)));
    entry.Set("multiprocessors", Napi::Number::New(env, device.multiprocessors));
    entry.Set("cacheBytes", Napi::Number::New(env, static_cast<double>(device.cache_bytes)));
    list.Set(list.Length(), entry);
  }
  support.Set("devices", list);
  return support;
}

// (device) -> GB a second, or 0
Napi::Value measure_device(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), measure_copies(info[0].As<Napi::Number>().Int32Value()));
}

}  // namespace

}  // namespace perigee::cuda

namespace perigee {

void define_cuda(Napi::Env env, Napi::Object exports) {
  exports.Set("cudaSupport", Napi::Function::New(env, cuda::cuda_support, "cudaSupport"));
  exports.Set("measureDevice", Napi::Function::New(env, cuda::measure_device, "measureDevice"));
  exports.Set("CudaEngine", cuda::CudaObject::define(env));
}

}  // namespace perigee
