// lockstep_begin, lockstep_ and lockstep_end on the CPU: adaptive solves of a batch of small samples that begin together
// (cpu/lockstep.hpp). What adaptive_ is given in a dozen tensors lies in one here, checked and laid out once for a solve.
#include <atomic>
#include <cstring>

#include "../cpu/lockstep.hpp"
#include "adaptive.hpp"

namespace pfc::ops {

namespace {

using cpu::LockstepArgs;
using cpu::LockstepColumns;

// Samples that are worth a thread of their own, a multiple of a vector's lanes.
constexpr int64_t kGrain = 1024;
constexpr int64_t kLayout = 0x70666c6f636b0001;  // of this file's memory

// The first numbers of the memory; after them the times, the columns, and the output rows but for the first.
struct Head {
  int64_t layout, batch, sample, norm, max_nfe, row_count, element, phase, running, first_given;
  double sign;
  double table[method_record::kRows * method_record::kColumns];

  int64_t slots() const { return Method{table}.stages() + 1; }
  DType dtype() const { return element == 8 ? DType::kFloat64 : DType::kFloat32; }
  static int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }
  int64_t columns_at() const { return aligned(static_cast<int64_t>(sizeof(Head)) + 8 * row_count); }
  int64_t rows_at() const { return columns_at() + LockstepColumns::bytes(batch, sample, slots(), element); }
  int64_t bytes() const { return aligned(rows_at() + element * row_count * batch * sample); }
};

struct Memory {
  Head* head;
  char* base;

  explicit Memory(const Tensor& memory)
      : head(static_cast<Head*>(memory.mutable_data_ptr())), base(static_cast<char*>(memory.mutable_data_ptr())) {}
  // Memory that lockstep_begin made: its numbers lead to no other memory.
  static Memory of(const Tensor& memory) {
    const Memory found(memory);
    const int64_t bytes = memory.numel() * static_cast<int64_t>(memory.element_size());
    PFC_CHECK(memory.is_contiguous() && memory.scalar_type() == ScalarType::Double &&
                  bytes >= static_cast<int64_t>(sizeof(Head)) && found.head->layout == kLayout && found.fits(bytes),
              "memory is not what lockstep_begin made, got ", shape_of(memory), " of ",
              torch::headeronly::toString(memory.scalar_type()));
    return found;
  }
  double* times() const { return reinterpret_cast<double*>(base + sizeof(Head)); }
  LockstepColumns columns() const {
    return LockstepColumns(base + head->columns_at(), head->batch, head->sample, head->element);
  }
  char* rows() const { return base + head->rows_at(); }

