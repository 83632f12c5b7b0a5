#include "engine/byte_bpe.h"

#include <algorithm>
#include <queue>
#include <tuple>

#include "core/check.h"
#include "engine/utf8.h"

namespace snapmla {
namespace {

constexpr std::int32_t kNone = -1;

bool spells_itself(int byte) {
  return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}

/// Byte -> code point: printable Latin-1 bytes stand for themselves, the others count up from U+0100.
std::array<int, 256> make_alphabet() {
  std::array<int, 256> alphabet{};
  int next = 0x100;
  for (int byte = 0; byte < 256; ++byte) alphabet[byte] = spells_itself(byte) ? byte : next++;
  return alphabet;
}

const std::array<int, 256>& alphabet() {
  static const std::array<int, 256> table = make_alphabet();
  return table;
}

/// Code point -> byte, -1 where the alphabet has none.
std::array<int, 0x200> make_inverse() {
  std::array<int, 0x200> inverse{};
  inverse.fill(kNone);
  for (int byte = 0; byte < 256; ++byte) inverse[alphabet()[byte]] = byte;
  return inverse;
}

std::uint64_t pair_key(std::int32_t left, std::int32_t right) {
  return (static_cast<std::uint64_t>(left) << 32) | static_cast<std::uint32_t>(right);
}

struct Candidate {
  std::int32_t rank = 0;
  std::int32_t at = 0;                            ///< the left symbol
  std::int32_t id = 0;                            ///< what the pair becomes
  bool operator<(const Candidate& other) const {  // the top of a std::priority_queue is its largest
    return std::tie(rank, at) > std::tie(other.rank, other.at);
  }
};

}  // namespace

std::optional<std::string> token_bytes(std::string_view token) {
  static const std::array<int, 0x200> inverse = make_inverse();
  std::string bytes;
  for (std::size_t i = 0; i < token.size(); ++i) {
    int point = static_cast<unsigned char>(token[i]);
    if (point >= 0xe0) return std::nullopt;
    if (point >= 0x80) point = ((point & 0x1f) << 6) | (static_cast<unsigned char>(token[++i]) & 0x3f);
    const int byte = point < 0x200 ? inverse[point] : kNone;
    if (byte == kNone) return std::nullopt;
    bytes += static_cast<char>(byte);
  }
  return bytes;
}

std::string bytes_token(std::string_view bytes) {
  std::string token;
  for (const char c : bytes) {
    const int point = alphabet()[static_cast<unsigned char>(c)];
    if (point < 0x80) {
      token += static_cast<char>(point);
    } else {
      token += static_cast<char>(0xc0 | (point >> 6));
      token += static_cast<char>(0x80 | (point & 0x3f));
    }
  }
  return token;
}

ByteBpe::ByteBpe(const TokenizerFile& file, const std::string& path)
    : ignore_merges_(file.ignore_merges), merge_by_id_(file.merge_by_id) {
  for (const auto& [token, id] : file.vocab) ids_.emplace(token, id);
  for (int byte = 0; byte < 256; ++byte) {
    const char c = static_cast<char>(byte);
    byte_ids_[byte] = id(bytes_token({&c, 1}));
    if (byte_ids_[byte] == kNone && file.needs_all_bytes)
      fail(ErrorCode::kUnsupported, "tokenizer", path,
           ": model.unk_token is supported only where the vocabulary has all 256 bytes; it lacks byte ",
           byte);
    if (byte_ids_[byte] == kNone && merge_by_id_)
      fail(ErrorCode::kCorruptFile, "tokenizer", path, ": the vocabulary lacks a token for the byte ", byte);
  }
  if (!merge_by_id_) {
    read_merges(file, path);
    return;
  }
  for (const auto& [token, id] : file.vocab) {
    const std::string bytes = token_bytes(token).value_or("");
    longest_ = std::max(longest_, bytes.size());
    by_bytes_.emplace(bytes, id);
  }
}

void ByteBpe::read_merges(const TokenizerFile& file, const std::string& path) {
  std::int32_t rank = 0;
  for (const auto& [left, right] : file.merges) {
    for (const std::string& token : {left, right, left + right})
      if (id(token) == kNone)
        fail(ErrorCode::kCorruptFile, "tokenizer", path, ": model.merges[", rank,
             "] needs a token that model.vocab lacks: ", quote_text(token));
    merges_[pair_key(id(left), id(right))] = {.rank = rank, .id = id(left + right)};
    ++rank;
  }
}

std::int32_t ByteBpe::id(std::string_view token) const {
  const auto found = ids_.find(token);
  return found == ids_.end() ? kNone : found->second;
}

std::vector<ByteBpe::Symbol> ByteBpe::split(std::string_view piece) const {
  std::vector<Symbol> symbols;
  symbols.reserve(piece.size());
  for (const char c : piece) {
    const std::int32_t id = byte_ids_[static_cast<unsigned char>(c)];
    if (id == kNone) continue;
    const auto at = static_cast<std::int32_t>(symbols.size());
    if (at > 0) symbols.back().next = at;
    symbols.push_back({.id = id, .previous = at - 1});
  }
  return symbols;
}

/// What the symbol at `at` and its right neighbour become.
ByteBpe::Merge ByteBpe::find_merge(std::string_view piece, const std::vector<Symbol>& symbols,
                                   std::int32_t at) const {
  const Symbol& left = symbols[at];
  const Symbol& right = symbols[left.next];
  if (!merge_by_id_) {
    const auto found = merges_.find(pair_key(left.id, right.id));
    return found == merges_.end() ? Merge{} : found->second;
  }
  // Every byte is a token here, so symbols begin where their number says.
  const std::size_t end = right.next == kNone ? piece.size() : static_cast<std::size_t>(right.next);
  const std::string_view bytes = piece.substr(at, end - at);
  const auto found = bytes.size() > longest_ ? by_bytes_.end() : by_bytes_.find(bytes);
  return found == by_bytes_.end() ? Merge{} : Merge{.rank = found->second, .id = found->second};
}

void ByteBpe::encode(std::string_view piece, std::vector<std::int32_t>& ids) const {
  if (ignore_merges_) {
    const std::int32_t whole = id(bytes_token(piece));
    if (whole != kNone) return ids.push_back(whole);
  }
  std::vector<Symbol> symbols = split(piece);
  std::priority_queue<Candidate> queue;
  const auto offer = [&](std::int32_t at) {
    if (at == kNone || symbols[at].next == kNone) return;
    const Merge merge = find_merge(piece, symbols, at);
    if (merge.id != kNone) queue.push({.rank = merge.rank, .at = at, .id = merge.id});
  };
  for (std::int32_t at = 0; at < static_cast<std::int32_t>(symbols.size()); ++at) offer(at);
  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    Symbol& left = symbols[best.at];
    if (left.id == kNone || left.next == kNone) continue;
    if (find_merge(piece, symbols, best.at).id != best.id) continue;  // the pair changed since it was offered
    Symbol& right = symbols[left.next];
    left.id = best.id;
    right.id = kNone;
    left.next = right.next;
    if (left.next != kNone) symbols[left.next].previous = best.at;
    offer(left.previous);
    offer(best.at);
  }
  for (const Symbol& symbol : symbols)
    if (symbol.id != kNone) ids.push_back(symbol.id);
}

}  // namespace snapmla
