// The functions that Python calls. None throws: 0 or a null pointer says that something is wrong.
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>
#include <new>

#include "model.h"
#include "packing.h"

using cpu::InstructionSet;
using cpu::LayerWeights;
using cpu::Linear;
using cpu::Model;
using cpu::Shape;
using cpu::StepRows;

namespace {

// Best first.
const InstructionSet* const kSets[] = {&cpu::kAmx, &cpu::kAvx512Bf16, &cpu::kAvx512, &cpu::kAvx2};
constexpr int kNSets = sizeof kSets / sizeof kSets[0];

// The operating system saves a thread's tiles only for a process that has asked for it.
bool may_use_tiles() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

bool is_supported(int set) {
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  const bool avx512_bf16 =
      avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
  if (kSets[set] == &cpu::kAmx)
    return avx512_bf16 && __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
           may_use_tiles();
  if (kSets[set] == &cpu::kAvx512Bf16) return avx512_bf16;
  return kSets[set] == &cpu::kAvx512 ? avx512 : avx2;
}

template <class Body>
bool succeeds(const Body& body) {
  try {
    body();
    return true;
  } catch (...) {
    return false;
  }
}

template <class Weight>
void pack_from(const Shape& shape, const Linear& linear, const void* given, int n_out, int n_in) {
  const Weight* weights = static_cast<const Weight*>(given);
  if (shape.quantization == cpu::kInt8) cpu::pack_int8(linear, weights, n_out, n_in);
  else cpu::pack(linear, weights, n_out, n_in);
}

void pack(const Shape& shape, const Linear& linear, const void* weights, int n_out, int n_in) {
  if (shape.dtype == cpu::kBfloat16) pack_from<cpu::bf16>(shape, linear, weights, n_out, n_in);
  else pack_from<float>(shape, linear, weights, n_out, n_in);
}

struct Job {
  Model* model;
  const StepRows* rows;
};

void run_job(void* argument, int thread) {
  const Job& job = *static_cast<Job*>(argument);
  job.model->instruction_set.step(*job.model, *job.rows, thread);
}

}  // namespace

extern "C" {

#define EXPORT __attribute__((visibility("default")))

// The name of the set-th instruction set that this processor has, best first; null at the end.
EXPORT const char* cpu_instruction_set(int set) {
  for (int i = 0; i < kNSets; ++i)
    if (is_supported(i) && set-- == 0) return kSets[i]->name;
  return nullptr;
}

EXPORT Model* cpu_model_new(const Shape* shape, const char* instruction_set) {
  Model* model = nullptr;
  for (int i = 0; i < kNSets; ++i)
    if (is_supported(i) && std::strcmp(kSets[i]->name, instruction_set) == 0)
      succeeds([&] { model = new Model(*shape, *kSets[i]); });
  return model;
}

EXPORT void cpu_model_free(Model* model) { delete model; }

// All is copied.
EXPORT int cpu_model_set_layer(Model* model, int index, const LayerWeights* given) {
  return succeeds([&] {
    const Shape& s = model->shape;
    const int query = s.n_heads * s.head_dim, n_qkv = query + 2 * s.n_kv_heads * s.head_dim;
    cpu::Layer& layer = model->layers.at(index);
    layer.attention_norm = cpu::vector_of(given->attention_norm, s.hidden, model->hidden_stride);
    pack(s, layer.qkv, given->qkv, n_qkv, s.hidden);
    layer.qkv_bias = cpu::vector_of(given->qkv_bias, n_qkv, model->qkv_stride);
    layer.q_norm = cpu::vector_of(given->q_norm, s.head_dim, s.head_dim);
    layer.k_norm = cpu::vector_of(given->k_norm, s.head_dim, s.head_dim);
    pack(s, layer.output, given->output, s.hidden, query);
    layer.feed_forward_norm = cpu::vector_of(given->feed_forward_norm, s.hidden, model->hidden_stride);
    pack(s, layer.gate_up, given->gate_up, 2 * s.inner, s.hidden);
    pack(s, layer.down, given->down, s.hidden, s.inner);
  });
}

// rotary: (max_model_len, head_dim), the cosines of half a head and then its sines.
EXPORT int cpu_model_set_ends(Model* model, const void* embedding, const float* final_norm, const void* head,
                              const float* rotary) {
  return succeeds([&] {
    const Shape& s = model->shape;
    const size_t n_bytes = size_t(s.vocab) * s.hidden * model->element_bytes();
    model->embedding = cpu::Pages(n_bytes);
    std::memcpy(model->embedding.as<char>(), embedding, n_bytes);
    model->final_norm = cpu::vector_of(final_norm, s.hidden, model->hidden_stride);
    pack(s, model->head, head, s.vocab, s.hidden);
    std::memcpy(model->rotary.as<float>(), rotary, size_t(s.max_model_len) * s.head_dim * sizeof(float));
  });
}

// Returns 0, and computes nothing, for rows that do not fit the model.
EXPORT int cpu_model_step(Model* model, const StepRows* rows) {
  bool fits = false;
  if (!succeeds([&] { fits = model->plan(*rows); }) || !fits) return 0;
  Job job{model, rows};
  model->team->run(run_job, &job);
  return 1;
}

EXPORT int cpu_model_clear(Model* model, const int32_t* blocks, int n_blocks) {
  return model->clear(blocks, n_blocks);
}

EXPORT int cpu_model_copy(Model* model, const int32_t* from, const int32_t* to, int n_blocks) {
  return model->copy(from, to, n_blocks);
}

}  // extern "C"
