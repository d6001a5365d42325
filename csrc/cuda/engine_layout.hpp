// Where a launch of the engine keeps what, and the rows as its kernel reads them. Plain host arithmetic, decided before the
// launch; nothing here depends on values on the device.
//
// Shared memory of a block holds two rows, two or three buffers of activations and, as far as there is room, weights
// layer by layer, then what the samples of the tile have: states, points, slots and outputs; the conditions' part of layer 0;
// the times' part. What does not fit lies in the block's part of the scratch memory, which its caches hold.
#pragma once

#include <cstddef>
#include <cstring>
#include <vector>

#include "engine_args.hpp"
#include "walk.hpp"

namespace pfc::cuda {

// Rows travel as a kernel argument, so that a launch needs no copy and can be captured; what is longer is carried to the
// scratch memory by kernels that do nothing else.
inline constexpr int kEngineWords = 4096;
inline constexpr int kEngineBuffers = 3;
inline constexpr int64_t kEngineRowBytes = 1024;    // of shared memory, for a row: the one at hand and the next
inline constexpr int64_t kEngineReserved = 1024;    // of shared memory, that the driver takes for a block
inline constexpr int64_t kEngineStageBytes = 8192;  // least bytes of the buffers: a row's features of time pass through

template <class S>
struct EngineRow {
  S point_scale;
  int branches, point_plane, evaluation, state_out, point_out;
  int changes_state, writes_point, next_is_state;
  int64_t scale;  // the row's first guidance scale
  Row<S> row;
};
// A record holds the row up to its last term, then its draws.
template <class S>
struct EngineRecord {
  static constexpr int kHead = static_cast<int>(offsetof(EngineRow<S>, row.term) / 4);
  static constexpr int kTerm = static_cast<int>(sizeof(SlotTerm<S>) / 4);
  static constexpr int kDraw = static_cast<int>(sizeof(DrawTerm<S>) / 4);
  static constexpr int kTerms = static_cast<int>(offsetof(EngineRow<S>, row.terms) / 4);
  static constexpr int kDraws = static_cast<int>(offsetof(EngineRow<S>, row.draws) / 4);
  static constexpr int kDrawPlace = static_cast<int>(offsetof(EngineRow<S>, row.draw) / 4);
  static_assert(sizeof(EngineRow<S>) <= kEngineRowBytes && sizeof(EngineRow<S>) % 4 == 0);

