#include "plan.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>

namespace pfc::plan {

namespace {

// With as many digits as tell it from its neighbours.
std::string number(double value) {
  char text[32];
  for (int digits = 15; digits <= 17; ++digits) {
    std::snprintf(text, sizeof text, "%.*g", digits, value);
    if (std::strtod(text, nullptr) == value) break;
  }
  return text;
}

// Well within the counter's 32 bits, and within float64, in which a table carries it.
constexpr int kLastDraw = 1 << 30;

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

void check_row(const PlanRow& row, int index, int slots, int steps) {
  const std::string where = "row " + std::to_string(index) + ": ";
  const auto check_finite = [&](double value, const std::string& name) {
    if (!std::isfinite(value))
      refuse(where + name + " is " + number(value) + " at step " + std::to_string(row.step) + " (t = " + number(row.t) +
             "); coefficients must be finite");
  };
  const std::pair<const char*, double> scalars[] = {
      {"t", row.t}, {"in_scale", row.in_scale},   {"p", row.p}, {"q", row.q},
      {"a", row.a}, {"a_minus_1", row.a_minus_1}, {"c", row.c}, {"c_minus_1", row.c_minus_1}};
  for (const auto& [name, value] : scalars) check_finite(value, name);
  check_finite(row.b_new, "b_new (of the row's own prediction)");
  check_finite(row.e_new, "e_new (of the row's own prediction)");
  if (row.store < -1 || row.store >= slots)
    refuse(where + "store is " + std::to_string(row.store) + ", the plan has " + std::to_string(slots) +
           " slots, numbered from 0 (-1 stores nothing)");
  if (!(row.in_scale > 0.0)) refuse(where + "in_scale is " + number(row.in_scale) + ", it must be positive");
  if (row.t < 0.0 || row.t > 1.0) refuse(where + "t is " + number(row.t) + ", allowed is [0, 1]");
  if (row.field_t && !(*row.field_t >= 0.0 && *row.field_t <= 1.0))
    refuse(where + "field_t is " + number(*row.field_t) + ", allowed is [0, 1]");
  if (row.step < 0 || row.step >= steps)
    refuse(where + "step is " + std::to_string(row.step) + ", allowed are 0 to " + std::to_string(steps - 1));
  if (!row.evaluates && (row.b_new != 0.0 || row.e_new != 0.0 || row.store >= 0))
    refuse(where + "a row without an evaluation has no prediction of its own to use or keep");
  for (const auto& [letter, terms] : {std::pair{"b", &row.b}, std::pair{"e", &row.e}})
    for (const Term& term : *terms) {
      if (term.id < 0 || term.id >= slots)
        refuse(where + "slot " + std::to_string(term.id) + " is read (" + letter + "), the plan has " +
               std::to_string(slots) + " slots, numbered from 0");
      if (term.id == row.store)
        refuse(
            where + "slot " + std::to_string(term.id) +
            " is read and written by one row; its own prediction is b_new and e_new, an older one needs its own slot");
      check_finite(term.coefficient, std::string(letter) + " of slot " + std::to_string(term.id));
    }
  for (const auto& [letter, draws] : {std::pair{"s", &row.s}, std::pair{"r", &row.r}})
    for (const Draw& draw : *draws) {
      if (draw.index < 0 || draw.index > kLastDraw)
        refuse(where + "draw index " + std::to_string(draw.index) + " is not in 0 to " + std::to_string(kLastDraw));
      check_finite(draw.coefficient, std::string(letter) + " of draw " + std::to_string(draw.index));
    }
}

// Fills record entries for draws; s and r of one index share an entry.
void put_draws(const PlanRow& row, int index, double* rec) {
  int used = 0;
  const auto entry = [&](int draw) {
    for (int n = 0; n < used; ++n)
      if (rec[record::kDraw + n] == draw) return n;
    if (used == kMaxDraws)
      refuse("row " + std::to_string(index) + ": more than " + std::to_string(kMaxDraws) + " different draws");
    rec[record::kDraw + used] = draw;
    return used++;
  };
  for (const Draw& draw : row.s) rec[record::kS + entry(draw.index)] += draw.coefficient;
  for (const Draw& draw : row.r) rec[record::kR + entry(draw.index)] += draw.coefficient;
}

}  // namespace

int Plan::nfe() const {
  return static_cast<int>(std::count_if(rows.begin(), rows.end(), [](const PlanRow& row) { return row.evaluates; }));
}

int Plan::draws() const {
  int most = 0;
  for (const PlanRow& row : rows)
    for (const auto* draws : {&row.s, &row.r})
      for (const Draw& draw : *draws) most = std::max(most, draw.index + 1);
  return most;
}

std::vector<double> Plan::table() const {
  std::vector<double> table(rows.size() * record::kWidth, 0.0);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const PlanRow& row = rows[i];
    double* rec = table.data() + i * record::kWidth;
    rec[record::kT] = row.t;
    rec[record::kEvaluates] = row.evaluates ? 1.0 : 0.0;
    rec[record::kStore] = row.store;
    rec[record::kInScale] = row.in_scale;
    rec[record::kP] = row.p;
    rec[record::kQ] = row.q;
    rec[record::kA] = row.a;
    rec[record::kAMinus1] = row.a_minus_1;
    rec[record::kC] = row.c;
    rec[record::kCMinus1] = row.c_minus_1;
    rec[record::kBNew] = row.b_new;
    rec[record::kENew] = row.e_new;
    for (const Term& term : row.b) rec[record::kB + term.id] += term.coefficient;
    for (const Term& term : row.e) rec[record::kE + term.id] += term.coefficient;
    for (int n = 0; n < kMaxDraws; ++n) rec[record::kDraw + n] = -1.0;
    put_draws(row, static_cast<int>(i), rec);
  }
  return table;
}

