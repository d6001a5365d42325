// Adaptive steps, one sample by itself. A sample waits for one evaluation of the field; its phase says which. Whoever brings
// the value calls, in this order:
//
//   sums      over the elements, where the phase decides something by a norm (adaptive_sums_of)
//   control   one thread: counts, error, next step size; answers with what is to be done
//   elements  stores the value, writes output rows, takes the new state, makes the next point
//
// The loop over a batch and the kernel that holds a network call the same functions, so both take the same steps.
//
//   error     e = RMS over the elements of err / (atol + rtol max(|x|, |x'|)); DOP853's, with the RMS e5 and e3 of its two
//             estimates, is e5^2 / sqrt(e5^2 + 0.01 e3^2) (Hairer, Norsett & Wanner 1993, II.10)
//   factor    clip(0.9 e^(-0.7/k) before^(0.4/k), 0.2, 10); before is the last accepted step's e, at least 1e-4 (1 at first)
//   first h   Hairer, Norsett & Wanner 1993, II.4
//
// Norms are sums of float64 in the order of core/guide.hpp. No fused multiply-add: CPU, CUDA and plain PyTorch agree to the bit.
#pragma once

#include "adaptive_tableau.hpp"
#include "arguments.hpp"
#include "exact_math.hpp"

namespace pfc {

// Columns of a sample's records; pyflowcore/ops/_plain_adaptive.py has the same lists.
namespace clock_record {
// From t by h to next; the error of the last accepted step; tolerances; the first step's trial size (or the size asked for)
// and slope; and the accepted step that output rows are made from.
inline constexpr int kT = 0, kH = 1, kNext = 2, kError = 3, kRtol = 4, kAtol = 5, kFirst = 6, kSlope = 7, kFrom = 8,
                     kStep = 9, kWidth = 10;
}  // namespace clock_record
namespace count_record {
inline constexpr int kPhase = 0, kStatus = 1, kNfe = 2, kAccepted = 3, kRejected = 4, kRow = 5, kFlags = 6, kAction = 7,
                     kWidth = 8;
}

enum AdaptiveStatus : int64_t { kSuccess, kBudget, kUnderflow, kNonFinite, kUnfinished };

// A phase is the stage whose value is awaited; this one, the second evaluation of the first step's size.
inline constexpr int64_t kProbe = -1;
inline constexpr int64_t kRejectedLast = 1, kNotFiniteLast = 2;  // flags

// Actions, and above them the slot of `store` and the first row to write.
inline constexpr int64_t kDoStore = 1, kDoRows = 2, kDoCommit = 4, kDoPoint = 8, kDoKeep = 16, kDoFromKept = 32,
                         kDoCast = 64, kDoFinish = 128;
inline constexpr int kSlotShift = 8, kRowShift = 16;

struct AdaptiveArgs {
  int64_t batch = 0, places = 0, sample = 0;  // samples of the solve, samples of this call, elements of a sample
  int64_t slots = 0, norm = 0, max_nfe = 0, row_count = 0, step_count = 0;
  DType state_dtype = DType::kFloat32, out_dtype = DType::kFloat32, inp_dtype = DType::kFloat32,
        t_dtype = DType::kFloat32;
  double sign = 1.0;
  const void* f = nullptr;  // [places, sample]
  void* x = nullptr;        // [batch, sample]
  void* y = nullptr;        // [places, sample]
  void* inp = nullptr;      // y cast for the field, or null
  void* t = nullptr;        // [places]
  void* k = nullptr;        // [batch, slots, sample]
  double* clock = nullptr;
  int64_t* counts = nullptr;
  void* rows = nullptr;     // [row_count, batch, sample]
  double* steps = nullptr;  // [batch, step_count, 2] or null: t and next of the accepted steps
  int64_t* running = nullptr;
  const int64_t* home = nullptr;  // a place's sample, or null: itself
  bool k_by_place = false;        // k is [places, slots, sample]
  const double* times = nullptr;  // [row_count]
  const double* table = nullptr;  // method_record, host memory
  double* partial = nullptr;      // [places, chunks of a sample, 2]
};

struct Method {
  const double* table;
  PFC_HD double at(int row, int64_t column) const { return table[row * method_record::kColumns + column]; }
  PFC_HD int fact(int column) const { return static_cast<int>(at(method_record::kFacts, column)); }
  PFC_HD int stages() const { return fact(method_record::kStages); }
  PFC_HD int decides() const { return fact(method_record::kDecides); }
  PFC_HD int extra() const { return fact(method_record::kExtra); }
  PFC_HD bool two_errors() const { return fact(method_record::kTwoErrors) != 0; }