  // Where word i of a record goes in an EngineRow whose terms are so many words.
  PFC_HD static int place(int i, int terms) { return i < kHead + terms ? i : kDrawPlace + i - (kHead + terms); }
};

// Bytes from the start of shared memory, or of the block's scratch.
struct EnginePlace {
  int64_t offset;
  int shared;
};

struct EngineLayer {
  int in, out, panels;
  int activation, after;
  int source, target, residual;  // buffers; residual -1 for none
  double parameter, after_parameter;
  int64_t weights, bias;  // elements of the parameters; of layer 0, x's weights
  EnginePlace resident;   // the layer's weights, where they are in shared memory
  int64_t packed;         // else, for modes that pack: bytes from `packed` of the parameters
};

struct EngineParams {
  int64_t batch, tiles, blocks;
  int dim, stride;                           // elements of a sample, and of its part of a plane: a multiple of four
  int features, conditions, layers, hidden;  // hidden: padded outputs of layer 0
  int rows, evaluations, planes, first_output;
  int64_t time_weights, condition_weights;
  const void* parameters;
  const void* x0;
  void* x;
  const void* cond;
  const void* t;
  DType t_dtype;
  int t_per_sample;
  double time;
  const void* scale;
  int64_t scale_branch_stride, scale_sample_stride;
  const int64_t* seeds;
  uint32_t stream;
  void* states;
  void* points;
  char* scratch;
  int64_t scratch_stride;
  int64_t buffer_bytes;  // of one buffer of activations, from kEngineRowBytes on
  int buffers, buffer_stride;
  EnginePlace plane, sums, prefix;
  EngineLayer layer[kMaxLayers];
  uint32_t* remote;  // the words, where they are too many
  char* packed;
  int times_at, features_at, records_at;
  uint32_t words[kEngineWords];
};

struct EngineProgram {
  EngineParams params;
  std::vector<uint32_t> words;  // all of them, if they are too many for the parameters
  int64_t shared_bytes = 0, scratch_bytes = 0, packed_bytes = 0;
  bool large = false;  // tiles
  bool single = false;
};

inline int64_t align_up(int64_t bytes, int64_t to) { return (bytes + to - 1) / to * to; }

// The caller's scratch memory: what blocks have, the words, the packed weights.
inline void place_scratch(EngineProgram& program, char* scratch) {
  EngineParams& p = program.params;
  p.scratch = scratch;
  char* words = scratch + p.blocks * p.scratch_stride;
  p.remote = program.words.empty() ? nullptr : reinterpret_cast<uint32_t*>(words);
  p.packed = words + align_up(4 * static_cast<int64_t>(program.words.size()), 128);
}

namespace engine_words {

template <class T>
void append(std::vector<uint32_t>& words, const T& value) {
  const std::size_t at = words.size();
  words.resize(at + sizeof(T) / 4);
  std::memcpy(&words[at], &value, sizeof(T));
}

// The records, and what each row finds and leaves.
template <class S>
void append_rows(const TrajectoryArgs& args, EngineParams& p, std::vector<uint32_t>& words) {
  using Record = EngineRecord<S>;
  std::vector<uint32_t> records;
  std::vector<int> begins;
  int plane = 0, kept = 0;
  S scale = S(1);
  for (int64_t r = 0; r < args.rows; ++r) {
    EngineRow<S> row{};
    row.row = decode_row<S>(args.table + r * record::kWidth);
    row.point_scale = scale;
    row.point_plane = plane;
    row.branches = static_cast<int>(args.branches[r]);
    row.evaluation = row.branches > 0 ? p.evaluations++ : -1;
    if (row.branches > 0) append(words, args.times[r]);
    row.point_out = args.points != nullptr ? row.evaluation : -1;
    row.state_out = kept < args.kept && args.keep_rows[kept] == r ? kept++ : -1;
    row.changes_state = row.row.changes_state();
    row.next_is_state = row.row.point_is_state();
    row.writes_point = !row.next_is_state && r + 1 < args.rows;
    row.scale = r * args.scale_row_stride;
    plane = row.next_is_state ? 0 : 1;
    scale = row.row.in_scale;
    std::vector<uint32_t> raw;
    append(raw, row);
    begins.push_back(static_cast<int>(records.size()));
    const auto at = raw.begin();
    const int head = Record::kHead + row.row.terms * Record::kTerm;
    records.insert(records.end(), at, at + head);
    records.insert(records.end(), at + Record::kDrawPlace, at + Record::kDrawPlace + row.row.draws * Record::kDraw);
  }
  begins.push_back(static_cast<int>(records.size()));
  p.features_at = static_cast<int>(words.size());
  words.insert(words.end(), 6 * static_cast<std::size_t>(p.features), 0u);
  if (p.features > 0)
    std::memcpy(&words[static_cast<std::size_t>(p.features_at)], args.network.features,
                24 * static_cast<std::size_t>(p.features));
  p.records_at = static_cast<int>(words.size());
  for (const int begin : begins) append(words, begin + p.records_at + static_cast<int>(begins.size()));
  words.insert(words.end(), records.begin(), records.end());
}

}  // namespace engine_words

// Buffers that no later layer wants: a layer reads one, writes another, and the input that a residual waits for stays where
// it is. Returns how many there are.
inline int assign_buffers(const Network& network, EngineParams& p) {
  int last_use[kMaxLayers];
  for (int l = 0; l < network.layers; ++l) last_use[l] = l;
  for (int l = 0; l < network.layers; ++l)
    if (network.layer[l].residual >= 0) last_use[network.layer[l].residual] = l;
  int until[kEngineBuffers] = {-1, -1, -1};  // the last layer that reads what a buffer holds
  int where[kMaxLayers + 1] = {};
  int used = 1;
  until[0] = last_use[0];
  for (int l = 0; l < network.layers; ++l) {
    int target = 0;
    while (target < kEngineBuffers && until[target] >= l) ++target;
    if (target == kEngineBuffers) return -1;
    p.layer[l].source = where[l];
    p.layer[l].target = where[l + 1] = target;
    p.layer[l].residual = network.layer[l].residual >= 0 ? where[network.layer[l].residual] : -1;
    until[target] = l + 1 < network.layers ? last_use[l + 1] : l;
    if (target + 1 > used) used = target + 1;
  }
  return used;
}

// Mode: how activations and weights lie in shared memory. Returns whether the least that must be there fits.
template <class Mode>
bool lay_out(const EngineDevice& device, EngineProgram& program) {
  using S = typename Mode::S;
  EngineParams& p = program.params;
  int width = p.dim;
  for (int l = 0; l < p.layers; ++l) width = width < p.layer[l].panels * kPanel ? p.layer[l].panels * kPanel : width;
  p.buffer_stride = Mode::buffer_stride(width);
  p.buffer_bytes = align_up(Mode::buffer_bytes(width), 16);
  if (p.buffer_bytes * p.buffers < kEngineStageBytes) p.buffer_bytes = align_up(kEngineStageBytes / p.buffers, 16);
  p.tiles = (p.batch + Mode::kTile - 1) / Mode::kTile;
  program.packed_bytes = 0;
  int64_t shared = 2 * kEngineRowBytes + p.buffer_bytes * p.buffers + Mode::kStageBytes;
  if (shared > device.shared_per_block) return false;
  // More blocks on a multiprocessor hide more latency than nearer weights save: half of its memory at most, unless tiles are
  // few.
  const bool few = p.tiles <= device.multiprocessors;
  const int64_t fair =
      (few ? device.shared_per_multiprocessor : device.shared_per_multiprocessor / 2) - kEngineReserved;
  const int64_t limit = fair < device.shared_per_block ? fair : device.shared_per_block;
  int64_t scratch = 0;
  const auto place = [&](int64_t bytes) {
    bytes = align_up(bytes, 16);
    int64_t& at = shared + bytes <= limit ? shared : scratch;
    const EnginePlace found{at, &at == &shared};
    at += bytes;
    return found;
  };
  constexpr int64_t kBytes = sizeof(S);
  p.plane = place(static_cast<int64_t>(p.planes) * Mode::kTile * p.stride * kBytes);
  for (int l = 0; l < p.layers; ++l) {
    const int64_t bytes = Mode::weight_bytes(p.layer[l].panels, l == 0 ? p.dim : p.layer[l].in);
    p.layer[l].resident = {shared, shared + bytes <= limit};
    if (p.layer[l].resident.shared) {
      shared += align_up(bytes, 16);
    } else if (Mode::kPacks) {
      p.layer[l].packed = program.packed_bytes;
      program.packed_bytes += bytes;
    }
  }
  const int64_t branches = p.planes - p.first_output;
  p.sums = place(p.conditions > 0 ? branches * Mode::kTile * p.hidden * kBytes : 0);
  p.prefix = place(static_cast<int64_t>(p.t_per_sample ? Mode::kTile : p.evaluations) * p.hidden * kBytes);
  program.shared_bytes = shared;
  p.scratch_stride = align_up(scratch, 128);
  int64_t resident = device.shared_per_multiprocessor / (shared + kEngineReserved);
  resident = resident < 1 ? 1 : resident > Mode::kBlocks ? Mode::kBlocks : resident;
  const int64_t places = resident * device.multiprocessors;
  p.blocks = p.tiles < places ? p.tiles : places;
  program.scratch_bytes = p.blocks * p.scratch_stride;
  program.scratch_bytes += align_up(4 * static_cast<int64_t>(program.words.size()), 128) + program.packed_bytes;
  return true;
}

// Small and Large are modes that differ in their tile. A network that fits no block's memory is refused by the caller's
// checks: with the bounds of core/network.hpp the small tile fits 99 KB.
template <class Small, class Large>
bool make_program(const EngineArgs& args, const EngineDevice& device, EngineProgram& program) {
  using S = typename Small::S;
  const TrajectoryArgs& plan = args.plan;
  const Network& network = plan.network;
  EngineParams& p = program.params;
  std::memset(static_cast<void*>(&p), 0, offsetof(EngineParams, words));
  p.batch = plan.batch;
  p.dim = network.dim;
  p.stride = (network.dim + kItem - 1) / kItem * kItem;
  p.features = network.feature_count;
  p.conditions = network.condition_count;
  p.layers = network.layers;
  p.hidden = Network::panels(network.layer[0].out) * kPanel;
  p.rows = static_cast<int>(plan.rows);
  p.time_weights = network.time_weights();
  p.condition_weights = network.condition_weights();
  p.parameters = network.params;
  p.x0 = plan.x0;
  p.x = plan.x;
  p.cond = plan.cond;
  p.t = args.t;
  p.t_dtype = args.t_dtype;
  p.t_per_sample = args.t_per_sample;
  p.time = args.time;
  p.scale = plan.scale;
  p.scale_branch_stride = plan.scale_branch_stride;
  p.scale_sample_stride = plan.scale_sample_stride;
  p.seeds = plan.seeds;
  p.stream = static_cast<uint32_t>(Stream::kPlan);
  p.states = plan.states;
  p.points = plan.points;
  for (int l = 0; l < network.layers; ++l) {
    const Layer& from = network.layer[l];
    EngineLayer& layer = p.layer[l];
    layer.in = l == 0 ? network.dim : from.in;
    layer.out = from.out;
    layer.panels = Network::panels(from.out);
    layer.activation = static_cast<int>(from.activation);
    layer.after = static_cast<int>(from.after);
    layer.parameter = from.parameter;
    layer.after_parameter = from.after_parameter;
    layer.weights = l == 0 ? network.x_weights() : from.weights;
    layer.bias = from.bias;
  }
  p.buffers = assign_buffers(network, p);
  if (p.buffers < 0) return false;
  if (p.buffers < 2) p.buffers = 2;
  program.single = args.single;
  // The state, the point, the slots and the branches' outputs; of one evaluation its input and its output.
  p.first_output = program.single ? 1 : 2 + plan.slots;
  p.planes = p.first_output + (plan.most_branches > 1 ? plan.most_branches : 1);
  std::vector<uint32_t> words;
  engine_words::append_rows<S>(plan, p, words);
  p.times_at = 0;
  if (program.single) p.evaluations = 1;
  if (words.size() > kEngineWords)
    program.words = words;
  else if (!words.empty())
    std::memcpy(p.words, words.data(), 4 * words.size());
  // Large tiles read each weight for more samples, but want enough samples to keep every multiprocessor busy.
  program.large = plan.batch >= int64_t{2} * Large::kTile * device.multiprocessors && lay_out<Large>(device, program);
  return program.large || lay_out<Small>(device, program);
}

}  // namespace pfc::cuda
