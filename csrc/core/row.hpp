// One row of a plan, as a kernel takes it, and its flat float64 record, which is how a table travels:
//
//   out  = guidance over the field's branches
//   D    = p y + q out                              the solver's working prediction; kept in slot `store` unless -1
//   x   <- a x + b D + sum_k b_k D_k + sum_n s_n xi_n
//   y   <- c x + e D + sum_k e_k D_k + sum_n r_n xi_n
//
// a - 1 and c - 1 travel beside a and c, because near 1 the update x + ((a-1) x + ...) is the accurate one.
#pragma once

#include "macros.hpp"

namespace pfc {

inline constexpr int kMaxSlots = 16;
inline constexpr int kMaxDraws = 4;

// The record: offsets into a row of the table.
namespace record {
inline constexpr int kT = 0, kEvaluates = 1, kStore = 2, kInScale = 3, kP = 4, kQ = 5, kA = 6, kAMinus1 = 7, kC = 8,
                     kCMinus1 = 9, kBNew = 10, kENew = 11, kB = 12, kE = kB + kMaxSlots, kDraw = kE + kMaxSlots,
                     kS = kDraw + kMaxDraws, kR = kS + kMaxDraws, kWidth = kR + kMaxDraws;
}  // namespace record
static_assert(record::kWidth == 56);

// base * value + sum, in the form that its base allows.
enum class Base : int { kZero, kOne, kNearOne, kGeneral };

template <class S>
struct Update {
  Base base;
  S factor;  // a - 1 if kNearOne, else a
};

template <class S>
struct SlotTerm {
  int slot;
  S b, e;
};

template <class S>
struct DrawTerm {
  unsigned index;
  S s, r;
};

template <class S>
struct Row {
  int evaluates, store;
  S in_scale, p, q, b_new, e_new;
  Update<S> x, y;
  int terms, draws;
  SlotTerm<S> term[kMaxSlots];
  DrawTerm<S> draw[kMaxDraws];

  // The next point is the state itself.
  PFC_HD bool point_is_state() const {
    if (y.base != Base::kOne || e_new != S(0)) return false;
    for (int i = 0; i < terms; ++i)
      if (term[i].e != S(0)) return false;
    for (int i = 0; i < draws; ++i)
      if (draw[i].r != S(0)) return false;
    return true;
  }

  PFC_HD bool changes_state() const {
    if (x.base != Base::kOne || b_new != S(0)) return true;
    for (int i = 0; i < terms; ++i)
      if (term[i].b != S(0)) return true;
    for (int i = 0; i < draws; ++i)
      if (draw[i].s != S(0)) return true;
    return false;
  }
};

template <class S>
PFC_HD Update<S> make_update(double a, double a_minus_1) {
  if (a == 0.0) return {Base::kZero, S(0)};
  if (a_minus_1 == 0.0) return {Base::kOne, S(1)};
  if (a_minus_1 > -0.5 && a_minus_1 < 0.5) return {Base::kNearOne, static_cast<S>(a_minus_1)};
  return {Base::kGeneral, static_cast<S>(a)};
}

template <class S>
PFC_HD Row<S> decode_row(const double* rec) {
  using namespace record;
  Row<S> row{};
  row.evaluates = rec[kEvaluates] != 0.0;
  row.store = static_cast<int>(rec[kStore]);
  row.in_scale = static_cast<S>(rec[kInScale]);
  row.p = static_cast<S>(rec[kP]);
  row.q = static_cast<S>(rec[kQ]);
  row.b_new = static_cast<S>(rec[kBNew]);
  row.e_new = static_cast<S>(rec[kENew]);
  row.x = make_update<S>(rec[kA], rec[kAMinus1]);
  row.y = make_update<S>(rec[kC], rec[kCMinus1]);
  for (int k = 0; k < kMaxSlots; ++k)
    if (rec[kB + k] != 0.0 || rec[kE + k] != 0.0)
      row.term[row.terms++] = {k, static_cast<S>(rec[kB + k]), static_cast<S>(rec[kE + k])};
  for (int n = 0; n < kMaxDraws; ++n)
    if (rec[kS + n] != 0.0 || rec[kR + n] != 0.0)
      row.draw[row.draws++] = {static_cast<unsigned>(rec[kDraw + n]), static_cast<S>(rec[kS + n]),
                               static_cast<S>(rec[kR + n])};
  return row;
}

}  // namespace pfc
