# Perigee's build. Every target brings what it needs; second runs do only what changed.
#
#   make demo     set up, build, and hear Nano talk and call a tool
#   make serve    the HTTP server on http://127.0.0.1:8000 (ARGS="--port 9000 model.gguf")
#   make test     set up, build, lint, all tests
#   make bench    kernel and end-to-end speed beside the machine's limits; bench-peers: beside other engines
#   make build | wasm | native | setup | lint | format | clean

SYSTEM_PATH := $(PATH)
# The npm package `node` comes first: Debian 12's Node 20 neither runs TypeScript nor has relaxed SIMD without a flag.
export PATH := $(CURDIR)/node_modules/.bin:$(PATH)
SHELL := /bin/bash -o pipefail
MAKEFLAGS += --jobs=$(shell nproc) --no-builtin-rules

EMCC := .toolchain/bin/emcc
NODE_MODULES := node_modules/.setup
PEERS := test/bench/peers

.PHONY: demo serve test asan endurance soak bench bench-peers bench-device cuda-checks cuda-figures cuda-sanitize build wasm native setup lint format clean
.DEFAULT_GOAL := build
.DELETE_ON_ERROR:

# --- what is missing on this machine ------------------------------------------------------------------------------------
setup: $(NODE_MODULES) $(EMCC)

# npm runs on the system's Node: it empties node_modules, and with it the Node that lives there.
$(NODE_MODULES): package-lock.json
	@command -v npm > /dev/null || { echo 'Node.js and npm are missing. Run: apt-get install nodejs npm'; exit 1; }
	PATH="$(SYSTEM_PATH)" npm ci --no-audit --no-fund --loglevel=error
	@touch $@

$(EMCC): | $(NODE_MODULES)
	scripts/get-emscripten.sh .toolchain

# --- the engine core, compiled twice: plain SIMD128, and relaxed SIMD ---------------------------------------------------
# -ffp-contract=off: every product is rounded before it is added, which is what makes WASM and native bits equal.
CXXFLAGS := -std=c++20 -O3 -ffp-contract=off -fno-exceptions -fno-rtti -Wall -Wextra -Werror -MMD -MP \
  -msimd128 -matomics -mbulk-memory
# A plain .wasm without JavaScript glue, on an imported, shared memory; each instance sets its own stack pointer.
LDFLAGS := -O3 -msimd128 -matomics -mbulk-memory --no-entry -sSTANDALONE_WASM -sIMPORTED_MEMORY -sMAXIMUM_MEMORY=4GB \
  -Wl,--shared-memory -sINITIAL_MEMORY=1MB -sALLOW_MEMORY_GROWTH -Wl,--export=__stack_pointer

