// Guidance whose weights depend on the sample: CFG-Zero* (Fan et al. 2025), adaptive projected guidance (Sadat et al. 2024)
// and rescaling (Lin et al. 2023), in one order:
//
//   u <- s u, s = <c_1, u> / <u, u>                          zero
//   X_j = c_j - u; with a momentum m <- q (c_1 - u) + beta m, X_1 = m / q
//   X_j <- min(1, norm / |q X_j|) X_j                        norm, in data space: the predicted data is p y + q out
//   X_j <- X_j + (eta - 1) (its part parallel to c_1)        eta, in data space
//   g   = c_1 + (w_1 - 1) X_1 + sum_{j > 1} w_j X_j
//   out = (1 + phi (std(c_1) / std(g) - 1)) g                phi
//
// All of it is linear in the branches once a sample's inner products are known, so it travels as weights:
//   out = c_1 + (sum_j mix[j] D_j + mix[0] c_1 + mix[J] u + mix[J + 1] y),
// with D_j = c_j - u, D_1 = m where there is a momentum. s has a weight of its own, on u: c - s u = D + (1 - s) u keeps its
// accuracy however small u is, which weights on D and c_1 would not.
//
// The inner products are sums in float64 in an order that the sample's size alone decides: element e belongs to chunk e /
// kGuideChunk and there to lane e % kGuideLanes; a lane adds its elements in order, lanes are added as a tree, and so are the
// chunks. Nothing is fused, so CPU, CUDA and plain PyTorch agree to the bit.
#pragma once

#include "arguments.hpp"
#include "exact_math.hpp"

namespace pfc {

inline constexpr int kGuideChunk = 1024, kGuideLanes = 128;  // elements of a chunk; sums of a chunk
inline constexpr int kGuideGroups = kGuideLanes / 4;         // four neighbouring lanes are added first
inline constexpr int kGuideStripes = 64;                     // sums over the chunks of a sample

// What a row's guidance asks for, and its flat float64 record.
namespace rule_record {
inline constexpr int kZero = 0, kEta = 1, kNorm = 2, kBeta = 3, kPhi = 4, kP = 5, kQ = 6, kWidth = 7;
}
struct GuideRule {
  bool zero;
  double eta, norm, beta, phi, p, q;  // norm 0: none
  // The point is part of the answer.
  PFC_HD bool uses_point() const { return eta != 1.0 && p != 0.0; }
};

inline GuideRule decode_rule(const double* rec) {
  using namespace rule_record;
  return {rec[kZero] != 0.0, rec[kEta], rec[kNorm], rec[kBeta], rec[kPhi], rec[kP], rec[kQ]};
}

struct GuideArgs {
  int64_t batch = 0, sample = 0;
  DType state_dtype = DType::kFloat32, out_dtype = DType::kFloat32;
  GuideRule rule{};
  const void* branch[kMaxBranches] = {};
  int branches = 0;
  const void* point = nullptr;  // null unless the rule uses it
  void* momentum = nullptr;     // updated
  const void* scale = nullptr;
  int64_t scale_branch_stride = 0, scale_sample_stride = 0;
  double* partial = nullptr;  // [samples, chunks of a sample, sums]
  void* mix = nullptr;        // [branches + 1 (+ 1 with the point), samples], state's dtype
};

// A sample whose scale is 1 does not see u, so its momentum stays: alone as beside samples that are guided.
template <class S>
PFC_HD bool guide_moves(const GuideArgs& args, int64_t sample) {
  return static_cast<const S*>(args.scale)[sample * args.scale_sample_stride] != S(1);
}

// Rows of weights: c_1, the differences, u, and the point.
PFC_HD constexpr int guide_rows(int branches, bool point) { return branches + 1 + (point ? 1 : 0); }
inline constexpr int kMaxGuideRows = guide_rows(kMaxBranches, true);

// The vectors whose inner products are taken: u (c_1 where there is a momentum), D_1 ..., and the point. Their sums first,
// then the products of i <= j, row by row.
PFC_HD int guide_vectors(const GuideArgs& args) { return args.branches + (args.point != nullptr ? 1 : 0); }
PFC_HD constexpr int guide_sums(int vectors) { return vectors + vectors * (vectors + 1) / 2; }
inline constexpr int kMaxGuideVectors = kMaxBranches + 1;
inline constexpr int kMaxGuideSums = guide_sums(kMaxGuideVectors);
PFC_HD int64_t guide_chunks(int64_t sample) { return (sample + kGuideChunk - 1) / kGuideChunk; }

// m <- q d + beta m.
PFC_HD double guide_momentum(const GuideRule& rule, double d, double m) { return rule.q * d + rule.beta * m; }

// value(0) + ... + value(N - 1): each half added to the other, until one is left. N a power of two. Written as what the last
// addition needs, so that a GPU has no array to index.
template <int N, int kDistance = 1, class Value>
PFC_HD double guide_tree(const Value& value, int i = 0) {
  if constexpr (kDistance == N) {
    return value(i);
  } else {
    const double low = guide_tree<N, 2 * kDistance>(value, i);
    return low + guide_tree<N, 2 * kDistance>(value, i + kDistance);
  }
}

// From the sums of one sample to its weights.
struct GuideWeights {
  const double* sums;
  int vectors, conditions;
  bool momentum, point;
  double count;    // elements of the sample
  double largest;  // finite number of the state's dtype

