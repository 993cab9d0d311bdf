// Attention of bfloat16 by matrix tiles (AMX): sixteen queries by runs of sixteen tokens. The context is
// gone through in parts, with a running maximum (Milakov and Gimelshein, "Online normalizer calculation
// for softmax", 2018; Dao et al., "FlashAttention", 2022), so that many queries read it together, once.
// The parts begin at the same tokens for everybody, and what is beyond a query's own context adds zeros
// to it: its bits depend neither on its neighbours in the call nor on how that was cut.

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
  AttentionShapes of[16] = {
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

constexpr int kPart = 512;               // tokens
constexpr int kScoreStride = kPart + 16;  // so that rows do not want the same places of a cache
constexpr int kRunsAhead = 2;            // to fetch: a run takes less time than memory

// Up to sixteen neighbours of the queries, and where their part of the context ends for the longest.
struct QueryTile {
  int first, n, end;
};

// What becomes of the queries of one call, part by part.
struct Progress {
  const bf16* q;      // (n_queries, head_dim)
  float* sums;        // of values by weights, (n_queries, head_dim)
  float best[kMaxBfloat16Queries], totals[kMaxBfloat16Queries];
  const bf16* last_values;  // of the run that the context ends in
};

// e^x for weights that become bfloat16: to 4e-5, of x not above 0. A NaN stays a NaN.
inline V rough_exponential(V x) {
  x = max(all(-87.0f), x);
  const V n = nearest(mul(x, all(1.44269504f)));
  const V rest = fma(n, all(-0.693147181f), x);
  V series = all(1.0f / 24);
  for (float coefficient : {1.0f / 6, 0.5f, 1.0f, 1.0f}) series = fma(series, rest, all(coefficient));
  return times_power_of_two(series, n);
}

// (tile.n, tokens from start on); those beyond a query's own context mean nothing.
inline void score_part(const Model& model, const Queries<Bfloat16>& queries, const bf16* q, const QueryTile& tile,
                       int start, float* scores) {
  const int head_dim = model.shape.head_dim;
  const long q_stride = long(head_dim) * sizeof(bf16);
  const int last_run = (queries.n_context - 1) / kVector;
  for (int run = start / kVector; run * kVector < tile.end; ++run, scores += kVector) {
    const bf16* keys = keys_of_run<bf16>(model, queries.block_ids, queries.layer, queries.kv_head, run);
    if (tile.first == 0) {  // As in attention.h: nobody else looks ahead.
      const int later = run + kRunsAhead < last_run ? run + kRunsAhead : last_run;
      const bf16* next = keys_of_run<bf16>(model, queries.block_ids, queries.layer, queries.kv_head, later);
      const bf16* values = keys + size_t(model.shape.block_size) * head_dim;
      for (int i = 0; i < kVector * head_dim; i += 32) {
        prefetch<_MM_HINT_T0>(next + i);
        prefetch<_MM_HINT_T1>(values + i);
      }
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
    _tile_stored(0, scores, kScoreStride * sizeof(float));
  }
}

// Turns a query's scores of n_own tokens into weights, bfloat16 in the same place, with zeros up to n;
// what it has so far is scaled to the new maximum.
inline void soften_part(float* scores, int n_own, int n, float* sums, int head_dim, float* best, float* total) {
  bf16* weights = reinterpret_cast<bf16*>(scores);
  int i = 0;
  if (n_own > 0) {
    V part_best = all(-INFINITY);
    for (; i + kVector <= n_own; i += kVector) part_best = max(part_best, load(scores + i));
    if (i < n_own) part_best = max(part_best, first_lanes(load(scores + i), n_own - i, all(-INFINITY)));
    const float before = *best, now = std::fmax(before, highest(part_best));
    V part_total = zero();
    for (i = 0; i + kVector <= n_own; i += kVector) {
      const V weight = rough_exponential(sub(load(scores + i), all(now)));
      part_total = add(part_total, weight);
      store(weights + i, weight);
    }
    if (i < n_own) {
      const V weight = first_lanes(rough_exponential(sub(load(scores + i), all(now))), n_own - i, zero());
      part_total = add(part_total, weight);
      store(weights + i, weight);
      i += kVector;
    }
    if (now > before) {
      const V scale = rough_exponential(all(before - now));
      for (int dim = 0; dim < head_dim; dim += kVector) store(sums + dim, mul(load(sums + dim), scale));
      *total *= _mm512_cvtss_f32(scale);
    }
    *best = now;
    *total += sum(part_total);
  }
  for (; i < n; i += kVector) store(weights + i, zero());
}

// Adds kTiles times sixteen numbers of each query's answer, from dim on.
template <int kTiles>
void gather_part(const Model& model, const Queries<Bfloat16>& queries, const bf16* last_values, const float* scores,
                 const QueryTile& tile, int start, int dim, float* sums) {
  const int block_size = model.shape.block_size, head_dim = model.shape.head_dim;
  const long sum_stride = long(head_dim) * sizeof(float), value_stride = long(head_dim) * 2 * sizeof(bf16);
  const bf16* weights = reinterpret_cast<const bf16*>(scores);
  sums += dim;
  _tile_loadd(0, sums, sum_stride);
  if constexpr (kTiles == 4) {
    _tile_loadd(1, sums + kVector, sum_stride);
    _tile_loadd(2, sums + 2 * kVector, sum_stride);
    _tile_loadd(3, sums + 3 * kVector, sum_stride);
  }
  for (; start < tile.end; start += kVector, weights += kVector) {
    const bf16* values = model.values<bf16>(queries.layer, queries.block_ids[start / block_size], queries.kv_head) +
                         size_t(start % block_size) * head_dim;
    if (start + kVector > queries.n_context) values = last_values;
    values += 2 * dim;
    _tile_loadd(5, weights, kScoreStride * sizeof(float));
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
  _tile_stored(0, sums, sum_stride);
  if constexpr (kTiles == 4) {
    _tile_stored(1, sums + kVector, sum_stride);
    _tile_stored(2, sums + 2 * kVector, sum_stride);
    _tile_stored(3, sums + 3 * kVector, sum_stride);
  }
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

inline void attend_part(const Model& model, const Queries<Bfloat16>& queries, const QueryTile& tile, int start,
                        Progress& progress) {
  const int head_dim = model.shape.head_dim;
  alignas(64) float scores[16 * kScoreStride];
  float* sums = progress.sums + size_t(tile.first) * head_dim;
  _tile_loadconfig(&kAttentionShapes.of[tile.n - 1]);
  score_part(model, queries, progress.q + size_t(tile.first) * head_dim, tile, start, scores);
  for (int j = 0; j < tile.n; ++j) {
    const int query = tile.first + j, own_end = std::min(queries.context_len[query], tile.end);
    soften_part(scores + j * kScoreStride, own_end - start, tile.end - start, sums + size_t(j) * head_dim, head_dim,
                progress.best + query, progress.totals + query);
  }
  int dim = 0;
  for (; dim + 4 * kVector <= head_dim; dim += 4 * kVector)
    gather_part<4>(model, queries, progress.last_values, scores, tile, start, dim, sums);
  for (; dim < head_dim; dim += kVector)
    gather_part<1>(model, queries, progress.last_values, scores, tile, start, dim, sums);
}

inline void attend_queries(int n_queries, const Model& model, const Queries<Bfloat16>& queries) {
  const int head_dim = model.shape.head_dim;
  const size_t n_numbers = size_t(n_queries) * head_dim;
  alignas(64) bf16 last_values[kVector * cpu::kMaxHeadDim];
  Progress progress;
  progress.sums = queries.scratch;
  bf16* q = reinterpret_cast<bf16*>(queries.scratch + n_numbers);
  progress.q = q;
  progress.last_values = last_values;
  copy_last_values(model, queries, last_values);
  std::memset(progress.sums, 0, n_numbers * sizeof(float));
  for (int j = 0; j < n_queries; ++j) {
    std::memcpy(q + size_t(j) * head_dim, queries.q[j], head_dim * sizeof(bf16));
    progress.best[j] = -INFINITY;
    progress.totals[j] = 0.0f;
  }
  for (int start = 0; start < queries.n_context; start += kPart)
    for (int first = 0; first < n_queries; first += 16) {
      const int n = std::min(16, n_queries - first);
      // Queries come by their tokens: the last sees most.
      const int end = std::min(start + kPart, queries.context_len[first + n - 1]);
      if (end > start) attend_part(model, queries, {first, n, end}, start, progress);
    }
  _tile_release();
  for (int j = 0; j < n_queries; ++j)
    for (int dim = 0; dim < head_dim; dim += kVector)
      store(queries.out[j] + dim,
            mul(load(progress.sums + size_t(j) * head_dim + dim), all(1.0f / progress.totals[j])));
}
#endif

}  // namespace
