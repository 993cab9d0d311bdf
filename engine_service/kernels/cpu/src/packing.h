// Weights once, at loading, from (n_out, n_in) as they are stored into the panels of model.h.
#pragma once

#include <vector>

#include "model.h"

namespace cpu {

template <class Weight>
void pack(const Linear& linear, const Weight* weights, int n_out, int n_in) {
  constexpr int kPair = sizeof(float) / sizeof(Weight);
  Weight* to = static_cast<Weight*>(linear.weights);
  const int half = n_out / 2;
  for (int panel = 0; panel < linear.n_panels; ++panel)
    for (int column = 0; column < kPanel; ++column) {
      int row = panel * kPanel + column, n_rows = n_out;
      if (linear.is_gated_pair) {
        row = panel * kVector + column % kVector;
        n_rows = half;
      }
      if (row >= n_rows) continue;
      if (linear.is_gated_pair && column >= kVector) row += half;
      const Weight* from = weights + size_t(row) * n_in;
      Weight* place = to + size_t(panel) * kPanel * linear.n_in + column * kPair;
      for (int i = 0; i < n_in; ++i) place[size_t(i / kPair) * kPanel * kPair + i % kPair] = from[i];
    }
}

// n numbers, and zeros up to n_padded; nothing for a null pointer.
inline std::vector<float> vector_of(const float* from, int n, int n_padded) {
  if (!from) return {};
  std::vector<float> numbers(from, from + n);
  numbers.resize(n_padded);
  return numbers;
}

}  // namespace cpu
