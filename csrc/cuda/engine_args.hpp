// What the engine's kernels are asked for: a whole plan over a network, or one evaluation of it; and on what device.
#pragma once

#include "../core/trajectory.hpp"

namespace pfc::cuda {

// Of the products: as they are, or of operands rounded to tf32 or bf16 and summed in float32 by the tensor cores.
enum class Precision : int { kExact, kTF32, kBFloat16 };

struct EngineArgs {
  TrajectoryArgs plan;
  Precision precision = Precision::kExact;
  // One evaluation instead, from plan.x0 to plan.x, at times as in NetworkArgs.
  bool single = false;
  const void* t = nullptr;
  DType t_dtype = DType::kFloat64;
  bool t_per_sample = false;
  double time = 0.0;
};

inline EngineArgs engine_args(const TrajectoryArgs& args, Precision precision) {
  EngineArgs engine;
  engine.plan = args;
  engine.precision = precision;
  return engine;
}

inline EngineArgs engine_args(const NetworkArgs& args, Precision precision) {
  EngineArgs engine;
  engine.plan.network = args.network;
  engine.plan.batch = args.batch;
  engine.plan.x0 = args.x;
  engine.plan.x = args.out;
  engine.plan.cond = args.cond;
  engine.precision = precision;
  engine.single = true;
  engine.t = args.t;
  engine.t_dtype = args.t_dtype;
  engine.t_per_sample = !args.shared_time;
  engine.time = args.time;
  return engine;
}

// What the layout of a launch depends on.
struct EngineDevice {
  int multiprocessors = 1;
  int64_t shared_per_block = 48 << 10, shared_per_multiprocessor = 64 << 10;
};

}  // namespace pfc::cuda
