// Sixteen floats as two AVX2 registers.
#include <immintrin.h>

#include <cmath>

namespace {

struct V {
  __m256 a, b;
};

inline V zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline V all(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline V load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, V v) {
  _mm256_storeu_ps(p, v.a);
  _mm256_storeu_ps(p + 8, v.b);
}
inline V add(V x, V y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline V sub(V x, V y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline V mul(V x, V y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline V div(V x, V y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline V fma(V x, V y, V z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
// Of two numbers the greater or smaller; y where either is not a number.
inline V max(V x, V y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline V min(V x, V y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }

inline float sum(V v) {
  const __m256 eight = _mm256_add_ps(v.a, v.b);
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}
inline float highest(V v) {
  const __m256 eight = _mm256_max_ps(v.a, v.b);
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}

constexpr int kToNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
inline V nearest(V v) { return {_mm256_round_ps(v.a, kToNearest), _mm256_round_ps(v.b, kToNearest)}; }

// In two steps, so that the result may be as small as the least float without a wrong exponent.
inline __m256 times_power_of_two(__m256 v, __m256 exponent) {
  const __m256i whole = _mm256_cvtps_epi32(exponent);
  const __m256i half = _mm256_srai_epi32(whole, 1);
  const __m256i bias = _mm256_set1_epi32(127);
  const __m256i first = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
  const __m256i second = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(whole, half), bias), 23);
  return _mm256_mul_ps(_mm256_mul_ps(v, _mm256_castsi256_ps(first)), _mm256_castsi256_ps(second));
}
inline V times_power_of_two(V v, V exponent) {
  return {times_power_of_two(v.a, exponent.a), times_power_of_two(v.b, exponent.b)};
}

inline __m256 first_lanes(__m256 v, int n, __m256 rest) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i taken = _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane);
  return _mm256_blendv_ps(rest, v, _mm256_castsi256_ps(taken));
}
// The first n lanes of v, the others of rest; any n.
inline V first_lanes(V v, int n, V rest) {
  return {first_lanes(v.a, n, rest.a), first_lanes(v.b, n - 8, rest.b)};
}

inline __m256 load_eight(const uint16_t* p) {
  const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16));
}
inline V load(const uint16_t* p) { return {load_eight(p), load_eight(p + 8)}; }

// Low and high halves of sixteen 32-bit pairs of bfloat16.
inline __m256i pairs(const uint16_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline V low_halves(const uint16_t* p) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(pairs(p), 16)),
          _mm256_castsi256_ps(_mm256_slli_epi32(pairs(p + 16), 16))};
}
inline V high_halves(const uint16_t* p) {
  const __m256i high = _mm256_set1_epi32(int(0xffff0000u));
  return {_mm256_castsi256_ps(_mm256_and_si256(pairs(p), high)),
          _mm256_castsi256_ps(_mm256_and_si256(pairs(p + 16), high))};
}

struct Ints {
  __m256i a, b;
};

inline Ints zero_ints() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline Ints add(Ints x, Ints y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
inline V to_float(Ints v) { return {_mm256_cvtepi32_ps(v.a), _mm256_cvtepi32_ps(v.b)}; }
// Sixteen pairs of bytes as pairs of 16 bits.
inline Ints widened(const int8_t* p) {
  const __m128i* raw = reinterpret_cast<const __m128i*>(p);
  return {_mm256_cvtepi8_epi16(_mm_loadu_si128(raw)), _mm256_cvtepi8_epi16(_mm_loadu_si128(raw + 1))};
}
// Adds to each sum both products of its pair and the one given.
inline Ints add_products(Ints sums, Ints pairs, int pair) {
  const __m256i same = _mm256_set1_epi32(pair);
  return add(sums, {_mm256_madd_epi16(pairs.a, same), _mm256_madd_epi16(pairs.b, same)});
}
// By their bits, of which those of not a number are the greatest.
inline Ints magnitudes(V v) {
  const __m256i mask = _mm256_set1_epi32(0x7fffffff);
  return {_mm256_and_si256(_mm256_castps_si256(v.a), mask), _mm256_and_si256(_mm256_castps_si256(v.b), mask)};
}
inline Ints max(Ints x, Ints y) { return {_mm256_max_epi32(x.a, y.a), _mm256_max_epi32(x.b, y.b)}; }
inline int highest(Ints v) {
  const __m256i eight = _mm256_max_epi32(v.a, v.b);
  __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  four = _mm_max_epi32(four, _mm_unpackhi_epi64(four, four));
  return _mm_cvtsi128_si32(_mm_max_epi32(four, _mm_shuffle_epi32(four, 1)));
}
// To the nearest whole numbers.
inline void store(int16_t* p, V v) {
  const __m256i packed = _mm256_packs_epi32(_mm256_cvtps_epi32(v.a), _mm256_cvtps_epi32(v.b));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
}

inline __m256i rounded(__m256 v) {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  // Rounding must not carry a NaN over into a number.
  const __m256 nan = _mm256_cmp_ps(v, v, _CMP_UNORD_Q);
  const __m256i kept = _mm256_blendv_epi8(up, _mm256_set1_epi32(0x7fc00000), _mm256_castps_si256(nan));
  return _mm256_srli_epi32(kept, 16);
}
inline void store(uint16_t* p, V v) {
  const __m256i packed = _mm256_packus_epi32(rounded(v.a), rounded(v.b));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
}

}  // namespace
