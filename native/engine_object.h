// Session as a JavaScript object.
#pragma once
#include <napi.h>
#include <memory>

#include "arguments.h"
#include "session.h"

namespace perigee {

// Everything but close() must not be called again after it; src/runtime/native-runtime.ts sees to that, and what is called
// all the same throws.
class EngineObject : public Napi::ObjectWrap<EngineObject> {
 public:
  static Napi::Function define(Napi::Env env);
  explicit EngineObject(const Napi::CallbackInfo& info);
  ~EngineObject() override;

 private:
  Napi::Value map_file(const Napi::CallbackInfo& info);
  Napi::Value bind(const Napi::CallbackInfo& info);
  Napi::Value set_vector(const Napi::CallbackInfo& info);
  Napi::Value write_made(const Napi::CallbackInfo& info);
  Napi::Value start(const Napi::CallbackInfo& info);
  Napi::Value loaded_bytes(const Napi::CallbackInfo& info);
  Napi::Value logits(const Napi::CallbackInfo& info);
  Napi::Value step(const Napi::CallbackInfo& info);
  Napi::Value exchange(const Napi::CallbackInfo& info);
  Napi::Value serve(const Napi::CallbackInfo& info);
  Napi::Value weights(const Napi::CallbackInfo& info);
  Napi::Value tap(const Napi::CallbackInfo& info);
  Napi::Value stage_times(const Napi::CallbackInfo& info);
  Napi::Value lost_file(const Napi::CallbackInfo& info);
  Napi::Value close(const Napi::CallbackInfo& info);

  // False, with an exception pending, once closed.
  bool open(Napi::Env env) const;
  // A promise for the moment when all ranks have finished once more; call it before they are asked to.
  Napi::Value all_finish(Napi::Env env);
  // Resolves what the ranks' progress allows to resolve.
  void settle(Napi::Env env);
  // Ends the threads and what belongs to them; later calls do nothing.
  void stop();
  static void on_exit(void* self) { static_cast<EngineObject*>(self)->stop(); }

  static void on_heard(Napi::Env env, Napi::Function, EngineObject* self, void*);
  using Heard = Napi::TypedThreadSafeFunction<EngineObject, void, on_heard>;

  std::unique_ptr<Session> session_;  // null once closed
  Heard heard_;
  Napi::Reference<Napi::ArrayBuffer> logits_;
  std::unique_ptr<Napi::Promise::Deferred> waiting_;  // for loading or the step in flight
  int32_t expected_ = 0;                              // Session::finished() that settles it
  std::unique_ptr<Napi::Promise::Deferred> closing_;
  bool started_ = false;  // heard_ and the cleanup hook exist
};

}  // namespace perigee
