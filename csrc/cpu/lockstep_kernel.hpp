// core/adaptive.hpp for samples in lockstep (lockstep.hpp), a lane each. What AdaptiveControl says of one sample with
// branches, this says of kLanes with masks: the same operations on the same numbers, so the same bits.
#pragma once

#include "lanes.hpp"
#include "lockstep.hpp"

namespace pfc::cpu {
namespace {

// Columns of a row of the table that are not 0.
struct LockstepRow {
  double weight[method_record::kColumns];
  int slot[method_record::kColumns];
  int count = 0;
  // Nothing beyond the stages, whatever the table says: that is all that k has room for.
  PFC_INLINE LockstepRow(const Method& method, int row) {
    for (int j = 0; j <= method.stages(); ++j)
      if (method.at(row, j) != 0.0) {
        weight[count] = method.at(row, j);
        slot[count] = j;
        ++count;
      }
  }
};

template <class S>
class Lockstep {
  using V = LanesOf<S>;
  using Mask = typename NativeOf<std::conditional_t<sizeof(S) == 4, int32_t, int64_t>, kLanes>::type;

 public:
  PFC_INLINE explicit Lockstep(const LockstepArgs& given)
      : args_(given),
        columns_(args_.columns),
        method_{args_.table},
        sample_(static_cast<int>(args_.sample)),
        phase_(static_cast<int>(args_.phase)),
        next_phase_(args_.next_phase()),
        begin_(args_.times[0]),
        end_(args_.times[args_.row_count - 1]),
        way_(end_ > begin_ ? 1.0 : -1.0),
        span_(size_of(end_ - begin_)),
        order_(static_cast<double>(method_.fact(method_record::kOrder))),
        error_(method_, method_record::kError),
        // The probe's point is x + h k_0: a row of one weight, 1.
        point_(method_, method_record::kPoint + static_cast<int>(next_phase_ == kProbe ? 0 : next_phase_)) {
    if (next_phase_ == kProbe) {
      point_.count = 1;
      point_.weight[0] = 1.0;
      point_.slot[0] = 0;
    }
  }

  // Lanes begin .. end, begin a multiple of kLanes; how many samples have finished.
  inline int64_t run(int64_t begin, int64_t end) {
    int64_t finished = 0;
    for (int64_t i = begin; i < end; i += kLanes) {
      at_ = i;
      here_ = static_cast<int>(end - i < kLanes ? end - i : kLanes);
      const Wholes live = wholes(lockstep_whole::kStatus) == static_cast<int64_t>(kUnfinished);
      if (!any_lane(live)) continue;
      put(lockstep_whole::kNfe, wholes(lockstep_whole::kNfe) - live);
      load_value();
      const Wholes going = phase_ == 0                  ? first(live)
                           : phase_ == kProbe           ? probe(live)
                           : phase_ == method_.stages() ? decide(live)
                                                        : stage(live);
      next_point(going);
      const Wholes stopped = live & ~going;
      if (any_lane(stopped))
        for (int l = 0; l < kLanes; ++l) finished -= stopped[l];
    }
    return finished;
  }

 private:
  // ------------------------------------------------------------------------------------------------ columns
  PFC_INLINE Doubles numbers(int column) const {
    return load_bytes<Doubles>(columns_.number + column * columns_.lanes + at_);
  }
  PFC_INLINE Wholes wholes(int column) const {
    return load_bytes<Wholes>(columns_.whole + column * columns_.lanes + at_);
  }
  PFC_INLINE void put(int column, const Doubles& v) const {
    store_bytes(columns_.number + column * columns_.lanes + at_, v, false);
  }
  PFC_INLINE void put(int column, const Wholes& v) const {
    store_bytes(columns_.whole + column * columns_.lanes + at_, v, false);
  }
  // Where the mask holds.
  PFC_INLINE void put(int column, const Wholes& mask, const Doubles& v) const {
    put(column, mask ? v : numbers(column));
  }
  PFC_INLINE void put(int column, const Wholes& mask, const Wholes& v) const { put(column, mask ? v : wholes(column)); }
  PFC_INLINE S* x(int e) const { return static_cast<S*>(columns_.x) + e * columns_.lanes + at_; }
  PFC_INLINE S* y(int e) const { return static_cast<S*>(columns_.y) + e * columns_.lanes + at_; }
  PFC_INLINE S* k(int slot, int e) const {
    return static_cast<S*>(columns_.k) + (static_cast<int64_t>(slot) * sample_ + e) * columns_.lanes + at_;
  }
  PFC_INLINE V state(const S* at) const { return load_bytes<V>(at); }
  PFC_INLINE Doubles wide(const V& v) const { return convert_lanes<Doubles>(v); }