  // Weights of h k_j in the state at t + theta h, less x: Hermite's cubic polynomial and what the method adds to it.
  PFC_HD double dense(int j, double theta) const {
    const int last = stages(), rows = fact(method_record::kDenseRows);
    const double b = at(method_record::kPoint + last, j), other = 1.0 - theta;
    const double start = j == 0 ? 1.0 : 0.0, end = j == last ? 1.0 : 0.0;
    double w = 0.0;
    PFC_NO_UNROLL
    for (int d = rows - 1; d >= 0; --d) w = (w + at(method_record::kDense + d, j)) * ((3 + d) % 2 == 0 ? theta : other);
    w = (w + (2.0 * b - (start + end))) * theta;
    w = (w + (start - b)) * other;
    return (w + b) * theta;
  }
};

// Which sums the phase wants.
enum class AdaptiveSums { kNone, kStart, kProbe, kError, kFinite };
PFC_HD AdaptiveSums adaptive_sums_of(const Method& method, int64_t phase) {
  if (phase == 0) return AdaptiveSums::kStart;
  if (phase == kProbe) return AdaptiveSums::kProbe;
  if (phase == method.decides()) return AdaptiveSums::kError;
  if (phase == method.stages()) return AdaptiveSums::kFinite;
  return AdaptiveSums::kNone;
}

PFC_HD double size_of(double value) { return value < 0.0 ? -value : value; }
PFC_HD bool is_finite(double value) { return value - value == 0.0; }
// The unit in the last place of a normal number.
PFC_HD double last_place(double value) {
  return exact::bit_cast<double>(exact::bit_cast<int64_t>(value) & 0x7ff0000000000000) * 0x1p-52;
}

// Whether a running sample's records lead to no memory but the solve's: they are whatever the operator was given.
PFC_HD bool adaptive_fits(const AdaptiveArgs& args, const Method& method, int64_t sample) {
  const int64_t* counts = args.counts + sample * count_record::kWidth;
  const double next = args.clock[sample * clock_record::kWidth + clock_record::kNext];
  const double begin = args.times[0], end = args.times[args.row_count - 1];
  const int64_t phase = counts[count_record::kPhase], row = counts[count_record::kRow];
  const int64_t dense = method.stages() + method.extra();
  if (phase < kProbe || phase > (args.slots > dense + 1 ? dense : method.stages())) return false;
  if (row < 1 || row >= args.row_count) return false;
  if (counts[count_record::kAccepted] < 0 || counts[count_record::kNfe] < 0) return false;
  return phase <= 0 || (end > begin ? next <= end : next >= end);
}

// One sample's control. `clock` and `counts` are its records.
struct AdaptiveControl {
  const Method method;
  const double* times;
  int64_t row_count, max_nfe;
  double norm;  // elements that count
  double* clock;
  int64_t* counts;
  double* step;       // where an accepted step is noted, or null
  double stage_time;  // of the next evaluation
  int64_t action = 0;

  PFC_HD AdaptiveControl(const AdaptiveArgs& args, const Method& table, int64_t sample)
      : method{table},
        times(args.times),
        row_count(args.row_count),
        max_nfe(args.max_nfe),
        norm(static_cast<double>(args.norm)),
        clock(args.clock + sample * clock_record::kWidth),
        counts(args.counts + sample * count_record::kWidth),
        step(nullptr),
        stage_time(0.0) {
    if (args.steps != nullptr && counts[count_record::kAccepted] < args.step_count)
      step = args.steps + 2 * (sample * args.step_count + counts[count_record::kAccepted]);
  }

  PFC_HD double end() const { return times[row_count - 1]; }
  PFC_HD bool forward() const { return end() > times[0]; }
  PFC_HD bool before(double a, double b) const { return forward() ? a < b : a > b; }

