#include "engine_object.h"

#include <string.h>

#include "../engine/exchange.h"
#include "../engine/taps.h"

namespace perigee {

namespace {

// Bytes of `owner`'s, which lives as long as they are referenced.
template <typename T>
Napi::ArrayBuffer shared_bytes(Napi::Env env, const std::shared_ptr<T>& owner, const void* at, size_t bytes) {
  const auto release = [](Napi::BasicEnv, void*, std::shared_ptr<T>* held) { delete held; };
  return Napi::ArrayBuffer::New(env, const_cast<void*>(at), bytes, release, new std::shared_ptr<T>(owner));
}

Napi::Value refused(Napi::Env env) { return resolved(env, static_cast<int32_t>(Outcome::Refused)); }

}  // namespace

Napi::Function EngineObject::define(Napi::Env env) {
  using E = EngineObject;
  return DefineClass(env, "NativeEngine",
                     {E::InstanceMethod<&E::map_file>("mapFile"), E::InstanceMethod<&E::bind>("bind"),
                      E::InstanceMethod<&E::set_vector>("setVector"), E::InstanceMethod<&E::write_made>("writeMade"),
                      E::InstanceMethod<&E::start>("start"), E::InstanceMethod<&E::loaded_bytes>("loadedBytes"),
                      E::InstanceMethod<&E::logits>("logits"), E::InstanceMethod<&E::step>("step"),
                      E::InstanceMethod<&E::exchange>("exchange"), E::InstanceMethod<&E::serve>("serve"),
                      E::InstanceMethod<&E::weights>("weights"), E::InstanceMethod<&E::tap>("tap"),
                      E::InstanceMethod<&E::stage_times>("stageTimes"), E::InstanceMethod<&E::lost_file>("lostFile"),
                      E::InstanceMethod<&E::close>("close")});
}

// (config, limits, isa, cpus, bytes of made weights of each rank): the structs of engine/config.h as bytes.
EngineObject::EngineObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<EngineObject>(info) {
  const Napi::Env env = info.Env();
  const auto cpus = info[3].As<Napi::Int32Array>();
  const auto made = info[4].As<Napi::Float64Array>();
  ModelConfig config;
  Limits limits;
  plain_struct(info[0], config);
  plain_struct(info[1], limits);
  if (limits.ranks == 0 || limits.ranks > kMaxRanks || made.ElementLength() != limits.ranks) {
    thrown(env, "the number of ranks is out of range");
    return;
  }
  session_ =
      std::make_unique<Session>(config, limits, std::vector<int32_t>(cpus.Data(), cpus.Data() + cpus.ElementLength()),
                                [this] { heard_.NonBlockingCall(); });
  if (!session_->allocate(std::vector<uint64_t>(made.Data(), made.Data() + made.ElementLength()))) {
    thrown(env, "there is no room in the address space");
    return;
  }
  const Status status = session_->create(info[2].As<Napi::String>().Utf8Value().c_str());
  if (status != Status::Ok) {
    thrown(env, status == Status::UnknownIsa ? "this build has no such kernel table" : "the model's shape is refused");
    return;
  }
  heard_ = Heard::New(env, "perigee", 0, 1, this);
  heard_.Unref(env);  // an idle engine keeps no process alive
  // Before the hook of heard_: ranks must have ended when that is destroyed.
  napi_add_env_cleanup_hook(env, on_exit, this);
  started_ = true;
}

EngineObject::~EngineObject() { stop(); }

void EngineObject::stop() {
  if (session_) {
    session_->quit();
    session_->join();
  }
  if (!started_) return;
  started_ = false;
  heard_.Abort();
  napi_remove_env_cleanup_hook(Env(), on_exit, this);
}

bool EngineObject::open(Napi::Env env) const {
  if (session_) return true;
  thrown(env, "the engine is closed");
  return false;
}

// (path) -> what failed, '' for nothing
Napi::Value EngineObject::map_file(const Napi::CallbackInfo& info) {
  if (!open(info.Env())) return info.Env().Undefined();
  const int error = session_->map(info[0].As<Napi::String>().Utf8Value().c_str());
  return Napi::String::New(info.Env(), error ? strerror(error) : "");
}

// (rank, slot, layer, type, rowBegin, rows, columns, file or -1, offsets) -> Bound
Napi::Value EngineObject::bind(const Napi::CallbackInfo& info) {
  if (!open(info.Env())) return info.Env().Undefined();
  const auto offsets = info[8].As<Napi::Float64Array>();
  const Bound bound =
      session_->bind(u32(info[0]), static_cast<Slot>(u32(info[1])), u32(info[2]), static_cast<DType>(u32(info[3])),
                     u32(info[4]), u32(info[5]), u32(info[6]), info[7].As<Napi::Number>().Int32Value(), offsets.Data(),
                     static_cast<uint32_t>(offsets.ElementLength()));
  return Napi::Number::New(info.Env(), static_cast<int32_t>(bound));
}

// (vector, layer, type, raw) -> whether it fits
Napi::Value EngineObject::set_vector(const Napi::CallbackInfo& info) {
  if (!open(info.Env())) return info.Env().Undefined();
  const auto raw = info[3].As<Napi::Uint8Array>();
  return Napi::Boolean::New(info.Env(),
                            session_->set_vector(static_cast<Vector>(u32(info[0])), u32(info[1]),
                                                 static_cast<DType>(u32(info[2])), raw.Data(), raw.ByteLength()));
}

// (rank, offset, bytes)
Napi::Value EngineObject::write_made(const Napi::CallbackInfo& info) {
  if (!open(info.Env())) return info.Env().Undefined();
  const auto bytes = info[2].As<Napi::Uint8Array>();
  const auto offset = static_cast<uint64_t>(info[1].As<Napi::Number>().Int64Value());
  if (!session_->write_made(u32(info[0]), offset, bytes.Data(), bytes.ByteLength()))
    return thrown(info.Env(), "made weights lie outside their area");
  return info.Env().Undefined();
}

Napi::Value EngineObject::all_finish(Napi::Env env) {
  waiting_ = std::make_unique<Napi::Promise::Deferred>(env);
  expected_ = session_->finished() + 1;
  Ref();
  heard_.Ref(env);
  return waiting_->Promise();
}

// () -> Promise<Outcome>: all ranks have their weights
Napi::Value EngineObject::start(const Napi::CallbackInfo& info) {
  if (!open(info.Env())) return info.Env().Undefined();
  const Napi::Value promise = all_finish(info.Env());
  if (session_->start()) return promise;
  waiting_.reset();
  Unref();
  heard_.Unref(info.Env());
  return thrown(info.Env(), "the system gives no more threads");
}

Napi::Value EngineObject::loaded_bytes(const Napi::CallbackInfo& info) {
  const double bytes = session_ ? static_cast<double>(session_->loaded_bytes()) : 0;
  return Napi::Number::New(info.Env(), bytes);
}

// () -> Float32Array over the step block's logits. The arena lives as long as either the engine or that array.
Napi::Value EngineObject::logits(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  if (!open(env)) return env.Undefined();
  if (logits_.IsEmpty()) {
    const size_t count = size_t{session_->limits().batch_outputs} * session_->config().vocabulary;
    const float* at = engine_step_block(session_->engine())->logits;
    logits_ =
        Napi::Reference<Napi::ArrayBuffer>::New(shared_bytes(env, session_->arena(), at, count * sizeof(float)), 1);
  }
  Napi::ArrayBuffer buffer = logits_.Value();
  return Napi::Float32Array::New(env, buffer.ByteLength() / sizeof(float), buffer, 0);
}

// (tokens, positions, sequences, pageTables, outputs) -> Promise<Outcome>
Napi::Value EngineObject::step(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  if (!open(env)) return env.Undefined();
  if (waiting_ || session_->finished() == 0) return thrown(env, "a step is running");
  const bool filled = fill_step(info, session_->limits(), *engine_step_block(session_->engine()));
  if (!filled || engine_check_step(session_->engine()) != Status::Ok) return refused(env);
  const Napi::Value promise = all_finish(env);
  session_->step();
  return promise;
}

// () -> [memory, byte offsets of asked, done, failed, h, chosen, weight, sum]: the exchange of an engine of experts only
Napi::Value EngineObject::exchange(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  if (!open(env)) return env.Undefined();
  Exchange* exchange = engine_exchange(session_->engine());
  if (!exchange) return thrown(env, "the engine holds a whole model");
  const void* at[] = {&exchange->asked, &exchange->done,  &exchange->failed, exchange->h,
                      exchange->chosen, exchange->weight, exchange->sum};
  auto offsets = Napi::Float64Array::New(env, std::size(at));
  for (size_t i = 0; i < std::size(at); i++)
    offsets[i] = static_cast<double>(static_cast<const uint8_t*>(at[i]) - reinterpret_cast<const uint8_t*>(exchange));
  auto found = Napi::Array::New(env, 2);
  found.Set(0u, shared_bytes(env, session_->arena(), exchange, exchange->bytes));
  found.Set(1u, offsets);
  return found;
}

// (tokens) -> Promise<Outcome>: the ranks serve one step of a device that may start now
Napi::Value EngineObject::serve(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  if (!open(env)) return env.Undefined();
  if (waiting_ || session_->finished() == 0) return thrown(env, "a step is running");
  if (engine_begin_experts(session_->engine(), u32(info[0])) != Status::Ok) return refused(env);
  const Napi::Value promise = all_finish(env);
  session_->step();
  return promise;
}

// (file or -1, rank) -> the file's bytes, or those made for the rank. Each is asked for once.
Napi::Value EngineObject::weights(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  if (!open(env)) return env.Undefined();
  const int32_t file = info[0].As<Napi::Number>().Int32Value();
  const size_t index = file == kMade ? u32(info[1]) : static_cast<size_t>(file);
  if (index >= (file == kMade ? session_->made().size() : session_->files().size()))
    return thrown(env, "there is no such file or rank");
  if (file == kMade) {
    const std::shared_ptr<Area>& made = session_->made()[index];
    return shared_bytes(env, made, made->base(), made->bytes());
  }
  const std::shared_ptr<MappedFile>& mapped = session_->files()[index];
  return shared_bytes(env, mapped, mapped->base(), mapped->bytes());
}

// (tap, layer, tokens) -> ArrayBuffer, a copy; null where there is no such tap
Napi::Value EngineObject::tap(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  if (!open(env)) return env.Undefined();
  uint32_t width = 0;
  const void* at = engine_tap(session_->engine(), static_cast<Tap>(u32(info[0])), u32(info[1]), &width);
  if (!at || u32(info[2]) > session_->limits().batch_tokens) return env.Null();
  auto copy = Napi::ArrayBuffer::New(env, size_t{u32(info[2])} * width * sizeof(float));
  memcpy(copy.Data(), at, copy.ByteLength());
  return copy;
}

// () -> Float64Array [stages] milliseconds of the first rank
Napi::Value EngineObject::stage_times(const Napi::CallbackInfo& info) {
  constexpr size_t kStages = static_cast<size_t>(Stage::Count);
  auto times = Napi::Float64Array::New(info.Env(), kStages);
  if (session_) memcpy(times.Data(), session_->stage_milliseconds(0), kStages * sizeof(double));
  return times;
}

// () -> [file, position] of the first byte found missing, or null
Napi::Value EngineObject::lost_file(const Napi::CallbackInfo& info) {
  size_t index = 0;
  const MappedFile* file = session_ ? session_->lost_file(&index) : nullptr;
  if (!file) return info.Env().Null();
  auto found = Napi::Array::New(info.Env(), 2);
  found.Set(0u, Napi::Number::New(info.Env(), static_cast<double>(index)));
  found.Set(1u, Napi::Number::New(info.Env(), static_cast<double>(file->lost_at.load())));
  return found;
}

// () -> Promise: the ranks have ended, the memory is free, logits are empty
Napi::Value EngineObject::close(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  if (!closing_) {
    closing_ = std::make_unique<Napi::Promise::Deferred>(env);
    Ref();
    heard_.Ref(env);
    session_->quit();
    settle(env);
  }
  return closing_->Promise();
}

void EngineObject::on_heard(Napi::Env env, Napi::Function, EngineObject* self, void*) {
  if (env != nullptr) self->settle(env);
}

void EngineObject::settle(Napi::Env env) {
  if (!session_) return;
  const bool ended = session_->stopped();
  if (waiting_ && (ended || session_->finished() >= expected_)) {
    size_t index = 0;
    Outcome outcome = session_->lost_file(&index) ? Outcome::FileLost : Outcome::Done;
    if (session_->quitting()) outcome = Outcome::Closed;
    const auto deferred = std::move(waiting_);
    heard_.Unref(env);
    Unref();
    deferred->Resolve(Napi::Number::New(env, static_cast<int32_t>(outcome)));
  }
  if (!closing_ || !ended) return;
  stop();
  if (!logits_.IsEmpty()) logits_.Value().Detach();
  session_.reset();
  closing_->Resolve(env.Undefined());
  Unref();
}

}  // namespace perigee
