// Attention of bfloat16 by matrix tiles (AMX): up to sixteen queries by a run of sixteen tokens. As in
// attention.h scores are kept, and a query's bits are its own: each run is one step of its chains.

namespace {

#ifdef __AMX_BF16__

// Tiles 0 to 3 are sums; 4 and 5 operands of the queries, of 32 and 16 numbers; 6 and 7 the keys and
// values that go with them.
struct AttentionShapes : TileShapes {
  constexpr explicit AttentionShapes(int n_queries) : TileShapes(16) {
    const int n_rows_of[] = {n_queries, n_queries, n_queries, n_queries, n_queries, n_queries, 16, 8};
    for (int tile = 0; tile < 8; ++tile) n_rows[tile] = uint8_t(n_rows_of[tile]), row_bytes[tile] = 64;
    row_bytes[5] = 32;
  }
};

struct AllAttentionShapes {
  AttentionShapes of[kMaxBfloat16Queries] = {
      AttentionShapes(1),  AttentionShapes(2),  AttentionShapes(3),  AttentionShapes(4),
      AttentionShapes(5),  AttentionShapes(6),  AttentionShapes(7),  AttentionShapes(8),
      AttentionShapes(9),  AttentionShapes(10), AttentionShapes(11), AttentionShapes(12),
      AttentionShapes(13), AttentionShapes(14), AttentionShapes(15), AttentionShapes(16)};
};
constexpr AllAttentionShapes kAttentionShapes;

// One token's place among the values of its block, (tokens / 2, head_dim, 2). Its neighbour's are not
// touched: another thread may be writing them.
inline void store_value(const float* value, int head_dim, int offset, bf16* values) {
  bf16* to = values + size_t(offset / 2) * 2 * head_dim;
  const __mmask32 mask = offset % 2 ? 0xaaaaaaaa : 0x55555555;
  for (int i = 0; i < head_dim; i += kVector) {
    const __m256i narrow = (__m256i)_mm512_cvtneps_pbh(load(value + i));
    const __m512i lanes = _mm512_cvtepu16_epi32(narrow);
    _mm512_mask_storeu_epi16(to + 2 * i, mask, offset % 2 ? _mm512_slli_epi32(lanes, 16) : lanes);
  }
}

constexpr int kRunsAhead = 2;  // to fetch: a run takes less time than memory

// (n_queries, n_context rounded up to runs); those beyond a query's own context mean nothing.
inline void score_tiles(const Model& model, const Queries<Bfloat16>& queries, const bf16* q) {
  const int head_dim = model.shape.head_dim;
  const long q_stride = long(head_dim) * 2, score_stride = long(model.score_stride) * 4;
  const int n_runs = (queries.n_context + kVector - 1) / kVector;
  for (int run = 0; run < n_runs; ++run) {
    const bf16* keys = keys_of_run<bf16>(model, queries.block_ids, queries.layer, queries.kv_head, run);
    // As in attention.h: nobody else looks ahead.
    const int later = run + kRunsAhead < n_runs ? run + kRunsAhead : n_runs - 1;
    const bf16* next = keys_of_run<bf16>(model, queries.block_ids, queries.layer, queries.kv_head, later);
    const bf16* values = keys + size_t(model.shape.block_size) * head_dim;
    for (int i = 0; i < kVector * head_dim; i += 32) {
      prefetch<_MM_HINT_T0>(next + i);
      prefetch<_MM_HINT_T1>(values + i);
    }
    _tile_zero(0);
    int dim = 0;
    for (; dim + 32 <= head_dim; dim += 32) {
      _tile_loadd(4, q + dim, q_stride);
      _tile_loadd(6, keys + dim * kVector, 64);
      _tile_dpbf16ps(0, 4, 6);
    }
    if (dim < head_dim) {
      _tile_loadd(5, q + dim, q_stride);
      _tile_loadd(7, keys + dim * kVector, 64);
      _tile_dpbf16ps(0, 5, 7);
    }
    _tile_stored(0, queries.scores + run * kVector, score_stride);
  }
}

// Turns the scores of a query into weights, bfloat16 in the same place, with zeros up to n_context;
// returns what their weighted sum is to be divided by.
inline float soften_tiles(float* scores, int context_len, int n_context) {
  V best = all(-INFINITY);
  for (int i = 0; i < context_len; i += kVector)
    best = max(best, first_lanes(load(scores + i), context_len - i, all(-INFINITY)));
  const V highest_score = all(highest(best));
  bf16* to = reinterpret_cast<bf16*>(scores);
  V total = zero();
  int i = 0;
  for (; i < context_len; i += kVector) {
    const V weights = first_lanes(exponential(sub(load(scores + i), highest_score)), context_len - i, zero());
    total = add(total, weights);
    store(to + i, weights);
  }
  for (; i < n_context; i += kVector) store(to + i, zero());
  return sum(total);
}

// kTiles times sixteen numbers of each query's answer, from dim on.
template <int kTiles>
void gather_tiles(const Model& model, const Queries<Bfloat16>& queries, const bf16* last_values,
                  const float* totals, int n_queries, int dim) {
  const int block_size = model.shape.block_size, head_dim = model.shape.head_dim;
  const long weight_stride = long(model.score_stride) * 4, value_stride = long(head_dim) * 4;
  _tile_zero(0);
  if constexpr (kTiles == 4) {
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int start = 0; start < queries.n_context; start += kVector) {
    const bf16* values = model.values<bf16>(queries.layer, queries.block_ids[start / block_size], queries.kv_head) +
                         size_t(start % block_size) * head_dim;
    if (start + kVector > queries.n_context) values = last_values;
    values += 2 * dim;
    _tile_loadd(5, reinterpret_cast<const bf16*>(queries.scores) + start, weight_stride);
    _tile_loadd(7, values, value_stride);
    _tile_dpbf16ps(0, 5, 7);
    if constexpr (kTiles == 4) {
      _tile_loadd(7, values + 2 * kVector, value_stride);
      _tile_dpbf16ps(1, 5, 7);
      _tile_loadd(7, values + 4 * kVector, value_stride);
      _tile_dpbf16ps(2, 5, 7);
      _tile_loadd(7, values + 6 * kVector, value_stride);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  float sums[kMaxBfloat16Queries][kTiles * kVector];
  _tile_stored(0, sums[0], sizeof sums[0]);
  if constexpr (kTiles == 4) {
    _tile_stored(1, sums[0] + kVector, sizeof sums[0]);
    _tile_stored(2, sums[0] + 2 * kVector, sizeof sums[0]);
    _tile_stored(3, sums[0] + 3 * kVector, sizeof sums[0]);
  }
  for (int j = 0; j < n_queries; ++j)
    for (int i = 0; i < kTiles * kVector; i += kVector)
      store(queries.out[j] + dim + i, mul(load(sums[j] + i), all(1.0f / totals[j])));
}

// The values of the run that n_context ends in, without what the block holds of earlier sequences.
inline void copy_last_values(const Model& model, const Queries<Bfloat16>& queries, bf16* to) {
  const int block_size = model.shape.block_size, head_dim = model.shape.head_dim;
  const int start = queries.n_context / kVector * kVector, n_tokens = queries.n_context - start;
  if (n_tokens == 0) return;
  const bf16* values = model.values<bf16>(queries.layer, queries.block_ids[start / block_size], queries.kv_head) +
                       size_t(start % block_size) * head_dim;
  const size_t n_whole = size_t(n_tokens / 2) * 2 * head_dim;
  std::memset(to, 0, size_t(kVector) * head_dim * sizeof(bf16));
  std::memcpy(to, values, n_whole * sizeof(bf16));
  if (n_tokens % 2)
    for (int i = 0; i < head_dim; ++i) to[n_whole + 2 * i] = values[n_whole + 2 * i];
}

inline void attend_queries(int n_queries, const Model& model, const Queries<Bfloat16>& queries) {
  const int head_dim = model.shape.head_dim;
  alignas(64) bf16 q[kMaxBfloat16Queries * cpu::kMaxHeadDim], last_values[kVector * cpu::kMaxHeadDim];
  for (int j = 0; j < n_queries; ++j) std::memcpy(q + j * head_dim, queries.q[j], head_dim * sizeof(bf16));
  copy_last_values(model, queries, last_values);
  _tile_loadconfig(&kAttentionShapes.of[n_queries - 1]);
  score_tiles(model, queries, q);
  float totals[kMaxBfloat16Queries];
  for (int j = 0; j < n_queries; ++j)
    totals[j] = soften_tiles(queries.scores + size_t(j) * model.score_stride, queries.context_len[j],
                             queries.n_context);
  int dim = 0;
  for (; dim + 4 * kVector <= head_dim; dim += 4 * kVector)
    gather_tiles<4>(model, queries, last_values, totals, n_queries, dim);
  for (; dim < head_dim; dim += kVector) gather_tiles<1>(model, queries, last_values, totals, n_queries, dim);
  _tile_release();
}
#endif

}  // namespace
