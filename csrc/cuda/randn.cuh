// randn on CUDA: a Philox block of a sample to a thread. Compiles for the host as well, for the tests.
#pragma once

#include "../core/normal.hpp"
#include "pack.hpp"

namespace pfc::cuda {

struct NormalParams {
  Walk walk;  // ragged and by samples; `vector` says that every item is whole and aligned
  const int64_t* seeds;
  void* out;
  uint32_t stream, draw;
  bool vector;
};

// The work of one thread; half-precision normals are float32 normals, rounded.
template <class T>
PFC_HD void normal_thread(const NormalParams& p, int64_t tile, int thread) {
  const Item item = ragged_item(p.walk, item_of(tile, thread, 1, 0));
  if (item.count == 0) return;
  const NormalBlock block =
      normal_block(static_cast<uint64_t>(p.seeds[item.sample]), p.stream, p.draw, static_cast<uint64_t>(item.block));
  Pack<float, kItem> value;
  PFC_FULL_UNROLL
  for (int e = 0; e < kItem; ++e) value.v[e] = block.value[e];
  if (p.vector)
    Items<true, 1>{{item}, 1}.store<T>(p.out, value);
  else
    Items<false, 1>{{item}, 1}.store<T>(p.out, value);
}

// ---------------------------------------------------------------------------------------------------------------- host
// launch(T{}, params, tiles) runs the kernel for outputs of type T.
template <class Launch>
auto dispatch_normals(const NormalArgs& args, Launch&& launch) {
  NormalParams p{ragged_walk(args.batch, args.sample, true), args.seeds, args.out, args.stream, args.draw, false};
  Alignment alignment;
  alignment.add(args.out, args.dtype);
  p.vector = args.sample % kItem == 0 && alignment.head(true) == 0;
  const int64_t tiles = tiles_of(p.walk, 1);
  switch (args.dtype) {
    case DType::kFloat32: return launch(float{}, p, tiles);
    case DType::kFloat64: return launch(double{}, p, tiles);
    case DType::kBFloat16: return launch(BFloat16{}, p, tiles);
    default: return launch(Float16{}, p, tiles);
  }
}

}  // namespace pfc::cuda
