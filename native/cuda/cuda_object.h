// DeviceModel as a JavaScript object (src/runtime/cuda-addon.ts).
#pragma once
#include <napi.h>

#include <deque>
#include <memory>
#include <mutex>

#include "device_model.h"
#include "worker.h"

namespace perigee::cuda {

// The model is only touched by the worker's thread, but for what runs between steps: a caller asks for one thing at a time.
class CudaObject : public Napi::ObjectWrap<CudaObject> {
 public:
  static Napi::Function define(Napi::Env env);
  explicit CudaObject(const Napi::CallbackInfo& info);
  ~CudaObject() override;

 private:
  Napi::Value upload(const Napi::CallbackInfo& info);
  Napi::Value set_vector(const Napi::CallbackInfo& info);
  Napi::Value attach_exchange(const Napi::CallbackInfo& info);
  Napi::Value attach_experts(const Napi::CallbackInfo& info);
  Napi::Value start(const Napi::CallbackInfo& info);
  Napi::Value logits(const Napi::CallbackInfo& info);
  Napi::Value step(const Napi::CallbackInfo& info);
  Napi::Value failure(const Napi::CallbackInfo& info);
  Napi::Value tap(const Napi::CallbackInfo& info);
  Napi::Value stage_times(const Napi::CallbackInfo& info);
  Napi::Value expert_counts(const Napi::CallbackInfo& info);
  Napi::Value place_expert(const Napi::CallbackInfo& info);
  Napi::Value measure_streaming(const Napi::CallbackInfo& info);
  Napi::Value close(const Napi::CallbackInfo& info);

  using Deferred = std::shared_ptr<Napi::Promise::Deferred>;
  using Settle = std::function<void(Napi::Env)>;

  // False, with an exception pending, once closed or closing.
  bool open(Napi::Env env) const;
  // A promise that keeps the object and the process alive until it is settled.
  Deferred promise(Napi::Env env);
  // Has `settle` run on the thread of JavaScript.
  void finish(Settle settle);
  void settle_all(Napi::Env env);
  void stop();
  static void on_exit(void* self) { static_cast<CudaObject*>(self)->stop(); }
  static void on_heard(Napi::Env env, Napi::Function, CudaObject* self, void*);
  using Heard = Napi::TypedThreadSafeFunction<CudaObject, void, on_heard>;

  std::unique_ptr<DeviceModel> model_;  // null once closed
  std::unique_ptr<Worker> worker_, placer_;
  Heard heard_;
  Napi::Reference<Napi::ArrayBuffer> logits_;
  std::vector<Napi::Reference<Napi::Uint8Array>> memory_;  // of the ranks, which the devices read
  Napi::Reference<Napi::Float32Array> residuals_;          // of the step that is running
  std::mutex mutex_;
  std::deque<Settle> finished_;  // under mutex_
  uint32_t promised_ = 0;        // promises that are not settled
  std::string failure_;
  Deferred closing_;
  bool stepping_ = false, started_ = false, listening_ = false;
};

}  // namespace perigee::cuda
