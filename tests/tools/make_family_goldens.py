#!/usr/bin/env python3
"""Make the small tokenizers of the model families and the goldens that tests/engine/families_test.cc reads.

    make_family_goldens.py            writes tests/data/tokenizer/families/

Each family has its real pipeline and a vocabulary trained here on the texts of make_tokenizer_goldens.py: tokenizer.json by
`tokenizers` (DeepSeek-V2 and V3, GLM-4, Youtu), tiktoken.model and tokenizer_config.json (Kimi) and tekken.json (Mistral) by
tiktoken's own trainer. Sources of the regexes: Kimi's tokenization_kimi.py, mistral-common's tekken files, llama.cpp's
src/llama-vocab.cpp for the others. LongCat's could not be had.

A golden file is one JSON line {"special": [...], "prefix": [...]}, then one digest a text, COUNT of them: the last 6 hex digits
of FNV-1a 64 over the ids as little-endian 32-bit words. The texts are not stored: `Texts` below and in the test make the same
ones from corpus.json. Reference: tokenizers for tokenizer.json, tiktoken with Kimi's settings, mistral-common's Tekkenizer (which
never reads special tokens from text; here they are cut out first, as snapmla and the Hugging Face conversion do).

Needs: pip install tokenizers==0.23.3 tiktoken==0.14.0 mistral-common==1.13.1. Characters are those of Unicode 11 and older.
"""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import tiktoken
from hashes import SPLITMIX64_STEP, splitmix64
from make_tokenizer_goldens import DATA, LLAMA3, V2, V3, FRAGMENTS, byte_level, fnv, splits, training_text
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from tiktoken._educational import bpe_train
from tokenizers import AddedToken, Tokenizer, decoders, models, processors, trainers
from tokenizers import pre_tokenizers as pre

OUT = DATA / "families"
COUNT = 4000