  // ------------------------------------------------------------------------------------------------ the field's value
  PFC_INLINE void load_value() {
    const S sign = static_cast<S>(args_.sign);
    const int64_t first = at_ * sample_;
    if (args_.out_dtype == args_.state_dtype && here_ == kLanes) {
      to_lanes(static_cast<const S*>(args_.f) + first, sample_, value_);
    } else {
      for (int e = 0; e < sample_; ++e) {
        value_[e] = V{};
        for (int l = 0; l < here_; ++l) value_[e][l] = load_one<S>(args_.f, args_.out_dtype, first + l * sample_ + e);
      }
    }
    for (int e = 0; e < sample_; ++e) value_[e] = value_[e] * sign;
  }
  PFC_INLINE void keep_value(int slot) const {
    for (int e = 0; e < sample_; ++e) store_bytes(k(slot, e), value_[e], false);
  }

  // sum_j h row_j k_j, the weights rounded to the state's dtype.
  PFC_INLINE void weights(const LockstepRow& row, const Doubles& h, V* weight) const {
    for (int n = 0; n < row.count; ++n) weight[n] = convert_lanes<V>(h * row.weight[n]);
  }
  PFC_INLINE V weighted(const LockstepRow& row, const V* weight, int e) const {
    V total{};
    for (int n = 0; n < row.count; ++n) total = total + weight[n] * state(k(row.slot[n], e));
    return total;
  }

  // The sum over the elements that count, in the order of core/guide.hpp for so few.
  PFC_INLINE Doubles mean(Doubles* square) const {
    const int counted = static_cast<int>(args_.norm);
    int lanes = 4;
    while (lanes < counted) lanes *= 2;
    for (int e = counted; e < lanes; ++e) square[e] = Doubles{};
    int groups = lanes / 4;
    for (int g = 0; g < groups; ++g)
      square[g] = (square[4 * g] + square[4 * g + 2]) + (square[4 * g + 1] + square[4 * g + 3]);
    for (groups /= 2; groups > 0; groups /= 2)
      for (int g = 0; g < groups; ++g) square[g] = square[g] + square[g + groups];
    return square[0] / all_lanes(static_cast<double>(args_.norm));
  }

  // ------------------------------------------------------------------------------------------------ phases
  // Each answers with the lanes that go on.
  PFC_INLINE Wholes stage(const Wholes& live) const {
    keep_value(phase_);
    return live;
  }

  PFC_INLINE Wholes first(const Wholes& live) {
    Doubles one[kLockstepElements], two[kLockstepElements];
    const Doubles rtol = numbers(lockstep_number::kRtol), atol = numbers(lockstep_number::kAtol);
    keep_value(0);
    for (int e = 0; e < sample_; ++e) {
      const Doubles x0 = wide(state(x(e))), size = lanes_size(x0);
      one[e] = adaptive_square(x0, size, rtol, atol);
      two[e] = adaptive_square(wide(value_[e]), size, rtol, atol);
    }
    const Doubles d0 = lanes_sqrt(mean(one)), d1 = lanes_sqrt(mean(two));
    const Wholes fine = live & lanes_finite(d0) & lanes_finite(d1);
    finish(live & ~fine, all_lanes(static_cast<int64_t>(kNonFinite)));
    if (args_.first_given) return start(fine, numbers(lockstep_number::kFirst));
    Doubles h = (d0 < 1e-5) | (d1 < 1e-5) ? all_lanes(1e-6) : 0.01 * (d0 / d1);
    h = h > span_ ? all_lanes(span_) : h;
    const Wholes over = fine & (wholes(lockstep_whole::kNfe) + 1 > args_.max_nfe);
    finish(over, all_lanes(static_cast<int64_t>(kBudget)));
    const Wholes go = fine & ~over;
    put(lockstep_number::kFirst, go, h);
    put(lockstep_number::kSlope, go, d1);
    put(lockstep_number::kH, go, way_ * h);
    return go;
  }

  PFC_INLINE Wholes probe(const Wholes& live) {
    Doubles one[kLockstepElements];
    const Doubles rtol = numbers(lockstep_number::kRtol), atol = numbers(lockstep_number::kAtol);
    for (int e = 0; e < sample_; ++e) {
      const Doubles change = wide(value_[e]) - wide(state(k(0, e)));
      one[e] = adaptive_square(change, lanes_size(wide(state(x(e)))), rtol, atol);
    }
    const Doubles first = numbers(lockstep_number::kFirst), d1 = numbers(lockstep_number::kSlope);
    const Doubles d2 = lanes_sqrt(mean(one)) / first;
    const Doubles largest = d2 > d1 ? d2 : d1;
    Doubles ratio = 0.01 / largest;
    ratio = ratio < 1e-300 ? all_lanes(1e-300) : ratio > 1e300 ? all_lanes(1e300) : ratio;
    Doubles h = power(exact::log_of(ratio) / order_);
    const Doubles little = first * 1e-3;
    h = largest <= 1e-15 ? (little > 1e-6 ? little : all_lanes(1e-6)) : h;
    const Doubles most = 100.0 * first;
    h = h < most ? h : most;
    return start(live, lanes_finite(d2) ? h : first);
  }

