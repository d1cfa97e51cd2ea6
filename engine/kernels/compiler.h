// What clang and g++ spell differently.
#pragma once

#define PERIGEE_INLINE [[gnu::always_inline]] inline
#define PERIGEE_NOINLINE [[gnu::noinline]]

// Before a loop of a few turns known at compile time.
#ifdef __clang__
#define PERIGEE_UNROLL _Pragma("clang loop unroll(full)")
#else
#define PERIGEE_UNROLL _Pragma("GCC unroll 64")
#endif