HAN = r"[\p{Han}]+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}%s]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}%s]"
FIRST, CLITICS = r"[^\r\n\p{L}\p{N}]?", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
SPACES = [r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"]


def cased(without: str, clitics: str) -> list[str]:
    upper, lower = UPPER % without, LOWER % without
    return [f"{FIRST}{upper}*{lower}+{clitics}", f"{FIRST}{upper}+{lower}*{clitics}"]


KIMI = "|".join([HAN, *cased(r"&&[^\p{Han}]", CLITICS), r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n]*", *SPACES])
TEKKEN = "|".join([*cased("", ""), r"\p{N}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", *SPACES])
YOUTU = [
    "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+",
    "|".join([*cased("", CLITICS), r"\p{N}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", *SPACES]),
]

# (pre-tokenizer, special tokens, tokens that are added but not special)
JSON_FAMILIES = {
    "deepseek_v2": (pre.Sequence([*splits(V2), pre.Digits(individual_digits=True), byte_level()]),
                    ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"], ["<｜User｜>", "<｜Assistant｜>"]),
    "deepseek_v3": (pre.Sequence([*splits(V3), byte_level()]),
                    ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"],
                    ["<｜User｜>", "<｜Assistant｜>", "<think>", "</think>", "<｜tool▁calls▁begin｜>", "<｜tool▁sep｜>"]),
    "glm4": (pre.Sequence([*splits([LLAMA3]), byte_level()]),
             ["<|endoftext|>", "[MASK]", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"],
             ["<think>", "</think>", "<tool_call>", "</tool_call>", "<arg_key>"]),
    "youtu": (pre.Sequence([*splits(YOUTU), byte_level()]),
              ["<|begin_of_text|>", "<|end_of_text|>", "<|User|>", "<|Assistant|>"], ["<think>", "</think>"]),
}
KIMI_SPECIAL = {"[BOS]": True, "[EOS]": True, "<|im_end|>": True, "<|im_user|>": True, "<|im_assistant|>": True,
                "<|im_system|>": True, "<|im_middle|>": True, "<|tool_calls_section_begin|>": False, "<think>": False}
TEKKEN_SPECIAL = {"<unk>": True, "<s>": True, "</s>": True, "[INST]": True, "[/INST]": True, "[SYSTEM_PROMPT]": True,
                  "[/SYSTEM_PROMPT]": True, "[THINK]": False, "[/THINK]": False}

# First and last code point of what random texts draw from.
RANGES = [(0x00, 0x1F), (0x20, 0x7E), (0x7F, 0x9F), (0xA0, 0x17F), (0x300, 0x36F), (0x391, 0x3A1), (0x3B1, 0x3C9), (0x400, 0x45F),
          (0x5B0, 0x5BD), (0x5D0, 0x5EA), (0x621, 0x63A), (0x64B, 0x652), (0x660, 0x669), (0x905, 0x939), (0x93E, 0x94D),
          (0xE01, 0xE3A), (0x10D0, 0x10F0), (0x1100, 0x1112), (0x1161, 0x1175), (0x13A0, 0x13F4), (0x2000, 0x200F),
          (0x2010, 0x2027), (0x2028, 0x202F), (0x2150, 0x215E), (0x2160, 0x2188), (0x2190, 0x21FF), (0x2200, 0x22FF),
          (0x2460, 0x249B), (0x2500, 0x257F), (0x3000, 0x3029), (0x3041, 0x3096), (0x30A1, 0x30FA), (0x3105, 0x312D),
          (0x3131, 0x318E), (0x3400, 0x3450), (0x4E00, 0x9FA5), (0xAC00, 0xD7A3), (0xE000, 0xE010), (0xF900, 0xFA2D),
          (0xFE00, 0xFE0F), (0xFE30, 0xFE4F), (0xFF01, 0xFF5E), (0xFFF9, 0xFFFD), (0x10330, 0x1034A), (0x10400, 0x1044F),
          (0x12000, 0x12399), (0x1D400, 0x1D454), (0x1D7CE, 0x1D7FF), (0x1F1E6, 0x1F1FF), (0x1F300, 0x1F320),
          (0x1F3FB, 0x1F3FF), (0x1F600, 0x1F64F), (0x20000, 0x20100), (0x2F800, 0x2F810), (0xE0020, 0xE007F), (0xF0000, 0xF0002),
          (0x10FFFE, 0x10FFFF)]
BAD_BYTES = [0x41, 0x20, 0x0A, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF, 0xE0, 0xE1, 0xED, 0xEF, 0xF0, 0xF3, 0xF4, 0xF5, 0xFF]
MORE = ["’ll", "DON'T", "iPhone", "HTTPServer", "ABCdef", "straßE", "ǅungla", "ʰˢ", "漢字かな交じり", "中文abc中文", "々〇〻", "𠀋", "⺀⼀", "한글날", "ㄅㄆㄇ", "…“”‘’",
        "\t\t", "\r\n\r\n", " \r", "\n \n", "    \n", "/\n//", "-\n", "//", "!\r\n", " ?", "\u00a0\u00a0", "\u0085x", "\u2029", "\u200b\u200b",
        "0x1F", "1e-9", "１２３", "Ⅳ", "a\u0300\u0301\u0302", "\u0301", "👨‍👩‍👧", "☝🏿", "🏳️‍🌈", "\ufeffBOM", "\x00\x01\x02", "<|", "|>", "<｜", "[", "]", "</"]


class Random:
    """splitmix64; `below` is biased by nothing that matters here."""

    def __init__(self, seed: int):
        self.state = seed

    def next(self) -> int:
        self.state = (self.state + SPLITMIX64_STEP) % 2**64
        return splitmix64(self.state)

    def below(self, bound: int) -> int:
        return self.next() % bound


def make_text(number: int, fragments: list[str]) -> bytes:
    rng = Random(number)
    kind = rng.below(8)
    out = b""
    if number % 100 == 99:  # a very long word, or a very long run
        return fragments[rng.below(len(fragments))].encode() * (300 + rng.below(700))
    if kind == 4:
        first, last = RANGES[rng.below(len(RANGES))]
        for _ in range(1 + rng.below(12)):
            if rng.below(3) == 0:
                first, last = RANGES[rng.below(len(RANGES))]
            out += chr(first + rng.below(last - first + 1)).encode()
        return out
    if kind == 5:
        for _ in range(1 + rng.below(10)):
            out += bytes([BAD_BYTES[rng.below(len(BAD_BYTES))]])
        return out
    if kind == 6:
        return fragments[rng.below(len(fragments))].encode() * (1 + rng.below(40))
    for _ in range(1 + rng.below(8)):
        out += fragments[rng.below(len(fragments))].encode()
    return out


def digest(ids: list[int]) -> str:
    return fnv(b"".join(i.to_bytes(4, "little") for i in ids))[-6:]


def write(name: str, encode, decode, special: list[str], prefix: list[int]) -> None:
    """`special`: every token to be found in text, beside the fragments."""
    fragments = FRAGMENTS + MORE + special
    lines = [json.dumps({"special": special, "prefix": prefix}, ensure_ascii=True)]
    for number in range(COUNT):
        text = make_text(number, fragments).decode("utf-8", "replace")
        ids = encode(text)
        assert decode(ids) == text, (name, number, text)
        lines.append(digest(ids))
    path = OUT / f"{name}.txt"
    path.write_text("\n".join(lines) + "\n")
    print(f"{path.name}: {path.stat().st_size} bytes")


def json_family(name: str) -> None:
    pre_tokenizer, special, added = JSON_FAMILIES[name]
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizer
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=640, special_tokens=special, show_progress=False, initial_alphabet=sorted(pre.ByteLevel.alphabet()))
    tok.train_from_iterator(training_text(), trainer)
    tok.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in special])
    tok.add_tokens([AddedToken(text, normalized=False) for text in added])
    tok.post_processor = processors.ByteLevel(trim_offsets=False)
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    tok.save(str(folder / "tokenizer.json"), pretty=False)
    write(name, lambda text: tok.encode(text, add_special_tokens=False).ids, lambda ids: tok.decode(ids, skip_special_tokens=False), special + added, [])


def train_ranks(pattern: str, size: int) -> dict[bytes, int]:
    # tiktoken's trainer runs on the `regex` module, which knows && in version 1 only.
    return bpe_train("".join(training_text()), size, "(?V1)" + pattern, visualise=None)


def kimi() -> None:
    ranks = train_ranks(KIMI, 600)
    folder = OUT / "kimi"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiktoken.model").write_text("".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items()))
    decoder = {str(len(ranks) + 2 * i): {"content": text, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": special}
               for i, (text, special) in enumerate(KIMI_SPECIAL.items())}
    config = {"added_tokens_decoder": decoder, "bos_token": "[BOS]", "eos_token": "[EOS]", "tokenizer_class": "TikTokenTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    special = {f"<|reserved_token_{i}|>": i for i in range(len(ranks), len(ranks) + 256)}
    for key, token in decoder.items():
        del special[f"<|reserved_token_{key}|>"]
        special[token["content"]] = int(key)
    encoding = tiktoken.Encoding("kimi", pat_str=KIMI, mergeable_ranks=ranks, special_tokens=special)
    write("kimi", lambda text: encoding.encode(text, allowed_special="all"), encoding.decode,
          [*KIMI_SPECIAL, f"<|reserved_token_{len(ranks) + 1}|>"], [])


def tekken() -> None:
    ranks = train_ranks(TEKKEN, 600)
    folder = OUT / "tekken"
    folder.mkdir(parents=True, exist_ok=True)
    vocab = [{"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None} for token, rank in ranks.items()]
    special = [{"rank": i, "token_str": text, "is_control": control} for i, (text, control) in enumerate(TEKKEN_SPECIAL.items())]
    config = {"pattern": TEKKEN, "num_vocab_tokens": 600, "default_vocab_size": 12 + 580, "default_num_special_tokens": 12, "version": "v13"}
    (folder / "tekken.json").write_text(json.dumps({"config": config, "vocab": vocab, "special_tokens": special}))
    tok = Tekkenizer.from_file(folder / "tekken.json")
    cut = re.compile("(" + "|".join(re.escape(text) for text in sorted(TEKKEN_SPECIAL, key=len, reverse=True)) + ")")
    id_of = {token["token_str"]: token["rank"] for token in special}

    def encode(text: str) -> list[int]:
        ids = []
        for part in cut.split(text):
            ids += [id_of[part]] if part in id_of else tok.encode(part, bos=False, eos=False)
        return ids

    from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy
    assert tok.encode("x", bos=True, eos=False)[0] == id_of["<s>"]
    write("tekken", encode, lambda ids: tok.decode(ids, special_token_policy=SpecialTokenPolicy.KEEP), list(TEKKEN_SPECIAL), [id_of["<s>"]])


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    corpus = {"fragments": FRAGMENTS + MORE, "ranges": RANGES, "bad_bytes": BAD_BYTES, "count": COUNT}
    (OUT / "corpus.json").write_text(json.dumps(corpus))
    for name in JSON_FAMILIES:
        json_family(name)
    kimi()
    tekken()


if __name__ == "__main__":
    main()