  PFC_INLINE Wholes decide(const Wholes& live) {
    Doubles one[kLockstepElements];
    V weight[method_record::kColumns];
    const Doubles rtol = numbers(lockstep_number::kRtol), atol = numbers(lockstep_number::kAtol);
    const Doubles h = numbers(lockstep_number::kH);
    keep_value(phase_);
    weights(error_, h, weight);
    for (int e = 0; e < sample_; ++e) {
      const Doubles to = wide(state(y(e)));
      const Doubles a = lanes_size(wide(state(x(e)))), b = lanes_size(to);
      const Doubles nothing = to - to;  // a state that is not finite has no error
      one[e] = adaptive_square(wide(weighted(error_, weight, e)) + nothing, a > b ? a : b, rtol, atol);
    }
    const Doubles error = lanes_sqrt(mean(one));
    const Wholes good = live & (error <= 1.0), bad = live & ~good, finite = lanes_finite(error);
    const Doubles grown = factor(error), next = numbers(lockstep_number::kNext);
    const Wholes held = (wholes(lockstep_whole::kFlags) & kRejectedLast) != 0;
    const Doubles longer = held & (grown > 1.0) ? all_lanes(1.0) : grown;
    const Doubles shorter = finite ? grown : all_lanes(0.2);

    const Wholes due = good & ~before(next, numbers(lockstep_number::kDue));
    if (any_lane(due)) write_rows(due);
    put(lockstep_whole::kAccepted, wholes(lockstep_whole::kAccepted) - good);
    put(lockstep_whole::kRejected, wholes(lockstep_whole::kRejected) - bad);
    put(lockstep_whole::kFlags, good     ? Wholes{}
                                : finite ? all_lanes(kRejectedLast)
                                         : all_lanes(kRejectedLast + kNotFiniteLast));
    put(lockstep_number::kT, good, next);
    put(lockstep_number::kError, good, error > 1e-4 ? error : all_lanes(1e-4));
    const Mask taken = convert_lanes<Mask>(good);
    for (int e = 0; e < sample_; ++e) {
      store_bytes(x(e), taken ? state(y(e)) : state(x(e)), false);
      store_bytes(k(0, e), taken ? value_[e] : state(k(0, e)), false);
    }
    const Wholes there = good & (next == end_);
    finish(there, all_lanes(static_cast<int64_t>(kSuccess)));
    return start(live & ~there, lanes_size(h) * (good ? longer : shorter));
  }

  // ------------------------------------------------------------------------------------------------ control
  PFC_INLINE Wholes before(const Doubles& a, const Doubles& b) const { return way_ * a < way_ * b; }

  PFC_INLINE void finish(const Wholes& which, const Wholes& status) const {
    put(lockstep_whole::kStatus, which, status);
  }

  // exact::exp
  PFC_INLINE Doubles power(const Doubles& given) const {
    const Doubles low = given < -700.0 ? all_lanes(-700.0) : given;
    const Doubles within = exact::exp_within(low > 700.0 ? all_lanes(700.0) : low);
    return given < -700.0 ? Doubles{} : within;
  }

  PFC_INLINE Doubles factor(const Doubles& error) const {
    const Doubles e = error > 1e-30 ? error : all_lanes(1e-30);
    const Doubles f =
        0.9 * power((0.4 * exact::log_of(numbers(lockstep_number::kError)) - 0.7 * exact::log_of(e)) / order_);
    return f < 0.2 ? all_lanes(0.2) : f > 10.0 ? all_lanes(10.0) : f;
  }

  PFC_INLINE Wholes start(const Wholes& live, const Doubles& size) const {
    const Doubles t = numbers(lockstep_number::kT), first = numbers(lockstep_number::kFirst);
    Doubles near = (first < span_ ? first : all_lanes(span_)) / 1024.0;
    near = near > 1e-290 ? near : all_lanes(1e-290);
    near = lanes_size(t) > near ? lanes_size(t) : near;
    const Doubles place = exact::bit_cast<Doubles>(exact::bit_cast<Wholes>(near) & 0x7ff0000000000000) * 0x1p-52;
    const Wholes small = live & (size < 16.0 * place);
    const Wholes over = live & ~small & (wholes(lockstep_whole::kNfe) + method_.stages() > args_.max_nfe);
    const Wholes stop = small | over;
    if (any_lane(stop)) {
      const Wholes blown = (wholes(lockstep_whole::kFlags) & kNotFiniteLast) != 0;
      finish(small, blown ? all_lanes(static_cast<int64_t>(kNonFinite)) : all_lanes(static_cast<int64_t>(kUnderflow)));
      finish(over, all_lanes(static_cast<int64_t>(kBudget)));
    }
    const Wholes go = live & ~stop;
    const Doubles ahead = t + way_ * size;
    const Wholes last = (size >= lanes_size(end_ - t)) | ~before(ahead, all_lanes(end_));
    const Doubles next = last ? all_lanes(end_) : ahead;
    put(lockstep_number::kNext, go, next);
    put(lockstep_number::kH, go, next - t);
    return go;
  }

