#include "model.h"
#include "vector_avx2.h"

namespace {
constexpr int kTileRows = 3;  // by two vectors of outputs; other registers hold operands
constexpr int kBfloat16Rows = 2;  // whose weights need registers to become floats
constexpr int kMinChains = 1;
constexpr int kMaxQueries = 3;
constexpr int kMaxBfloat16Queries = kMaxQueries;
}  // namespace

#include "step.h"

namespace cpu {
const InstructionSet kAvx2 = {"AVX2", kMaxQueries, kMaxBfloat16Queries, run_step};
}  // namespace cpu
