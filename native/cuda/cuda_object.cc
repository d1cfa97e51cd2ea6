#include "cuda_object.h"

#include <string.h>

#include "../arguments.h"

namespace perigee::cuda {

namespace {

uint64_t offset_of(const Napi::Object& offsets, const char* name) {
  return static_cast<uint64_t>(offsets.Get(name).As<Napi::Number>().Int64Value());
}

// CudaEngineOptions
ModelOptions options_of(const Napi::Object& from) {
  ModelOptions options = {};
  plain_struct(from.Get("config"), options.config);
  plain_struct(from.Get("limits"), options.limits);
  const auto parts = from.Get("parts").As<Napi::Int32Array>();
  for (size_t i = 0; i + 2 < parts.ElementLength(); i += 3)
    options.parts.push_back({parts[i], static_cast<uint32_t>(parts[i + 1]), static_cast<uint32_t>(parts[i + 2])});
  const auto resident = from.Get("residentExperts").As<Napi::Int32Array>();
  options.resident.assign(resident.Data(), resident.Data() + resident.ElementLength());
  options.profile = from.Get("profile").ToBoolean();
  options.wait_milliseconds = u32(from.Get("waitMilliseconds"));
  return options;
}

}  // namespace

Napi::Function CudaObject::define(Napi::Env env) {
  using C = CudaObject;
  return DefineClass(
      env, "CudaEngine",
      {C::InstanceMethod<&C::upload>("upload"), C::InstanceMethod<&C::set_vector>("setVector"),
       C::InstanceMethod<&C::attach_exchange>("attachExchange"), C::InstanceMethod<&C::attach_experts>("attachExperts"),
       C::InstanceMethod<&C::start>("start"), C::InstanceMethod<&C::logits>("logits"),
       C::InstanceMethod<&C::step>("step"), C::InstanceMethod<&C::failure>("failure"),
       C::InstanceMethod<&C::tap>("tap"), C::InstanceMethod<&C::stage_times>("stageTimes"),
       C::InstanceMethod<&C::expert_counts>("expertCounts"), C::InstanceMethod<&C::place_expert>("placeExpert"),
       C::InstanceMethod<&C::measure_streaming>("measureStreaming"), C::InstanceMethod<&C::close>("close")});
}

CudaObject::CudaObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<CudaObject>(info) {
  const Napi::Env env = info.Env();
  const ModelOptions options = options_of(info[0].As<Napi::Object>());
  std::string why = DeviceModel::refusal(options);
  if (why.empty()) {
    model_ = std::make_unique<DeviceModel>(options);
    why = model_->open();
  }
  if (!why.empty()) {
    model_.reset();
    thrown(env, why);
    return;
  }
  heard_ = Heard::New(env, "perigee cuda", 0, 1, this);
  heard_.Unref(env);  // an idle engine keeps no process alive
  // Before the hook of heard_: the threads must have ended when that is destroyed.
  napi_add_env_cleanup_hook(env, on_exit, this);
  listening_ = true;
  worker_ = std::make_unique<Worker>();
  placer_ = std::make_unique<Worker>();
}

CudaObject::~CudaObject() { stop(); }

void CudaObject::stop() {
  if (model_) model_->give_up();
  // They post to each other: both have ended before either goes.
  if (worker_) worker_->quit(), placer_->quit();
  worker_.reset();
  placer_.reset();
  model_.reset();
  if (!listening_) return;
  listening_ = false;
  heard_.Abort();
  napi_remove_env_cleanup_hook(Env(), on_exit, this);
}

bool CudaObject::open(Napi::Env env) const {
  if (model_ && !closing_) return true;
  thrown(env, "the engine is closed");
  return false;
}

CudaObject::Deferred CudaObject::promise(Napi::Env env) {
  if (promised_++ == 0) {
    Ref();
    heard_.Ref(env);
  }
  return std::make_shared<Napi::Promise::Deferred>(env);
}

void CudaObject::finish(Settle settle) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    finished_.push_back(std::move(settle));
  }
  heard_.NonBlockingCall();
}

void CudaObject::on_heard(Napi::Env env, Napi::Function, CudaObject* self, void*) {
  if (env != nullptr) self->settle_all(env);
}

void CudaObject::settle_all(Napi::Env env) {
  std::deque<Settle> finished;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    finished.swap(finished_);
  }
  const uint32_t settled = static_cast<uint32_t>(finished.size());
  for (const Settle& settle : finished) settle(env);
  promised_ -= settled;
  if (settled == 0 || promised_ > 0) return;
  if (listening_) heard_.Unref(env);
  Unref();
}

