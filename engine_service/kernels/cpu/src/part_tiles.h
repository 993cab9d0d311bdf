// What part_attention.h multiplies, by matrix tiles (AMX): up to sixteen queries by a run of tokens.

namespace {

constexpr int kTileQueries = 16;

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

// (tile.n, tokens from start on); those beyond a query's own context mean nothing.
inline void score_part(const Model& model, const Queries<Bfloat16>& queries, const bf16* q, const QueryTile& tile,
                       int start, float* scores) {
  const int head_dim = model.shape.head_dim;
  const long q_stride = long(head_dim) * sizeof(bf16);
  _tile_loadconfig(&kAttentionShapes.of[tile.n - 1]);
  for (int run = start / kVector; run * kVector < tile.end; ++run, scores += kVector) {
    const bf16* keys = keys_of_run<bf16>(model, queries.block_ids, queries.layer, queries.kv_head, run);
    if (tile.first == 0) look_ahead(model, queries, run);
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

// Adds kTiles times sixteen numbers of each query's answer, from dim on.
template <int kTiles>
void gather_tiles(const Model& model, const Queries<Bfloat16>& queries, const bf16* last_values, const float* scores,
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

// Adds values by weights to each query's answer.
inline void gather_part(const Model& model, const Queries<Bfloat16>& queries, const bf16* last_values,
                        const float* scores, const QueryTile& tile, int start, float* sums) {
  int dim = 0;
  for (; dim + 4 * kVector <= model.shape.head_dim; dim += 4 * kVector)
    gather_tiles<4>(model, queries, last_values, scores, tile, start, dim, sums);
  for (; dim < model.shape.head_dim; dim += kVector)
    gather_tiles<1>(model, queries, last_values, scores, tile, start, dim, sums);
  // Nobody else's switch between threads has to save what these held.
  _tile_release();
}

}  // namespace
