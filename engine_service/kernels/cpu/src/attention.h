// Attention of some queries over one block table. Scores are kept, so that a softmax knows its true
// maximum: a query's bits depend neither on its neighbours in the call nor on how it was cut.

namespace {

using cpu::AttentionItem;
using cpu::Model;

constexpr int kMostQueries = kMaxQueries > kMaxBfloat16Queries ? kMaxQueries : kMaxBfloat16Queries;

template <class Type>
struct Queries {
  const typename Type::Input* q[kMostQueries];  // rotated and scaled
  typename Type::Input* out[kMostQueries];
  int context_len[kMostQueries];
  int n_context;  // the greatest of these
  const int32_t* block_ids;
  int layer, kv_head;
  float* scratch;  // this thread's own: scores of (kMaxQueries, score_stride), or what part_attention.h needs
};

template <class Weight>
const Weight* keys_of_run(const Model& model, const int32_t* block_ids, int layer, int kv_head, int run) {
  const int runs_per_block = model.shape.block_size / kVector;
  return model.keys<Weight>(layer, block_ids[run / runs_per_block], kv_head) +
         size_t(run % runs_per_block) * kVector * model.shape.head_dim;
}

template <_mm_hint kHint>
inline void prefetch(const void* p) {
  _mm_prefetch(static_cast<const char*>(p), kHint);
}

template <class Type, int kQueries>
void score(const Model& model, const Queries<Type>& queries, float* highest_score) {
  const int n_steps = model.shape.head_dim / Type::kPair;
  const int n_runs = (queries.n_context + kVector - 1) / kVector;
  V best[kQueries];
  for (int j = 0; j < kQueries; ++j) best[j] = all(-INFINITY);
  for (int run = 0; run < n_runs; ++run) {
    const auto* keys = keys_of_run<typename Type::Weight>(model, queries.block_ids, queries.layer,
                                                          queries.kv_head, run);
    const auto* values = keys + size_t(model.shape.block_size) * model.shape.head_dim;
    // Blocks lie anywhere in memory, where the processor does not look ahead by itself: fetch the
    // next keys, and these tokens' values for the pass over them.
    const auto* next = keys_of_run<typename Type::Weight>(model, queries.block_ids, queries.layer,
                                                          queries.kv_head, run + 1 < n_runs ? run + 1 : run);
    // Two chains a query, over even and odd steps, hide the latency of the additions.
    V sums[kQueries][2];
    for (int j = 0; j < kQueries; ++j) sums[j][0] = sums[j][1] = zero();
    for (int step = 0; step < n_steps; step += 2)
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const int place = step + half;
        prefetch<_MM_HINT_T0>(next + size_t(place) * kVector * Type::kPair);
        prefetch<_MM_HINT_T1>(values + size_t(place) * kVector * Type::kPair);
#pragma GCC unroll 2
        for (int part = 0; part < Type::kParts; ++part) {
          const V k = Type::weights(keys + size_t(place) * kVector * Type::kPair, part);
#pragma GCC unroll 8
          for (int j = 0; j < kQueries; ++j)
            sums[j][half] = Type::multiply(sums[j][half], k, queries.q[j] + place * Type::kPair, part);
        }
      }
#pragma GCC unroll 8
    for (int j = 0; j < kQueries; ++j) {
      const int n_left = queries.context_len[j] - run * kVector;
      const V scores = first_lanes(add(sums[j][0], sums[j][1]), n_left, all(-INFINITY));
      best[j] = max(best[j], scores);
      store(queries.scratch + size_t(j) * model.score_stride + run * kVector, scores);
    }
  }
  for (int j = 0; j < kQueries; ++j) highest_score[j] = highest(best[j]);
}

// Turns scores into weights; returns what their weighted sum is to be divided by.
inline float soften(float* scores, int context_len, float highest_score) {
  V total = zero();
  for (int i = 0; i < context_len; i += kVector) {
    V weights = exponential(sub(load(scores + i), all(highest_score)));
    weights = first_lanes(weights, context_len - i, zero());
    total = add(total, weights);
    store(scores + i, weights);
  }
  return sum(total);
}

