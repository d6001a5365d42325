// Butcher tableaus of the explicit Runge-Kutta methods, as constexpr data. The order conditions of each are tested.
#pragma once

namespace pfc {

inline constexpr int kMaxStages = 4;

struct Tableau {
  const char* name;
  int stages;
  int order;
  double c[kMaxStages];
  double a[kMaxStages][kMaxStages];
  double b[kMaxStages];
};

inline constexpr Tableau kEuler{"euler", 1, 1, {0.0}, {{}}, {1.0}};

// Runge 1895.
inline constexpr Tableau kMidpoint{"midpoint", 2, 2, {0.0, 0.5}, {{}, {0.5}}, {0.0, 1.0}};

// Heun 1900, the explicit trapezoid.
inline constexpr Tableau kHeun{"heun", 2, 2, {0.0, 1.0}, {{}, {1.0}}, {0.5, 0.5}};

// Kutta 1901, the classical method.
inline constexpr Tableau kRK4{"rk4",
                              4,
                              4,
                              {0.0, 0.5, 0.5, 1.0},
                              {{}, {0.5}, {0.0, 0.5}, {0.0, 0.0, 1.0}},
                              {1.0 / 6.0, 1.0 / 3.0, 1.0 / 3.0, 1.0 / 6.0}};

inline constexpr const Tableau* kTableaus[] = {&kEuler, &kMidpoint, &kHeun, &kRK4};

}  // namespace pfc