void validate(const Plan& plan) {
  if (plan.slots < 0 || plan.slots > kMaxSlots)
    refuse("the plan needs " + std::to_string(plan.slots) + " slots, at most " + std::to_string(kMaxSlots) +
           " are allowed");
  if (plan.rows.empty()) refuse("a plan has at least one row");
  std::vector<bool> written(kMaxSlots, false);
  for (std::size_t i = 0; i < plan.rows.size(); ++i) {
    const PlanRow& row = plan.rows[i];
    check_row(row, static_cast<int>(i), plan.slots, plan.steps());
    for (const auto* terms : {&row.b, &row.e})
      for (const Term& term : *terms)
        if (!written[static_cast<std::size_t>(term.id)])
          refuse("row " + std::to_string(i) + ": slot " + std::to_string(term.id) + " is read before any row wrote it");
    if (row.store >= 0) written[static_cast<std::size_t>(row.store)] = true;
    if (row.evaluates && row.field_t.has_value() != plan.along.has_value())
      refuse("row " + std::to_string(i) + ": " +
             (plan.along ? "field_t is missing: the plan integrates along another path than the field's"
                         : "field_t is given, but the plan integrates along the field's own path"));
  }
  const std::vector<double> table = plan.table();  // refuses too many draws
  for (std::size_t i = 0; i < table.size(); ++i)
    if (!std::isfinite(table[i]))
      refuse("row " + std::to_string(i / record::kWidth) + ": terms of one slot or draw add up to " + number(table[i]) +
             "; coefficients must be finite");
  // Every step is completed once, in order: callbacks and trajectories count on it.
  int done = 0;
  for (std::size_t i = 0; i < plan.rows.size(); ++i) {
    const PlanRow& row = plan.rows[i];
    if (row.completes_step && row.step != done)
      refuse("row " + std::to_string(i) + ": it completes step " + std::to_string(row.step) + ", step " +
             std::to_string(done) + " is due");
    done += row.completes_step ? 1 : 0;
  }
  if (done != plan.steps())
    refuse("the rows complete " + std::to_string(done) + " steps, the times have " + std::to_string(plan.steps()));
}

