// What the engines' kernels are given: the network at one point per sample, and a whole plan over it. As in arguments.hpp,
// tables are host memory on every device; the other pointers are the device's.
#pragma once

#include "arguments.hpp"
#include "network.hpp"

namespace pfc {

struct NetworkArgs {
  Network network;
  int64_t batch = 0;
  const void* x = nullptr;     // [batch][dim], of the network's dtype, as are cond and out
  const void* cond = nullptr;  // [batch][condition_count]
  const void* t = nullptr;     // [batch], or one time for all
  DType t_dtype = DType::kFloat64;
  bool shared_time = false;
  // One time for all, where the host knows it: then t is null.
  double time = 0.0;
  void* out = nullptr;
};

struct TrajectoryArgs {
  Network network;
  int64_t batch = 0;
  int64_t rows = 0;
  const void* x0 = nullptr;  // [batch][dim]
  void* x = nullptr;
  const double* times = nullptr;      // host [rows]
  const double* table = nullptr;      // host [rows][record::kWidth]
  const int64_t* branches = nullptr;  // host [rows]
  int most_branches = 0;
  int slots = 0;               // highest slot that a row names, plus one
  const void* cond = nullptr;  // [most_branches or 1][batch][condition_count]
  const void* scale = nullptr;
  int64_t scale_row_stride = 0, scale_branch_stride = 0, scale_sample_stride = 0;
  const int64_t* seeds = nullptr;
  const int64_t* keep_rows = nullptr;  // host, ascending
  int64_t kept = 0;
  void* states = nullptr;  // [kept][batch][dim]
  void* points = nullptr;  // [rows with branches][batch][dim], or null
};

}  // namespace pfc
