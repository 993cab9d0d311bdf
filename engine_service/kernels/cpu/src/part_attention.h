// Attention of bfloat16 where the processor multiplies its pairs, by tiles or vectors. The context is
// gone through in parts, with a running maximum (Milakov and Gimelshein, "Online normalizer calculation
// for softmax", 2018; Dao et al., "FlashAttention", 2022), so that many queries read it together, once.
// The parts begin at the same tokens for everybody, and what is beyond a query's own context adds zeros
// to it: its bits depend neither on its neighbours in the call nor on how that was cut.

namespace {

#ifdef __AVX512BF16__

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

// Some neighbours of the queries, as many as are multiplied together, and where their part of the context ends for the longest.
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

// Fetches keys of a run to come, and this one's values for the pass over them: as in attention.h,
// nobody else looks ahead.
inline void look_ahead(const Model& model, const Queries<Bfloat16>& queries, int run) {
  const int last_run = (queries.n_context - 1) / kVector;
  if (run > last_run) return;
  const int later = run + kRunsAhead < last_run ? run + kRunsAhead : last_run;
  const bf16* next = keys_of_run<bf16>(model, queries.block_ids, queries.layer, queries.kv_head, later);
  const bf16* values = keys_of_run<bf16>(model, queries.block_ids, queries.layer, queries.kv_head, run) +
                       size_t(model.shape.block_size) * model.shape.head_dim;
  for (int i = 0; i < kVector * model.shape.head_dim; i += 32) {
    prefetch<_MM_HINT_T0>(next + i);
    prefetch<_MM_HINT_T1>(values + i);
  }
}

#endif

}  // namespace

#ifdef __AMX_BF16__
#include "part_tiles.h"
#elif defined(__AVX512BF16__)
#include "part_vectors.h"
#endif

namespace {

#ifdef __AVX512BF16__
// e^x for weights that become bfloat16: to 4e-5, of x not above 0. A NaN stays a NaN.
inline V rough_exponential(V x) {
  x = max(all(-87.0f), x);
  const V n = nearest(mul(x, all(1.44269504f)));
  const V rest = fma(n, all(-0.693147181f), x);
  V series = all(1.0f / 24);
  for (float coefficient : {1.0f / 6, 0.5f, 1.0f, 1.0f}) series = fma(series, rest, all(coefficient));
  return times_power_of_two(series, n);
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
  alignas(64) float scores[kTileQueries * kScoreStride];
  float* sums = progress.sums + size_t(tile.first) * head_dim;
  score_part(model, queries, progress.q + size_t(tile.first) * head_dim, tile, start, scores);
  for (int j = 0; j < tile.n; ++j) {
    const int query = tile.first + j, own_end = std::min(queries.context_len[query], tile.end);
    soften_part(scores + j * kScoreStride, own_end - start, tile.end - start, sums + size_t(j) * head_dim, head_dim,
                progress.best + query, progress.totals + query);
  }
  gather_part(model, queries, progress.last_values, scores, tile, start, sums);
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
    for (int first = 0; first < n_queries; first += kTileQueries) {
      const int n = std::min(kTileQueries, n_queries - first);
      // Queries come by their tokens: the last sees most.
      const int end = std::min(start + kPart, queries.context_len[first + n - 1]);
      if (end > start) attend_part(model, queries, {first, n, end}, start, progress);
    }
  for (int j = 0; j < n_queries; ++j)
    for (int dim = 0; dim < head_dim; dim += kVector)
      store(queries.out[j] + dim,
            mul(load(progress.sums + size_t(j) * head_dim + dim), all(1.0f / progress.totals[j])));
}
#endif

}  // namespace
