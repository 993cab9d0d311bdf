// How the two types of weights are multiplied, and the functions of single numbers.
//
// A product has one chain of additions per output, over the inputs in order, whatever the tile: an
// output's bits depend on its own row and column only. Nothing here may split or reorder it.

namespace {

using cpu::bf16;
using cpu::kVector;

struct Float32 {
  using Weight = float;
  using Input = float;
  static constexpr int kRows = kTileRows;  // of one tile, at most
  static constexpr int kPair = 1;   // inputs that lie together in packed weights
  static constexpr int kParts = 1;  // steps that multiply one pair
  static V weights(const Weight* w, int) { return load(w); }
  static V multiply(V sum, V w, const Input* x, int) { return fma(w, all(*x), sum); }
};

#ifdef __AVX512BF16__
struct Bfloat16 {
  using Weight = bf16;
  using Input = bf16;
  static constexpr int kRows = kBfloat16Rows;
  static constexpr int kPair = 2;
  static constexpr int kParts = 1;
  static V weights(const Weight* w, int) { return load(reinterpret_cast<const float*>(w)); }
  static V multiply(V sum, V w, const Input* x, int) {
    int pair;
    __builtin_memcpy(&pair, x, sizeof pair);
    return _mm512_dpbf16_ps(sum, (__m512bh)w, (__m512bh)_mm512_set1_epi32(pair));
  }
};
#else
struct Bfloat16 {
  using Weight = bf16;
  using Input = float;
  static constexpr int kRows = kBfloat16Rows;
  static constexpr int kPair = 2;
  static constexpr int kParts = 2;
  static V weights(const Weight* w, int part) { return part ? high_halves(w) : low_halves(w); }
  static V multiply(V sum, V w, const Input* x, int part) { return fma(w, all(x[part]), sum); }
};
#endif

// e^x to about one unit in the last place: 2^n times a power series on [-ln 2 / 2, ln 2 / 2].
// Stays a number for any number; a NaN stays a NaN.
inline V exponential(V x) {
  x = min(all(88.0f), max(all(-87.0f), x));
  const V n = nearest(mul(x, all(1.44269504f)));
  V rest = fma(n, all(-0.693359375f), x);
  rest = fma(n, all(2.12194440e-4f), rest);
  V series = all(1.0f / 5040);
  for (float coefficient : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
    series = fma(series, rest, all(coefficient));
  return times_power_of_two(series, n);
}

inline V silu(V x) { return div(x, add(all(1.0f), exponential(sub(zero(), x)))); }

// Both rows have n numbers rounded up to whole vectors, zeros behind; n is the true number.
template <class Input>
inline void rms_norm(const float* x, const float* weight, Input* y, int n, int n_padded, float eps) {
  V squares[4] = {zero(), zero(), zero(), zero()};
  for (int i = 0; i < n_padded; i += kVector) {
    const V v = load(x + i);
    squares[i / kVector % 4] = fma(v, v, squares[i / kVector % 4]);
  }
  const float mean = sum(add(add(squares[0], squares[1]), add(squares[2], squares[3]))) / float(n);
  const V scale = all(1.0f / std::sqrt(mean + eps));
  for (int i = 0; i < n_padded; i += kVector) store(y + i, mul(mul(load(x + i), scale), load(weight + i)));
}

}  // namespace
