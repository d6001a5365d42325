// The CUDA kernels' bodies, run thread by thread on the CPU, and the CPU kernels beside them, for test_cuda_walk.py and
// test_cuda_bodies.py: all of csrc/cuda but the launch itself, which is one thread of one tile calling the same
// functions. Compiled by the test.
#include <type_traits>
#include <vector>

#include "../csrc/cpu/adaptive_kernel.hpp"
#include "../csrc/cpu/combine_kernel.hpp"
#include "../csrc/cpu/guide_kernel.hpp"
#include "../csrc/cpu/interpolate_kernel.hpp"
#include "../csrc/cpu/randn_kernel.hpp"
#include "../csrc/cuda/adaptive.cuh"
#include "../csrc/cuda/combine.cuh"
#include "../csrc/cuda/guide.cuh"
#include "../csrc/cuda/interpolate.cuh"
#include "../csrc/cuda/randn.cuh"

using namespace pfc;

namespace {

// Threads of a block run in this order: 0, stride, 2 stride, ... modulo their number, so that no order is relied on.
constexpr int kStride = 77;

template <class Body>
void for_each_thread(int64_t tiles, Body&& body) {
  for (int64_t tile = 0; tile < tiles; ++tile)
    for (int i = 0; i < cuda::kThreads; ++i) body(tile, i * kStride % cuda::kThreads);
}

constexpr bool kBoth[] = {false, true};

// guide's second kernel. A barrier between the parts: every thread of a block has done one before any does the next.
template <class S>
void finish_guide(const GuideArgs& args) {
  using Finish = cuda::GuideFinish<S>;
  const int64_t chunks = guide_chunks(args.sample);
  const cuda::GuideParams params{args, cuda::make_divider(chunks), args.batch * chunks};
  std::vector<double> shared(Finish::kShared), sums(kMaxGuideSums), work(kMaxGuideRows);
  for (int64_t sample = 0; sample < args.batch; ++sample) {
    for_each_thread(1, [&](int64_t, int thread) { Finish::add(params, sample, thread, shared.data()); });
    for_each_thread(1, [&](int64_t, int thread) { Finish::join(params, thread, shared.data(), sums.data()); });
    for_each_thread(1, [&](int64_t, int thread) { Finish::solve(params, sample, thread, sums.data(), work.data()); });
  }
}

}  // namespace

