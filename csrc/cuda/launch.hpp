// The CUDA kernels' faces: device pointers and the caller's stream. A launcher allocates nothing and synchronises
// nothing; it returns the error of its own launch. Elements there are none of are the caller's to leave out.
#pragma once

#include <cuda_runtime_api.h>

#include "../core/adaptive.hpp"
#include "../core/block.hpp"
#include "../core/guide.hpp"
#include "engine_layout.hpp"

namespace pfc::cuda {

cudaError_t combine(const CombineArgs& args, cudaStream_t stream);
cudaError_t normals(const NormalArgs& args, cudaStream_t stream);
cudaError_t interpolate(const InterpolateArgs& args, cudaStream_t stream);
cudaError_t guide(const GuideArgs& args, cudaStream_t stream);
cudaError_t adaptive(const AdaptiveArgs& args, cudaStream_t stream);
cudaError_t block_norm(const NormArgs& args, cudaStream_t stream);
cudaError_t block_gated(const GatedArgs& args, cudaStream_t stream);

// The engine in three steps, because its scratch memory is the caller's: what the current device has; where everything goes
// (false if the least does not fit a block's shared memory); the launch, with scratch_bytes of memory aligned to 256 bytes.
cudaError_t engine_device(EngineDevice& device);
bool prepare_engine(const EngineArgs& args, const EngineDevice& device, EngineProgram& program);
cudaError_t engine(const EngineArgs& args, EngineProgram& program, void* scratch, cudaStream_t stream);

// The GPU architectures that this build has code for, as CMake names them where it told us.
const char* architectures();

}  // namespace pfc::cuda
