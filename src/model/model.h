// Model: the weights of one MLA model on a backend, and its two forward passes over a paged cache.
//
// prefill() writes a chunk of one request to the cache and attends, un-absorbed, to what the cache returns
// (append -> fetch -> attend), so that chunk sizes and cached prefixes change nothing. decode() runs one
// token of each of several requests, absorbed, through quantize -> append -> decode. Both end in logits.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "model/config.h"
#include "snapmla/backend.h"
#include "snapmla/engine.h"

namespace snapmla {

struct ModelWeights;  // weights.h

/// What a Model can be asked to hold at once; all buffers are allocated from it, none later.
struct ModelLimits {
  int max_batch = 1;    ///< requests in a decode call
  int max_chunk = 512;  ///< tokens in a prefill call; 0: there are none, nor the buffers they need
  int max_seq_len = 4096;
  CacheFormat cache_format = CacheFormat::kFp8;
  ScaleRule scale_rule = ScaleRule::kPowerOfTwo;
  bool deterministic =
      true;  ///< a row's logits depend on its own request alone, bit for bit (see below); false: plans that
             ///< balance, and the fastest product for each number of rows
};

/// Some tokens of one request, to be cached.
struct PrefillChunk {
  std::vector<std::int32_t> tokens;  ///< 1 .. max_chunk ids
  int start = 0;  ///< position of the first: the request's tokens before it are already cached
  std::vector<std::int32_t> pages;  ///< the request's pages, at least ceil((start + tokens) / 64)
};

/// One new token of each of several requests, or several of one, by position: each row attends to the rows
/// of the same request before it.
struct DecodeBatch {
  std::vector<std::int32_t> tokens;       ///< [batch]; -1 - i stands for sampled[i]
  std::vector<std::int32_t> seq_lens;     ///< [batch] the new token counted: it is at position seq_len - 1
  std::vector<std::int32_t> block_table;  ///< [batch, max_pages], row-major; unused entries may hold anything
  int max_pages = 0;
  ConstTensorView sampled{};  ///< int32 device: tokens that the host does not know yet; may be absent
};

class Model {
 public:
  /// Loads config and weights of a Hugging Face folder. Throws Error (kNotFound, kCorruptFile, kUnsupported,
  /// kOutOfMemory) naming file and tensor.
  static std::unique_ptr<Model> load(Backend& backend, const std::string& dir, const ModelLimits& limits);

  /// As above with a config of the caller's in place of the folder's config.json.
  static std::unique_ptr<Model> load(Backend& backend, const std::string& dir, const ModelConfig& config,
                                     const ModelLimits& limits);

  // The two parts of the above, for models that share their weights and differ in their limits.

  /// Weights of the folder's checkpoint, or dummy ones (dummy_weights.h) that the folder has no part in.
  static std::shared_ptr<const ModelWeights> load_weights(Backend& backend, const std::string& dir,
                                                          const ModelConfig& config, LoadFormat format);
  static std::unique_ptr<Model> make(Backend& backend, const ModelConfig& config,
                                     std::shared_ptr<const ModelWeights> weights, const ModelLimits& limits);
  virtual ~Model() = default;

  [[nodiscard]] virtual const ModelConfig& config() const = 0;
  [[nodiscard]] virtual const ModelLimits& limits() const = 0;
  [[nodiscard]] virtual std::int64_t num_parameters() const = 0;      ///< as stored in the checkpoint
  [[nodiscard]] virtual std::int64_t num_fp8_parameters() const = 0;  ///< of these, weights that stayed FP8
  [[nodiscard]] virtual std::int64_t weight_bytes() const = 0;        ///< on the device

  // Both check tokens, positions and pages and throw Error(kInvalidArgument) before any work. Host arrays are
  // not needed after the call. With limits().deterministic a row's logits depend on its own request alone, bit for bit, whatever
  // else is in the batch and however its prompt was cut into chunks; else they may differ by the order of fp32 sums.

  /// `cache` is one view a layer. Logits [1, vocab] f32 (device) of the chunk's last token are written to
  /// logits() row 0 if `want_logits`.
  virtual void prefill(const PrefillChunk& chunk, const std::vector<CacheView>& cache, bool want_logits,
                       Stream stream) = 0;

  /// Logits of every request: logits() rows 0 .. batch - 1.
  virtual void decode(const DecodeBatch& batch, const std::vector<CacheView>& cache, Stream stream) = 0;

  /// [max_batch, vocab] f32 device.
  [[nodiscard]] virtual TensorView logits() const = 0;
};

}  // namespace snapmla