extern "C" {

// ------------------------------------------------------------------------------------------------------ the kernels
struct CombineCall {
  int64_t batch, sample, state_dtype, out_dtype, inp_dtype, copies, branches, scale_branch_stride, scale_sample_stride,
      mixed, mixes_point;
  const double* record;
  const void* x;
  void* x_out;
  const void* point;
  void* point_out;
  void* inp;
  void* keep;
  const void* scale;
  const int64_t* seeds;
  const void* momentum;
  const void* slot[kMaxSlots];
  const void* branch[kMaxBranches];
};

// Returns which kernel ran: 100 * branches + 10 * noise + vector, or -1 for the CPU's.
int pfc_test_combine(const CombineCall* call, int cuda) {
  CombineArgs args;
  args.batch = call->batch;
  args.sample = call->sample;
  args.state_dtype = static_cast<DType>(call->state_dtype);
  args.out_dtype = static_cast<DType>(call->out_dtype);
  args.inp_dtype = static_cast<DType>(call->inp_dtype);
  args.record = call->record;
  args.x = call->x;
  args.x_out = call->x_out;
  args.point = call->point;
  args.point_out = call->point_out;
  args.inp = call->inp;
  args.copies = call->copies;
  for (int k = 0; k < kMaxSlots; ++k) args.slot[k] = call->slot[k];
  args.keep = call->keep;
  for (int j = 0; j < call->branches; ++j) args.branch[j] = call->branch[j];
  args.branches = static_cast<int>(call->branches);
  args.scale = call->scale;
  args.scale_branch_stride = call->scale_branch_stride;
  args.scale_sample_stride = call->scale_sample_stride;
  args.seeds = call->seeds;
  args.mixed = call->mixed != 0;
  args.mixes_point = call->mixes_point != 0;
  args.momentum = call->momentum;
  if (!cuda) {
    cpu::combine(args, 0, args.batch * args.sample);
    return -1;
  }
  const auto launch = []<class C, class Params>(C, const Params& params, int64_t tiles) {
    for_each_thread(tiles, [&](int64_t tile, int thread) { cuda::combine_thread<C>(params, tile, thread); });
    return 100 * C::kBranches + 10 * C::kNoise + C::kVector;
  };
  return args.state_dtype == DType::kFloat64 ? cuda::dispatch_combine<double>(args, launch)
                                             : cuda::dispatch_combine<float>(args, launch);
}

int pfc_test_normals(int64_t batch, int64_t sample, const int64_t* seeds, uint32_t stream, uint32_t draw, int dtype,
                     void* out, int cuda) {
  const NormalArgs args{batch, sample, seeds, stream, draw, static_cast<DType>(dtype), out};
  if (!cuda) {
    cpu::normals(args, 0, batch * sample);
    return -1;
  }
  return cuda::dispatch_normals(args, [](auto type, const cuda::NormalParams& params, int64_t tiles) {
    for_each_thread(tiles, [&](int64_t tile, int thread) {
      cuda::normal_thread<std::remove_cvref_t<decltype(type)>>(params, tile, thread);
    });
    return static_cast<int>(params.vector);
  });
}

int pfc_test_interpolate(int64_t batch, int64_t sample, int dtype, int path, double a, double b, int prediction,
                         const void* data, const void* noise, const int64_t* seeds, uint32_t stream, uint32_t draw,
                         const void* t, int t_is_double, void* point, void* target, int cuda) {
  InterpolateArgs args;
  args.batch = batch;
  args.sample = sample;
  args.dtype = static_cast<DType>(dtype);
  args.path = {static_cast<PathKind>(path), a, b};
  args.prediction = static_cast<Prediction>(prediction);
  args.data = data;
  args.noise = noise;
  args.seeds = seeds;
  args.stream = stream;
  args.draw = draw;
  args.t = t;
  args.t_is_double = t_is_double != 0;
  args.point = point;
  args.target = target;
  if (!cuda) {
    cpu::interpolate(args, 0, batch * sample);
    return -1;
  }
  return cuda::dispatch_interpolate(args, []<class C>(C, const cuda::InterpolateParams& params, int64_t tiles) {
    using Thread = cuda::InterpolateThread<C>;
    std::vector<typename Thread::Coefficients> shared(C::kMaxSamples);
    for (int64_t tile = 0; tile < tiles; ++tile) {
      for_each_thread(1, [&](int64_t, int thread) { Thread(params, tile, thread).prepare(thread, shared.data()); });
      for_each_thread(1, [&](int64_t, int thread) {
        Thread work(params, tile, thread);
        if constexpr (C::kDrawn) work.draw();
        work.finish(shared.data());
      });
    }
    return 10 * C::kDrawn + C::kVector;
  });
}

struct GuideCall {
  int64_t batch, sample, state_dtype, out_dtype, branches, scale_branch_stride, scale_sample_stride;
  const double* rule;
  const void* point;
  void* momentum;
  const void* scale;
  double* partial;
  void* mix;
  const void* branch[kMaxBranches];
};

// Returns which kernel ran: 10 * vectors + vector, or -1 for the CPU's.
int pfc_test_guide(const GuideCall* call, int cuda) {
  GuideArgs args;
  args.batch = call->batch;
  args.sample = call->sample;
  args.state_dtype = static_cast<DType>(call->state_dtype);
  args.out_dtype = static_cast<DType>(call->out_dtype);
  args.rule = decode_rule(call->rule);
  for (int j = 0; j < call->branches; ++j) args.branch[j] = call->branch[j];
  args.branches = static_cast<int>(call->branches);
  args.point = call->point;
  args.momentum = call->momentum;
  args.scale = call->scale;
  args.scale_branch_stride = call->scale_branch_stride;
  args.scale_sample_stride = call->scale_sample_stride;
  args.partial = call->partial;
  args.mix = call->mix;
  if (!cuda) {
    cpu::guide_partial(args, 0, args.batch * guide_chunks(args.sample));
    cpu::guide_finish(args, 0, args.batch);
    return -1;
  }
  const auto launch = [&]<class C>(C, const cuda::GuideParams& params) {
    using Thread = cuda::GuideThread<C>;
    std::vector<double> shared(C::kShared);
    const int count = C::kVectors > 0 ? C::kAtOnce : guide_sums(guide_vectors(params.args));
    for (int64_t tile = 0; tile < cuda::guide_tiles(params); ++tile)
      for (int sum = 0; sum < count; sum += C::kAtOnce) {
        for_each_thread(1, [&](int64_t, int thread) { Thread(params, tile, thread).add(shared.data(), sum); });
        for_each_thread(1, [&](int64_t, int thread) { Thread::finish(params, tile, thread, shared.data(), sum); });
      }
    return 10 * C::kVectors + C::kVector;
  };
  const bool wide = args.state_dtype == DType::kFloat64;
  const int kernel = wide ? cuda::dispatch_guide<double>(args, launch) : cuda::dispatch_guide<float>(args, launch);
  wide ? finish_guide<double>(args) : finish_guide<float>(args);
  return kernel;
}

struct AdaptiveCall {
  int64_t batch, places, sample, slots, norm, max_nfe, row_count, step_count, state_dtype, out_dtype, inp_dtype,
      t_dtype;
  double sign;
  const void* f;
  void *x, *y, *inp, *t, *k;
  double* clock;
  int64_t* counts;
  void* rows;
  double* steps;
  int64_t* running;
  const int64_t* home;
  const double *times, *table;
  double* partial;
};

// One call of adaptive_: by the kernels of csrc/cuda, by the CPU's on whole samples (0), or by chunks (2).
void pfc_test_adaptive(const AdaptiveCall* call, int how) {
  AdaptiveArgs args;
  args.batch = call->batch;
  args.places = call->places;
  args.sample = call->sample;
  args.slots = call->slots;
  args.norm = call->norm;
  args.max_nfe = call->max_nfe;
  args.row_count = call->row_count;
  args.step_count = call->step_count;
  args.state_dtype = static_cast<DType>(call->state_dtype);
  args.out_dtype = static_cast<DType>(call->out_dtype);
  args.inp_dtype = static_cast<DType>(call->inp_dtype);
  args.t_dtype = static_cast<DType>(call->t_dtype);
  args.sign = call->sign;
  args.f = call->f;
  args.x = call->x;
  args.y = call->y;
  args.inp = call->inp;
  args.t = call->t;
  args.k = call->k;
  args.clock = call->clock;
  args.counts = call->counts;
  args.rows = call->rows;
  args.steps = call->steps;
  args.running = call->running;
  args.home = call->home;
  args.times = call->times;
  args.table = call->table;
  args.partial = call->partial;
  const int64_t chunks = guide_chunks(args.sample);
  if (how == 0) return cpu::adaptive(args, 0, args.places);
  if (how == 2) {
    cpu::adaptive_sums(args, 0, args.places * chunks);
    cpu::adaptive_control(args, 0, args.places);
    return cpu::adaptive_apply(args, 0, args.places * chunks);
  }
  const auto launch = []<class T>(std::type_identity<T>, const cuda::AdaptiveParams& params) {
    std::vector<double> shared(cuda::kAdaptiveShared);
    const int64_t tiles = cuda::adaptive_tiles(params);
    for (int64_t tile = 0; tile < tiles; ++tile) {
      for_each_thread(1, [&](int64_t, int thread) { T(params, tile, thread).add(shared.data()); });
      for_each_thread(1, [&](int64_t, int thread) { T::finish(params, tile, thread, shared.data()); });
    }
    for (int64_t place = 0; place < (params.args.places + 3) / 4 * 4; ++place)
      *params.args.running -= cuda::AdaptiveDecision::run(params, place);
    for_each_thread(tiles, [&](int64_t tile, int thread) { T(params, tile, thread).apply(); });
    return 0;
  };
  args.state_dtype == DType::kFloat64 ? cuda::dispatch_adaptive<double>(args, launch)
                                      : cuda::dispatch_adaptive<float>(args, launch);
}

// How often each element is a thread's in the walk of guide's first kernel, for one sample size.
int64_t pfc_test_guide_visits(int64_t batch, int64_t sample, int32_t* visits) {
  using Thread = cuda::GuideThread<cuda::GuideVariant<float, float, 2, false>>;
  GuideArgs args;
  args.batch = batch;
  args.sample = sample;
  const cuda::GuideParams params{args, cuda::make_divider(guide_chunks(sample)), batch * guide_chunks(sample)};
  int64_t wrong = 0;
  for_each_thread(cuda::guide_tiles(params), [&](int64_t tile, int thread) {
    const Thread work(params, tile, thread);
    for (int i = 0; i < cuda::kGuideItems; ++i) {
      const cuda::Item item = work.item(i).item[0];
      for (int e = 0; e < item.count; ++e) {
        const int64_t at = item.offset + e;
        if (at < 0 || at >= batch * sample) {
          ++wrong;
          continue;
        }
        ++visits[at];
        // The chunk and the lane that core/guide.hpp gives the element.
        const int64_t in_sample = at % sample;
        wrong += work.chunk != at / sample * guide_chunks(sample) + in_sample / kGuideChunk;
        wrong += work.lane * cuda::kItem + e != in_sample % kGuideLanes || i != in_sample % kGuideChunk / kGuideLanes;
      }
    }
  });
  return wrong;
}

// --------------------------------------------------------------------------------------------------------- the walk
// Adds 1 to visits[e] for every element e that a walk visits, and checks sample and block; returns the number of wrong
// ones.
int64_t pfc_test_visits(int64_t batch, int64_t sample, int by_sample, int vector, int head, int vectors,
                        int32_t* visits) {
  const cuda::Walk w = vector ? cuda::vector_walk(batch, sample, by_sample != 0, head)
                              : cuda::ragged_walk(batch, sample, by_sample != 0);
  int64_t wrong = 0;
  const auto visit = [&](const cuda::Item& item, int step) {
    for (int e = 0; e < item.count; ++e) {
      const int64_t at = item.offset + e * step;
      if (at < 0 || at >= w.numel) {
        ++wrong;
        continue;
      }
      ++visits[at];
      if (by_sample && (item.sample != at / sample || item.block * cuda::kItem + e != at % sample)) ++wrong;
    }
  };
  if (vector)
    for (int which = 0; which < 2; ++which) visit(cuda::edge_item(w, which), 1);
  for_each_thread(cuda::tiles_of(w, vectors), [&](int64_t tile, int thread) {
    for (int u = 0; u < vectors; ++u) {
      const int64_t item = cuda::item_of(tile, thread, vectors, u);
      visit(vector ? cuda::vector_item(w, item) : cuda::ragged_item(w, item), vector ? 1 : cuda::ragged_step(w));
    }
  });
  return wrong;
}

// For walks too large to count visits: items follow each other without gap or overlap (the elements of a tile, for the
// flat ragged walk), the first begins and the last ends where it should. Looks at `looks` places spread over the walk,
// at its two ends and at its sample boundaries; returns the number of wrong ones.
int64_t pfc_test_huge(int64_t batch, int64_t sample, int by_sample, int vector, int head, int vectors, int64_t looks) {
  using cuda::kItem;
  using cuda::kThreads;
  const cuda::Walk w = vector ? cuda::vector_walk(batch, sample, by_sample != 0, head)
                              : cuda::ragged_walk(batch, sample, by_sample != 0);
  int64_t wrong = 0;
  const auto at = [&](int64_t item) { return vector ? cuda::vector_item(w, item) : cuda::ragged_item(w, item); };
  const int64_t tiles = cuda::tiles_of(w, vectors);
  wrong += tiles * vectors * kThreads < w.items || (tiles - 1) * vectors * kThreads >= w.items;
  // Every item number is some thread's, once.
  const auto check_owner = [&](int64_t item) {
    const int64_t group = item / kThreads;
    wrong += cuda::item_of(group / vectors, static_cast<int>(item % kThreads), vectors,
                           static_cast<int>(group % vectors)) != item;
    wrong += group / vectors >= tiles;
  };
  const auto check = [&](int64_t item) {
    if (item < 0 || item + 1 >= w.items) return;
    check_owner(item);
    const cuda::Item here = at(item);
    const cuda::Item next = at(item + 1);
    if (!vector && !by_sample) {
      const int64_t begin = item / kThreads * kThreads * kItem;
      wrong += here.offset != begin + item % kThreads;
      for (int e = 0; e < kItem; ++e) wrong += (e < here.count) != (here.offset + e * kThreads < w.numel);
      return;
    }
    wrong += here.count < 1 || here.count > kItem || here.offset + here.count != next.offset;
    if (!by_sample) return;
    wrong += here.sample != here.offset / sample || here.block * kItem != here.offset % sample;
    wrong += here.count != (sample - here.block * kItem < kItem ? sample - here.block * kItem : kItem);
  };
  const auto around = [&](int64_t item) {
    for (int64_t d = -3; d <= 3; ++d) check(item + d);
  };
  around(0);
  around(w.items - 1);
  for (int64_t boundary = int64_t{1} << 29; boundary < w.items; boundary <<= 1) around(boundary);
  uint64_t state = 88172645463325252u;
  for (int64_t i = 0; i < looks; ++i) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    const int64_t item = static_cast<int64_t>(state % static_cast<uint64_t>(w.items));
    check(item);
    if (by_sample) around(at(item).sample * w.per_sample.divisor);
  }
  if (w.items == 0) return wrong + (w.head + w.tail != w.numel);
  if (vector) {
    wrong += at(0).offset != w.head || at(w.items - 1).offset + kItem + w.tail != w.numel;
    wrong += cuda::edge_item(w, 0).offset != 0 || cuda::edge_item(w, 0).count != w.head;
    wrong += cuda::edge_item(w, 1).offset + cuda::edge_item(w, 1).count != w.numel;
  } else if (by_sample) {
    wrong += at(0).offset != 0 || at(w.items - 1).offset + at(w.items - 1).count != w.numel;
  }
  for (int64_t past = 0; past < 4; ++past) wrong += at(w.items + past).count != 0;
  return wrong;
}

// Numerators around multiples of the divisor, spread up to the largest: how many quotients are wrong.
int64_t pfc_test_divider(int64_t divisor, int64_t largest, int64_t looks) {
  const cuda::Divider d = cuda::make_divider(divisor);
  int64_t wrong = 0;
  const auto check = [&](int64_t n) { wrong += n >= 0 && n <= largest && d.quotient(n) != n / divisor; };
  for (int64_t n = 0; n < 1000; ++n) check(n), check(largest - n);
  uint64_t state = 88172645463325252u;
  for (int64_t i = 0; i < looks; ++i) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    const int64_t n = static_cast<int64_t>(state >> (1 + i % 40)) % largest;
    const int64_t multiple = n / divisor * divisor;
    check(n), check(multiple - 1), check(multiple), check(multiple + 1);
  }
  return wrong;
}

}  // extern "C"