  // The point and the time of the next evaluation, for the lanes that go on.
  PFC_INLINE void next_point(const Wholes& going) {
    V weight[method_record::kColumns];
    const Doubles h = numbers(lockstep_number::kH);
    weights(point_, h, weight);
    for (int e = 0; e < sample_; ++e) {
      value_[e] = state(x(e)) + weighted(point_, weight, e);
      store_bytes(y(e), value_[e], false);
    }
    const double c = next_phase_ == kProbe ? 0.0 : method_.at(method_record::kTime, static_cast<int>(next_phase_));
    Doubles time;
    if (next_phase_ == kProbe)
      time = numbers(lockstep_number::kT) + h;
    else
      time = c == 1.0 ? numbers(lockstep_number::kNext) : numbers(lockstep_number::kT) + c * h;

    S* to = static_cast<S*>(args_.y) + at_ * sample_;
    if (here_ == kLanes && !any_lane(~going)) {
      from_lanes<S>(value_, sample_, to);
      if (args_.t_dtype == DType::kFloat64) return store_bytes(static_cast<double*>(args_.t) + at_, time, false);
      if (args_.t_dtype == DType::kFloat32)
        return store_bytes(static_cast<float*>(args_.t) + at_, convert_lanes<LanesOf<float>>(time), false);
    }
    for (int l = 0; l < here_; ++l) {
      if (!going[l]) continue;
      for (int e = 0; e < sample_; ++e) to[l * sample_ + e] = value_[e][l];
      if (args_.t_dtype == DType::kFloat64)
        static_cast<double*>(args_.t)[at_ + l] = time[l];
      else
        store_one<float>(args_.t, args_.t_dtype, at_ + l, static_cast<float>(time[l]));
    }
  }

  // The output rows of the step that these lanes have taken, from x, the step's start, y, its end, and its stages.
  void write_rows(const Wholes& due) const {
    for (int l = 0; l < kLanes; ++l) {
      if (!due[l]) continue;
      const int64_t lane = at_ + l;
      const double from = columns_.at(lockstep_number::kT, lane), to = columns_.at(lockstep_number::kNext, lane);
      const double h = columns_.at(lockstep_number::kH, lane);
      int64_t row = columns_.count(lockstep_whole::kRow, lane);
      const int64_t home = columns_.count(lockstep_whole::kHome, lane);
      if (row < 1 || home < 0 || home >= args_.batch) continue;  // numbers of no solve lead to no memory
      for (; row < args_.row_count && !(way_ * to < way_ * args_.times[row]); ++row) {
        S* out = static_cast<S*>(args_.rows) + (row * args_.batch + home) * args_.sample;
        if (args_.times[row] == to) {
          for (int e = 0; e < sample_; ++e) out[e] = y(e)[l];
          continue;
        }
        const auto terms = AdaptiveTerms<S>::of_time(method_, (args_.times[row] - from) / h, h);
        for (int e = 0; e < sample_; ++e) {
          S total = 0;
          for (int n = 0; n < terms.count; ++n) total = total + terms.weight[n] * k(terms.slot[n], e)[l];
          out[e] = x(e)[l] + total;
        }
      }
      columns_.count(lockstep_whole::kRow, lane) = row;
      if (row < args_.row_count) columns_.at(lockstep_number::kDue, lane) = args_.times[row];
    }
  }

  const LockstepArgs args_;
  const LockstepColumns columns_;
  const Method method_;
  const int sample_, phase_;
  const int64_t next_phase_;
  const double begin_, end_, way_, span_, order_;
  const LockstepRow error_;
  LockstepRow point_;
  int64_t at_ = 0;
  int here_ = 0;
  V value_[kLockstepElements];
};

// Lanes begin .. end; how many samples have finished.
inline int64_t lockstep(const LockstepArgs& args, int64_t begin, int64_t end) {
  return args.state_dtype == DType::kFloat64 ? Lockstep<double>(args).run(begin, end)
                                             : Lockstep<float>(args).run(begin, end);
}

}  // namespace
}  // namespace pfc::cpu