  // The sums are of squares, over the elements that count. Returns what is to be done.
  PFC_HD int64_t run(double sum, double sum3) {
    namespace N = count_record;
    const int64_t phase = counts[N::kPhase];
    counts[N::kNfe] = counts[N::kNfe] + 1;
    const AdaptiveSums sums = adaptive_sums_of(method, phase);
    // Where sums are taken, the value is stored with them.
    if (sums == AdaptiveSums::kNone) action = kDoStore | (phase << kSlotShift);
    switch (sums) {
      case AdaptiveSums::kStart: first(exact::sqrt(sum / norm), exact::sqrt(sum3 / norm)); break;
      case AdaptiveSums::kProbe: probe(exact::sqrt(sum / norm)); break;
      case AdaptiveSums::kError: decide(sum / norm, sum3 / norm); break;
      case AdaptiveSums::kFinite: arrived(sum); break;
      case AdaptiveSums::kNone:
        if (phase == method.stages() + method.extra())
          accept(kDoFromKept);
        else
          to_stage(phase + 1);
    }
    counts[N::kAction] = action;
    return action;
  }

  PFC_HD void finish(AdaptiveStatus status) {
    counts[count_record::kStatus] = status;
    action = action | kDoFinish;
  }

  PFC_HD void to_stage(int64_t stage) {
    wait_for(stage);
    action = action | kDoPoint;
  }
  PFC_HD void wait_for(int64_t stage) {
    using namespace clock_record;
    const double c = method.at(method_record::kTime, stage);
    stage_time = c == 1.0 ? clock[kNext] : clock[kT] + c * clock[kH];
    counts[count_record::kPhase] = stage;
  }

  PFC_HD void first(double d0, double d1) {
    using namespace clock_record;
    if (!is_finite(d0) || !is_finite(d1)) return finish(kNonFinite);
    if (clock[kFirst] > 0.0) return start(clock[kFirst]);
    const double span = size_of(end() - times[0]);
    double h = d0 < 1e-5 || d1 < 1e-5 ? 1e-6 : 0.01 * (d0 / d1);
    if (h > span) h = span;
    if (counts[count_record::kNfe] + 1 > max_nfe) return finish(kBudget);
    clock[kFirst] = h;
    clock[kSlope] = d1;
    clock[kH] = forward() ? h : -h;
    stage_time = clock[kT] + clock[kH];
    counts[count_record::kPhase] = kProbe;
    action = action | kDoPoint;
  }

  PFC_HD void probe(double change) {
    using namespace clock_record;
    const double first = clock[kFirst], d1 = clock[kSlope], d2 = change / first;
    const double largest = d2 > d1 ? d2 : d1;
    double h;
    if (largest <= 1e-15) {
      h = first * 1e-3 > 1e-6 ? first * 1e-3 : 1e-6;
    } else {
      double ratio = 0.01 / largest;
      ratio = ratio < 1e-300 ? 1e-300 : ratio > 1e300 ? 1e300 : ratio;
      h = exact::exp(exact::log(ratio) / static_cast<double>(method.fact(method_record::kOrder)));
    }
    h = h < 100.0 * first ? h : 100.0 * first;
    start(is_finite(d2) ? h : first);
  }

  // The time whose last place limits a step: t, or near t = 0 a thousandth of the first step's trial size. A solve that
  // starts at 0 may take steps as small as it needs, and one that cannot reach 0 does not approach it for ever.
  PFC_HD double near() const {
    const double span = size_of(end() - times[0]), first = clock[clock_record::kFirst];
    double near = (first < span ? first : span) / 1024.0;
    near = near > 1e-290 ? near : 1e-290;
    const double t = size_of(clock[clock_record::kT]);
    return t > near ? t : near;
  }

  // Begins an attempt of a step of this size, or ends the sample.
  PFC_HD void start(double size) {
    using namespace clock_record;
    const double t = clock[kT];
    if (size < 16.0 * last_place(near()))
      return finish((counts[count_record::kFlags] & kNotFiniteLast) != 0 ? kNonFinite : kUnderflow);
    if (counts[count_record::kNfe] + method.stages() > max_nfe) return finish(kBudget);
    const double next = t + (forward() ? size : -size);
    clock[kNext] = size >= size_of(end() - t) || !before(next, end()) ? end() : next;
    clock[kH] = clock[kNext] - t;
    to_stage(1);
  }

  PFC_HD double factor(double error) const {
    const double e = error > 1e-30 ? error : 1e-30;
    const double power = (0.4 * exact::log(clock[clock_record::kError]) - 0.7 * exact::log(e)) /
                         static_cast<double>(method.fact(method_record::kOrder));
    const double f = 0.9 * exact::exp(power);
    return f < 0.2 ? 0.2 : f > 10.0 ? 10.0 : f;
  }

