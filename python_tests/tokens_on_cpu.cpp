// The CUDA kernels of qk_norm_rope, group_norm_silu, timestep_features, patchify and unpatchify, run thread by thread on the CPU,
// and the CPU kernels beside them, for test_cuda_token_bodies.py. Compiled by the test, as cuda_on_cpu.cpp is.
#include <type_traits>
#include <vector>

#include "../csrc/cpu/group_norm_kernel.hpp"
#include "../csrc/cpu/patches_kernel.hpp"
#include "../csrc/cpu/qk_norm_rope_kernel.hpp"
#include "../csrc/cpu/timestep_kernel.hpp"
#include "../csrc/cuda/group_norm.cuh"
#include "../csrc/cuda/patches.cuh"
#include "../csrc/cuda/qk_norm_rope.cuh"
#include "../csrc/cuda/timestep.cuh"

using namespace pfc;

namespace {

// Threads of a block run in this order: 0, stride, 2 stride, ... modulo their number, so that no order is relied on.
constexpr int kStride = 77;

template <class Body>
void for_each_thread(Body&& body) {
  for (int i = 0; i < cuda::kThreads; ++i) body(i * kStride % cuda::kThreads);
}

PatchArgs patch_args(const int64_t* sizes, const int* kinds, const void* from, void* to) {
  PatchArgs args;
  args.batch = sizes[0], args.channels = sizes[1], args.rows = sizes[2], args.columns = sizes[3];
  args.high = sizes[4], args.wide = sizes[5];
  args.channels_first = kinds[0] != 0, args.to_tokens = kinds[1] != 0;
  args.from_dtype = static_cast<DType>(kinds[2]), args.to_dtype = static_cast<DType>(kinds[3]);
  args.from = from;
  args.to = to;
  return args;
}

}  // namespace

