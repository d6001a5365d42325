// The CUDA kernels' faces: device pointers and the caller's stream. A launcher allocates nothing and synchronises
// nothing; it returns the error of its own launch. Elements there are none of are the caller's to leave out.
#pragma once

#include <cuda_runtime_api.h>

#include "../core/guide.hpp"

namespace pfc::cuda {

cudaError_t combine(const CombineArgs& args, cudaStream_t stream);
cudaError_t normals(const NormalArgs& args, cudaStream_t stream);
cudaError_t interpolate(const InterpolateArgs& args, cudaStream_t stream);
cudaError_t guide(const GuideArgs& args, cudaStream_t stream);

// The GPU architectures that this build has code for, as CMake names them where it told us.
const char* architectures();

}  // namespace pfc::cuda