SOURCES := $(wildcard engine/*.cc engine/quant/*.cc wasm/*.cc) \
  $(patsubst %,engine/kernels/%.cc,scalar select wasm_simd wasm_relaxed)
SIMD128 := $(patsubst %.cc,build/simd128/%.o,$(filter-out engine/kernels/wasm_relaxed.cc,$(SOURCES)))
RELAXED := $(patsubst %.cc,build/relaxed/%.o,$(SOURCES))
WASM := build/core-simd128.wasm build/core-relaxed.wasm

wasm: $(WASM)

build/simd128/%.o: %.cc Makefile | $(EMCC)
	@mkdir -p $(@D)
	@echo "  $@"
	@$(EMCC) $(CXXFLAGS) -c $< -o $@

build/relaxed/%.o: %.cc Makefile | $(EMCC)
	@mkdir -p $(@D)
	@echo "  $@"
	@$(EMCC) $(CXXFLAGS) -mrelaxed-simd -DPERIGEE_RELAXED -c $< -o $@

build/core-simd128.wasm: $(SIMD128)
	@echo "  $@"
	@$(EMCC) $(LDFLAGS) $^ -o $@

build/core-relaxed.wasm: $(RELAXED)
	@echo "  $@"
	@$(EMCC) $(LDFLAGS) -mrelaxed-simd $^ -o $@

-include $(SIMD128:.o=.d) $(RELAXED:.o=.d)

# --- the native addon: the same core, one object per instruction set, the CPU asked at run time -------------------------
NATIVE_CXX ?= g++
NAPI := node_modules/node-api-headers/include
NATIVE_CXXFLAGS := -std=c++20 -O3 -ffp-contract=off -fno-math-errno -fno-rtti -fPIC -fvisibility=hidden -Wall -Wextra -Werror \
  -MMD -MP -pthread
# Only libc is needed where the addon is loaded. nodelete: Node unloads addons with the worker that loaded them, but a signal
# handler must stay.
NATIVE_LDFLAGS := -shared -pthread -static-libstdc++ -static-libgcc -Wl,--gc-sections,-z,nodelete

MACHINE := $(shell uname -m)
NATIVE_KERNELS_x86_64 := avx2 avx512 amx
NATIVE_KERNELS_aarch64 := neon
NATIVE_KERNELS := $(wildcard $(patsubst %,engine/kernels/%.cc,scalar select $(NATIVE_KERNELS_$(MACHINE))))
NATIVE_CORE := $(patsubst %.cc,build/native/%.o,$(wildcard engine/*.cc engine/quant/*.cc) $(NATIVE_KERNELS))
NATIVE_DOOR := $(patsubst %.cc,build/native/%.o,$(filter-out native/probe.cc native/without_cuda.cc,$(wildcard native/*.cc)))
WITHOUT_CUDA := build/native/native/without_cuda.o

# An exception that cannot be thrown, since its worker is ending, is let go instead of ending the process.
ENDING_QUIETLY := -DNODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS

# Nothing but its own kernels may use instructions the machine might lack.
build/native/engine/kernels/avx2.o build/asan/engine/kernels/avx2.o: ISA := -mavx2 -mfma -mf16c
build/native/engine/kernels/avx512.o build/asan/engine/kernels/avx512.o: ISA := -mavx2 -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni
build/native/engine/kernels/amx.o build/asan/engine/kernels/amx.o build/native/emulated/engine/kernels/amx.o: ISA := \
  -mavx2 -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mamx-tile -mamx-int8
build/native/engine/%.o build/asan/engine/%.o: ISA += -fno-exceptions
build/native/native/%.o build/asan/native/%.o: ISA += -fno-exceptions -DNAPI_VERSION=8 -DNODE_ADDON_API_DISABLE_CPP_EXCEPTIONS $(ENDING_QUIETLY) -isystem $(NAPI) \
  -isystem node_modules/node-addon-api

native: build/native/perigee.node build/native/probe.node

build/native/%.o: %.cc Makefile | $(NODE_MODULES)
	@mkdir -p $(@D)
	@echo "  $@"
	@$(NATIVE_CXX) $(NATIVE_CXXFLAGS) $(ISA) -c $< -o $@

# Test-only: single kernels, for test/kernels and test/bench.
NATIVE_PROBED := $(filter build/native/engine/kernels/% build/native/engine/quant/% build/native/engine/tensor.o, \
  $(NATIVE_CORE)) $(patsubst %,build/native/native/%.o,cpu probe)
build/native/probe.node: $(NATIVE_PROBED)
	@echo "  $@"
	@$(NATIVE_CXX) $^ $(NATIVE_LDFLAGS) -o $@

# Test-only: the tables without Node, to be carried to other machines; and AMX's with its tiles emulated.
KERNEL_CHECK := $(patsubst %,build/native/engine/%.o,tensor quant/activation quant/dequantize kernels/scalar kernels/avx512)

build/native/emulated/%.o: %.cc Makefile
	@mkdir -p $(@D)
	@echo "  $@"
	@$(NATIVE_CXX) $(NATIVE_CXXFLAGS) $(ISA) -DPERIGEE_EMULATED_TILES -c $< -o $@

build/native/kernel-check: $(KERNEL_CHECK) $(addprefix build/native/,engine/kernels/amx.o test/bench/kernel-check.o)
	@echo "  $@"
	@$(NATIVE_CXX) $^ -pthread -static -o $@

build/native/kernel-check-emulated: $(KERNEL_CHECK) \
  $(addprefix build/native/emulated/,engine/kernels/amx.o test/bench/kernel-check.o)
	@echo "  $@"
	@$(NATIVE_CXX) $^ -pthread -static -o $@

-include $(wildcard build/native/emulated/*/*/*.d build/native/test/bench/*.d)
-include $(NATIVE_CORE:.o=.d) $(NATIVE_DOOR:.o=.d) $(NATIVE_PROBED:.o=.d)

# --- CUDA: the stages of native/cuda, where there is a compiler for them ------------------------------------------------
# Machine code for Ampere, Ada, Hopper and Blackwell, and portable code for what comes after. Without nvcc the addon is built
# without a GPU's part and says so.
NVCC ?= nvcc
CUDA_TOP := $(if $(shell command -v $(NVCC)),$(shell echo | $(NVCC) --dryrun -x cu -E - 2>&1 | sed -n 's/^\#$$ TOP=//p'))
CUDA_ARCHS ?= 80 86 89 90a 120
CUDAFLAGS := -std=c++20 -O3 --expt-relaxed-constexpr -Xcompiler -fPIC,-fvisibility=hidden,-Wall -MMD -MP --threads 2 \
  $(foreach arch,$(CUDA_ARCHS),-gencode arch=compute_$(arch),code=sm_$(arch)) \
  $(foreach arch,$(filter 80,$(CUDA_ARCHS)),-gencode arch=compute_$(arch),code=compute_$(arch))
CUDA_OBJECTS := $(if $(CUDA_TOP),$(patsubst %.cu,build/cuda/%.o,$(wildcard native/cuda/*.cu)) \
  $(patsubst %.cc,build/cuda/%.o,$(wildcard native/cuda/*.cc)))
# Static: an addon that loads where no driver is, and then finds no device.
CUDA_LDFLAGS := $(if $(CUDA_TOP),-L$(CUDA_TOP)/lib64 -lcudart_static -ldl -lrt)

build/cuda/%.o: %.cu Makefile
	@mkdir -p $(@D)
	@echo "  $@"
	@$(NVCC) $(CUDAFLAGS) -c $< -o $@

build/cuda/%.o: %.cc Makefile | $(NODE_MODULES)
	@mkdir -p $(@D)
	@echo "  $@"
	@$(NATIVE_CXX) $(NATIVE_CXXFLAGS) -fno-exceptions -isystem $(CUDA_TOP)/include -DNAPI_VERSION=8 \
	  -DNODE_ADDON_API_DISABLE_CPP_EXCEPTIONS $(ENDING_QUIETLY) -isystem $(NAPI) -isystem node_modules/node-addon-api -c $< -o $@

build/native/perigee.node: $(NATIVE_CORE) $(NATIVE_DOOR) $(or $(CUDA_OBJECTS),$(WITHOUT_CUDA))
	@echo "  $@"
	@$(NATIVE_CXX) $^ $(NATIVE_LDFLAGS) $(CUDA_LDFLAGS) -o $@

# Checks and figures of the stages, to be carried to a machine with a GPU: one program per file of test/cuda.
CUDA_CHECKS := $(patsubst test/cuda/%.cu,build/cuda/check/%,$(wildcard test/cuda/*.cu))
cuda-checks: $(CUDA_CHECKS)

# All of them, one after the other, and what they are judged by at the end: minutes, on idle cores and an idle GPU.
cuda-figures: cuda-checks
	@test/cuda/figures.sh $(CUDA_CHECKS)

# The shortest form of each under compute-sanitizer, which finds wrong accesses and races.
cuda-sanitize: cuda-checks
	@test/cuda/sanitize.sh $(CUDA_CHECKS)

build/cuda/check/%: build/cuda/test/cuda/%.o $(filter-out %/cuda_object.o %/cuda_door.o,$(CUDA_OBJECTS)) $(NATIVE_CORE) \
  $(filter-out %/addon.o %/arguments.o %/engine_object.o,$(NATIVE_DOOR))
	@mkdir -p $(@D)
	@echo "  $@"
	@$(NATIVE_CXX) $^ -static-libstdc++ -static-libgcc -pthread $(CUDA_LDFLAGS) -o $@

-include $(CUDA_OBJECTS:.o=.d) $(wildcard build/cuda/test/cuda/*.d)

# --- test-only: a core and an addon with one wrong kernel, which `perigee conform` must find ----------------------------
BROKEN = build/test/core-broken.wasm $(if $(ADDON),build/test/broken.node)

build/test/core-broken.wasm: $(filter-out %/select.o,$(SIMD128)) build/simd128/test/conform/broken_kernels.o
	@mkdir -p $(@D)
	@echo "  $@"
	@$(EMCC) $(LDFLAGS) $^ -o $@

build/test/broken.node: $(filter-out %/select.o,$(NATIVE_CORE)) build/native/test/conform/broken_kernels.o $(NATIVE_DOOR) $(WITHOUT_CUDA)
	@mkdir -p $(@D)
	@echo "  $@"
	@$(NATIVE_CXX) $^ $(NATIVE_LDFLAGS) -o $@

-include $(patsubst %,build/%/test/conform/broken_kernels.d,simd128 native)

# --- the same addon with every access and every operation checked, for the runtime's tests ------------------------------
SANITIZED := $(patsubst build/native/%,build/asan/%,$(NATIVE_CORE) $(NATIVE_DOOR) $(WITHOUT_CUDA))
SANITIZERS := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g -w

build/asan/%.o: %.cc Makefile | $(NODE_MODULES)
	@mkdir -p $(@D)
	@echo "  $@"
	@$(NATIVE_CXX) $(NATIVE_CXXFLAGS) -O1 $(SANITIZERS) $(ISA) -c $< -o $@

# Checks of undefined behaviour in thousands of inlined intrinsics keep the compiler busy for minutes.
build/asan/engine/kernels/avx512.o: ISA += -fno-sanitize=undefined

build/asan/perigee.node: $(SANITIZED)
	@echo "  $@"
	@$(NATIVE_CXX) $^ -shared -pthread -Wl,-z,nodelete $(SANITIZERS) -o $@

-include $(SANITIZED:.o=.d)

# Leaks are not looked for: Node itself keeps much until it exits.
asan: build/asan/perigee.node wasm
	ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD=$$($(NATIVE_CXX) -print-file-name=libasan.so):$$($(NATIVE_CXX) -print-file-name=libubsan.so) \
	  vitest run --config test/native/sanitized.config.ts $(ARGS)

# A thousand loads and ten thousand steps; the memory printed in between must not grow.
endurance: native
	node test/native/endurance.ts $(ARGS)

# --- the npm package's dist/ --------------------------------------------------------------------------------------------
build: dist/perigee.js

# Without a C++ compiler the package runs by WebAssembly alone.
ADDON := $(if $(shell command -v $(NATIVE_CXX)),build/native/perigee.node)

dist/perigee.js: $(WASM) $(ADDON) $(shell find src wasm -name '*.ts') scripts/bundle.ts package.json | $(NODE_MODULES)
	@echo "  dist/"
	@node scripts/bundle.ts
	$(if $(ADDON),,@echo "  no C++ compiler ($(NATIVE_CXX)): built without the native addon, WebAssembly runs instead")

# --- what people ask for ------------------------------------------------------------------------------------------------
demo: build
	@node dist/demo.js $(ARGS)

serve: build
	@node dist/perigee.js serve $(ARGS)

test: build lint $(if $(ADDON),native) $(BROKEN)
	vitest run $(ARGS)

bench: build
	@node test/bench/run.ts $(ARGS)

# A server with Nano under leaving, slow, broken and many clients, and with its engine killed: right answers for the rest, and
# nothing left behind. ARGS=0.1 does a tenth of it.
soak: wasm $(ADDON)
	node test/soak/run.ts $(ARGS)

# Others on the same file in the same run. What they need is fetched for this target only; what cannot be had is left out.
bench-peers: wasm native $(PEERS)/node_modules/.setup
	@$(PEERS)/get-llama.sh build/bench/llama.cpp || true
	@node test/bench/peers.ts $(ARGS)

# One file and the addon, to be carried to machines without npm: `node build/bench/device/device.js` there.
bench-device: build/native/perigee.node
	@esbuild test/bench/device.ts --bundle --platform=node --format=esm --outfile=build/bench/device/device.js --log-level=warning \
	  --banner:js="import { createRequire as toRequire } from 'node:module'; const require = toRequire(import.meta.url);"
	@cp build/native/perigee.node build/bench/device/

# install, not ci: ci wants the optional packages of other systems in the lock as well.
$(PEERS)/node_modules/.setup: $(PEERS)/package-lock.json
	PATH="$(SYSTEM_PATH)" npm install --no-save --prefix $(PEERS) --omit=optional --ignore-scripts --no-audit --no-fund --loglevel=error && \
	  touch $@ || echo 'npm brings no peers here; they are left out'

CLANG_FORMATTED = $(wildcard $(foreach folder,engine engine/*,$(folder)/*.h $(folder)/*.cc) wasm/*.cc native/*.h native/*.cc \
  native/cuda/*.h native/cuda/*.cc native/cuda/*.cu native/cuda/*.cuh test/*/*.cc test/cuda/*.cu test/cuda/*.cuh)

lint: | $(NODE_MODULES)
	biome check --error-on-warnings
	clang-format --dry-run --Werror $(CLANG_FORMATTED)
	tsc -p .

format: | $(NODE_MODULES)
	biome check --write
	clang-format -i $(CLANG_FORMATTED)

clean:
	rm -rf build dist
