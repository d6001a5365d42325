// The faces of the kernels on tokens and feature maps; see launch.hpp for what all launchers keep to.
#pragma once

#include <cuda_runtime_api.h>

#include "../core/group_norm.hpp"
#include "../core/patches.hpp"
#include "../core/qk_norm_rope.hpp"
#include "../core/timestep.hpp"

namespace pfc::cuda {

cudaError_t qk_norm_rope(const QkArgs& args, cudaStream_t stream);
// args.partial and args.moments must be there.
cudaError_t group_norm(const GroupNormArgs& args, cudaStream_t stream);
cudaError_t patches(const PatchArgs& args, cudaStream_t stream);
cudaError_t timesteps(const TimestepArgs& args, cudaStream_t stream);

}  // namespace pfc::cuda