void check_times(const std::vector<double>& times) {
  if (times.size() < 2) refuse("times: at least two are needed, got " + std::to_string(times.size()));
  for (std::size_t i = 0; i < times.size(); ++i) {
    if (!std::isfinite(times[i]) || times[i] < 0.0 || times[i] > 1.0)
      refuse("times[" + std::to_string(i) + "] is " + number(times[i]) + ", allowed is [0, 1]");
    const bool falls = times[1] < times[0];
    if (i > 0 && !(falls ? times[i] < times[i - 1] : times[i] > times[i - 1]))
      refuse(std::string("times must increase strictly, or decrease strictly: they ") +
             (falls ? "decrease" : "increase") + " at first, but times[" + std::to_string(i - 1) +
             "] = " + number(times[i - 1]) + ", times[" + std::to_string(i) + "] = " + number(times[i]));
  }
}

const char* name_of(Prediction prediction) {
  switch (prediction) {
    case Prediction::kVelocity: return "velocity";
    case Prediction::kData: return "data";
    case Prediction::kNoise: return "noise";
    case Prediction::kScore: return "score";
    case Prediction::kV: return "v";
  }
  return "unknown";
}

const char* name_of(PathKind kind) {
  switch (kind) {
    case PathKind::kLinear: return "linear";
    case PathKind::kTrigonometric: return "trigonometric";
    case PathKind::kVP: return "vp";
    case PathKind::kPolynomial: return "polynomial";
    case PathKind::kLinearVP: return "linear_vp";
    case PathKind::kVE: return "ve";
  }
  return "unknown";
}

std::string name_of(const HostPath& path) { return path.function ? path.function->name() : name_of(path.core.kind); }

std::string name_of(const HostPrediction& prediction) {
  return prediction.function ? prediction.function->name() : name_of(prediction.kind);
}

Builder::Builder(std::string solver, HostPath path, HostPrediction prediction, std::vector<double> times,
                 const HostPath* along) {
  check_times(times);
  plan_.solver = std::move(solver);
  plan_.path = std::move(path);
  if (along) plan_.along = *along;
  plan_.prediction = std::move(prediction);
  plan_.times = std::move(times);
}

void Builder::refuse_conversion(const std::string& from, Prediction to, double t) const {
  refuse("prediction '" + from + "' does not determine the " + name_of(to) + " that solver '" + plan_.solver +
         "' needs at t = " + number(t) + " on the " + name_of(path()) +
         " path (alpha or sigma vanishes, or its derivative is infinite, there): begin or end the grid inside (0, 1), "
         "or choose another prediction or solver");
}

std::string Builder::where(double t) const {
  return "for solver '" + plan_.solver + "' at t = " + number(t) + " on the " + name_of(path()) + " path";
}

bool Builder::determines(Prediction needed, double t) const {
  const Conversion k = from_field(needed, t);
  return std::isfinite(k.p) && std::isfinite(k.q);
}

Conversion Builder::conversion(Prediction from, Prediction to, double t) const {
  const Conversion k = convert(from, to, at(t));
  if (!std::isfinite(k.p) || !std::isfinite(k.q)) refuse_conversion(name_of(from), to, t);
  return k;
}

Conversion Builder::from_field(Prediction needed, double t) const {
  if (!plan_.along && plan_.prediction == needed) return {0.0, 1.0};
  return from_field(mixture(needed, at(t)), t);
}

Conversion Builder::require(Prediction needed, double t) const {
  const Conversion k = from_field(needed, t);
  if (!std::isfinite(k.p) || !std::isfinite(k.q)) refuse_conversion(name_of(plan_.prediction), needed, t);
  return k;
}

int Builder::evaluate_at(double t, int step, PlanRow row, Prediction working) {
  return add_evaluation(t, step, std::move(row), require(working, t));
}

int Builder::evaluate_mixture_at(double t, int step, PlanRow row, const Mixture& mixture) {
  const Conversion k = from_field(mixture, t);
  // An infinite drift is no velocity, even where the velocity is infinite too.
  if (!std::isfinite(mixture.data) || !std::isfinite(mixture.noise) || !std::isfinite(k.p) || !std::isfinite(k.q))
    refuse("solver '" + plan_.solver + "': its drift is not finite at t = " + number(t) + " on the " + name_of(path()) +
           " path for a field that predicts the " + name_of(plan_.prediction) +
           " (the score, or the diffusion w, is infinite there): begin or end the grid inside (0, 1)");
  return add_evaluation(t, step, std::move(row), k);
}