// (slot, layer, type, rows, columns, count, index, bytes) -> Promise<string>
Napi::Value CudaObject::upload(const Napi::CallbackInfo& info) {
  if (!open(info.Env())) return info.Env().Undefined();
  const auto bytes = info[7].As<Napi::Uint8Array>();
  const auto held = std::make_shared<Napi::Reference<Napi::Uint8Array>>(Napi::Persistent(bytes));
  uint32_t numbers[7];
  for (size_t i = 0; i < 7; i++) numbers[i] = u32(info[i]);
  if (numbers[0] >= kSlots) return thrown(info.Env(), "there is no such slot");
  const Deferred deferred = promise(info.Env());
  worker_->post([this, deferred, held, numbers, raw = bytes.Data(), size = bytes.ByteLength()] {
    const std::string why = model_->upload(static_cast<Slot>(numbers[0]), numbers[1], static_cast<DType>(numbers[2]),
                                           numbers[3], numbers[4], numbers[5], numbers[6], raw, size);
    finish([deferred, held, why](Napi::Env e) {
      held->Reset();
      deferred->Resolve(Napi::String::New(e, why));
    });
  });
  return deferred->Promise();
}

// (vector, layer, type, raw) -> whether it fits
Napi::Value CudaObject::set_vector(const Napi::CallbackInfo& info) {
  if (!open(info.Env())) return info.Env().Undefined();
  const auto raw = info[3].As<Napi::Uint8Array>();
  return Napi::Boolean::New(
      info.Env(), model_->set_vector(static_cast<Vector>(u32(info[0])), u32(info[1]), static_cast<DType>(u32(info[2])),
                                     raw.Data(), raw.ByteLength()));
}

// (memory, offsets) -> what failed
Napi::Value CudaObject::attach_exchange(const Napi::CallbackInfo& info) {
  if (!open(info.Env())) return info.Env().Undefined();
  auto memory = info[0].As<Napi::Uint8Array>();
  const auto from = info[1].As<Napi::Object>();
  memory_.push_back(Napi::Persistent(memory));
  const ExchangeOffsets offsets = {offset_of(from, "asked"), offset_of(from, "done"),   offset_of(from, "failed"),
                                   offset_of(from, "h"),     offset_of(from, "chosen"), offset_of(from, "weight"),
                                   offset_of(from, "sum")};
  return Napi::String::New(info.Env(), model_->attach_exchange(memory.Data(), memory.ByteLength(), offsets));
}

// (slot, layer, type, rowBegin, rows, columns, memory, offsets) -> what failed
Napi::Value CudaObject::attach_experts(const Napi::CallbackInfo& info) {
  if (!open(info.Env())) return info.Env().Undefined();
  const auto memory = info[6].As<Napi::Uint8Array>();
  const auto offsets = info[7].As<Napi::Float64Array>();
  memory_.push_back(Napi::Persistent(memory));
  ExpertPart part = {static_cast<DType>(u32(info[2])),
                     u32(info[3]),
                     u32(info[4]),
                     u32(info[5]),
                     memory.Data(),
                     memory.ByteLength(),
                     {}};
  for (size_t i = 0; i < offsets.ElementLength(); i++) part.offsets.push_back(static_cast<uint64_t>(offsets[i]));
  return Napi::String::New(info.Env(),
                           model_->attach_experts(u32(info[1]), static_cast<Slot>(u32(info[0])), std::move(part)));
}

// () -> Promise<string>
Napi::Value CudaObject::start(const Napi::CallbackInfo& info) {
  if (!open(info.Env())) return info.Env().Undefined();
  const Deferred deferred = promise(info.Env());
  worker_->post([this, deferred] {
    const std::string why = model_->start();
    finish([this, deferred, why](Napi::Env e) {
      started_ = why.empty();
      deferred->Resolve(Napi::String::New(e, why));
    });
  });
  return deferred->Promise();
}

// () -> Float32Array [batchOutputs][vocabulary] over pinned memory, which lives as long as either the engine or that array
Napi::Value CudaObject::logits(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  if (!open(env)) return env.Undefined();
  if (!started_) return Napi::Float32Array::New(env, 0);
  const ModelOptions& options = model_->options();
  const size_t count = size_t{options.limits.batch_outputs} * options.config.vocabulary;
  if (logits_.IsEmpty()) {
    auto* held = new std::shared_ptr<float>(model_->logits());
    const auto release = [](Napi::BasicEnv, void*, std::shared_ptr<float>* mine) { delete mine; };
    logits_ = Napi::Reference<Napi::ArrayBuffer>::New(
        Napi::ArrayBuffer::New(env, held->get(), count * sizeof(float), release, held), 1);
  }
  return Napi::Float32Array::New(env, count, logits_.Value(), 0);
}

