// Memory of a thread for the engines' tiles.
#include <cstdlib>
#include <memory>
#include <new>

#include "engine.hpp"

namespace pfc::cpu {

namespace {

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

struct Scratch {
  std::unique_ptr<void, Free> memory;
  std::size_t bytes = 0;
};

}  // namespace

void* thread_scratch(std::size_t bytes) {
  static thread_local Scratch scratch;
  if (bytes > scratch.bytes) {
    scratch.memory.reset();
    scratch.bytes = 0;
    // A whole number of pages, with room: the next tile may be a little larger.
    const std::size_t rounded = (bytes + bytes / 8 + 4095) / 4096 * 4096;
    void* fresh = std::aligned_alloc(4096, rounded);
    if (!fresh) throw std::bad_alloc();
    scratch.memory.reset(fresh);
    scratch.bytes = rounded;
  }
  return scratch.memory.get();
}

}  // namespace pfc::cpu