extern "C" {

// offsets: of qkv in its buffer; then of q, k and v. Returns whether the vector kernel ran, or -1 for the CPU's.
int pfc_test_qk(const int64_t* sizes, const int* kinds, double eps, const void* qkv, const void* bias,
                const void* const* parameters, const void* cos, const void* sin, void* const* out, int on_cuda) {
  QkArgs args;
  args.batch = sizes[0], args.tokens = sizes[1], args.heads = sizes[2], args.kv_heads = sizes[3];
  args.head = static_cast<int>(sizes[4]);
  args.columns = static_cast<int>(sizes[5]);
  args.token_stride = sizes[6], args.batch_stride = args.tokens * args.token_stride;
  const int64_t places = sizes[7];
  args.dtype = static_cast<DType>(kinds[0]);
  args.bias_dtype = args.weight_dtype = static_cast<DType>(kinds[1]);
  args.table_dtype = static_cast<DType>(kinds[2]);
  args.norm = static_cast<HeadNorm>(kinds[3]);
  args.adjacent = kinds[4] != 0;
  args.table_batch = kinds[5] != 0 ? args.tokens * args.columns : 0;
  args.eps = eps;
  args.qkv = qkv;
  args.bias = bias;
  for (int w = 0; w < 2; ++w) args.weight[w] = parameters[w], args.shift[w] = parameters[2 + w];
  args.cos = cos;
  args.sin = sin;
  for (int which = 0; which < 3; ++which) {
    args.out[which] = out[which];
    args.out_head[which] = places * args.head;
    args.out_batch[which] = (which == 0 ? args.heads : args.kv_heads) * args.out_head[which];
  }
  if (!on_cuda) {
    cpu::qk_norm_rope(args, 0, args.batch * args.tokens);
    return -1;
  }
  return cuda::dispatch_qk(args, []<class C>(C, const cuda::QkParams& params) {
    using Thread = cuda::QkThread<C>;
    using S = typename C::S;
    for (int64_t tile = 0; tile < cuda::qk_tiles(params); ++tile) {
      std::vector<S> shared(C::kShared), mean(cuda::kThreads), scale(cuda::kThreads, S(1));
      const QkArgs& args = params.args;
      if (args.norm == HeadNorm::kLayer) {
        for_each_thread([&](int t) { Thread(params, tile, t).add(shared.data(), S(0), false); });
        for_each_thread(
            [&](int t) { mean[t] = Thread(params, tile, t).total(shared.data()) / static_cast<S>(args.head); });
      }
      if (args.norm != HeadNorm::kNone) {
        for_each_thread([&](int t) { Thread(params, tile, t).add(shared.data(), mean[t], true); });
        for_each_thread([&](int t) {
          scale[t] = inverse_deviation(Thread(params, tile, t).total(shared.data()), args.head, args.eps);
        });
      }
      for_each_thread([&](int t) { Thread(params, tile, t).finish(mean[t], scale[t]); });
    }
    return static_cast<int>(C::kVector);
  });
}

int pfc_test_group_norm(const int64_t* sizes, const int* kinds, double eps, const void* x,
                        const void* const* parameters, void* out, double* moments, int on_cuda) {
  GroupNormArgs args;
  args.batch = sizes[0], args.channels = sizes[1], args.groups = sizes[2], args.spatial = sizes[3];
  args.dtype = static_cast<DType>(kinds[0]);
  args.weight_dtype = args.scale_dtype = static_cast<DType>(kinds[1]);
  args.silu = kinds[2] != 0;
  args.eps = eps;
  args.x = x;
  args.out = out;
  args.weight = parameters[0], args.bias = parameters[1], args.scale = parameters[2], args.shift = parameters[3];
  const int64_t groups = args.batch * args.groups;
  std::vector<double> partial(2 * groups * args.chunks());
  args.moments = moments;
  args.partial = partial.data();
  if (!on_cuda) {
    cpu::group_norm_partial(args, 0, groups * args.chunks());
    cpu::group_norm_finish(args, 0, groups);
    cpu::group_norm_apply(args, 0, groups * args.chunks());
    return -1;
  }
  return cuda::dispatch_group_norm(args, []<class C>(C, const cuda::GroupNormParams& params) {
    std::vector<double> shared(C::kShared);
    for (int64_t tile = 0; tile < cuda::sums_tiles(params); ++tile) {
      for_each_thread([&](int t) { cuda::GroupNormSums<C>::add(params, tile, t, shared.data()); });
      for_each_thread([&](int t) { cuda::GroupNormSums<C>::finish(params, tile, t, shared.data()); });
    }
    for (int64_t tile = 0; tile < cuda::moments_tiles(params); ++tile)
      for_each_thread([&](int t) { cuda::group_moments<typename C::T>(params, tile, t); });
    for (int64_t tile = 0; tile < cuda::tiles_of(params.walk, 1); ++tile)
      for_each_thread([&](int t) { cuda::group_norm_apply<C>(params, tile, t); });
    return static_cast<int>(C::kVector);
  });
}

// sizes: batch, channels, rows, columns, high, wide; kinds: channels first, to tokens, the dtypes of the two ends. Returns the run in
// which the image was accessed, or -1 for the CPU's kernel.
int pfc_test_patches(const int64_t* sizes, const int* kinds, const void* from, void* to, int on_cuda) {
  const PatchArgs args = patch_args(sizes, kinds, from, to);
  if (!on_cuda) {
    cpu::patches(args, 0, args.batch * args.rows);
    return -1;
  }
  return cuda::dispatch_patches(args, []<class C>(C, const cuda::PatchParams& params, int64_t tiles) {
    for (int64_t tile = 0; tile < tiles; ++tile)
      for_each_thread([&](int t) { cuda::move_patches<C>(params, tile, t); });
    return C::kRun;
  });
}

// Where element `at` of the tokens and the `count` after it lie in the image: by division, or counted on from the first.
void pfc_test_patch_places(const int64_t* sizes, const int* kinds, int64_t at, int64_t count, int counted,
                           int64_t* found) {
  // Never read: the dispatch looks at alignment alone.
  const PatchArgs args = patch_args(sizes, kinds, nullptr, nullptr);
  cuda::dispatch_patches(args, [&]<class C>(C, const cuda::PatchParams& params, int64_t) {
    cuda::PatchPlace place(params, at);
    for (int64_t i = 0; i < count; ++i) {
      found[i] = (counted ? place : cuda::PatchPlace(params, at + i)).in_image(args);
      place.advance(args, 1);
    }
    return 0;
  });
}

// Returns how many times a thread took, or -1 for the CPU's kernel.
int pfc_test_timesteps(int64_t count, int64_t half, const int* kinds, const double* numbers, const void* t, void* out,
                       int on_cuda) {
  TimestepArgs args;
  args.count = count, args.half = half;
  args.t_dtype = static_cast<DType>(kinds[0]), args.dtype = static_cast<DType>(kinds[1]);
  args.sine_first = kinds[2] != 0;
  args.scale = numbers[0], args.period = numbers[1], args.last = numbers[2];
  args.t = t;
  args.out = out;
  if (!on_cuda) {
    cpu::timesteps(args, 0, count);
    return -1;
  }
  return cuda::dispatch_timesteps(args, []<class O>(O, const cuda::TimestepParams& params, int64_t tiles) {
    for (int64_t tile = 0; tile < tiles; ++tile)
      for_each_thread([&](int t) { cuda::timestep_features<O>(params, tile, t); });
    return params.times;
  });
}

}  // extern "C"
