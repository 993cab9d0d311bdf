// What part_attention.h multiplies, by vectors: up to eight queries by some runs of tokens.

namespace {

constexpr int kTileQueries = 8;

// Each sum is a chain of steps that wait for one another: few queries take more runs together.
template <int kQueries>
constexpr int kRunsTogether = kQueries > 4 ? 2 : 4;

inline V add_pairs(V sum, V pairs, const bf16* pair) {
  int bits;
  __builtin_memcpy(&bits, pair, sizeof bits);
  return _mm512_dpbf16_ps(sum, (__m512bh)pairs, (__m512bh)_mm512_set1_epi32(bits));
}

inline V load_pairs(const bf16* pairs) { return load(reinterpret_cast<const float*>(pairs)); }

template <int kQueries>
void score_part(const Model& model, const Queries<Bfloat16>& queries, const bf16* q, const QueryTile& tile,
                int start, float* scores) {
  constexpr int kRuns = kRunsTogether<kQueries>;
  const int head_dim = model.shape.head_dim;
  const int last_run = (tile.end - 1) / kVector;
  for (int run = start / kVector; run <= last_run; run += kRuns, scores += kRuns * kVector) {
    const bf16* keys[kRuns];
    for (int r = 0; r < kRuns; ++r) {
      keys[r] = keys_of_run<bf16>(model, queries.block_ids, queries.layer, queries.kv_head,
                                  run + r < last_run ? run + r : last_run);
      if (tile.first == 0) look_ahead(model, queries, run + r);
    }
    V sums[kQueries][kRuns];
    for (int j = 0; j < kQueries; ++j)
      for (int r = 0; r < kRuns; ++r) sums[j][r] = zero();
    for (int dim = 0; dim < head_dim; dim += 2) {
      V k[kRuns];
#pragma GCC unroll 4
      for (int r = 0; r < kRuns; ++r) k[r] = load_pairs(keys[r] + dim * kVector);
#pragma GCC unroll 8
      for (int j = 0; j < kQueries; ++j)
#pragma GCC unroll 4
        for (int r = 0; r < kRuns; ++r) sums[j][r] = add_pairs(sums[j][r], k[r], q + j * head_dim + dim);
    }
    for (int r = 0; r < kRuns && run + r <= last_run; ++r)
      for (int j = 0; j < kQueries; ++j) store(scores + j * kScoreStride + r * kVector, sums[j][r]);
  }
}

template <int kQueries, int kVectors>
void gather_part(const Model& model, const Queries<Bfloat16>& queries, const bf16* last_values, const float* scores,
                 const QueryTile& tile, int start, int dim, float* sums) {
  const int block_size = model.shape.block_size, head_dim = model.shape.head_dim;
  V to[kQueries][kVectors];
  for (int j = 0; j < kQueries; ++j)
    for (int n = 0; n < kVectors; ++n) to[j][n] = load(sums + j * head_dim + dim + n * kVector);
  const bf16* weights = reinterpret_cast<const bf16*>(scores);
  for (; start < tile.end; start += kVector, weights += kVector) {
    const bf16* values = model.values<bf16>(queries.layer, queries.block_ids[start / block_size], queries.kv_head) +
                         size_t(start % block_size) * head_dim;
    if (start + kVector > queries.n_context) values = last_values;
    values += 2 * dim;
    for (int i = 0; i < kVector; i += 2, values += 2 * head_dim) {
      V v[kVectors];
#pragma GCC unroll 4
      for (int n = 0; n < kVectors; ++n) v[n] = load_pairs(values + n * 2 * kVector);
#pragma GCC unroll 8
      for (int j = 0; j < kQueries; ++j)
#pragma GCC unroll 4
        for (int n = 0; n < kVectors; ++n)
          to[j][n] = add_pairs(to[j][n], v[n], weights + j * 2 * kScoreStride + i);
    }
  }
  for (int j = 0; j < kQueries; ++j)
    for (int n = 0; n < kVectors; ++n) store(sums + j * head_dim + dim + n * kVector, to[j][n]);
}

template <int kQueries>
void gather_part(const Model& model, const Queries<Bfloat16>& queries, const bf16* last_values, const float* scores,
                 const QueryTile& tile, int start, float* sums) {
  constexpr int kVectors = kQueries > 4 ? 2 : 4;
  int dim = 0;
  for (; dim + kVectors * kVector <= model.shape.head_dim; dim += kVectors * kVector)
    gather_part<kQueries, kVectors>(model, queries, last_values, scores, tile, start, dim, sums);
  for (; dim < model.shape.head_dim; dim += kVector)
    gather_part<kQueries, 1>(model, queries, last_values, scores, tile, start, dim, sums);
}

// Calls run with the number of queries as a constant.
template <int kQueries = kTileQueries, class Run>
void with_queries(int n_queries, const Run& run) {
  if constexpr (kQueries > 1)
    if (n_queries < kQueries) return with_queries<kQueries - 1>(n_queries, run);
  run(std::integral_constant<int, kQueries>());
}

// (tile.n, tokens from start on); those beyond a query's own context mean nothing.
inline void score_part(const Model& model, const Queries<Bfloat16>& queries, const bf16* q, const QueryTile& tile,
                       int start, float* scores) {
  with_queries(tile.n, [&](auto n) { score_part<n>(model, queries, q, tile, start, scores); });
}

// Adds values by weights to each query's answer.
inline void gather_part(const Model& model, const Queries<Bfloat16>& queries, const bf16* last_values,
                        const float* scores, const QueryTile& tile, int start, float* sums) {
  with_queries(tile.n, [&](auto n) { gather_part<n>(model, queries, last_values, scores, tile, start, sums); });
}

}  // namespace
