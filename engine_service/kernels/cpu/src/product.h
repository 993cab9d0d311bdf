// Rows of inputs times packed weights: tiles that fit the registers, handed out over the threads.

namespace {

using cpu::kPanel;

// What becomes of the outputs of one row and panel. A bias of null is none.
struct Store {
  float* y;
  size_t stride;
  const float* bias;
  void operator()(const V (&sums)[2], int row, int panel) const {
    float* place = y + row * stride + size_t(panel) * kPanel;
    const float* added = bias ? bias + size_t(panel) * kPanel : nullptr;
    store(place, added ? add(sums[0], load(added)) : sums[0]);
    store(place + kVector, added ? add(sums[1], load(added + kVector)) : sums[1]);
  }
};

struct Add {
  float* y;
  size_t stride;
  void operator()(const V (&sums)[2], int row, int panel) const {
    float* place = y + row * stride + size_t(panel) * kPanel;
    store(place, add(load(place), sums[0]));
    store(place + kVector, add(load(place + kVector), sums[1]));
  }
};

// A panel is sixteen columns of the gate and the same of the up projection.
template <class Input>
struct Gate {
  Input* y;
  size_t stride;
  void operator()(const V (&sums)[2], int row, int panel) const {
    store(y + row * stride + size_t(panel) * kVector, mul(silu(sums[0]), sums[1]));
  }
};

template <class Type>
struct Operands {
  const typename Type::Input* x;
  size_t x_stride;
  const typename Type::Weight* weights;
  int n_in;
};

// Some rows of one panel. Who reads the panel goes through it with one tile of rows after the other:
// n_tiles, of which this is number tile. The next one is what the thread is likely to read then.
struct Place {
  int row, panel;
  int tile, n_tiles;
};

// Rows by one panel, which is then one straight stream of weights. Wider tiles over several panels
// and prefetching were measured slower for any number of rows. A function of its own: what is done
// with the sums, inlined here, costs the loop its registers (2.5 times the time with AVX2).
template <int kRows, class Type>
__attribute__((noinline)) void accumulate(const Operands<Type>& in, const Place& place, V (&to)[kRows][2]) {
  const typename Type::Weight* w = in.weights + size_t(place.panel) * in.n_in * kPanel;
  const typename Type::Input* x = in.x + place.row * in.x_stride;
  V sums[kRows][2];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) sums[r][0] = sums[r][1] = zero();
  for (int k = 0; k < in.n_in; k += Type::kPair, w += Type::kPair * kPanel) {
#pragma GCC unroll 2
    for (int part = 0; part < Type::kParts; ++part) {
      const V first = Type::weights(w, part), second = Type::weights(w + Type::kPair * kVector, part);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const typename Type::Input* input = x + r * in.x_stride + k;
        sums[r][0] = Type::multiply(sums[r][0], first, input, part);
        sums[r][1] = Type::multiply(sums[r][1], second, input, part);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) to[r][0] = sums[r][0], to[r][1] = sums[r][1];
}

template <int kRows, class Type, class Epilogue>
void tile(const Operands<Type>& in, const Place& place, const Epilogue& epilogue) {
  V sums[kRows][2];
  accumulate<kRows>(in, place, sums);
  for (int r = 0; r < kRows; ++r) epilogue(sums[r], place.row + r, place.panel);
}

// Calls the tile of n_rows, which is at most Type::kRows.
template <class Type, class Epilogue, int kRows = Type::kRows>
void tile_of(int n_rows, const Operands<Type>& in, const Place& place, const Epilogue& epilogue) {
  if constexpr (kRows > 1)
    if (n_rows < kRows) return tile_of<Type, Epilogue, kRows - 1>(n_rows, in, place, epilogue);
  tile<kRows>(in, place, epilogue);
}

// Rows are shared out evenly: two tiles of seven cost less than one of twelve and one of two.
template <class Type, class Epilogue>
void tiles(const Operands<Type>& in, int first_row, int end_row, int panel, const Epilogue& epilogue) {
  const int n_tiles = (end_row - first_row + Type::kRows - 1) / Type::kRows;
  for (int tile = 0, row = first_row; tile < n_tiles; ++tile) {
    const int n_left = n_tiles - tile, n_rows = (end_row - row + n_left - 1) / n_left;
    tile_of<Type>(n_rows, in, {row, panel, tile, n_tiles}, epilogue);
    row += n_rows;
  }
}

// The items of one product. An item has some panels and the rows of one block: so many that claiming
// costs nothing beside them, so few that all threads end together. Few rows are one block, whose
// panels the threads share: what counts is that each weight is read once. Of many each thread has its
// own: then rows stay in the caches of who computes them from phase to phase.
template <class Type>
struct Items {
  static constexpr int kOwnRows = 96, kMaxBlockRows = 256;
  int n_rows, total_panels, n_panels, n_chunks, n_row_blocks;

  Items(int n_rows, int total_panels, int n_threads)
      : n_rows(n_rows), total_panels(total_panels), n_panels(total_panels / (8 * n_threads)) {
    n_panels = n_panels < 1 ? 1 : n_panels > 4 ? 4 : n_panels;
    n_chunks = (total_panels + n_panels - 1) / n_panels;
    n_row_blocks = 1;
    const int n_tiles = (n_rows + Type::kRows - 1) / Type::kRows;
    while (n_row_blocks < n_tiles && n_chunks * n_row_blocks < 4 * n_threads) ++n_row_blocks;
    if (n_rows >= kOwnRows * n_threads)
      while (n_row_blocks % n_threads || n_rows > kMaxBlockRows * n_row_blocks) ++n_row_blocks;
  }

  int size() const { return n_rows ? n_chunks * n_row_blocks : 0; }

  template <class Epilogue>
  void multiply(int item, const Operands<Type>& in, const Epilogue& epilogue) const {
    const int first_panel = item % n_chunks * n_panels;
    const int64_t block = item / n_chunks;
    const int first_row = int(n_rows * block / n_row_blocks);
    const int end_row = int(n_rows * (block + 1) / n_row_blocks);
    for (int panel = first_panel; panel < first_panel + n_panels && panel < total_panels; ++panel)
      tiles<Type>(in, first_row, end_row, panel, epilogue);
  }
};

}  // namespace
