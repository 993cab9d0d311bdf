#include "model.h"
#include "vector_avx512.h"

namespace {
constexpr int kTileRows = 12;  // by two vectors of outputs; other registers hold operands
constexpr int kBfloat16Rows = kTileRows;
constexpr int kMinChains = 8;  // of the several cycles that a step of whole numbers takes
constexpr int kMaxQueries = 8;
constexpr int kMaxBfloat16Queries = 128;
}  // namespace

#include "step.h"

namespace cpu {
const InstructionSet kAvx512Bf16 = {"AVX-512-BF16", kMaxQueries, kMaxBfloat16Queries, run_step};
}  // namespace cpu