 private:
  bool fits(int64_t bytes) const {
    constexpr int64_t kMost = int64_t{1} << 40;
    const Head& h = *head;
    if (h.batch < 1 || h.batch > kMost || h.sample < 1 || h.sample > cpu::kLockstepElements) return false;
    if (h.norm < 0 || h.norm > h.sample || h.row_count < 2 || h.row_count > kMost || (h.element != 4 && h.element != 8))
      return false;
    const double stages = h.table[method_record::kFacts * method_record::kColumns + method_record::kStages];
    if (!(stages >= 1.0 && stages <= method_record::kColumns - 4) || Method{h.table}.extra() != 0) return false;
    if (h.phase < kProbe || h.phase > Method{h.table}.stages() || h.batch > kMost / (h.row_count * h.sample))
      return false;
    return h.bytes() == bytes;
  }
};

template <class S>
void fill(const Memory& memory, const Tensor& x, const Tensor& tolerances, double first_step) {
  namespace N = cpu::lockstep_number;
  namespace W = cpu::lockstep_whole;
  const Head& head = *memory.head;
  const LockstepColumns columns = memory.columns();
  const double* tolerance = static_cast<const double*>(tolerances.const_data_ptr());
  const int64_t each = tolerances.size(1) > 1 ? 1 : 0, next = tolerances.size(1);
  for (int64_t i = 0; i < head.batch; ++i) {
    columns.at(N::kT, i) = memory.times()[0];
    columns.at(N::kError, i) = 1.0;
    columns.at(N::kRtol, i) = tolerance[each * i];
    columns.at(N::kAtol, i) = tolerance[next + each * i];
    columns.at(N::kFirst, i) = first_step;
    columns.at(N::kDue, i) = memory.times()[1];
    columns.count(W::kStatus, i) = kUnfinished;
    columns.count(W::kRow, i) = 1;
    columns.count(W::kHome, i) = i;
  }
  const S* from = static_cast<const S*>(x.const_data_ptr());
  for (int64_t e = 0; e < head.sample; ++e)
    for (int64_t i = 0; i < head.batch; ++i)
      static_cast<S*>(columns.x)[e * columns.lanes + i] = from[i * head.sample + e];
}

// The memory of a solve of x by a method whose samples keep step; tolerances [2, 1] or [2, B], rtol first.
Tensor lockstep_begin(Tensor given, Tensor times, Tensor table, Tensor tolerances, double first_step,
                      int64_t norm_elements, int64_t max_nfe, double sign) {
  const Place place(given);
  const Tensor x = as_contiguous(given);
  const ScalarType state = x.scalar_type();
  PFC_CHECK(state == ScalarType::Float || state == ScalarType::Double, "x, the state, must be float32 or float64, got ",
            torch::headeronly::toString(state));
  PFC_CHECK(x.dim() >= 1 && x.numel() > 0, "x must have a batch dimension and elements, got ", shape_of(x));
  check_numbers(times, place, ScalarType::Double, 2, "times");
  place.check(tolerances, "tolerances");
  PFC_CHECK(tolerances.dim() == 2 && tolerances.size(0) == 2 && tolerances.is_contiguous() &&
                tolerances.scalar_type() == ScalarType::Double &&
                (tolerances.size(1) == 1 || tolerances.size(1) == x.size(0)),
            "tolerances must be contiguous float64 [2, 1] or [2, ", x.size(0), "], got ", shape_of(tolerances));
  Head head{};
  head.layout = kLayout;
  head.batch = x.size(0);
  head.sample = sample_size(x);
  head.norm = norm_elements;
  head.max_nfe = max_nfe;
  head.row_count = times.numel();
  head.element = static_cast<int64_t>(x.element_size());
  head.running = head.batch;
  head.first_given = first_step > 0.0 ? 1 : 0;
  head.sign = sign;
  const double* method = check_method(table);
  PFC_CHECK(cpu::runs_in_lockstep(method, head.sample), "table has ", Method{method}.extra(),
            " stages of dense output, allowed are 0; a sample has ", head.sample, " elements, allowed are up to ",
            cpu::kLockstepElements);
  PFC_CHECK(norm_elements >= 0 && norm_elements <= head.sample, "norm_elements is ", norm_elements, ", a sample has ",
            head.sample);
  std::memcpy(head.table, method, sizeof(head.table));
  const double* at = static_cast<const double*>(times.const_data_ptr());
  check_times(at, head.row_count);

  Tensor made = torch::stable::new_empty(x, {head.bytes() / 8}, ScalarType::Double);
  std::memset(made.mutable_data_ptr(), 0, static_cast<size_t>(head.rows_at()));
  const Memory memory(made);
  *memory.head = head;
  std::memcpy(memory.times(), at, sizeof(double) * static_cast<size_t>(head.row_count));
  std::memcpy(memory.rows(), x.const_data_ptr(), static_cast<size_t>(head.element * head.batch * head.sample));
  head.element == 8 ? fill<double>(memory, x, tolerances, first_step) : fill<float>(memory, x, tolerances, first_step);
  return made;
}

// f is the field's value at y and t, which become the next point and time; how many samples go on.
int64_t lockstep_(Tensor f, Tensor y, Tensor t, Tensor state) {
  const Memory memory = Memory::of(state);
  Head& head = *memory.head;
  const Place place(y);
  PFC_CHECK(same_shape(f, y), "the field returned shape ", shape_of(f), " at points of shape ", shape_of(y));
  const ScalarType wanted = head.element == 8 ? ScalarType::Double : ScalarType::Float;
  PFC_CHECK(y.dim() >= 1 && y.size(0) == head.batch && sample_size(y) == head.sample, "y has shape ", shape_of(y),
            ", the solve has ", head.batch, " samples of ", head.sample, " elements");
  check_numbers(y, place, wanted, head.batch * head.sample, "y");
  check_numbers(t, place, t.scalar_type(), head.batch, "t");
  place.check(f, "f");
  LockstepArgs args;
  args.out_dtype = dtype_of(f, "f");
  args.t_dtype = dtype_of(t, "t");
  Tensor value = as_contiguous(f);
  // A field may return its own argument: a vector of samples is read before it is written.
  const bool same = value.const_data_ptr() == y.const_data_ptr() && args.out_dtype == head.dtype();
  if ((!same && overlap(value, y)) || overlap(value, t) || overlap(value, state)) value = torch::stable::clone(value);
  args.columns = memory.columns();
  args.count = args.batch = head.batch;
  args.phase = head.phase;
  args.sample = head.sample;
  args.norm = head.norm;
  args.max_nfe = head.max_nfe;
  args.row_count = head.row_count;
  args.state_dtype = head.dtype();
  args.sign = head.sign;
  args.first_given = head.first_given != 0;
  args.times = memory.times();
  args.table = head.table;
  args.f = value.const_data_ptr();
  args.y = y.mutable_data_ptr();
  args.t = t.mutable_data_ptr();
  args.rows = memory.rows();
  const auto& kernels = cpu::kernels<cpu::LockstepKernels>();
  if (head.batch <= kGrain) {
    head.running -= kernels.lockstep(args, 0, head.batch);
  } else {
    std::atomic<int64_t> finished{0};
    const int64_t parts = (head.batch + kGrain - 1) / kGrain;
    torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
      const int64_t stop = end * kGrain < head.batch ? end * kGrain : head.batch;
      finished.fetch_add(kernels.lockstep(args, begin * kGrain, stop), std::memory_order_relaxed);
    });
    head.running -= finished.load();
  }
  head.phase = args.next_phase();
  return head.running;
}