  static PFC_HD double size_of(double value) { return value < 0.0 ? -value : value; }
  PFC_HD double sum(int i) const { return sums[i]; }
  PFC_HD double product(int i, int j) const {
    if (i > j) return product_of(j, i);
    return product_of(i, j);
  }
  PFC_HD double product_of(int i, int j) const { return sums[vectors + i * vectors - i * (i - 1) / 2 + (j - i)]; }
  // <c_1, vector i>; c_1 = u + D_1, or a vector itself.
  PFC_HD double with_c(int i) const { return momentum ? product(0, i) : product(0, i) + product(1, i); }

  // count times the variance of sum_i e_i vector_i, and the size of its terms, below whose rounding it means nothing.
  template <class Coefficient>
  PFC_HD double variance(const Coefficient& e, double& size) const {
    double total = 0.0;
    size = 0.0;
    PFC_NO_UNROLL
    for (int i = 0; i < vectors; ++i) {
      PFC_NO_UNROLL
      for (int j = 0; j < vectors; ++j) {
        const double ee = e(i) * e(j);
        const double square = product(i, j);
        total = total + ee * (square - sum(i) * sum(j) / count);
        size = size + size_of(ee * square);
      }
    }
    return total;
  }

  // scale(j) is w of condition j, from 0; weight is memory for kMaxGuideRows numbers, of which the first guide_rows are the
  // answer. Sums that are not finite serve nothing: the step that needs them is left out.
  template <class Scale>
  PFC_HD void solve(const GuideRule& rule, const Scale& scale, double* weight) const {
    const int y = vectors - 1, on_u = conditions + 1, on_y = conditions + 2;
    PFC_NO_UNROLL
    for (int i = 0; i <= on_y; ++i) weight[i] = 0.0;
    double asked = 0.0;
    PFC_NO_UNROLL
    for (int j = 1; j <= conditions; ++j) asked = asked + size_of(j == 1 ? scale(0) - 1.0 : scale(j - 1));
    if (asked == 0.0) return;  // c_1 itself, whatever the others are
    double left = 0.0;         // 1 - s
    if (rule.zero && product(0, 0) > 0.0) {
      left = -(product(1, 0) / product(0, 0));
      // A u so small that its weight is no number of the state's dtype is a u of zero.
      if (!((asked > 1.0 ? asked : 1.0) * size_of(left) <= largest)) left = 0.0;
    }
    const double cc = momentum ? product(0, 0) : with_c(0) + with_c(1);
    double data = rule.q * rule.q * cc;  // squared norm of the data that c_1 predicts
    if (point) data = rule.p * rule.p * product(y, y) + (2.0 * rule.p * rule.q * with_c(y) + data);
    double all = 0.0;
    PFC_NO_UNROLL
    for (int j = 1; j <= conditions; ++j) {
      double h = j == 1 ? scale(0) - 1.0 : scale(j - 1);
      if (rule.norm > 0.0) {
        double square = product(j, j);
        if (!momentum) square = rule.q * rule.q * (square + left * (2.0 * product(j, 0) + left * product(0, 0)));
        const double length = square > 0.0 ? exact::sqrt(square) : 0.0;
        if (length > rule.norm) h = h * (rule.norm / length);
      }
      if (momentum) h = h / rule.q;
      if (rule.eta != 1.0 && data > 0.0) {
        double along = rule.q * (with_c(j) + left * with_c(0));
        if (momentum) along = rule.q * with_c(j);
        if (point) along = rule.p * (product(j, y) + left * product(0, y)) + along;
        const double parallel = h * (rule.eta - 1.0) * (along / data);
        if (size_of(parallel) <= largest) {
          weight[0] = weight[0] + parallel * rule.q;
          if (point) weight[on_y] = weight[on_y] + parallel * rule.p;
        }
      }
      weight[j] = h;
      all = all + h;
    }
    if (left != 0.0) weight[on_u] = all * left;
    if (rule.phi == 0.0) return;
    double size_c, size_g;
    const bool m = momentum;
    const double of_c = variance([m](int i) { return i == 0 || (i == 1 && !m) ? 1.0 : 0.0; }, size_c);
    const double of_g = variance(
        [m, weight, on_u, conditions = conditions](int i) {
          if (i == 0) return 1.0 + (weight[0] + weight[on_u]);
          if (i > conditions) return weight[i + 1];  // the point
          return i == 1 && !m ? 1.0 + (weight[0] + weight[1]) : weight[i];
        },
        size_g);
    // A guided prediction that is constant but for rounding has nothing to rescale.
    if (!(of_g > 1e-13 * size_g)) return;
    const double grown = rule.phi * (exact::sqrt((of_c > 0.0 ? of_c : 0.0) / of_g) - 1.0);
    double most = 1.0;
    PFC_NO_UNROLL
    for (int i = 0; i <= on_y; ++i) most = most + size_of(weight[i]);
    if (!(most * (1.0 + size_of(grown)) <= largest)) return;
    weight[0] = weight[0] + grown * (1.0 + weight[0]);
    PFC_NO_UNROLL
    for (int i = 1; i <= on_y; ++i) weight[i] = weight[i] + grown * weight[i];
  }
};

// The weights of one sample from its finished sums; work is memory for kMaxGuideRows numbers.
template <class S>
PFC_HD void guide_sample(const GuideArgs& args, int64_t sample, const double* sums, double* work) {
  const bool point = args.point != nullptr;
  const double largest = sizeof(S) == 4 ? 3.4028234663852886e38 : 1.7976931348623157e308;
  const GuideWeights weights{
      sums,   guide_vectors(args), args.branches - 1, args.momentum != nullptr, point, static_cast<double>(args.sample),
      largest};
  const S* scale = static_cast<const S*>(args.scale) + sample * args.scale_sample_stride;
  const int64_t stride = args.scale_branch_stride;
  weights.solve(args.rule, [scale, stride](int j) { return static_cast<double>(scale[j * stride]); }, work);
  S* mix = static_cast<S*>(args.mix);
  const int rows = guide_rows(args.branches, point);
  PFC_NO_UNROLL
  for (int i = 0; i < rows; ++i) mix[i * args.batch + sample] = static_cast<S>(work[i]);
}

}  // namespace pfc
