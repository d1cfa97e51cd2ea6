// Arguments from JavaScript that the engines of this addon share.
#pragma once
#include <napi.h>
#include <string.h>

#include "../engine/engine.h"

namespace perigee {

// A struct of engine/config.h from its bytes, a Uint8Array.
template <typename T>
void plain_struct(const Napi::Value& from, T& to) {
  const auto bytes = from.As<Napi::Uint8Array>();
  to = {};
  if (bytes.ByteLength() == sizeof to) memcpy(&to, bytes.Data(), sizeof to);
}

uint32_t u32(const Napi::Value& value);

// Leaves an Error pending; returns undefined.
Napi::Value thrown(Napi::Env env, const std::string& what);

// A promise of a step's Outcome that is known already.
Napi::Value resolved(Napi::Env env, int32_t outcome);

// (tokens, positions, sequences, pageTables, outputs) into the step block; false where they do not fit it. Indices are not checked.
bool fill_step(const Napi::CallbackInfo& info, const Limits& limits, StepBlock& block);

}  // namespace perigee
