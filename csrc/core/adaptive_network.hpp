// An adaptive solve of a fused network: the network, its conditions, and what adaptive.hpp says.
#pragma once

#include "adaptive.hpp"
#include "network.hpp"

namespace pfc {

struct NetworkSolveArgs {
  Network network;
  const void* cond = nullptr;  // [batch][condition_count]
  // f, y, t, k, home, partial and places are the engine's own, tile by tile.
  AdaptiveArgs solve;
};

}  // namespace pfc
