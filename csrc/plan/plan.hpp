// A plan: every coefficient of a whole trajectory, in float64, one row per evaluation (or per prologue). Host only.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "../core/prediction.hpp"
#include "../core/row.hpp"

namespace pfc::plan {

struct Term {
  int id;  // while a plan is being written: the number of a prediction. In a finished plan: a slot.
  double coefficient;
};

struct Draw {
  int index;  // the same index redraws the same noise
  double coefficient;
};

// See core/row.hpp for the meaning of the letters.
struct PlanRow {
  bool evaluates = true;
  double t = 0.0;  // plan time of the evaluation; of a row without one, the time of the state
  int step = 0;
  bool completes_step = false;  // after this row x is the state at times[step + 1]
  double in_scale = 1.0;        // of the point that this row writes
  double p = 0.0, q = 1.0;
  double a = 1.0, a_minus_1 = 0.0;
  double c = 1.0, c_minus_1 = 0.0;
  double b_new = 0.0, e_new = 0.0;  // coefficients of this row's own prediction
  int store = -1;                   // the slot that keeps it, or -1
  std::vector<Term> b, e;           // older predictions
  std::vector<Draw> s, r;

  void set_a(double value) { a = value, a_minus_1 = value - 1.0; }
  void set_c(double value) { c = value, c_minus_1 = value - 1.0; }
  // The next point is the state itself.
  bool point_is_state() const { return c_minus_1 == 0.0 && e_new == 0.0 && e.empty() && r.empty(); }
};

struct Plan {
  std::string solver;
  Path path;
  Prediction prediction = Prediction::kVelocity;  // what the field predicts
  Prediction working = Prediction::kVelocity;     // what the solver's slots hold
  std::vector<double> times;                      // the grid, steps + 1 of them
  std::vector<PlanRow> rows;
  int slots = 0;

  int steps() const { return static_cast<int>(times.size()) - 1; }
  int nfe() const;
  int draws() const;  // one more than the largest draw index; 0 without noise
  // [rows, record::kWidth], row-major.
  std::vector<double> table() const;
};

// Refuses what no kernel could run, naming the row: slots or draws out of range, slots read before they are written,
// coefficients that are not finite, too many of either.
void validate(const Plan& plan);

// What a solver is given, and where it writes its rows. Predictions are numbered in the order of their evaluations;
// finish() finds out how long each is needed and gives it a slot, so that a solver never thinks about memory.
class Builder {
 public:
  Builder(std::string solver, Path path, Prediction prediction, std::vector<double> times);

  const std::vector<double>& times() const { return plan_.times; }
  int steps() const { return plan_.steps(); }
  PathPoint at(double t) const { return evaluate(plan_.path, t); }
  const Path& path() const { return plan_.path; }
  // The times decrease: from data towards noise, which inverts a sample.
  bool backwards() const { return times().front() > times().back(); }
  Prediction prediction() const { return plan_.prediction; }
  Prediction working() const { return plan_.working; }

  // Sets the kind of prediction that the solver's coefficients multiply; before the first row.
  void work_in(Prediction working) { plan_.working = working; }

  // Throws unless the field's prediction determines `needed` at time t, naming what vanishes there.
  Conversion require(Prediction needed, double t) const { return conversion(plan_.prediction, needed, t); }
  // Whether require() would succeed.
  bool determines(Prediction needed, double t) const;
  // "for solver 'x' at t = 0.5 on the linear path", for messages.
  std::string where(double t) const;
  // The same between any two predictions.
  Conversion conversion(Prediction from, Prediction to, double t) const;
  // A row that evaluates the field at time t; the conversion from the field's prediction to the working one, or to one of
  // the row's own, is filled in. Returns the number of its prediction. b and e of the row may name any prediction made
  // so far, its own included.
  int evaluate_at(double t, int step, PlanRow row) { return evaluate_at(t, step, std::move(row), plan_.working); }
  int evaluate_at(double t, int step, PlanRow row, Prediction working);
  // The same for a prediction that is not one of the five: data * x1 + noise * x0, the drift of an SDE for instance.
  int evaluate_mixture_at(double t, int step, PlanRow row, const Mixture& mixture);
  // The evaluation at the grid point times[step], remembered for prediction_at_grid.
  int evaluate_at_grid(int step, PlanRow row) {
    mark_grid(step);
    return evaluate_at(times()[step], step, std::move(row));
  }
  // The next evaluation is the one at the grid point times[step].
  void mark_grid(int step) {
    at_grid_.resize(static_cast<std::size_t>(step) + 1, -1);
    at_grid_.back() = predictions_;
  }
  int prediction_at_grid(int step) const { return at_grid_.at(static_cast<std::size_t>(step)); }
  // The number that the next evaluation will have.
  int next_prediction() const { return predictions_; }
  // A row without an evaluation.
  void add(PlanRow row) {
    row.evaluates = false;
    plan_.rows.push_back(std::move(row));
  }

  Plan finish() &&;

 private:
  Plan plan_;
  int predictions_ = 0;
  std::vector<int> at_grid_;

  int add_evaluation(double t, int step, PlanRow row, const Conversion& conversion);
};

// Throws std::invalid_argument unless there are at least two finite times in [0, 1] that increase or decrease strictly.
void check_times(const std::vector<double>& times);

const char* name_of(Prediction prediction);
const char* name_of(PathKind kind);

}  // namespace pfc::plan
