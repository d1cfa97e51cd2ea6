#include "cuda_door.h"

namespace perigee {

void define_cuda(Napi::Env env, Napi::Object exports) {
  const auto support = [](const Napi::CallbackInfo& info) -> Napi::Value {
    auto none = Napi::Object::New(info.Env());
    none.Set("available", Napi::Boolean::New(info.Env(), false));
    none.Set("why", Napi::String::New(info.Env(), "the addon was built without CUDA: there was no nvcc"));
    return none;
  };
  exports.Set("cudaSupport", Napi::Function::New(env, support, "cudaSupport"));
}

}  // namespace perigee
