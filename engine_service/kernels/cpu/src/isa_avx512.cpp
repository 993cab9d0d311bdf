#include "model.h"
#include "vector_avx512.h"

namespace {
constexpr int kTileRows = 12;  // by two vectors of outputs; other registers hold operands
constexpr int kBfloat16Rows = kTileRows;
constexpr int kMinChains = 1;
constexpr int kMaxQueries = 8;
}  // namespace

#include "step.h"

namespace cpu {
const InstructionSet kAvx512 = {"AVX-512", kMaxQueries, run_step};
}  // namespace cpu
