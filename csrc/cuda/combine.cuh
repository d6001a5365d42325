// combine on CUDA: how a row walks memory, and which kernel a call needs. The arithmetic is core/combine.hpp. Compiles
// for the host as well, where the tests run it thread by thread.
#pragma once

#include "../core/combine.hpp"
#include "../core/normal.hpp"
#include "pack.hpp"

namespace pfc::cuda {

template <class S>
struct CombineParams {
  Walk walk;
  Row<S> row;  // term[i].slot is i: `slot` holds what the row reads, in its order
  const S* x;
  S* x_out;
  const S* point;
  S* point_out;
  void* inp;
  const void* branch[kMaxBranches];
  const S* slot[kMaxSlots];
  S* keep;
  const S* scale;
  int64_t scale_branch_stride, scale_sample_stride;
  const int64_t* seeds;
  int64_t copies;
  DType inp_dtype;
  uint32_t stream;
  int branches;
  bool writes_state, writes_point, reads_state, reads_point, point_is_state;
  bool next_is_state;  // the point that the row writes
  bool mixed, mixes_point;
  const S* momentum;
};

// Which kernel: S the state's type, Out the field's, kBranches 1, 2 or 0 for any number (none included), kNoise whether
// the row may draw, kVector the walk.
template <class S_, class Out_, int kBranches_, bool kNoise_, bool kVector_>
struct CombineVariant {
  using S = S_;
  using Out = Out_;
  static constexpr int kBranches = kBranches_;
  static constexpr bool kNoise = kNoise_, kVector = kVector_;
  // Items of a thread: two, for more accesses in flight, where they fit into the registers that 1,024 threads leave
  // each.
  static constexpr int kItems = kVector && !kNoise && sizeof(S) == 4 && (kBranches == 1 || sizeof(Out) == 2) ? 2 : 1;
  // Blocks on a multiprocessor: 64 registers a thread for float32 states, 80 for float64.
  static constexpr int kMinBlocks = sizeof(S) == 4 ? 4 : 3;
};

// Memory of core/combine.hpp for the items of one thread. The branches, the state and the first slot are asked for
// before anything is used, so that a thread has several accesses in flight; further slots come one ahead of their use.
// Only a point that is not the state waits for its turn: few rows read one, and registers held for it would cost all
// the others.
template <class C, bool kVector, int N>
struct CombineMemory {
  using S = typename C::S;
  using V = Pack<S, N * kItem>;
  static constexpr int kBranches = C::kBranches;
  static constexpr int kHeld = kBranches > 0 ? kBranches : 1;

  const CombineParams<S>& p;
  Items<kVector, N> at;
  V held[kHeld];
  V x;
  mutable V next;
  PerItem<S, N> guidance;

  PFC_HD CombineMemory(const CombineParams<S>& params, const Items<kVector, N>& items)
      : p(params), at(items), x{}, next{}, guidance{} {
    if constexpr (kBranches > 0) {
      PFC_FULL_UNROLL
      for (int j = 0; j < kBranches; ++j) held[j] = at.template load<S, typename C::Out>(p.branch[j]);
    }
    if (p.reads_state) x = at.template load<S, S>(p.x);
    if constexpr (kBranches > 0) {
      if (p.row.terms > 0) next = at.template load<S, S>(p.slot[0]);
    }
    if constexpr (kBranches == 2) guidance = scales(0);
  }

