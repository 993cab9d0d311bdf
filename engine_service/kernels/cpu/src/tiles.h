// Products of bfloat16 by the processor's own matrix tiles (AMX): sixteen rows of inputs by two
// vectors of outputs, 32 inputs a step. A panel's pairs of inputs lie as a tile of weights wants them.

namespace {

#ifdef __AMX_BF16__
// An output has one chain of steps here too, and its row no part in another's: the same bits for
// any number of rows. But they are not those of Bfloat16, which rounds after every pair.
struct Bfloat16Tiles : Bfloat16 {
  static constexpr int kRows = 32;
};

// Read by the processor. Tiles 0 to 3 are sums, 4 and 5 inputs of up to 16 rows each, 6 and 7 weights.
struct TileShapes {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t n_rows[16] = {};

  constexpr explicit TileShapes(int rows) {
    const int first = rows < 16 ? rows : 16, second = rows - first;
    const int n_rows_of[] = {first, first, second, second, first, second, 16, 16};
    for (int tile = 0; tile < 8; ++tile) {
      n_rows[tile] = uint8_t(n_rows_of[tile]);
      row_bytes[tile] = n_rows_of[tile] ? 64 : 0;
    }
  }
};
static_assert(sizeof(TileShapes) == 64);

template <int kRows>
constexpr TileShapes kTileShapes{kRows};

constexpr int kTileInputs = 32;          // of one step
static_assert(cpu::kGroup % kTileInputs == 0, "weights are padded to whole steps");

template <int kRows>
__attribute__((noinline)) void accumulate(const Operands<Bfloat16Tiles>& in, const Place& place, V (&to)[kRows][2]) {
  constexpr long kWeightStride = kPanel * 2 * sizeof(bf16), kSumStride = kPanel * sizeof(float);
  constexpr int kStepWeights = kTileInputs * kPanel, kLine = 64;
  constexpr int kStepLines = kStepWeights * sizeof(bf16) / kLine;
  const bf16* w = in.weights + size_t(place.panel) * in.n_in * kPanel;
  const bf16* x = in.x + place.row * in.x_stride;
  const long x_stride = long(in.x_stride * sizeof(bf16));
  _tile_loadconfig(&kTileShapes<kRows>);
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (kRows > 16) {
    _tile_zero(2);
    _tile_zero(3);
  }
  // Computing keeps pace with memory only where both go on together: a panel's tiles fetch the next
  // panel, to the second cache, each its share. With one tile it is 12.7 to 9.7 ms for weights of 270 MB.
  const int n_lines = (kStepLines + place.n_tiles - 1) / place.n_tiles;
  const char* ahead = reinterpret_cast<const char*>(in.weights + size_t(place.panel + 1) * in.n_in * kPanel) +
                      size_t(place.tile) * n_lines * kLine * (in.n_in / kTileInputs);
  for (int k = 0; k < in.n_in; k += kTileInputs, x += kTileInputs, w += kStepWeights) {
    for (int line = 0; line < n_lines; ++line, ahead += kLine) _mm_prefetch(ahead, _MM_HINT_T1);
    _tile_loadd(4, x, x_stride);
    _tile_loadd(6, w, kWeightStride);
    _tile_loadd(7, w + kVector * 2, kWeightStride);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (kRows > 16) {
      _tile_loadd(5, x + 16 * in.x_stride, x_stride);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  float* sums = reinterpret_cast<float*>(to);
  _tile_stored(0, sums, kSumStride);
  _tile_stored(1, sums + kVector, kSumStride);
  if constexpr (kRows > 16) {
    _tile_stored(2, sums + 16 * kPanel, kSumStride);
    _tile_stored(3, sums + 16 * kPanel + kVector, kSumStride);
  }
  // Nobody else's switch between threads has to save what these held.
  _tile_release();
}

using Bfloat16Product = Bfloat16Tiles;
#else
using Bfloat16Product = Bfloat16;
#endif

}  // namespace
