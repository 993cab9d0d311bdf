// Sixteen floats as one AVX-512 register.
#include <immintrin.h>

#include <cmath>

namespace {

using V = __m512;

inline V zero() { return _mm512_setzero_ps(); }
inline V all(float x) { return _mm512_set1_ps(x); }
inline V load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, V v) { _mm512_storeu_ps(p, v); }
inline V add(V a, V b) { return _mm512_add_ps(a, b); }
inline V sub(V a, V b) { return _mm512_sub_ps(a, b); }
inline V mul(V a, V b) { return _mm512_mul_ps(a, b); }
inline V div(V a, V b) { return _mm512_div_ps(a, b); }
inline V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
// Of two numbers the greater or smaller; b where either is not a number.
inline V max(V a, V b) { return _mm512_max_ps(a, b); }
inline V min(V a, V b) { return _mm512_min_ps(a, b); }
inline float sum(V v) { return _mm512_reduce_add_ps(v); }
inline float highest(V v) { return _mm512_reduce_max_ps(v); }
inline V nearest(V v) { return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline V times_power_of_two(V v, V exponent) { return _mm512_scalef_ps(v, exponent); }
// The first n lanes of v, the others of rest; any n.
inline V first_lanes(V v, int n, V rest) {
  const __mmask16 mask = n >= 16 ? 0xffff : n <= 0 ? 0 : (1u << n) - 1;
  return _mm512_mask_mov_ps(rest, mask, v);
}

inline V load(const uint16_t* p) {
  const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
}
// Low and high halves of sixteen 32-bit pairs of bfloat16.
inline V low_halves(const uint16_t* p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16));
}
inline V high_halves(const uint16_t* p) {
  return _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi32(int(0xffff0000u))));
}

using Ints = __m512i;

inline Ints zero_ints() { return _mm512_setzero_si512(); }
inline Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
inline V to_float(Ints v) { return _mm512_cvtepi32_ps(v); }
// Sixteen pairs of bytes as pairs of 16 bits.
inline Ints widened(const int8_t* p) {
  return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
// Adds to each sum both products of its pair and the one given.
inline Ints add_products(Ints sums, Ints pairs, int pair) {
#ifdef __AVX512VNNI__
  return _mm512_dpwssd_epi32(sums, pairs, _mm512_set1_epi32(pair));
#else
  return _mm512_add_epi32(sums, _mm512_madd_epi16(pairs, _mm512_set1_epi32(pair)));
#endif
}
// By their bits, of which those of not a number are the greatest.
inline Ints magnitudes(V v) {
  return _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(0x7fffffff));
}
inline Ints max(Ints a, Ints b) { return _mm512_max_epi32(a, b); }
inline int highest(Ints v) { return _mm512_reduce_max_epi32(v); }
// To the nearest whole numbers.
inline void store(int16_t* p, V v) {
  const __m256i narrow = _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(v));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow);
}

inline void store(uint16_t* p, V v) {
#ifdef __AVX512BF16__
  const __m256i rounded = (__m256i)_mm512_cvtneps_pbh(v);
#else
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  // Rounding must not carry a NaN over into a number.
  up = _mm512_mask_mov_epi32(up, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc00000));
  const __m256i rounded = _mm512_cvtepi32_epi16(_mm512_srli_epi32(up, 16));
#endif
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), rounded);
}

}  // namespace
