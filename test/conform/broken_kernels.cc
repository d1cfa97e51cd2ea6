// In place of engine/kernels/select.cc: a build whose one table has one wrong kernel, for test/conform to find. Attention
// forgets the newest position where it is the first of its page, a slip of one that prompts within a page never show.
#include "../../engine/kernels/kernels.h"

namespace perigee {

namespace {

#ifdef __wasm__
const Kernels& kSound = kSimd128Kernels;
#else
const Kernels& kSound = kScalarKernels;
#endif

Kernels broken;

void forgetful_attention(const AttentionArgs& args) {
  for (uint32_t row = 0; row < args.rows; row++) {
    int32_t length = args.lengths[row];
    if (length > 1 && static_cast<uint32_t>(length) % args.page_tokens == 1) length--;
    AttentionArgs one = args;
    one.rows = 1;
    one.lengths = &length;
    one.q += static_cast<size_t>(row) * args.key_dim;
    one.out += static_cast<size_t>(row) * args.value_dim;
    one.scores += row * args.score_stride;
    kSound.attention(one);
  }
}

}  // namespace

int kernel_count() { return 1; }

const Kernels& kernels_at(int) {
  broken = kSound;
  broken.attention = forgetful_attention;
  return broken;
}

const Kernels* kernels_named(const char*) { return &kernels_at(0); }

}  // namespace perigee
