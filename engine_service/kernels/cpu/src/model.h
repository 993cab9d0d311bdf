// What a loaded model is in memory, the same for every instruction set. The structs without
// methods are read by Python through ctypes: keep them as kernels/cpu/library.py has them.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "memory.h"
#include "team.h"

namespace cpu {

using bf16 = uint16_t;

constexpr int kVector = 16;          // floats of one vector, and tokens of one run of keys
constexpr int kPanel = 2 * kVector;  // output columns that lie together in packed weights
constexpr int kGroup = 32;           // inputs of a column that share a scale in int8 weights
constexpr int kMaxHeadDim = 512;

enum Dtype : int32_t { kFloat32 = 0, kBfloat16 = 1 };
enum Quantization : int32_t { kNone = 0, kInt8 = 1 };

struct Shape {
  int32_t dtype;
  int32_t quantization;
  int32_t hidden;
  int32_t inner;
  int32_t n_layers;
  int32_t n_heads;
  int32_t n_kv_heads;
  int32_t head_dim;
  int32_t vocab;
  int32_t max_model_len;
  int32_t block_size;
  int32_t n_blocks;
  int32_t max_tokens;
  int32_t n_threads;
  float eps;
};

// Norms and biases are float32, each null where the family has none; products are of the model's
// dtype, (n_out, n_in).
struct LayerWeights {
  const float* attention_norm;
  const void* qkv;
  const float* qkv_bias;
  const float* q_norm;
  const float* k_norm;
  const void* output;
  const float* feed_forward_norm;
  const void* gate_up;
  const void* down;
};

// Tokens of all rows lie one after the other; those of a row are the last of its context.
struct StepRows {
  int32_t n_tokens;
  int32_t n_rows;
  int32_t n_sampled;
  const int32_t* token_ids;
  const int32_t* n_new;
  const int32_t* context_len;
  const int32_t* table_start;  // where a row's block table begins in block_ids
  const int32_t* block_ids;
  const int32_t* sampled;  // which tokens' logits are wanted
  float* logits;           // (n_sampled, vocab rounded up to panels)
};

inline int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

// Panel after panel; in a panel, input after input (pairs of inputs for bfloat16), its columns side
// by side: whatever the tile, weights are read in a straight line. Missing columns and inputs are 0.
// Weights of int8 come by groups of kGroup inputs: the columns' scales, then pairs of inputs.
struct Linear {
  void* weights = nullptr;
  int n_in = 0;  // rounded up to groups
  int n_panels = 0;

  // Two matrices of equal size may share panels, a vector of columns of the first and one of the
  // second: then both halves of a gated pair come out of one tile.
  bool is_gated_pair = false;
};

constexpr size_t kGroupBytes = kPanel * (sizeof(float) + kGroup);

struct Layer {
  Linear qkv, output, gate_up, down;
  std::vector<float> attention_norm, feed_forward_norm;  // rounded up to panels
  std::vector<float> qkv_bias, q_norm, k_norm;           // empty for families without them
};

// The work of one attention call: n_tokens neighbours of a row, n_heads heads of one K/V head.
struct AttentionItem {
  int row, first_token, n_tokens, kv_head, first_head, n_heads;
};

struct Model;
using StepFunction = void (*)(Model& model, const StepRows& rows, int thread);

struct InstructionSet {
  const char* name;
  int max_queries, max_bfloat16_queries;  // that one attention call takes together
  StepFunction step;
};

struct Model {
  Model(const Shape& shape, const InstructionSet& set);

  // Sees to row_of_token, position_of_token and attention_items; false where rows do not fit.
  bool plan(const StepRows& rows);

  // Over all layers; false, and nothing done, for a block that there is not.
  bool clear(const int32_t* blocks, int n_blocks);
  bool copy(const int32_t* from, const int32_t* to, int n_blocks);

  Shape shape;
  const InstructionSet& instruction_set;
  int hidden_stride, query_stride, qkv_stride, inner_stride;  // rounded up to panels and groups
  int quantized_stride;                                       // the greatest that a product reads
  int score_stride, attention_scratch_stride;
  Pages weights;  // all that is packed: small matrices would get no large pages of their own
  std::vector<Layer> layers;
  Linear head;
  Pages embedding;
  std::vector<float> final_norm;
  Pages rotary;  // (max_model_len, head_dim): cosines of half a head, then sines
  Pages kv;

  // Between phases. "input" is what a product reads: bfloat16 or float32, as the kernels like it.
  Pages residual, normed_input, qkv, query_input, attended_input, activated_input, attention_scratch;
  Pages quantized_input, input_scales;  // for weights of int8: int16, and a float for each group
  std::vector<int32_t> row_of_token, position_of_token;
  std::vector<AttentionItem> attention_items;

  std::unique_ptr<Team> team;  // last, so that the threads end first

  bool is_int8() const { return shape.quantization == kInt8; }
  size_t element_bytes() const { return shape.dtype == kBfloat16 ? 2 : 4; }
  size_t kv_head_elements() const { return size_t(2) * shape.block_size * shape.head_dim; }
  // Keys of one block and K/V head, by runs of 16 tokens: (head_dim / pair, 16, pair). Its values
  // follow: (block_size, head_dim), or (block_size / 2, head_dim, 2) where the processor multiplies
  // pairs of bfloat16.
  template <class T>
  T* keys(int layer, int block, int kv_head) const {
    const size_t place = (size_t(layer) * shape.n_blocks + block) * shape.n_kv_heads + kv_head;
    return kv.as<T>() + place * kv_head_elements();
  }
  template <class T>
  T* values(int layer, int block, int kv_head) const {
    return keys<T>(layer, block, kv_head) + size_t(shape.block_size) * shape.head_dim;
  }

 private:
  void lay_out_weights();
  bool has_blocks(const int32_t* blocks, int n_blocks) const;
  void plan_attention(const StepRows& rows);
};

extern const InstructionSet kAmx, kAvx512Bf16, kAvx512, kAvx2;

}  // namespace cpu
