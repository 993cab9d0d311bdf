// One step of a decoder of the Llama family, over all rows at once. Included by one source file for
// each instruction set, which sets its constants (kTileRows and so on); everything has internal
// linkage, so that no function of one instruction set can be linked in place of another's.

#include "bfloat16.h"
#include "model.h"
#include "numbers.h"
#include "product.h"
#include "int8.h"
#include "tiles.h"
#include "attention.h"
#include "part_attention.h"

namespace {

using cpu::StepRows;

// Up to so many rows, the thread that ends a phase does the small work behind it alone, which saves
// a phase of its own.
constexpr int kRowsAlone = 3;

// Product: Type itself, Bfloat16Tiles or Int8.
template <class Type, class Product>
struct Step {
  static constexpr bool kIsInt8 = std::is_same_v<Product, Int8>;
  using Weight = typename Type::Weight;
  using Input = typename Type::Input;

  Model& model;
  const StepRows& rows;
  const int thread;
  cpu::Phases phases{*model.team, thread};
  const cpu::Shape& shape = model.shape;
  float* const residual = model.residual.as<float>();
  Input* const normed = model.normed_input.as<Input>();

  void run() {
    const int n = rows.n_tokens;
    phase(n, [&](int token) {
      embed(token);
      norm(token, model.layers[0].attention_norm, token);
    });
    for (int index = 0; index < shape.n_layers; ++index) {
      const cpu::Layer& layer = model.layers[index];
      attention(index);
      product(layer.output, model.attended_input.as<Input>(), model.query_stride, n,
              Add{residual, size_t(model.hidden_stride)}, n,
              [&](int token) { norm(token, layer.feed_forward_norm, token); });
      if (index + 1 < shape.n_layers)
        feed_forward(layer, n, [&](int token) { norm(token, model.layers[index + 1].attention_norm, token); });
      else
        feed_forward(layer, rows.n_sampled, [&](int i) { norm(rows.sampled[i], model.final_norm, i); });
    }
    product(model.head, normed, model.hidden_stride, rows.n_sampled,
            Store{rows.logits, size_t(model.head.n_panels) * kPanel, nullptr}, 0, [](int) {});
  }

 private:
  void embed(int token) {
    const Weight* from = model.embedding.as<Weight>() + size_t(rows.token_ids[token]) * shape.hidden;
    float* to = residual + size_t(token) * model.hidden_stride;
    for (int i = 0; i < shape.hidden; ++i) to[i] = to_float(from[i]);
    // Behind it is what an earlier step left, which may be no number.
    for (int i = shape.hidden; i < model.hidden_stride; ++i) to[i] = 0.0f;
  }

  void norm(int token, const std::vector<float>& weight, int to) {
    Input* y = normed + size_t(to) * model.hidden_stride;
    rms_norm(residual + size_t(token) * model.hidden_stride, weight.data(), y, shape.hidden,
             model.hidden_stride, shape.eps);
    if constexpr (kIsInt8) quantize(normed, model.hidden_stride, to);
  }

  void quantize(const Input* x, int stride, int row) {
    quantize_row(x + size_t(row) * stride, stride,
                 model.quantized_input.as<int16_t>() + size_t(row) * model.quantized_stride,
                 model.input_scales.as<float>() + size_t(row) * (model.quantized_stride / kGroup));
  }

  template <class Body>
  void phase(int n_items, const Body& body) {
    phases.run(n_items, body, [] {});
  }

  // A phase, and then then(row) for so many rows.
  template <class Body, class Then>
  void phase(int n_items, const Body& body, int n_rows, const Then& then) {
    if (n_rows > kRowsAlone) {
      phase(n_items, body);
      phase(n_rows, then);
      return;
    }
    phases.run(n_items, body, [&] {
      for (int row = 0; row < n_rows; ++row) then(row);
    });
  }

  // The same where a phase writes the rows of x, which become what a product reads.
  template <class Body>
  void phase_before_product(int n_items, const Body& body, const Input* x, int stride) {
    if constexpr (kIsInt8) phase(n_items, body, rows.n_tokens, [&](int token) { quantize(x, stride, token); });
    else phase(n_items, body);
  }

  template <class Epilogue, class Run>
  void with_items(const cpu::Linear& linear, const Input* x, int stride, int n_rows, const Epilogue& epilogue,
                  const Run& run) {
    Operands<Product> in;
    if constexpr (kIsInt8)
      in = {model.quantized_input.as<int16_t>(), model.input_scales.as<float>(), size_t(model.quantized_stride),
            size_t(model.quantized_stride / kGroup), static_cast<const char*>(linear.weights), linear.n_in};
    else in = {x, size_t(stride), static_cast<const Weight*>(linear.weights), linear.n_in};
    const Items<Product> items(n_rows, linear.n_panels, model.team->size());
    run(items.size(), [&](int item) { items.multiply(item, in, epilogue); });
  }

  template <class Epilogue, class Then>
  void product(const cpu::Linear& linear, const Input* x, int stride, int n_rows, const Epilogue& epilogue,
               int n_then, const Then& then) {
    with_items(linear, x, stride, n_rows, epilogue,
               [&](int n_items, const auto& body) { phase(n_items, body, n_then, then); });
  }