// (tokens, positions, sequences, pageTables, outputs, expertsBy, residuals?) -> Promise<Outcome>
Napi::Value CudaObject::step(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  if (!open(env)) return env.Undefined();
  if (stepping_ || !started_) return thrown(env, stepping_ ? "a step is running" : "the engine was not started");
  const ModelOptions& options = model_->options();
  if (!fill_step(info, options.limits, model_->block()) || !model_->block_is_sound())
    return resolved(env, static_cast<int32_t>(Outcome::Refused));
  const float* residuals = nullptr;
  if (info[6].IsTypedArray()) {
    const auto from = info[6].As<Napi::Float32Array>();
    const uint64_t rows = (options.config.layers + 1) * uint64_t{model_->block().tokens_count};
    if (!options.limits.taps || from.ElementLength() != rows * options.config.hidden)
      return resolved(env, static_cast<int32_t>(Outcome::Refused));
    residuals_ = Napi::Persistent(from);
    residuals = from.Data();
  }
  const Deferred deferred = promise(env);
  stepping_ = true;
  worker_->post([this, deferred, streaming = u32(info[5]) == 1, residuals] {
    std::string why;
    const Outcome outcome = model_->step(streaming, &why, residuals);
    finish([this, deferred, outcome, why](Napi::Env e) {
      stepping_ = false;
      residuals_.Reset();
      failure_ = why;
      deferred->Resolve(Napi::Number::New(e, static_cast<int32_t>(closing_ ? Outcome::Closed : outcome)));
    });
  });
  return deferred->Promise();
}

// () -> what the last step failed by
Napi::Value CudaObject::failure(const Napi::CallbackInfo& info) { return Napi::String::New(info.Env(), failure_); }

// (tap, layer, tokens) -> ArrayBuffer, a copy; null where there is no such tap
Napi::Value CudaObject::tap(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  if (!open(env)) return env.Undefined();
  const auto which = static_cast<Tap>(u32(info[0]));
  const uint64_t floats = started_ ? model_->tap_floats(which, u32(info[1]), u32(info[2])) : 0;
  if (floats == 0) return env.Null();
  auto copy = Napi::ArrayBuffer::New(env, floats * sizeof(float));
  if (!model_->tap(which, u32(info[1]), u32(info[2]), static_cast<float*>(copy.Data()))) return env.Null();
  return copy;
}

// () -> Float64Array [stages] milliseconds
Napi::Value CudaObject::stage_times(const Napi::CallbackInfo& info) {
  auto times = Napi::Float64Array::New(info.Env(), kStages);
  if (model_) memcpy(times.Data(), model_->stage_milliseconds(), kStages * sizeof(double));
  return times;
}

// () -> Uint32Array [layers * experts]
Napi::Value CudaObject::expert_counts(const Napi::CallbackInfo& info) {
  if (!open(info.Env())) return info.Env().Undefined();
  const ModelConfig& c = model_->options().config;
  auto counts = Napi::Uint32Array::New(info.Env(), size_t{c.layers} * c.experts);
  if (started_) model_->expert_counts(counts.Data());
  return counts;
}

// (layer, expert, slot) -> Promise<string>. The slot is let go between steps, filled beside them, and taken between them.
Napi::Value CudaObject::place_expert(const Napi::CallbackInfo& info) {
  if (!open(info.Env())) return info.Env().Undefined();
  if (!started_) return thrown(info.Env(), "the engine was not started");
  const uint32_t layer = u32(info[0]), expert = u32(info[1]), slot = u32(info[2]);
  const Deferred deferred = promise(info.Env());
  const auto settle = [this, deferred](const std::string& why) {
    finish([deferred, why](Napi::Env e) { deferred->Resolve(Napi::String::New(e, why)); });
  };
  worker_->post([this, settle, layer, expert, slot] {
    if (const std::string why = model_->forget(layer, expert, slot); !why.empty()) return settle(why);
    placer_->post([this, settle, layer, expert, slot] {
      const std::string why = model_->place(layer, expert, slot);
      worker_->post([this, settle, layer, expert, slot, why] {
        if (why.empty()) model_->use(layer, expert, slot);
        settle(why);
      });
    });
  });
  return deferred->Promise();
}

// () -> Promise<GB a second>; 0 where nothing streams
Napi::Value CudaObject::measure_streaming(const Napi::CallbackInfo& info) {
  if (!open(info.Env())) return info.Env().Undefined();
  const Deferred deferred = promise(info.Env());
  worker_->post([this, deferred] {
    double speed = 0;
    const std::string why = model_->measure_streaming(&speed);
    finish([this, deferred, speed, why](Napi::Env e) {
      failure_ = why;
      deferred->Resolve(Napi::Number::New(e, why.empty() ? speed : 0));
    });
  });
  return deferred->Promise();
}

// () -> Promise: nothing runs, the memory is free, logits are empty
Napi::Value CudaObject::close(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  if (closing_) return closing_->Promise();
  closing_ = promise(env);
  if (model_) model_->give_up();
  const auto done = [this](Napi::Env e) {
    stop();
    if (!logits_.IsEmpty()) logits_.Value().Detach();
    closing_->Resolve(e.Undefined());
  };
  // Behind what was asked before, and behind experts on their way, which end on the worker.
  worker_->post([this, done] { placer_->post([this, done] { worker_->post([this, done] { finish(done); }); }); });
  return closing_->Promise();
}

}  // namespace perigee::cuda