  PFC_HD PerItem<S, N> scales(int j) const {
    PerItem<S, N> r;
    PFC_FULL_UNROLL
    for (int u = 0; u < N; ++u) r.v[u] = p.scale[j * p.scale_branch_stride + at.item[u].sample * p.scale_sample_stride];
    return r;
  }
  PFC_HD PerItem<S, N> scale(int j) const {
    if constexpr (kBranches == 2) return guidance;
    return scales(j);
  }
  PFC_HD V branch(int j) const {
    if constexpr (kBranches == 1) return held[0];
    if constexpr (kBranches == 2) return j == 0 ? held[0] : held[1];
    return at.template load<S, typename C::Out>(p.branch[j]);
  }
  PFC_HD bool mixed() const { return p.mixed; }
  PFC_HD bool mixes_point() const { return p.mixes_point; }
  PFC_HD bool has_momentum() const { return p.momentum != nullptr; }
  PFC_HD V momentum() const { return at.template load<S, S>(p.momentum); }
  PFC_HD V point() const {
    if (p.point_is_state) return x;
    return at.template load<S, S>(p.point);
  }
  PFC_HD V state() const { return x; }
  PFC_HD V slot(int i) const {
    if constexpr (kBranches > 0) {
      const V now = next;
      if (i + 1 < p.row.terms) next = at.template load<S, S>(p.slot[i + 1]);
      return now;
    } else {
      return at.template load<S, S>(p.slot[i]);
    }
  }
  PFC_HD V noise(int n) const {
    V r{};
    if constexpr (C::kNoise) {
      PFC_FULL_UNROLL
      for (int u = 0; u < N; ++u) {
        const uint64_t seed = static_cast<uint64_t>(p.seeds[at.item[u].sample]);
        const NormalBlock block =
            normal_block(seed, p.stream, p.row.draw[n].index, static_cast<uint64_t>(at.item[u].block));
        PFC_FULL_UNROLL
        for (int e = 0; e < kItem; ++e) r.v[u * kItem + e] = static_cast<S>(block.value[e]);
      }
    }
    return r;
  }
  PFC_HD void keep(const V& d) const { at.template store<S>(p.keep, d); }
  PFC_HD void set_state(const V& value) const { at.template store<S>(p.x_out, value); }
  PFC_HD void set_point(V value) const {
    if (p.point_out) at.template store<S>(p.point_out, value);
    if (p.row.in_scale != S(1)) value = p.row.in_scale * value;
    switch (p.inp_dtype) {
      case DType::kFloat32: return set_inputs<float>(value);
      case DType::kFloat64: return set_inputs<double>(value);
      case DType::kBFloat16: return set_inputs<BFloat16>(value);
      default: return set_inputs<Float16>(value);
    }
  }
  template <class T>
  PFC_HD void set_inputs(const V& value) const {
    PFC_NO_UNROLL
    for (int64_t c = 0; c < p.copies; ++c) at.template store<T>(static_cast<T*>(p.inp) + c * p.walk.numel, value);
  }
};

template <class C, bool kVector, int N>
PFC_HD void combine_items(const CombineParams<typename C::S>& p, const Items<kVector, N>& items) {
  using Memory = CombineMemory<C, kVector, N>;
  // What the dispatcher knows: it spares the kernel the tests, and lets it ask for the guidance scales early.
  PFC_ASSUME(C::kBranches == 0 || p.row.evaluates != 0);
  PFC_ASSUME(C::kNoise || p.row.draws == 0);
  const Pass pass{C::kBranches > 0 ? C::kBranches : p.branches, p.writes_state, p.writes_point, p.keep != nullptr,
                  p.next_is_state};
  combine_element<typename Memory::V, C::kBranches>(p.row, pass, Memory(p, items));
}

// The work of one thread.
template <class C>
PFC_HD void combine_thread(const CombineParams<typename C::S>& p, int64_t tile, int thread) {
  // Only flat walks have edges, and only rows without noise are walked flat.
  if constexpr (C::kVector && (!C::kNoise || C::kBranches == 0)) {
    if (tile == 0 && thread < 2) {
      const Item edge = edge_item(p.walk, thread);
      using Quiet = CombineVariant<typename C::S, typename C::Out, C::kBranches, false, false>;
      if (edge.count > 0) combine_items<Quiet>(p, Items<false, 1>{{edge}, 1});
    }
  }
  const auto items = items_of<C::kVector, C::kItems>(p.walk, tile, thread);
  if (items.item[0].count > 0) combine_items<C>(p, items);
}

// ---------------------------------------------------------------------------------------------------------------- host
template <class S>
CombineParams<S> combine_params(const CombineArgs& args) {
  CombineParams<S> p{};
  p.row = decode_row<S>(args.record);
  for (int i = 0; i < p.row.terms; ++i) {
    p.slot[i] = static_cast<const S*>(args.slot[p.row.term[i].slot]);
    p.row.term[i].slot = i;
  }
  p.x = static_cast<const S*>(args.x);
  p.x_out = static_cast<S*>(args.x_out);
  p.point = static_cast<const S*>(args.point);
  p.point_out = static_cast<S*>(args.point_out);
  p.inp = args.inp;
  for (int j = 0; j < args.branches; ++j) p.branch[j] = args.branch[j];
  p.keep = static_cast<S*>(args.keep);
  p.scale = static_cast<const S*>(args.scale);
  p.scale_branch_stride = args.scale_branch_stride;
  p.scale_sample_stride = args.scale_sample_stride;
  p.seeds = args.seeds;
  p.copies = args.copies;
  p.inp_dtype = args.inp_dtype;
  p.stream = args.stream;
  p.branches = args.branches;
  p.writes_state = p.row.changes_state() || args.x_out != args.x;
  p.writes_point = args.point_out != nullptr || args.copies > 0;
  p.mixed = args.mixed;
  p.mixes_point = args.mixes_point;
  p.momentum = static_cast<const S*>(args.momentum);
  const bool uses_point = p.row.evaluates && (p.row.p != S(0) || p.mixes_point);
  p.point_is_state = args.point == args.x;
  p.next_is_state = p.row.point_is_state();
  p.reads_state = p.row.x.base != Base::kZero || (uses_point && p.point_is_state);
  p.reads_point = uses_point && !p.point_is_state;
  return p;
}

// Every buffer that the row touches.
template <class S>
int head_of(const CombineParams<S>& p, const CombineArgs& args, bool by_sample) {
  Alignment alignment;
  if (p.reads_state) alignment.add(p.x, args.state_dtype);
  if (p.writes_state) alignment.add(p.x_out, args.state_dtype);
  if (p.reads_point) alignment.add(p.point, args.state_dtype);
  alignment.add(p.point_out, args.state_dtype);
  alignment.add(p.keep, args.state_dtype);
  alignment.add(p.momentum, args.state_dtype);
  for (int i = 0; i < p.row.terms; ++i) alignment.add(p.slot[i], args.state_dtype);
  for (int j = 0; j < p.branches; ++j) alignment.add(p.branch[j], args.out_dtype);
  for (int64_t c = 0; c < p.copies && c < kItem; ++c)  // the shift of the copies repeats after four
    alignment.add(static_cast<char*>(p.inp) + c * args.batch * args.sample * bytes_of(args.inp_dtype), args.inp_dtype);
  return alignment.head(by_sample);
}

template <class S, class Out, class Launch>
auto dispatch_combine_typed(const CombineArgs& args, Launch&& launch) {
  CombineParams<S> p = combine_params<S>(args);
  const bool noise = p.row.draws > 0;
  const bool by_sample = noise || (p.branches > 1 && p.scale_sample_stride != 0);
  const int head = head_of(p, args, by_sample);
  const bool vector = head >= 0 && (!by_sample || args.sample % kItem == 0);
  p.walk =
      vector ? vector_walk(args.batch, args.sample, by_sample, head) : ragged_walk(args.batch, args.sample, by_sample);
  // A row that reads the slot it writes must read it after it wrote: the general kernel asks for nothing ahead.
  bool reads_kept = false;
  for (int i = 0; i < p.row.terms; ++i) reads_kept = reads_kept || p.slot[i] == p.keep;
  const int branches = !p.row.evaluates || p.branches > 2 || p.mixed || reads_kept ? 0 : p.branches;
  const auto call = [&]<class C>(C variant) { return launch(variant, p, tiles_of(p.walk, C::kItems)); };
  if (!vector) return call(CombineVariant<S, Out, 0, true, false>{});
  if (branches == 1)
    return noise ? call(CombineVariant<S, Out, 1, true, true>{}) : call(CombineVariant<S, Out, 1, false, true>{});
  if (branches == 2)
    return noise ? call(CombineVariant<S, Out, 2, true, true>{}) : call(CombineVariant<S, Out, 2, false, true>{});
  return call(CombineVariant<S, Out, 0, true, true>{});
}

// launch(variant, params, tiles) runs a kernel and returns what the caller wants to know.
template <class S, class Launch>
auto dispatch_combine(const CombineArgs& args, Launch&& launch) {
  switch (args.out_dtype) {
    case DType::kFloat32: return dispatch_combine_typed<S, float>(args, launch);
    case DType::kFloat64: return dispatch_combine_typed<S, double>(args, launch);
    case DType::kBFloat16: return dispatch_combine_typed<S, BFloat16>(args, launch);
    default: return dispatch_combine_typed<S, Float16>(args, launch);
  }
}

}  // namespace pfc::cuda
