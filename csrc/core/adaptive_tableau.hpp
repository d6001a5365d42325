// What adaptive steps need beyond the tableaus: error weights, the stages of dense output, and its weights. A method travels
// as one flat table of float64, so that kernels on any device read it from memory; the order conditions of each are tested.
//
//   Bosh3   Bogacki & Shampine 1989; dense output: the cubic Hermite polynomial
//   Dopri5  Dormand & Prince 1980; dense output: Shampine 1986, as in DOPRI5 of Hairer, Norsett & Wanner 1993
//   Tsit5   Tsitouras 2011
//   DOP853  Hairer, Norsett & Wanner 1993, II.10: two error estimates, of orders 5 and 3; dense output of order 7 with three
//           more stages
#pragma once

#include "tableau.hpp"

namespace pfc {

// Rows of a method's table, each of kColumns numbers. pyflowcore/ops/_plain_adaptive.py reads the same layout.
namespace method_record {
inline constexpr int kColumns = 16;              // stages, in the order in which they are evaluated
inline constexpr int kPoint = 0;                 // row s: x + h sum_j kPoint[s][j] k_j is where stage s is evaluated
inline constexpr int kTime = 16;                 // its time is t + kTime[s] h
inline constexpr int kError = 17, kError3 = 18;  // the second, DOP853's alone
inline constexpr int kDense = 19;                // up to 4 rows
inline constexpr int kFacts = 23;
inline constexpr int kRows = 24;
// Columns of the last row.
inline constexpr int kStages =
    0;  // of a step; stage kStages is evaluated at the step's end, and is the next one's first
inline constexpr int kDecides = 1;    // the error is known after this stage
inline constexpr int kExtra = 2;      // stages of dense output, after that one
inline constexpr int kOrder = 3;      // of the embedded estimate, plus 1: the error is O(h^kOrder)
inline constexpr int kDenseRows = 4;  // of kDense
inline constexpr int kTwoErrors = 5;  // DOP853's norm
}  // namespace method_record

struct AdaptiveTableau {
  const char* name;
  const Tableau* base;
  int decides, extra, order, dense_rows;
  double error[13];
  double error3[13];
  double extra_c[3];
  double extra_a[3][16];
  double dense[4][16];
};

// Error: b - b^, the embedded method's weights.
inline constexpr AdaptiveTableau kAdaptiveBosh3{
    "bosh3", &kBosh3, 3, 0, 3, 0, {-5.0 / 72.0, 1.0 / 12.0, 1.0 / 9.0, -1.0 / 8.0}, {}, {}, {}, {}};

inline constexpr AdaptiveTableau kAdaptiveDopri5{
    "dopri5",
    &kDopri5,
    6,
    0,
    5,
    1,
    {71.0 / 57600.0, 0.0, -71.0 / 16695.0, 71.0 / 1920.0, -17253.0 / 339200.0, 22.0 / 525.0, -1.0 / 40.0},
    {},
    {},
    {},
    {{-12715105075.0 / 11282082432.0, 0.0, 87487479700.0 / 32700410799.0, -10690763975.0 / 1880347072.0,
      701980252875.0 / 199316789632.0, -1453857185.0 / 822651844.0, 69997945.0 / 29380423.0}}};

inline constexpr AdaptiveTableau kAdaptiveTsit5{
    "tsit5",
    &kTsit5,
    6,
    0,
    5,
    1,
    {-0.00178001105222577714, -0.0008164344596567469, 0.007880878010261995, -0.1447110071732629, 0.5823571654525552,
     -0.45808210592918697, 1.0 / 66.0},
    {},
    {},
    {},
    {{-1.0530884977290216, 0.1017, 2.490627285651252793, -16.54810288924490272, 47.37952196281928122,
      -34.87065786149660974, 2.5}}};

inline constexpr AdaptiveTableau kAdaptiveDOP853{
    "dop853",
    &kDopri8,
    11,
    3,
    8,
    4,
    {0.01312004499419488, 0.0, 0.0, 0.0, 0.0, -1.2251564463762044, -0.4957589496572502, 1.6643771824549864,
     -0.35032884874997366, 0.3341791187130175, 0.08192320648511571, -0.022355307863886294},
    {-0.18980075407240762, 0.0, 0.0, 0.0, 0.0, 4.450312892752409, 1.8915178993145003, -5.801203960010585,
     -0.4226823213237919, -0.1521609496625161, 0.20136540080403034, 0.02265179219836082},
    {0.1, 0.2, 7.0 / 9.0},
    {{0.056167502283047954, 0.0, 0.0, 0.0, 0.0, 0.0, 0.25350021021662483, -0.2462390374708025, -0.12419142326381637,
      0.15329179827876568, 0.00820105229563469, 0.007567897660545699, -0.008298},
     {0.03183464816350214, 0.0, 0.0, 0.0, 0.0, 0.028300909672366776, 0.053541988307438566, -0.05492374857139099, 0.0,
      0.0, -0.00010834732869724932, 0.0003825710908356584, -0.00034046500868740456, 0.1413124436746325},
     {-0.42889630158379194, 0.0, 0.0, 0.0, 0.0, -4.697621415361164, 7.683421196062599, 4.06898981839711,
      0.3567271874552811, 0.0, 0.0, 0.0, -0.0013990241651590145, 2.9475147891527724, -9.15095847217987}},
    {{-8.428938276109013, 0.0, 0.0, 0.0, 0.0, 0.5667149535193777, -3.0689499459498917, 2.38466765651207,
      2.117034582445028, -0.871391583777973, 2.2404374302607883, 0.6315787787694688, -0.08899033645133331,
      18.148505520854727, -9.194632392478356, -4.436036387594894},
     {10.427508642579134, 0.0, 0.0, 0.0, 0.0, 242.28349177525817, 165.20045171727028, -374.5467547226902,
      -22.113666853125306, 7.733432668472264, -30.674084731089398, -9.332130526430229, 15.697238121770845,
      -31.139403219565178, -9.35292435884448, 35.81684148639408},
     {19.985053242002433, 0.0, 0.0, 0.0, 0.0, -387.0373087493518, -189.17813819516758, 527.8081592054236,
      -11.57390253995963, 6.8812326946963, -1.0006050966910838, 0.7777137798053443, -2.778205752353508,
      -60.19669523126412, 84.32040550667716, 11.99229113618279},
     {-25.69393346270375, 0.0, 0.0, 0.0, 0.0, -154.18974869023643, -231.5293791760455, 357.6391179106141,
      93.40532418362432, -37.45832313645163, 104.0996495089623, 29.8402934266605, -43.53345659001114, 96.32455395918828,
      -39.17726167561544, -149.72683625798564}}};

inline constexpr const AdaptiveTableau* kAdaptiveTableaus[] = {&kAdaptiveBosh3, &kAdaptiveDopri5, &kAdaptiveTsit5,
                                                               &kAdaptiveDOP853};

// Fills method_record::kRows x kColumns numbers.
inline void fill_method(const AdaptiveTableau& method, double* table) {
  namespace R = method_record;
  const Tableau& base = *method.base;
  for (int i = 0; i < R::kRows * R::kColumns; ++i) table[i] = 0.0;
  const auto at = [table](int row) { return table + row * R::kColumns; };
  for (int s = 0; s < base.stages; ++s) {
    for (int j = 0; j < s; ++j) at(R::kPoint + s)[j] = base.a[s][j];
    at(R::kTime)[s] = base.c[s];
    at(R::kPoint + base.stages)[s] = base.b[s];
  }
  at(R::kTime)[base.stages] = 1.0;
  for (int e = 0; e < method.extra; ++e) {
    const int s = base.stages + 1 + e;
    for (int j = 0; j < s; ++j) at(R::kPoint + s)[j] = method.extra_a[e][j];
    at(R::kTime)[s] = method.extra_c[e];
  }
  for (int s = 0; s <= base.stages; ++s) {
    at(R::kError)[s] = method.error[s];
    at(R::kError3)[s] = method.error3[s];
  }
  for (int d = 0; d < method.dense_rows; ++d)
    for (int s = 0; s < R::kColumns; ++s) at(R::kDense + d)[s] = method.dense[d][s];
  double* facts = at(R::kFacts);
  facts[R::kStages] = base.stages;
  facts[R::kDecides] = method.decides;
  facts[R::kExtra] = method.extra;
  facts[R::kOrder] = method.order;
  facts[R::kDenseRows] = method.dense_rows;
  facts[R::kTwoErrors] = method.extra > 0 ? 1.0 : 0.0;
}

}  // namespace pfc
