// Products with weights of int8. Inputs become int16 by groups too, which is finer than bfloat16:
// the products of a group are then added exactly, and only their sum becomes a float.

namespace {

using cpu::kGroup;

struct Int8 {
  static constexpr int kRows = kTileRows;
};

template <>
struct Operands<Int8> {
  const int16_t* x;
  const float* x_scales;
  size_t x_stride, scale_stride;
  const char* weights;
  int n_in;
};

template <int kRows>
using WholeSums = Ints[kRows][2];

// One group of a panel; w are its pairs. Whole numbers may be added in any order: few rows take
// several chains, which hides the latency of a step.
template <int kRows>
inline void add_group(const int16_t* x, size_t x_stride, const int8_t* w, WholeSums<kRows>& sums) {
  constexpr int kChains = kRows * 2 < kMinChains ? kMinChains / (kRows * 2) : 1;
  WholeSums<kRows> chains[kChains];
#pragma GCC unroll 4
  for (int chain = 0; chain < kChains; ++chain)
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) chains[chain][r][0] = chains[chain][r][1] = zero_ints();
  for (int k = 0; k < kGroup; k += 2 * kChains)
#pragma GCC unroll 4
    for (int chain = 0; chain < kChains; ++chain, w += 2 * kPanel) {
      const Ints first = widened(w), second = widened(w + kPanel);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        int pair;
        __builtin_memcpy(&pair, x + r * x_stride + k + 2 * chain, sizeof pair);
        chains[chain][r][0] = add_products(chains[chain][r][0], first, pair);
        chains[chain][r][1] = add_products(chains[chain][r][1], second, pair);
      }
    }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      sums[r][half] = chains[0][r][half];
#pragma GCC unroll 4
      for (int chain = 1; chain < kChains; ++chain)
        sums[r][half] = add(sums[r][half], chains[chain][r][half]);
    }
}

template <int kRows>
__attribute__((noinline)) void accumulate(const Operands<Int8>& in, const Place& place, V (&to)[kRows][2]) {
  const int n_groups = in.n_in / kGroup;
  const char* group_bytes = in.weights + size_t(place.panel) * n_groups * cpu::kGroupBytes;
  const int16_t* x = in.x + place.row * in.x_stride;
  const float* x_scales = in.x_scales + place.row * in.scale_stride;
  V sums[kRows][2];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) sums[r][0] = sums[r][1] = zero();
  for (int group = 0; group < n_groups; ++group, group_bytes += cpu::kGroupBytes) {
    const float* scales = reinterpret_cast<const float*>(group_bytes);
    WholeSums<kRows> whole;
    add_group<kRows>(x + group * kGroup, in.x_stride, reinterpret_cast<const int8_t*>(scales + kPanel), whole);
    const V first = load(scales), second = load(scales + kVector);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const V x_scale = all(x_scales[r * in.scale_stride + group]);
      sums[r][0] = fma(to_float(whole[r][0]), mul(first, x_scale), sums[r][0]);
      sums[r][1] = fma(to_float(whole[r][1]), mul(second, x_scale), sums[r][1]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) to[r][0] = sums[r][0], to[r][1] = sums[r][1];
}

// A row of n inputs, a multiple of groups, by the greatest magnitude of each group. The scale of a
// group with what is not a number is not one either.
template <class Input>
void quantize_row(const Input* x, int n, int16_t* y, float* scales) {
  constexpr float kMost = 32767.0f;
  for (int start = 0; start < n; start += kGroup) {
    Ints best = zero_ints();
    for (int i = start; i < start + kGroup; i += kVector) best = max(best, magnitudes(load(x + i)));
    const int bits = highest(best);
    float greatest;
    __builtin_memcpy(&greatest, &bits, sizeof greatest);
    scales[start / kGroup] = greatest / kMost;
    const V inverse = all(greatest > 0.0f ? kMost / greatest : 0.0f);
    for (int i = start; i < start + kGroup; i += kVector) store(y + i, mul(load(x + i), inverse));
  }
}

}  // namespace
