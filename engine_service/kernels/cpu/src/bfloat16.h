#pragma once

#include <cstdint>
#include <cstring>

namespace {

inline float to_float(float x) { return x; }
inline float to_float(uint16_t bfloat16) {
  const uint32_t bits = uint32_t(bfloat16) << 16;
  float number;
  std::memcpy(&number, &bits, sizeof number);
  return number;
}

}  // namespace
