// The engine's CUDA kernels, run thread by thread on the CPU: all of csrc/cuda/engine* but the launch itself. Compiled by
// engine_on_cpu.py.
#include <cmath>
#include <limits>
#include <vector>

#include "../csrc/cuda/engine_modes.hpp"

using namespace pfc;

namespace {

// Threads of a block run in this order: 0, stride, 2 stride, ... modulo their number, so that no order is relied on.
constexpr int kStride = 77;

// mma.sync of the PTX ISA, in its own words: g is the lane's groupID, t its threadID_in_group. Sets `unrounded` if an operand of
// tf32 has digits that the hardware would not look at.
struct Fragments {
  uint32_t a[32][4], b[32][2];
};
float of_bits(uint32_t bits) { return exact::bit_cast<float>(bits); }

void multiply(cuda::BFloat16Operand, const Fragments& from, float (&a)[16][16], float (&b)[16][8], bool&) {
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane >> 2, t = lane % 4;
    const auto half = [](uint32_t word, int i) { return of_bits((i & 1 ? word >> 16 : word & 0xffffu) << 16); };
    for (int i = 0; i < 8; ++i) {
      const int row = (i < 2 || (i >= 4 && i < 6)) ? g : g + 8;
      a[row][t * 2 + (i & 1) + (i < 4 ? 0 : 8)] = half(from.a[lane][i / 2], i);
    }
    for (int i = 0; i < 4; ++i) b[t * 2 + (i & 1) + (i < 2 ? 0 : 8)][g] = half(from.b[lane][i / 2], i);
  }
}

void multiply(cuda::TF32Operand, const Fragments& from, float (&a)[16][16], float (&b)[16][8], bool& unrounded) {
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane >> 2, t = lane % 4;
    for (int i = 0; i < 4; ++i) {
      unrounded = unrounded || (from.a[lane][i] & 0x1fffu) != 0;
      a[i == 0 || i == 2 ? g : g + 8][i < 2 ? t : t + 4] = of_bits(from.a[lane][i]);
    }
    for (int i = 0; i < 2; ++i) {
      unrounded = unrounded || (from.b[lane][i] & 0x1fffu) != 0;
      b[i == 0 ? t : t + 4][g] = of_bits(from.b[lane][i]);
    }
  }
}

bool unrounded_operand = false;

// A warp's job, its lanes in step.
template <bool kResident, int kPanels, class E>
void warp_job(const E& first, int l, int j, int number) {
  using Mode = typename E::Mode;
  using Job = typename Mode::template Job<E, kResident, kPanels>;
  static float sum[32][kPanels][Mode::kColumnTiles][4];
  std::vector<E> engines;
  for (int lane = 0; lane < 32; ++lane)
    engines.emplace_back(first.p, first.shared, first.block, first.thread + lane, first.slot);
  std::vector<Job> jobs;
  for (int lane = 0; lane < 32; ++lane) {
    jobs.emplace_back(engines[static_cast<std::size_t>(lane)], l, j, number);
    jobs.back().begin(sum[lane]);
  }
  for (int step = 0; step < jobs[0].count; ++step)
    for (int c = 0; c < Mode::kColumnTiles; ++c)
      for (int q = 0; q < kPanels; ++q) {
        Fragments held;
        for (std::size_t lane = 0; lane < 32; ++lane) {
          const auto weights = jobs[lane].weights(q, step);
          for (int i = 0; i < 4; ++i) held.a[lane][i] = weights.word[i];
          jobs[lane].samples(step, c, held.b[lane]);
        }
        float a[16][16] = {}, b[16][8] = {};
        multiply(typename Mode::Operand{}, held, a, b, unrounded_operand);
        for (int lane = 0; lane < 32; ++lane)
          for (int i = 0; i < 4; ++i) {
            const int row = i < 2 ? lane >> 2 : (lane >> 2) + 8, column = lane % 4 * 2 + (i & 1);
            for (int k = 0; k < Mode::kStep; ++k) sum[lane][q][c][i] += a[row][k] * b[k][column];
          }
      }
  for (int lane = 31; lane >= 0; --lane) jobs[static_cast<std::size_t>(lane)].end(sum[lane]);
}

template <class Mode>
struct HostRun {
  const cuda::EngineParams& p;
  char* shared;
  int64_t block;
  mutable int slot = 0;

  cuda::Engine<Mode> engine(int thread = 0) const { return {p, shared, block, thread, slot}; }
  template <class Phase>
  void operator()(const Phase& phase) const {
    for (int i = 0; i < Mode::kThreads; ++i) phase(engine(i * kStride % Mode::kThreads));
  }
  void layer(int l, int j) const {
    if constexpr (requires { typename Mode::Operand; }) {
      const cuda::EngineLayer& at = p.layer[l];
      const bool near = at.resident.shared != 0, two = Mode::two_panels(at);
      for (int warp = Mode::kWarps - 1; warp >= 0; --warp)
        for (int job = warp; job < Mode::jobs(at); job += Mode::kWarps) {
          if (near)
            two ? warp_job<true, 2>(engine(32 * warp), l, j, job) : warp_job<true, 1>(engine(32 * warp), l, j, job);
          else
            two ? warp_job<false, 2>(engine(32 * warp), l, j, job) : warp_job<false, 1>(engine(32 * warp), l, j, job);
        }
    } else {
      (*this)([&](const cuda::Engine<Mode>& e) { Mode::layer(e, l, j); });
    }
  }
};

