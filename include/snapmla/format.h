// The cache page, byte by byte, and the two number rules behind it. Format version 1.
//
// A page holds 64 tokens of one layer. FP8 page, three planes, 41,216 bytes = 128 * 322:
//
//     offset      0  latent  e4m3 [64][512]   32,768 B   real latent = stored * scale[token]
//     offset 32,768  rope    bf16 [64][64]     8,192 B   real rope   = stored * scale[token]
//     offset 40,960  scale   f32  [64]           256 B   one a token
//
// so 644 bytes a token. BF16 page, one plane of rows, 73,728 bytes, FlashMLA's layout (1,152 bytes a token):
//
//     offset      0  bf16 [64][576]            row = latent (512), then rope (64)
//
// The planes need not lie in one record: a CacheView carries a pointer and a page stride for each, so
// one-page records (page stride 41,216), vLLM's padded pages (41,984 = 64 * 656) and separate pools all work
// with the same kernels. Plane pointers and strides must be multiples of 16 bytes.
//
// Quantization (SnapMLA, arXiv 2602.10718, "RoPE-aware per-token KV quantization"; the power of two is ours):
//
//     scale = quantization_scale(max |latent|)
//     latent8 = e4m3(latent / scale)      rope' = bf16(rope / scale)
//
// A scale is always the multiplier that restores: real = stored * scale.
//
// Example (compiled and run by tests/core/headers_test.cc):
//
//     std::vector<std::byte> pool(16 * snapmla::page_bytes(snapmla::CacheFormat::kFp8));
//     snapmla::CacheView cache = snapmla::make_cache_view(snapmla::CacheFormat::kFp8, pool.data(), 16);
//     // cache.rope.page_stride == 41216; snapmla::token_bytes(snapmla::CacheFormat::kFp8) == 644
#pragma once

#include <cstddef>
#include <cstdint>

namespace snapmla {

/// Version of the page layout above. A cache written to disk or sent elsewhere carries it.
inline constexpr int kFormatVersion = 1;

inline constexpr int kLatentDim = 512;  ///< cached latent width (kv_lora_rank)
inline constexpr int kRopeDim = 64;     ///< cached RoPE key width (qk_rope_head_dim)
inline constexpr int kTokenDim =
    kLatentDim + kRopeDim;                 ///< 576: what a query row and a cached token are made of
inline constexpr int kPageTokens = 64;     ///< tokens a page
inline constexpr float kE4m3Max = 448.0F;  ///< largest finite e4m3

enum class CacheFormat : std::uint8_t {
  kFp8,   ///< e4m3 latent, bf16 rope divided by the scale, f32 scale: 644 bytes a token
  kBf16,  ///< bf16 latent and rope: 1,152 bytes a token
};

/// "fp8" or "bf16".
const char* to_string(CacheFormat format) noexcept;

/// Bytes of one token / one page of one layer.
constexpr std::int64_t token_bytes(CacheFormat format) {
  return format == CacheFormat::kFp8 ? kLatentDim + 2 * kRopeDim + 4 : 2 * kTokenDim;
}
constexpr std::int64_t page_bytes(CacheFormat format) {
  return kPageTokens * token_bytes(format);
}

/// How the scale of a row is chosen from its largest magnitude.
enum class ScaleRule : std::uint8_t {
  kPowerOfTwo,  ///< the smallest power of two >= amax / 448 (default): dividing and restoring are exact
  kAmax,        ///< max(amax, 1e-26) / 448, the paper's rule
};

/// "pow2" or "amax".
const char* to_string(ScaleRule rule) noexcept;

/// The scale for a row whose largest magnitude is `amax`.
/// kPowerOfTwo: 2^ceil(log2(amax / 448)), exponent clamped to [-40, 40]; 1 if amax is 0, NaN or infinite. The
/// clamp keeps rope / scale far from overflow where a latent is tiny beside its RoPE key. The result is
/// exact, never off by one binade. kAmax: max(amax, 1e-26) / 448 in fp32 (1 if NaN or infinite). Pure; any
/// thread.
float quantization_scale(float amax, ScaleRule rule = ScaleRule::kPowerOfTwo) noexcept;

/// One plane of the page pool: page p starts at data + p * page_stride; a token's row at + row * row_stride.
struct CachePlane {
  void* data =
      nullptr;  ///< device (or host, for the reference backend) pointer; null only for an absent plane
  std::int64_t page_stride = 0;  ///< bytes from one page to the next
  std::int64_t row_stride = 0;   ///< bytes from one token to the next
};

/// A pool of pages as the ops see it. Owns nothing: the pool must outlive every op that was given the view.
struct CacheView {
  CacheFormat format = CacheFormat::kFp8;
  std::int64_t num_pages = 0;  ///< pages in the pool; valid page indices are 0 .. num_pages - 1
  CachePlane latent{};         ///< e4m3 [pages][64][512] or bf16
  CachePlane rope{};           ///< bf16 [pages][64][64]
  CachePlane scale{};          ///< f32 [pages][64]; absent for kBf16
};

/// A view of one-page records laid out as above, from `base`; `page_stride` in bytes, 0 for dense pages.
/// Throws Error(kInvalidArgument) on a null base, a negative count, or a stride below page_bytes(format).
CacheView make_cache_view(CacheFormat format, void* base, std::int64_t num_pages,
                          std::int64_t page_stride = 0);

}  // namespace snapmla
