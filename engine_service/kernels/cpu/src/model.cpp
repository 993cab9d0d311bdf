#include "model.h"

#include <algorithm>
#include <cstring>

namespace cpu {
namespace {

Pages scratch(const Shape& shape, int stride, int n_rows = 0) {
  return Pages(size_t(n_rows ? n_rows : shape.max_tokens) * stride * sizeof(float));
}

}  // namespace

Model::Model(const Shape& given, const InstructionSet& set) : shape(given), instruction_set(set) {
  hidden_stride = round_up(shape.hidden, kGroup);
  query_stride = round_up(shape.n_heads * shape.head_dim, kGroup);
  qkv_stride = round_up((shape.n_heads + 2 * shape.n_kv_heads) * shape.head_dim, kPanel);
  inner_stride = round_up(shape.inner, kGroup);
  quantized_stride = std::max({hidden_stride, query_stride, inner_stride});
  // A line of cache more than a context, which is often a power of two: rows that far apart would all
  // want the same few places of a cache.
  score_stride = round_up(shape.max_model_len, kVector) + kVector;
  layers.resize(shape.n_layers);
  lay_out_weights();
  rotary = scratch(shape, shape.head_dim, shape.max_model_len);
  const size_t kv_elements = size_t(shape.n_layers) * shape.n_blocks * shape.n_kv_heads * kv_head_elements();
  kv = Pages(kv_elements * element_bytes());
  kv.fill(shape.n_threads);
  residual = scratch(shape, hidden_stride);
  normed_input = scratch(shape, hidden_stride);
  qkv = scratch(shape, qkv_stride);
  query_input = scratch(shape, query_stride);
  attended_input = scratch(shape, query_stride);
  activated_input = scratch(shape, inner_stride);
  if (is_int8()) {
    quantized_input = Pages(size_t(shape.max_tokens) * quantized_stride * sizeof(int16_t));
    input_scales = scratch(shape, quantized_stride / kGroup);
  }
  // Scores; or, of bfloat16 by tiles, queries and their sums.
  attention_scratch_stride =
      std::max(set.max_queries * score_stride, round_up(set.max_bfloat16_queries * shape.head_dim * 3 / 2, kVector));
  attention_scratch = scratch(shape, attention_scratch_stride, shape.n_threads);
  row_of_token.resize(shape.max_tokens);
  position_of_token.resize(shape.max_tokens);
  team = std::make_unique<Team>(shape.n_threads);
}

void Model::lay_out_weights() {
  const int query = shape.n_heads * shape.head_dim;
  const int qkv_columns = query + 2 * shape.n_kv_heads * shape.head_dim;
  const int step = is_int8() ? kGroup : sizeof(float) / element_bytes();
  const size_t step_bytes = is_int8() ? kGroupBytes : kPanel * sizeof(float);
  std::vector<std::pair<Linear*, size_t>> places;
  size_t n_bytes = 0;
  const auto place = [&](Linear& linear, int n_columns, int n_in) {
    linear.n_in = round_up(n_in, kGroup);
    linear.n_panels = round_up(n_columns, kPanel) / kPanel;
    places.emplace_back(&linear, n_bytes);
    n_bytes += size_t(linear.n_panels) * (linear.n_in / step) * step_bytes;
  };
  for (Layer& layer : layers) {
    place(layer.qkv, qkv_columns, shape.hidden);
    place(layer.output, shape.hidden, query);
    layer.gate_up.is_gated_pair = true;
    place(layer.gate_up, 2 * round_up(shape.inner, kVector), shape.hidden);
    place(layer.down, shape.hidden, shape.inner);
  }
  place(head, shape.vocab, shape.hidden);
  weights = Pages(n_bytes);
  for (const auto& [linear, offset] : places) linear->weights = weights.as<char>() + offset;
}

bool Model::plan(const StepRows& rows) {
  if (rows.n_tokens < 1 || rows.n_tokens > shape.max_tokens || rows.n_sampled > rows.n_tokens) return false;
  int token = 0;
  for (int row = 0; row < rows.n_rows; ++row) {
    const int n_new = rows.n_new[row], context_len = rows.context_len[row];
    if (n_new < 1 || context_len < n_new || context_len > shape.max_model_len) return false;
    if (n_new > rows.n_tokens - token) return false;
    for (int start = 0; start < context_len; start += shape.block_size) {
      const int block = rows.block_ids[rows.table_start[row] + start / shape.block_size];
      if (block < 0 || block >= shape.n_blocks) return false;
    }
    for (int i = 0; i < n_new; ++i, ++token) {
      if (rows.token_ids[token] < 0 || rows.token_ids[token] >= shape.vocab) return false;
      row_of_token[token] = row;
      position_of_token[token] = context_len - n_new + i;
    }
  }
  for (int i = 0; i < rows.n_sampled; ++i)
    if (rows.sampled[i] < 0 || rows.sampled[i] >= rows.n_tokens) return false;
  if (token != rows.n_tokens) return false;
  plan_attention(rows);
  return true;
}

bool Model::clear(const int32_t* blocks, int n_blocks) {
  if (!has_blocks(blocks, n_blocks)) return false;
  const size_t block_bytes = shape.n_kv_heads * kv_head_elements() * element_bytes();
  for (int layer = 0; layer < shape.n_layers; ++layer)
    for (int i = 0; i < n_blocks; ++i)
      std::memset(kv.as<char>() + block_bytes * (size_t(layer) * shape.n_blocks + blocks[i]), 0, block_bytes);
  return true;
}

bool Model::copy(const int32_t* from, const int32_t* to, int n_blocks) {
  if (!has_blocks(from, n_blocks) || !has_blocks(to, n_blocks)) return false;
  const size_t block_bytes = shape.n_kv_heads * kv_head_elements() * element_bytes();
  for (int layer = 0; layer < shape.n_layers; ++layer) {
    char* const blocks = kv.as<char>() + block_bytes * layer * shape.n_blocks;
    for (int i = 0; i < n_blocks; ++i)
      std::memmove(blocks + block_bytes * to[i], blocks + block_bytes * from[i], block_bytes);
  }
  return true;
}

bool Model::has_blocks(const int32_t* blocks, int n_blocks) const {
  return std::all_of(blocks, blocks + n_blocks,
                     [&](int32_t block) { return block >= 0 && block < shape.n_blocks; });
}

void Model::plan_attention(const StepRows& rows) {
  const int group = shape.n_heads / shape.n_kv_heads;
  const int max_queries =
      shape.dtype == kBfloat16 ? instruction_set.max_bfloat16_queries : instruction_set.max_queries;
  const int n_heads = group < max_queries ? group : max_queries;
  const int n_together = max_queries / n_heads;
  constexpr int kLeastTokens = 8;  // of one call, where it is cut for the threads to end together
  attention_items.clear();
  const int n_items_of_part = shape.n_kv_heads * ((group + n_heads - 1) / n_heads);
  int end = 0;
  for (int row = 0; row < rows.n_rows; ++row) {
    const int start = end, n_new = rows.n_new[row];
    end += n_new;
    int n_parts = (n_new + n_together - 1) / n_together;
    while (n_parts * n_items_of_part < 2 * shape.n_threads && n_new > kLeastTokens * n_parts) ++n_parts;
    // Token by token, as the threads' shares of all other phases go.
    for (int part = 0; part < n_parts; ++part) {
      const int token = start + int(int64_t(n_new) * part / n_parts);
      const int n_tokens = start + int(int64_t(n_new) * (part + 1) / n_parts) - token;
      for (int kv_head = 0; kv_head < shape.n_kv_heads; ++kv_head)
        for (int head = 0; head < group; head += n_heads)
          attention_items.push_back(
              {row, token, n_tokens, kv_head, kv_head * group + head, std::min(group - head, n_heads)});
    }
  }
}

}  // namespace cpu
