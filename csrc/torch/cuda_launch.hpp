// What the CUDA registrations share: the device, the caller's stream, and errors.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <stdexcept>
#include <string>

#include "tensors.hpp"

namespace pfc::ops {

// Makes the device of an operator's first tensor the current one while it lives; the caller's stream belongs to that
// device.
class OnDevice {
 public:
  OnDevice(const Tensor& first, const char* name) : index_(checked_index(first, name)), guard_(index_) {}

  cudaStream_t stream() const {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream));
    return static_cast<cudaStream_t>(stream);
  }

 private:
  // A call arrives here when any of its tensors is on CUDA; the first decides where it runs.
  static int32_t checked_index(const Tensor& first, const char* name) {
    PFC_CHECK(first.is_cuda(), name, " is not on CUDA, while another tensor argument is; they must be on one device");
    return first.get_device_index();
  }

  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
};

// The launch itself failed; what goes wrong inside a kernel shows where the caller synchronises.
inline void check_launch(cudaError_t error, const char* op) {
  if (error == cudaSuccess) return;
  throw std::runtime_error("pyflowcore::" + std::string(op) + ": the CUDA kernel could not be started: " +
                           cudaGetErrorName(error) + ", " + cudaGetErrorString(error));
}

}  // namespace pfc::ops
