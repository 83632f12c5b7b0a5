// ModelState: every buffer that a forward pass needs, allocated once from the limits, and the small integer
// arrays of a step (tokens, positions, slots, lengths, pages), which go to the device in one copy at fixed
// addresses.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/device_buffer.h"
#include "core/staging.h"
#include "model/config.h"
#include "model/model.h"

namespace snapmla {

/// The first n entries of a dense view's first dimension.
TensorView first_rows(const TensorView& view, std::int64_t n);

/// What one step works on, on the device.
struct Step {
  int rows = 0;         ///< tokens computed: of one request (prefill), or one of each request (decode)
  int context = 0;      ///< prefill: cached tokens after the append
  TensorView tokens{};  ///< [rows] int32
  ConstTensorView positions{};    ///< [rows] int32
  ConstTensorView slots{};        ///< [rows] int32
  ConstTensorView block_table{};  ///< [1 or rows, max_pages] int32
  ConstTensorView seq_lens{};     ///< decode: [rows] int32
  ConstTensorView starts{};       ///< prefill: [1] int32
  ConstTensorView offsets{};      ///< prefill: [2] int32
};

class ModelState {
 public:
  ModelState(Backend& backend, const ModelConfig& config, const ModelLimits& limits);

  /// Checks a chunk or batch against the limits and the cache, and copies its arrays to the device. Throws
  /// Error(kInvalidArgument).
  Step upload(const PrefillChunk& chunk, const CacheView& cache, Stream stream);

  /// `rows`: at least the requests of the batch; the rest are empty requests of no tokens, whose results mean nothing.
  Step upload(const DecodeBatch& batch, const CacheView& cache, int rows, Stream stream);

  /// The plan's tensors for a batch.
  [[nodiscard]] PlanView plan_view(const Backend& backend, int batch) const;

  // Row buffers, [rows, ...] with rows = max(max_chunk, max_batch); bf16 where nothing is said.
  TensorView x{};              ///< [hidden] the residual stream
  TensorView normed{};         ///< [hidden]
  TensorView q_low{};          ///< [q_lora]
  TensorView q_low_normed{};   ///< [q_lora]
  TensorView q{};              ///< [heads, nope + 64]
  TensorView kv{};             ///< [576]
  TensorView attended{};       ///< [heads, v]
  TensorView branch{};         ///< [hidden] what a branch adds to x
  TensorView gate{};           ///< [widest FFN]
  TensorView up{};             ///< [widest FFN]
  TensorView router_logits{};  ///< [experts + zero experts] f32
  TensorView expert{};         ///< [top_k] int32
  TensorView expert_weight{};  ///< [top_k] f32
  TensorView expert_out{};     ///< [hidden]
  TensorView expert_workspace{};

  // Prefill, where max_chunk is not 0: what the cache returns, and the keys and values made of it.
  TensorView latent{};  ///< [max_seq_len, 512]
  TensorView rope{};    ///< [max_seq_len, 64]
  TensorView k_nope{};  ///< [max_seq_len, heads, nope]
  TensorView v{};       ///< [max_seq_len, heads, v]

  // Decode, [max_batch, heads, ...].
  TensorView q_latent{};      ///< [512] the query absorbed into the latent space
  TensorView q_latent_fp8{};  ///< [512] e4m3
  TensorView q_rope{};        ///< [64] rotated; for FP8 pages also divided by q_scale
  TensorView q_scale{};       ///< f32
  TensorView out_latent{};    ///< [512]
  TensorView lse{};           ///< f32
  TensorView workspace{};     ///< u8
  TensorView logits{};        ///< [max_batch, vocab] f32

  TensorView cos_sin{};       ///< [max_seq_len, 64] f32
  TensorView query_growth{};  ///< [max_seq_len] f32, or absent

 private:
  struct IntArrays {
    std::int64_t tokens = 0;
    std::int64_t positions = 0;
    std::int64_t slots = 0;
    std::int64_t seq_lens = 0;
    std::int64_t starts = 0;
    std::int64_t offsets = 0;
    std::int64_t block_table = 0;
    std::int64_t total = 0;
  };

  TensorView make(DType dtype, std::initializer_list<std::int64_t> shape);
  TensorView make(const std::vector<float>& table, std::initializer_list<std::int64_t> shape);
  void make_decode_buffers(const ModelConfig& config);
  [[nodiscard]] std::int32_t* host(std::int64_t offset) {
    return host_ints_[turn_]->as<std::int32_t>() + offset;
  }
  [[nodiscard]] TensorView device(std::int64_t offset, std::int64_t n) const;
  void begin_ints();
  void copy_ints(int block_table_rows, Stream stream);

  Backend* backend_;
  ModelLimits limits_;
  int vocab_ = 0;
  int max_pages_ = 0;  ///< pages of one request of max_seq_len tokens
  std::vector<DeviceBuffer> buffers_;
  // Two take turns, so that the next step's are written while this one's are copied.
  std::array<std::unique_ptr<Staging>, 2> host_ints_;
  std::size_t turn_ = 0;
  TensorView device_ints_{};
  IntArrays at_{};
  TensorView work_items_{};
  TensorView worker_offsets_{};
  TensorView split_offsets_{};
};

}  // namespace snapmla
