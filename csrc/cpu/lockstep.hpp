// Samples in lockstep: their adaptive solves wait for the same evaluation, whatever their times and step sizes are. That is
// so in every batch that begins together, with a method whose step always takes the same stages (no stages of dense
// output): accepted or rejected, a sample goes from the last stage to the first. Then a lane of a vector can be a sample, and
// what core/adaptive.hpp says of one sample is done for all lanes at once, to the bit.
//
// A sample's numbers lie in columns, padded to a vector: kNumbers of float64, kWholes of int64, and its states and stages,
// [element][lane].
#pragma once

#include "../core/adaptive.hpp"
#include "kernels.hpp"

namespace pfc::cpu {

// Columns are padded to the widest vector of float64, whichever instruction set runs.
inline constexpr int64_t kLockstepPad = 8;
// Samples of more elements have vectors of their own (adaptive_kernel.hpp).
inline constexpr int64_t kLockstepElements = 32;

// Due: the time of the next output row.
namespace lockstep_number {
inline constexpr int kT = 0, kH = 1, kNext = 2, kError = 3, kRtol = 4, kAtol = 5, kFirst = 6, kSlope = 7, kDue = 8,
                     kWidth = 9;
}
// Home: the sample's index, in rows.
namespace lockstep_whole {
inline constexpr int kStatus = 0, kNfe = 1, kAccepted = 2, kRejected = 3, kRow = 4, kFlags = 5, kHome = 6, kWidth = 7;
}

inline bool runs_in_lockstep(const double* table, int64_t sample) {
  return Method{table}.extra() == 0 && sample <= kLockstepElements;
}

struct LockstepColumns {
  int64_t lanes = 0;  // a multiple of kLockstepPad
  double* number = nullptr;
  int64_t* whole = nullptr;
  void *x = nullptr, *y = nullptr, *k = nullptr;  // the state, the point, stages: [sample], [sample], [slots][sample]

  static int64_t padded(int64_t count) { return (count + kLockstepPad - 1) / kLockstepPad * kLockstepPad; }
  // A multiple of 64 for 8-byte and 4-byte states.
  static int64_t bytes(int64_t lanes, int64_t sample, int64_t slots, int64_t element) {
    const int64_t each = 8 * (lockstep_number::kWidth + lockstep_whole::kWidth) + element * sample * (slots + 2);
    return (padded(lanes) * each + 63) / 64 * 64;
  }
  LockstepColumns() = default;
  LockstepColumns(char* memory, int64_t count, int64_t sample, int64_t element) : lanes(padded(count)) {
    number = reinterpret_cast<double*>(memory);
    whole = reinterpret_cast<int64_t*>(number + lockstep_number::kWidth * lanes);
    char* states = reinterpret_cast<char*>(whole + lockstep_whole::kWidth * lanes);
    x = states;
    y = states + element * sample * lanes;
    k = states + 2 * element * sample * lanes;
  }
  double& at(int column, int64_t lane) const { return number[column * lanes + lane]; }
  int64_t& count(int column, int64_t lane) const { return whole[column * lanes + lane]; }
};

// One evaluation's value for all lanes, and what is to be done with it.
struct LockstepArgs {
  LockstepColumns columns;
  int64_t count = 0;  // lanes that are samples
  int64_t phase = 0, sample = 0, norm = 0, max_nfe = 0, batch = 0, row_count = 0;
  DType state_dtype = DType::kFloat32, out_dtype = DType::kFloat32, t_dtype = DType::kFloat64;
  double sign = 1.0;
  bool first_given = false;
  const double* times = nullptr;
  const double* table = nullptr;
  const void* f = nullptr;  // [count, sample]
  void* y = nullptr;        // [count, sample], and
  void* t = nullptr;        // [count]: the next point; left alone where a sample has finished
  void* rows = nullptr;     // [row_count, batch, sample]

  int64_t next_phase() const {
    if (phase == 0) return first_given ? 1 : kProbe;
    return phase == kProbe || phase == Method{table}.stages() ? 1 : phase + 1;
  }
};

struct LockstepKernels {
  int64_t (*lockstep)(const LockstepArgs&, int64_t begin,
                      int64_t end);  // lanes, from a multiple of 8; how many finished

  static const LockstepKernels baseline, avx2, avx512;
};

}  // namespace pfc::cpu
