// The CUDA kernels of transformer blocks, run thread by thread on the CPU, for test_cuda_block_bodies.py: csrc/cuda/block.cuh but
// for the launch and the shuffles, whose sums are taken here in the same order. Compiled by the test.
#include <vector>

#include "../csrc/cuda/block.cuh"

using namespace pfc;

namespace {

// Threads run in this order: 0, stride, 2 stride, ... modulo their number, so that no order is relied on.
constexpr int kStride = 77;

template <class S>
S warp_sum(std::vector<cuda::Pack<S, cuda::kItem>> sums) {
  for (int apart = cuda::kRowThreads / 2; apart > 0; apart /= 2)
    for (int t = 0; t < apart; ++t) sums[t] = sums[t] + sums[t + apart];
  return cuda::lanes_joined(sums[0]);
}

template <class C>
void norm_row(const cuda::NormParams& params, int64_t row) {
  using S = typename C::S;
  using V = cuda::Pack<S, cuda::kItem>;
  std::vector<cuda::NormThread<C>> threads;
  for (int t = 0; t < cuda::kRowThreads; ++t) threads.emplace_back(params, row, t + 3 * cuda::kRowThreads);
  const auto order = [](int i) { return i * kStride % cuda::kRowThreads; };
  std::vector<V> first(cuda::kRowThreads), second(cuda::kRowThreads);
  for (int i = 0; i < cuda::kRowThreads; ++i) first[order(i)] = threads[order(i)].take();
  if (params.args.out == nullptr) return;
  S center = S(0), sum = S(0), squares = warp_sum(first);
  if (!params.args.rms) {
    center = row_mean(squares, params.args.width);
    for (int i = 0; i < cuda::kRowThreads; ++i) threads[order(i)].deviate(center, first[order(i)], second[order(i)]);
    sum = warp_sum(first);
    squares = warp_sum(second);
  }
  const RowNorm<S> norm = row_norm(params.args, center, sum, squares);
  for (int i = 0; i < cuda::kRowThreads; ++i) threads[order(i)].finish(norm);
}

}  // namespace

extern "C" {

struct NormCall {
  int64_t rows, width, tokens, dtype, rms, gate_stride, shift_stride, scale_stride;
  double eps;
  const void *x, *y;
  void *x_out, *out;
  const void *y_bias, *weight, *bias, *gate, *shift, *scale;
};

// Returns which kernel ran: 10 * items held + vector.
int pfc_test_block_norm(const NormCall* call) {
  NormArgs args;
  args.rows = call->rows;
  args.width = call->width;
  args.tokens = call->tokens;
  args.dtype = static_cast<DType>(call->dtype);
  args.rms = call->rms != 0;
  args.eps = call->eps;
  args.x = call->x;
  args.y = call->y;
  args.x_out = call->x_out;
  args.out = call->out;
  args.y_bias = call->y_bias;
  args.weight = call->weight;
  args.bias = call->bias;
  args.gate = {call->gate, call->gate_stride};
  args.shift = {call->shift, call->shift_stride};
  args.scale = {call->scale, call->scale_stride};
  return cuda::dispatch_norm(args, [&]<class C>(C, const cuda::NormParams& params) {
    for (int64_t row = 0; row < args.rows; ++row) norm_row<C>(params, row);
    return 10 * C::kHeld + C::kVector;
  });
}

// Returns whether items were aligned.
int pfc_test_block_gated(int64_t rows, int64_t width, int64_t dtype, int64_t kind, const void* x, const void* bias,
                         void* out) {
  const GatedArgs args{rows, width, static_cast<DType>(dtype), static_cast<Gated>(kind), x, bias, out, false};
  return cuda::dispatch_gated(args, []<class C>(C, const cuda::GatedParams& params, int64_t tiles) {
    for (int64_t tile = 0; tile < tiles; ++tile)
      for (int i = 0; i < cuda::kThreads; ++i) cuda::GatedThread<C>::run(params, tile, i * kStride % cuda::kThreads);
    return static_cast<int>(C::kVector);
  });
}

// Writes how often each element of out is visited, for rows of so many elements.
void pfc_test_block_items(int64_t width, int64_t* visits) {
  const int64_t steps = (width + kNormLanes - 1) / kNormLanes;
  for (int lane = 0; lane < cuda::kRowThreads; ++lane)
    for (int64_t step = 0; step < steps; ++step) {
      const cuda::Item item = cuda::norm_item(lane, step, width);
      for (int e = 0; e < item.count; ++e) ++visits[item.offset + e];
    }
}

// Where the operands of an element of out begin, far into a tensor: x, then bias.
void pfc_test_block_place(int64_t rows, int64_t width, int64_t kind, int64_t offset, int64_t* found) {
  cuda::GatedParams params;
  params.args.rows = rows;
  params.args.width = width;
  params.args.kind = static_cast<Gated>(kind);
  params.width = cuda::make_divider(width);
  const cuda::GatedPlace place = cuda::gated_place(params, offset, 1);
  found[0] = place.x;
  found[1] = place.bias;
}
}
