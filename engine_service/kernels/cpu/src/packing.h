// Weights once, at loading, from (n_out, n_in) as they are stored into the panels of model.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "bfloat16.h"
#include "model.h"

namespace cpu {

// The row of (n_out, n_in) that becomes a column of a panel; -1 where the column is missing.
inline int row_of_column(const Linear& linear, int n_out, int panel, int column) {
  if (!linear.is_gated_pair) {
    const int row = panel * kPanel + column;
    return row < n_out ? row : -1;
  }
  const int half = n_out / 2, row = panel * kVector + column % kVector;
  if (row >= half) return -1;
  return column < kVector ? row : row + half;
}

template <class Weight>
void pack(const Linear& linear, const Weight* weights, int n_out, int n_in) {
  constexpr int kPair = sizeof(float) / sizeof(Weight);
  Weight* to = static_cast<Weight*>(linear.weights);
  for (int panel = 0; panel < linear.n_panels; ++panel)
    for (int column = 0; column < kPanel; ++column) {
      const int row = row_of_column(linear, n_out, panel, column);
      if (row < 0) continue;
      const Weight* from = weights + size_t(row) * n_in;
      Weight* place = to + size_t(panel) * kPanel * linear.n_in + column * kPair;
      for (int i = 0; i < n_in; ++i) place[size_t(i / kPair) * kPanel * kPair + i % kPair] = from[i];
    }
}

// One column's part of a group, by its greatest magnitude: what kernels/quantization.py computes.
template <class Weight>
void quantize_group(const Weight* from, int n, float* scale, int8_t* to) {
  float numbers[kGroup] = {}, greatest = 0.0f;
  for (int i = 0; i < n; ++i) {
    numbers[i] = to_float(from[i]);
    greatest = std::max(greatest, std::fabs(numbers[i]));
  }
  *scale = greatest / 127.0f;
  if (*scale == 0.0f) return;
  // Adding and taking away 1.5 * 2^23 rounds to the nearest whole number, and to even between two.
  constexpr float kRound = 12582912.0f;
  for (int i = 0; i < n; ++i)
    to[i / 2 * kPanel * 2 + i % 2] = int8_t((numbers[i] / *scale + kRound) - kRound);
}

template <class Weight>
void pack_int8(const Linear& linear, const Weight* weights, int n_out, int n_in) {
  char* group_bytes = static_cast<char*>(linear.weights);
  for (int panel = 0; panel < linear.n_panels; ++panel)
    for (int start = 0; start < linear.n_in; start += kGroup, group_bytes += kGroupBytes) {
      float* scales = reinterpret_cast<float*>(group_bytes);
      int8_t* pairs = reinterpret_cast<int8_t*>(scales + kPanel);
      for (int column = 0; column < kPanel; ++column) {
        const int row = row_of_column(linear, n_out, panel, column);
        if (row < 0) continue;
        const int n = std::min(kGroup, n_in - start);
        quantize_group(weights + size_t(row) * n_in + start, n, scales + column, pairs + 2 * column);
      }
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