template <class Mode, bool kSingle>
void run_blocks(const cuda::EngineProgram& program) {
  for (int64_t block = program.params.blocks - 1; block >= 0; --block) {
    // Whatever was in shared memory before: NaN of every type.
    std::vector<double> shared(static_cast<std::size_t>(program.shared_bytes / 8 + 2), std::nan(""));
    cuda::engine_block<Mode, kSingle>(program.params,
                                      HostRun<Mode>{program.params, reinterpret_cast<char*>(shared.data()), block});
  }
}

template <class Mode>
void run_blocks(const cuda::EngineProgram& program) {
  const cuda::EngineParams& p = program.params;
  if constexpr (Mode::kPacks) {
    for (int l = 0; l < p.layers; ++l)
      for (int i = 0; i < 7 * 32 && !p.layer[l].resident.shared; ++i)
        Mode::pack_weights(p, l, reinterpret_cast<typename Mode::Weights*>(p.packed + p.layer[l].packed), i / 32, 7,
                           i % 32);
  }
  program.single ? run_blocks<Mode, true>(program) : run_blocks<Mode, false>(program);
}

}  // namespace

extern "C" {

struct EngineCall {
  int64_t batch, dim, conditions, features, layers, wide, precision, single, t_dtype, t_per_sample, rows, most_branches,
      slots, scale_row_stride, scale_branch_stride, scale_sample_stride, kept, multiprocessors, shared_per_block,
      shared_per_multiprocessor;
  double time;
  const double* layer_table;
  const double* feature_table;
  const void* params;
  const void* x0;
  void* x;
  const void* cond;
  const void* t;
  const double* times;
  const double* table;
  const int64_t* branches;
  const void* scale;
  const int64_t* seeds;
  const int64_t* keep_rows;
  void* states;
  void* points;
};

// Returns -1 if the least does not fit, -2 if a tf32 operand was not rounded, else how the call was laid out: in bits, 1 large tiles, 2 states in shared memory, 4
// words of its own for the rows; from 8 on the layers whose weights lie in shared memory, from 2^16 on the blocks.
int64_t pfc_test_engine(const EngineCall* call) {
  TrajectoryArgs plan;
  Network& network = plan.network;
  network.dtype = call->wide ? DType::kFloat64 : DType::kFloat32;
  network.params = call->params;
  network.features = call->feature_table;
  network.dim = static_cast<int>(call->dim);
  network.feature_count = static_cast<int>(call->features);
  network.condition_count = static_cast<int>(call->conditions);
  network.layers = static_cast<int>(call->layers);
  for (int l = 0; l < network.layers; ++l)
    network.layer[l] = decode_layer(call->layer_table + l * layer_record::kWidth);
  plan.batch = call->batch;
  plan.x0 = call->x0;
  plan.x = call->x;
  plan.cond = call->cond;
  plan.rows = call->rows;
  plan.times = call->times;
  plan.table = call->table;
  plan.branches = call->branches;
  plan.most_branches = static_cast<int>(call->most_branches);
  plan.slots = static_cast<int>(call->slots);
  plan.scale = call->scale;
  plan.scale_row_stride = call->scale_row_stride;
  plan.scale_branch_stride = call->scale_branch_stride;
  plan.scale_sample_stride = call->scale_sample_stride;
  plan.seeds = call->seeds;
  plan.keep_rows = call->keep_rows;
  plan.kept = call->kept;
  plan.states = call->states;
  plan.points = call->points;
  const auto precision = static_cast<cuda::Precision>(call->precision);
  cuda::EngineArgs args = cuda::engine_args(plan, precision);
  if (call->single) {
    NetworkArgs one{network, call->batch, call->x0, call->cond, call->t};
    one.t_dtype = static_cast<DType>(call->t_dtype);
    one.shared_time = call->t_per_sample == 0;
    one.time = call->time;
    one.out = call->x;
    args = cuda::engine_args(one, precision);
  }
  const cuda::EngineDevice device{static_cast<int>(call->multiprocessors), call->shared_per_block,
                                  call->shared_per_multiprocessor};
  return cuda::with_modes(args, [&]<class Small, class Large>(cuda::Modes<Small, Large>) -> int64_t {
    cuda::EngineProgram program;
    if (!cuda::make_program<Small, Large>(args, device, program)) return -1;
    cuda::EngineParams& p = program.params;
    std::vector<double> scratch(static_cast<std::size_t>(program.scratch_bytes / 8 + 2), std::nan(""));
    cuda::place_scratch(program, reinterpret_cast<char*>(scratch.data()));
    if (!program.words.empty()) std::memcpy(p.remote, program.words.data(), 4 * program.words.size());
    unrounded_operand = false;
    program.large ? run_blocks<Large>(program) : run_blocks<Small>(program);
    if (unrounded_operand) return -2;
    int64_t resident = 0;
    for (int l = 0; l < p.layers; ++l) resident += p.layer[l].resident.shared;
    return program.large + 2 * p.plane.shared + 4 * !program.words.empty() + 8 * resident + 65536 * p.blocks;
  });
}

// A time feature.
double pfc_test_feature(int kind, double frequency, double phase, double t) {
  return time_feature(static_cast<Feature>(kind), frequency, phase, t);
}

}  // extern "C"