  void attention(int index) {
    const cpu::Layer& layer = model.layers[index];
    product(layer.qkv, normed, model.hidden_stride, rows.n_tokens,
            Store{model.qkv.as<float>(), size_t(model.qkv_stride), pointer(layer.qkv_bias)}, rows.n_tokens,
            [&](int token) { keep(index, token); });
    float* scratch = model.attention_scratch.as<float>() + size_t(thread) * model.attention_scratch_stride;
    phase_before_product(
        int(model.attention_items.size()),
        [&](int item) { attend_item<Type>(model, rows, index, model.attention_items[item], scratch); },
        model.attended_input.as<Input>(), model.query_stride);
  }

  template <class Then>
  void feed_forward(const cpu::Layer& layer, int n_then, const Then& then) {
    Input* activated = model.activated_input.as<Input>();
    with_items(layer.gate_up, normed, model.hidden_stride, rows.n_tokens,
               Gate<Input>{activated, size_t(model.inner_stride)}, [&](int n_items, const auto& body) {
                 phase_before_product(n_items, body, activated, model.inner_stride);
               });
    product(layer.down, activated, model.inner_stride, rows.n_tokens, Add{residual, size_t(model.hidden_stride)},
            n_then, then);
  }

  static const float* pointer(const std::vector<float>& numbers) {
    return numbers.empty() ? nullptr : numbers.data();
  }

  // Rotates one token's queries and keys, and puts its keys and values into its block.
  void keep(int index, int token) {
    const cpu::Layer& layer = model.layers[index];
    const int head_dim = shape.head_dim;
    const int position = model.position_of_token[token];
    const int row = model.row_of_token[token];
    const float* qkv = model.qkv.as<float>() + size_t(token) * model.qkv_stride;
    const float* angles = model.rotary.as<float>() + size_t(position) * head_dim;
    Input* queries = model.query_input.as<Input>() + size_t(token) * model.query_stride;
    const V scale = all(1.0f / std::sqrt(float(head_dim)));
    float rotated[cpu::kMaxHeadDim];
    for (int head = 0; head < shape.n_heads; ++head, qkv += head_dim, queries += head_dim) {
      rotate(qkv, layer.q_norm, angles, rotated);
      for (int i = 0; i < head_dim; i += kVector) store(queries + i, mul(load(rotated + i), scale));
    }
    const int block = rows.block_ids[rows.table_start[row] + position / shape.block_size];
    const int offset = position % shape.block_size;
    const float* values = qkv + size_t(shape.n_kv_heads) * head_dim;
    for (int head = 0; head < shape.n_kv_heads; ++head, qkv += head_dim, values += head_dim) {
      rotate(qkv, layer.k_norm, angles, rotated);
      Weight narrow[cpu::kMaxHeadDim];
      for (int i = 0; i < head_dim; i += kVector) store(narrow + i, load(rotated + i));
      Weight* keys = model.keys<Weight>(index, block, head) + size_t(offset / kVector) * kVector * head_dim +
                     offset % kVector * Type::kPair;
      for (int i = 0; i < head_dim; i += Type::kPair)
        __builtin_memcpy(keys + size_t(i) * kVector, narrow + i, Type::kPair * sizeof(Weight));
      Weight* kept = model.values<Weight>(index, block, head);
#ifdef __AVX512BF16__
      if constexpr (std::is_same_v<Type, Bfloat16>) {
        store_value(values, head_dim, offset, kept);
        continue;
      }
#endif
      kept += size_t(offset) * head_dim;
      for (int i = 0; i < head_dim; i += kVector) store(kept + i, load(values + i));
    }
  }

  // One head of queries or keys, normalised before where the family has weights for that.
  void rotate(const float* x, const std::vector<float>& weight, const float* angles, float* y) {
    const int half = shape.head_dim / 2;
    float normed_head[cpu::kMaxHeadDim];
    if (!weight.empty()) {
      rms_norm(x, weight.data(), normed_head, shape.head_dim, shape.head_dim, shape.eps);
      x = normed_head;
    }
    const float *cosines = angles, *sines = angles + half;
    int i = 0;
    for (; i + kVector <= half; i += kVector) {
      const V cosine = load(cosines + i), sine = load(sines + i), first = load(x + i), second = load(x + half + i);
      store(y + i, fma(first, cosine, sub(zero(), mul(second, sine))));
      store(y + half + i, fma(second, cosine, mul(first, sine)));
    }
    for (; i < half; ++i) {
      y[i] = __builtin_fmaf(x[i], cosines[i], -(x[i + half] * sines[i]));
      y[i + half] = __builtin_fmaf(x[i + half], cosines[i], x[i] * sines[i]);
    }
  }
};

template <class Type, class Product>
void run_step_of(Model& model, const StepRows& rows, int thread) {
  if (model.is_int8()) Step<Type, Int8>{model, rows, thread}.run();
  else Step<Type, Product>{model, rows, thread}.run();
}

void run_step(Model& model, const StepRows& rows, int thread) {
  if (model.shape.dtype == cpu::kBfloat16) run_step_of<Bfloat16, Bfloat16Product>(model, rows, thread);
  else run_step_of<Float32, Float32>(model, rows, thread);
}

}  // namespace
