// The arithmetic of one row, for one element or one vector of elements: shared by every CPU instruction set and by
// CUDA, which differ in how they walk memory and in nothing else. V is what is computed on (float, double or a vector
// of them), S the scalar of the coefficients.
//
// `memory` loads and stores: branch(j), scale(j), point(), state(), slot(k), noise(n), momentum(); keep(d), set_state(x),
// set_point(y). An input is read once and only if its coefficient is not zero.
#pragma once

#include "guidance.hpp"
#include "row.hpp"

namespace pfc {

template <class V, class S>
PFC_HD V apply(const Update<S>& update, V value, V sum) {
  switch (update.base) {
    case Base::kZero: return sum;
    case Base::kOne: return value + sum;
    case Base::kNearOne: return value + (update.factor * value + sum);
    case Base::kGeneral:
    default: return update.factor * value + sum;
  }
}

// What one call of a row does besides its arithmetic.
struct Pass {
  int branches;
  bool writes_state, writes_point, keeps, point_is_state;
};

template <class V, int kBranches = 0, bool kMixed = false, class S, class Memory>
PFC_HD void combine_element(const Row<S>& row, const Pass& pass, const Memory& memory) {
  V x_sum{};
  V y_sum{};
  if (row.evaluates) {
    V d{};
    // A row may predict from its point alone (q = 0): where the velocity is taken to be zero.
    if (kBranches > 0 || pass.branches > 0) d = guide<V, kBranches, kMixed>(pass.branches, memory);
    if (row.q != S(1)) d = row.q * d;
    if (row.p != S(0)) d = row.p * memory.point() + d;
    if (pass.keeps) memory.keep(d);
    if (row.b_new != S(0)) x_sum = row.b_new * d;
    if (row.e_new != S(0)) y_sum = row.e_new * d;
  }
  PFC_NO_UNROLL
  for (int i = 0; i < row.terms; ++i) {
    const V d = memory.slot(row.term[i].slot);
    if (row.term[i].b != S(0)) x_sum = x_sum + row.term[i].b * d;
    if (row.term[i].e != S(0)) y_sum = y_sum + row.term[i].e * d;
  }
  PFC_NO_UNROLL
  for (int i = 0; i < row.draws; ++i) {
    const V xi = memory.noise(i);
    if (row.draw[i].s != S(0)) x_sum = x_sum + row.draw[i].s * xi;
    if (row.draw[i].r != S(0)) y_sum = y_sum + row.draw[i].r * xi;
  }
  // A state that is neither read nor changed is not touched: a row may exist for its point alone.
  V x{};
  if (row.x.base != Base::kZero) x = memory.state();
  if (pass.writes_state) {
    x = apply<V>(row.x, x, x_sum);
    memory.set_state(x);
  }
  if (!pass.writes_point) return;
  memory.set_point(pass.point_is_state ? x : apply<V>(row.y, x, y_sum));
}

}  // namespace pfc