  PFC_HD void reject(double error) {
    const bool finite = is_finite(error);
    counts[count_record::kRejected] = counts[count_record::kRejected] + 1;
    counts[count_record::kFlags] = kRejectedLast + (finite ? 0 : kNotFiniteLast);
    start(size_of(clock[clock_record::kH]) * (finite ? factor(error) : 0.2));
  }

  PFC_HD void decide(double e5, double e3) {
    double error = exact::sqrt(e5);
    if (method.two_errors()) {
      const double both = e5 + 0.01 * e3;
      error = both == 0.0 ? 0.0 : e5 / exact::sqrt(both);
    }
    if (!(error <= 1.0)) return reject(error);
    clock[clock_record::kSlope] = error;
    if (method.extra() == 0) return accept(0);
    wait_for(method.stages());  // its point is the state that the error was taken of
    action = action | kDoCast;
  }

  // DOP853's evaluation at the end of a step that is good.
  PFC_HD void arrived(double sum) {
    if (!is_finite(sum)) return reject(sum - sum);
    const int64_t row = counts[count_record::kRow];
    if (!before(times[row], clock[clock_record::kNext])) return accept(0);
    if (counts[count_record::kNfe] + method.extra() > max_nfe) return finish(kBudget);
    action = action | kDoKeep;
    to_stage(method.stages() + 1);
  }

  PFC_HD void accept(int64_t from_kept) {
    using namespace clock_record;
    const double next = clock[kNext], error = clock[kSlope];
    if (step != nullptr) {
      step[0] = clock[kT];
      step[1] = next;
    }
    counts[count_record::kAccepted] = counts[count_record::kAccepted] + 1;
    int64_t row = counts[count_record::kRow];
    action = action | kDoCommit | from_kept | (row << kRowShift);
    if (row < row_count && !before(next, times[row])) action = action | kDoRows;
    while (row < row_count && !before(next, times[row])) ++row;
    counts[count_record::kRow] = row;
    clock[kFrom] = clock[kT];
    clock[kStep] = clock[kH];
    double f = factor(error);
    if ((counts[count_record::kFlags] & kRejectedLast) != 0 && f > 1.0) f = 1.0;
    clock[kT] = next;
    clock[kError] = error > 1e-4 ? error : 1e-4;
    counts[count_record::kFlags] = 0;
    if (next == end()) return finish(kSuccess);
    start(size_of(clock[kH]) * f);
  }
};

// Weights of a sum over a sample's stored values, in the state's dtype.
template <class S>
struct AdaptiveTerms {
  S weight[method_record::kColumns];
  int slot[method_record::kColumns];
  int count = 0;
  PFC_HD void add(int j, double value) {
    weight[count] = static_cast<S>(value);
    slot[count] = j;
    ++count;
  }
  // h times a row of the table.
  PFC_HD static AdaptiveTerms of_row(const Method& method, int row, double h) {
    AdaptiveTerms terms;
    PFC_NO_UNROLL
    for (int j = 0; j < method_record::kColumns; ++j)
      if (method.at(row, j) != 0.0) terms.add(j, h * method.at(row, j));
    return terms;
  }
  PFC_HD static AdaptiveTerms of_point(const Method& method, int64_t phase, double h) {
    if (phase == kProbe) {
      AdaptiveTerms terms;
      terms.add(0, h);
      return terms;
    }
    return of_row(method, method_record::kPoint + static_cast<int>(phase), h);
  }
  PFC_HD static AdaptiveTerms of_time(const Method& method, double theta, double h) {
    AdaptiveTerms terms;
    const int count = method.stages() + 1 + method.extra();
    PFC_NO_UNROLL
    for (int j = 0; j < count; ++j) {
      const double w = method.dense(j, theta);
      if (w != 0.0) terms.add(j, h * w);
    }
    return terms;
  }
};

// An element's part of a norm, squared; V a float64 or a vector of them, T the same or one number. Squares of finite values stay finite: beyond kFar
// it makes no difference how far. What is not finite gives no number.
inline constexpr double kFar = 1e145;
template <class V, class T>
PFC_HD V adaptive_square(V value, V size, T rtol, T atol) {
  const V ratio = value / (atol + rtol * size);
  const V nothing = value - value, far = nothing + kFar;
  const V distance = ratio < 0 ? -ratio : ratio;
  const V near = distance > far ? far : distance;
  return near * near + nothing;
}

}  // namespace pfc