template <class Type, int kQueries, int kVectors>
void gather(const Model& model, const Queries<Type>& queries, const float* totals, int dim) {
  const int block_size = model.shape.block_size, head_dim = model.shape.head_dim;
  V sums[kQueries][kVectors];
  for (int j = 0; j < kQueries; ++j)
    for (int n = 0; n < kVectors; ++n) sums[j][n] = zero();
  for (int start = 0; start < queries.n_context; start += block_size) {
    const int end = queries.n_context - start < block_size ? queries.n_context - start : block_size;
    const typename Type::Weight* values =
        model.values<typename Type::Weight>(queries.layer, queries.block_ids[start / block_size],
                                            queries.kv_head) + dim;
    for (int i = 0; i < end; ++i) {
      V v[kVectors];
#pragma GCC unroll 2
      for (int n = 0; n < kVectors; ++n) v[n] = load(values + size_t(i) * head_dim + n * kVector);
#pragma GCC unroll 8
      for (int j = 0; j < kQueries; ++j) {
        const V weight = all(queries.scratch[size_t(j) * model.score_stride + start + i]);
#pragma GCC unroll 2
        for (int n = 0; n < kVectors; ++n) sums[j][n] = fma(weight, v[n], sums[j][n]);
      }
    }
  }
  for (int j = 0; j < kQueries; ++j)
    for (int n = 0; n < kVectors; ++n)
      store(queries.out[j] + dim + n * kVector, mul(sums[j][n], all(1.0f / totals[j])));
}

template <class Type, int kQueries>
void attend(const Model& model, const Queries<Type>& queries) {
  float highest_score[kQueries], totals[kQueries];
  score<Type, kQueries>(model, queries, highest_score);
  for (int j = 0; j < kQueries; ++j) {
    float* scores = queries.scratch + size_t(j) * model.score_stride;
    totals[j] = soften(scores, queries.context_len[j], highest_score[j]);
    // What a later query of the call sees beyond this one's context has no weight here.
    for (int i = cpu::round_up(queries.context_len[j], kVector); i < queries.n_context; i += kVector)
      store(scores + i, zero());
  }
  int dim = 0;
  for (; dim + 2 * kVector <= model.shape.head_dim; dim += 2 * kVector)
    gather<Type, kQueries, 2>(model, queries, totals, dim);
  if (dim < model.shape.head_dim) gather<Type, kQueries, 1>(model, queries, totals, dim);
}

template <class Type, int kQueries = kMaxQueries>
void attend_queries(int n_queries, const Model& model, const Queries<Type>& queries) {
  if constexpr (kQueries > 1)
    if (n_queries < kQueries) return attend_queries<Type, kQueries - 1>(n_queries, model, queries);
  attend<Type, kQueries>(model, queries);
}

template <class Type>
void attend_item(const Model& model, const cpu::StepRows& rows, int layer, const AttentionItem& item,
                 float* scratch) {
  using Input = typename Type::Input;
  Queries<Type> queries;
  queries.block_ids = rows.block_ids + rows.table_start[item.row];
  queries.layer = layer;
  queries.kv_head = item.kv_head;
  queries.scratch = scratch;
  int j = 0;
  for (int token = item.first_token; token < item.first_token + item.n_tokens; ++token)
    for (int head = item.first_head; head < item.first_head + item.n_heads; ++head, ++j) {
      const size_t place = size_t(token) * model.query_stride + size_t(head) * model.shape.head_dim;
      queries.q[j] = model.query_input.as<Input>() + place;
      queries.out[j] = model.attended_input.as<Input>() + place;
      queries.context_len[j] = model.position_of_token[token] + 1;
    }
  queries.n_context = queries.context_len[j - 1];
  attend_queries(j, model, queries);
}

}  // namespace