int Builder::add_evaluation(double t, int step, PlanRow row, const Conversion& k) {
  const Question q = question(t);
  row.evaluates = true;
  row.t = t;
  if (plan_.along) row.field_t = q.t;
  in_scales_.push_back(q.answer.in_scale);
  row.step = step;
  row.p = k.p;
  row.q = k.q;
  plan_.rows.push_back(std::move(row));
  return predictions_++;
}

// The factor of an evaluation's input belongs to the row that writes it: the one before, which for the first evaluation is a
// row of its own.
void Builder::scale_inputs() {
  if (in_scales_.empty()) return;
  if (plan_.rows.front().evaluates && in_scales_.front() != 1.0) {
    PlanRow row;
    row.evaluates = false;
    row.t = plan_.rows.front().t;
    plan_.rows.insert(plan_.rows.begin(), std::move(row));
  }
  std::size_t left = in_scales_.size();
  for (std::size_t i = plan_.rows.size(); i-- > 1;)
    if (plan_.rows[i].evaluates) plan_.rows[i - 1].in_scale = in_scales_[--left];
}

Plan Builder::finish() && {
  scale_inputs();
  // The last row that reads each prediction; a prediction read by its own row alone needs no slot.
  std::vector<int> last_use(static_cast<std::size_t>(predictions_), -1);
  int made = 0;
  for (std::size_t i = 0; i < plan_.rows.size(); ++i) {
    const PlanRow& row = plan_.rows[i];
    if (row.evaluates) ++made;
    for (const auto* terms : {&row.b, &row.e})
      for (const Term& term : *terms) {
        if (term.id < 0 || term.id >= made)
          refuse("row " + std::to_string(i) + " uses a prediction that is not made yet");
        last_use[static_cast<std::size_t>(term.id)] = static_cast<int>(i);
      }
  }
  std::vector<int> slot_of(static_cast<std::size_t>(predictions_), -1);
  std::vector<int> busy_until(kMaxSlots, -1);  // the last row that reads the slot's content
  int prediction = -1;
  for (std::size_t i = 0; i < plan_.rows.size(); ++i) {
    PlanRow& row = plan_.rows[i];
    const int index = static_cast<int>(i);
    const int own = row.evaluates ? ++prediction : -1;
    const auto place = [&](std::vector<Term>& terms, double& fresh) {
      std::vector<Term> older;
      for (const Term& term : terms) {
        if (term.coefficient == 0.0) continue;
        if (term.id == own) {
          fresh += term.coefficient;
          continue;
        }
        // One term per slot: a description names each slot once.
        const int slot = slot_of[static_cast<std::size_t>(term.id)];
        const auto same = std::find_if(older.begin(), older.end(), [&](const Term& other) { return other.id == slot; });
        if (same == older.end())
          older.push_back({slot, term.coefficient});
        else
          same->coefficient += term.coefficient;
      }
      std::sort(older.begin(), older.end(), [](const Term& x, const Term& y) { return x.id < y.id; });
      terms = std::move(older);
    };
    place(row.b, row.b_new);
    place(row.e, row.e_new);
    if (own < 0 || last_use[static_cast<std::size_t>(own)] <= index) continue;
    // A slot whose last reader is this very row is not free: the row reads it while it writes its own.
    int slot = 0;
    while (slot < kMaxSlots && busy_until[static_cast<std::size_t>(slot)] >= index) ++slot;
    if (slot == kMaxSlots)
      refuse("solver '" + plan_.solver + "' needs more than " + std::to_string(kMaxSlots) + " slots");
    slot_of[static_cast<std::size_t>(own)] = slot;
    busy_until[static_cast<std::size_t>(slot)] = last_use[static_cast<std::size_t>(own)];
    row.store = slot;
    plan_.slots = std::max(plan_.slots, slot + 1);
  }
  validate(plan_);
  return std::move(plan_);
}

}  // namespace pfc::plan