template <class S>
void give_rows(const Memory& memory, S* to) {
  const Head& head = *memory.head;
  const LockstepColumns columns = memory.columns();
  const S* from = reinterpret_cast<const S*>(memory.rows());
  const S* x = static_cast<const S*>(columns.x);
  for (int64_t row = 0, at = 0; row < head.row_count; ++row)
    for (int64_t i = 0; i < head.batch; ++i) {
      const bool reached = row < columns.count(cpu::lockstep_whole::kRow, i);
      for (int64_t e = 0; e < head.sample; ++e, ++at) to[at] = reached ? from[at] : x[e * columns.lanes + i];
    }
}

// What a solve found: states [times, B, ...], where a time was not reached the last state; the times that the samples got to
// [B]; and status, nfe, accepted and rejected [4, B].
std::tuple<Tensor, Tensor, Tensor> lockstep_end(Tensor state, Tensor y) {
  const Memory memory = Memory::of(state);
  const Head& head = *memory.head;
  PFC_CHECK(y.dim() >= 1 && y.size(0) == head.batch && sample_size(y) == head.sample &&
                y.element_size() == static_cast<size_t>(head.element),
            "y has shape ", shape_of(y), ", the solve has ", head.batch, " samples of ", head.sample, " elements");
  std::vector<int64_t> sizes{head.row_count};
  for (int64_t i = 0; i < y.dim(); ++i) sizes.push_back(y.size(i));
  Tensor x = torch::stable::new_empty(y, sizes);
  Tensor reached = torch::stable::new_empty(y, {head.batch}, ScalarType::Double);
  Tensor counts = torch::stable::new_empty(y, {4, head.batch}, ScalarType::Long);
  const LockstepColumns columns = memory.columns();
  const auto bytes = static_cast<size_t>(8 * head.batch);
  std::memcpy(reached.mutable_data_ptr(), &columns.at(cpu::lockstep_number::kT, 0), bytes);
  int64_t* to = static_cast<int64_t*>(counts.mutable_data_ptr());
  int part = 0;
  for (int column : {cpu::lockstep_whole::kStatus, cpu::lockstep_whole::kNfe, cpu::lockstep_whole::kAccepted,
                     cpu::lockstep_whole::kRejected})
    std::memcpy(to + head.batch * part++, &columns.count(column, 0), bytes);
  if (head.element == 8)
    give_rows(memory, static_cast<double*>(x.mutable_data_ptr()));
  else
    give_rows(memory, static_cast<float*>(x.mutable_data_ptr()));
  return {x, reached, counts};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pyflowcore, CPU, m) {
  m.impl("lockstep_begin", TORCH_BOX(&lockstep_begin));
  m.impl("lockstep_", TORCH_BOX(&lockstep_));
  m.impl("lockstep_end", TORCH_BOX(&lockstep_end));
}

}  // namespace pfc::ops
