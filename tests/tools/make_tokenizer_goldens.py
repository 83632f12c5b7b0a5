#!/usr/bin/env python3
"""Make the tokenizers and goldens that tests/engine/tokenizer_test.cc reads, with the `tokenizers` library.

    make_tokenizer_goldens.py                  trains gpt2, deepseek_v3 and digits and writes <name>.json,
                                               <name>.jsonl, variants.jsonl and utf8.jsonl
    make_tokenizer_goldens.py --tokenizer models/tiny-mla/tokenizer.json --out tests/data/tokenizer/tiny-mla.jsonl
                                               goldens of an existing tokenizer; again after each retraining

A golden file starts with {"fnv": hash of the tokenizer.json, "prefix": [...], "suffix": [...]}: what the
post-processor adds. Each other line is a case: "text" (times "repeat" if given); "ids", or "runs" of [id,
count]; "decoded" and "decoded_special" (special tokens skipped, kept) where they differ from the text. A case
without "text" is decoded only. Needs: pip install tokenizers==0.23.3. All texts are made here.

Characters are those of Unicode 11 and older: younger ones are letters to one Unicode library and unassigned
to another.
"""

from __future__ import annotations

import argparse
import json
import random
from itertools import groupby
from pathlib import Path

from hashes import fnv1a
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, processors, trainers
from tokenizers import pre_tokenizers as pre

DATA = Path(__file__).parent.parent / "data" / "tokenizer"
BEGIN, END = "<|begin|>", "<|end|>"

# The pre-tokenizer regexes of DeepSeek-V3, DeepSeek-V2, Llama 3 and GPT-4o: facts of their tokenizer.json.
V3 = [
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
]
V2 = [
    "[\r\n]",
    "\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝ\u1f5f-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌ\u1fd0-\u1fd3\u1fd6-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝ\u2124\u2126\u2128\u212a-\u212dℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ\U00010400-\U0001044f]+",
    "\\s?[!-/:-~！-／：-～‘-‟　-。]+",
    "\\s+$",
    "[一-龥ࠀ-一가-퟿]+",
]
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CL100K = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
O200K = "|".join([
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
])

ENGLISH = """The cache keeps one short vector for each token it has seen, and every head reads that same vector.
When the sun had gone down the miller's daughter walked along the river, counting 12 boats and 345 lanterns.
It isn't enough to be quick; you'll want to be right, and they've said we're late, I'm sure he'd agree.
Please store the following key: amber-17 = 90210, cobalt-4 = 31337. What is the value stored for cobalt-4?
for (int i = 0; i < n; ++i) { sum += x[i] * y[i]; }  // a loop, nothing more
    def area(width, height):\n        return width * height\n\n"""
OTHER = """Größe, naïve façade, coração, señor, žluťoučký kůň, ångström. Привет, мир! Как дела сегодня?
你好，世界。今天天气很好，我们去公园散步。日本語のテキストとカタカナ。안녕하세요 세계, 좋은 아침입니다.
שלום עולם, مرحبا بالعالم كيف حالك، नमस्ते दुनिया क्या हाल है, สวัสดีชาวโลก. 😀🎉👍 → ∑ √ ≤ € £\n"""


def training_text() -> list[str]:
    rng = random.Random(7)
    words = (ENGLISH + OTHER).split()
    made = [" ".join(rng.choices(words, k=12)) + rng.choice([".", "!\n", "\r\n", "\n\n"]) for _ in range(300)]
    return (ENGLISH.splitlines(keepends=True) + OTHER.splitlines(keepends=True)) * 12 + made


def train(pre_tokenizer, vocab: int) -> Tokenizer:
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizer
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab, special_tokens=[BEGIN, END], show_progress=False,
                                  initial_alphabet=sorted(pre.ByteLevel.alphabet()))
    tok.train_from_iterator(training_text(), trainer)
    tok.add_special_tokens([
        "<｜tool▁call｜>", AddedToken("<mask>", lstrip=True), AddedToken("<sep>", rstrip=True),
        AddedToken("<both>", lstrip=True, rstrip=True), AddedToken("<lone>", single_word=True),
    ])
    tok.add_tokens([
        AddedToken("<tag>", normalized=False), AddedToken("<tag>s", normalized=False),
        AddedToken("wörd", single_word=True), AddedToken("<|beg", normalized=True), AddedToken("a<tag", normalized=True),
        AddedToken(" lead", normalized=False), AddedToken("日本", rstrip=True), "é", "the river",
    ])
    tok.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A $B", special_tokens=[(BEGIN, tok.token_to_id(BEGIN))])
    return tok


def splits(regexes: list[str]) -> list:
    return [pre.Split(Regex(r), "isolated") for r in regexes]


def byte_level(**flags) -> pre.ByteLevel:
    return pre.ByteLevel(**{"add_prefix_space": False, "use_regex": False, **flags})


FRAGMENTS = [
    "the", " river", "Hello", " world", "don't", "I'LL", "'s", "’s", "ſ'ſ", "a", " ", "  ", "   ", "\n", "\n\n", "\r\n", "\r",
    "\t", "\v", "\f", "\x00", "\x1b[0m", "\x7f", "\x85", "\xa0", "\u1680", "\u180e", "\u2003", "\u2028", "\u3000",
    "\ufeff", "\u200b", "\u200d", "\xad", "0", "7", "42", "123", "4567", "3.14159", "1,000,000", "Ⅻ", "½", "²", "٣٤٥", "१२३", "𝟘𝟙", "①",
    "é", "e\u0301", "n\u0303o", "Z\u0351\u036b\u0343a\u0363\u0300l\u0321", "ﬁ", "ß", "İi", "ǅ", "ʰ", "Ω", "Å",
    "Привет", " мир", "שָׁלוֹם", "مرحبا ", "\u202eabc\u202c", "नमस्ते", "สวัสดี", "ကမ္ဘာ", "ქართული", "Ꭰꭰ", "你好", "世界", "日本", "日本語",
    "の", "カタ", "゛", "龥龦", "가힣", "ᄀ\u1161\u11a8", "𠀀𪚥", "、。", "（）", "！？", "「", "😀", "👩‍👩‍👧‍👦", "👍🏽", "🇩🇪", "❤️", "1️⃣", "🏴\U000e0067\U000e0062\U000e007f",
    "→", "∑", "€", "$", "+", "=", "<", "|", "~", "^", "`", "´", "_", "__init__", "-", "--", "—", "...", "…", "/", "\\", "\\n", "{}",
    "[x]", "(y)", "#!", "@", "%", "&amp;", '"', "''", "«»", "\ue000", "\uffff", "\U0010ffff", "\U000f0000", "𝒜", "𐐀",
    BEGIN, END, "<｜tool▁call｜>", "<mask>", "<sep>", "<both>", "<lone>", "<tag>", "<tag>s", "wörd", "<|beg", " lead", "the river", "<|", "|>",
]
WHOLE = [
    "", " ", "    x", "x    ", "  x  y   z ", "\n\n  \n x", "a\r\n\r\nb", " \t \n", "\u3000\u3000x", "It's we'll I'D they'VE 'tis '",
    "<mask>", " <mask> ", "a \u00a0<mask> b", "a  <sep>  b", "<sep> <mask>", "<sep> \u2003<mask> x", "a <both> b", "<both>  <both>",
    "<sep> lead", "<sep>  lead <tag>s<tag>sx", "<lone>", "a<lone>", "<lone>b", "a <lone> b", "é<lone>,", "_<lone>", "\u0301<lone>", "\u200d<lone> ", "²<lone>", "-<lone>-",
    "wörd", "wörds", "wörd wörd", "<tag>wörd<tag>", "awörd", "wörd日", "<|begin|>", "<|begin|", "<|beg<|begin|>", "x<|begin|>y<|end|>", " <|begin|> ",
    "日本 \n x", "日本語日本", "é e\u0301 É", "the river", "walk the river's edge", "THE RIVER", "<<tag>>", "<tag<tag>", "a<tag>", "a<tag", "<|<|end|>|>",
    "In the beginning", "The pass key is 48213. Remember it.", "x = [1, 2, 3]; y = x[::-1]  # reverse", "if (a<b && c>d) { return 0x1F; }",
    "SELECT * FROM t WHERE id=42;", "https://example.org/a?b=c&d=%20#e", "user@example.org", "C:\\dir\\file.txt", "2026-11-23T05:13:16Z", "+49 (0) 123/456-789",
    "1234567890" * 3, "٠١٢٣٤٥٦٧٨٩", "!!!???...", "=" * 40, " " * 50, "\n" * 20, "\t\t\tif", "aaaaaaaaaaaaaaaaaaaaaaaa", "ab" * 30, "ÿþ" * 10,
    "word" * 25, "\u0301\u0301\u0301", "\u200d\u200d", "👩‍👩‍👧‍👦" * 4, "a\u200db", "🇩🇪🇫🇷🇯", "مرحبا بالعالم", "שלום, עולם!", "a\u202eb\u202cc", "ㅎㅏㄴ한", "，你好，世界。", "第1章 第二節", "カタカナ・ひらがなー", "x你y好z",
]
LONG = [("a", 100_000), (" ", 20_000), ("\n", 5_000), ("7", 10_000), ("ab", 30_000), ("語", 10_000), ("é", 5_000), ("!?", 10_000), ("<|end|>", 500),
        ("the ", 5_000), ("'s", 3_000), ("\U0001f600", 3_000), (" \n", 3_000)]


def texts() -> list[str]:
    rng = random.Random(11)
    mixed = ["".join(rng.choices(FRAGMENTS, k=rng.randint(2, 7))) for _ in range(170)]
    return WHOLE + FRAGMENTS + mixed


def runs(ids: list[int]) -> list[list[int]]:
    return [[key, len(list(group))] for key, group in groupby(ids)]


def frame(tok: Tokenizer) -> dict:
    """What the post-processor puts around every text."""
    bare, full = (tok.encode("<tag>", add_special_tokens=special).ids for special in (False, True))
    at = next(i for i in range(len(full)) if full[i:i + len(bare)] == bare)
    return {"prefix": full[:at], "suffix": full[at + len(bare):]}


def case(tok: Tokenizer, text: str, repeat: int = 1) -> dict:
    """A line of a golden file; periodic ids of long texts are stored whole, as runs."""
    whole = text * repeat
    ids = tok.encode(whole, add_special_tokens=False).ids
    around = frame(tok)
    assert tok.encode(whole).ids == around["prefix"] + ids + around["suffix"]
    line: dict = {"text": text}
    if repeat > 1:
        line["repeat"] = repeat
        line["runs"] = runs(ids)
    else:
        line["ids"] = ids
    for key, skip in (("decoded", True), ("decoded_special", False)):
        decoded = tok.decode(ids, skip_special_tokens=skip)
        if decoded != whole:
            line[key] = decoded
    return line


def random_ids(tok: Tokenizer, count: int) -> list[dict]:
    rng = random.Random(13)
    lines = []
    for _ in range(count):
        # mostly single bytes, so that ill-formed UTF-8 appears
        ids = [rng.randrange(tok.get_vocab_size() if rng.random() < 0.3 else 258) for _ in range(rng.randint(1, 12))]
        lines.append({"ids": ids, "decoded": tok.decode(ids), "decoded_special": tok.decode(ids, skip_special_tokens=False)})
    return lines


def fnv(data: bytes) -> str:
    return f"{fnv1a(data):016x}"


def write_lines(path: Path, lines: list[dict]) -> None:
    path.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))
    print(f"{path.name}: {len(lines)} lines, {path.stat().st_size} bytes")


def write_goldens(source: Path, out: Path) -> None:
    tok = Tokenizer.from_file(str(source))
    cases = [case(tok, text) for text in texts()]
    cases += [line for text, n in LONG if len(json.dumps((line := case(tok, text, n)))) < 400]
    write_lines(out, [{"fnv": fnv(source.read_bytes()), **frame(tok)}, *cases, *random_ids(tok, 40)])


def set_at(document: dict, pointer: str, value) -> None:
    *path, last = pointer.strip("/").split("/")
    for key in path:
        document = document[key]
    document[last] = value


def split_json(pattern: dict, behavior: str = "Isolated", invert: bool = False) -> dict:
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}


def with_byte_level(*steps: dict, **flags) -> dict:
    last = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False, **flags}
    return {"type": "Sequence", "pretokenizers": [*steps, last]}


def variants() -> list[tuple[str, dict, list[str]]]:
    """(name, changes to gpt2.json by JSON pointer, texts): everything supported that the three files lack."""
    rng = random.Random(17)
    some = [" ".join(rng.choices(FRAGMENTS, k=4)) for _ in range(12)] + WHOLE[:14] + WHOLE[51:66]
    few = ["", "a,b", ",a,,b,", ",,", "a, b ,c", "xaxxbx12y345", "12", "a b  c\nd\n\n e ", "日本語、,x\u180ey\u3000z"]
    out = [("deepseek_v2", {"/pre_tokenizer": with_byte_level(
        *[split_json({"Regex": r}) for r in V2], {"type": "Digits", "individual_digits": True})}, some)]
    for name, regex in (("llama3", LLAMA3), ("cl100k", CL100K), ("o200k", O200K)):
        out.append((name, {"/pre_tokenizer": with_byte_level(split_json({"Regex": regex}))}, some))
    out.append(("ignore_merges", {"/model/ignore_merges": True}, some[:20]))
    out.append(("prefix_space", {"/pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}}, some))
    out.append(("digits_together", {"/pre_tokenizer": with_byte_level({"type": "Digits", "individual_digits": False}, use_regex=True)}, some + few))
    for pattern in ({"String": ","}, {"String": "[a.]"}, {"String": ""}, {"Regex": ",+|\\d"}, {"Regex": "x*"}, {"Regex": "[,x]"}):
        for behavior in ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"):
            for invert in (False, True):
                name = f"{behavior} {'inverted ' if invert else ''}{pattern}"
                out.append((name, {"/pre_tokenizer": with_byte_level(split_json(pattern, behavior, invert))}, few))
    for regex in (r"\p{Han}+", r"\p{^L}+", r"\P{L}+", r"\S+", r"[\S]+", r"[^\s]+", r"[\s,]+", r"\D+", r"[\D]+", r"\d{,2}", r"x{2}|b{1,}",
                  r"\u65e5|[\x{672c}-\x{8a9e}]", r"^.", r".$", r"\A.|.\z", r"\v|\n", r"(?<=,)\S|(?<! )b", r"(?>x+)b", r"a|(b)", r"[a\-c,]+", r"[,-]+",
                  r"x{", r"\p{Katakana}", r"\x2c", r"[\x61-\u0063]", r"x+?", r"x*+b"):
        for behavior in ("Isolated", "Removed"):  # the second shows in the ids what matched
            out.append((f"{behavior} {regex}", {"/pre_tokenizer": with_byte_level(split_json({"Regex": regex}, behavior))}, few))
    end = {"id": END, "ids": [1], "tokens": [END]}
    single = [{"SpecialToken": {"id": "two", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": END, "type_id": 0}}]
    two = {"id": "two", "ids": [0, 5], "tokens": [BEGIN, "x"]}
    template = {"type": "TemplateProcessing", "single": single, "pair": [*single, {"Sequence": {"id": "B", "type_id": 0}}], "special_tokens": {END: end, "two": two}}
    trim = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    out.append(("template around", {"/post_processor": {"type": "Sequence", "processors": [trim, template]}}, few))
    out.append(("byte-level post-processor", {"/post_processor": trim}, few))
    out.append(("no post-processor", {"/post_processor": None}, few))
    out.append(("decoder sequence", {"/decoder": {"type": "Sequence", "decoders": [trim, {"type": "Fuse"}]}}, few))
    out.append(("empty normalizer", {"/normalizer": {"type": "Sequence", "normalizers": []}}, few))
    return out


def write_variants(out: Path) -> None:
    source = json.loads((DATA / "gpt2.json").read_text())
    old_style = [" ".join(pair) for pair in source["model"]["merges"]]
    lines = []
    for name, patch, cases in [*variants(), ("merges as strings", {"/model/merges": old_style}, ["the river's edge"])]:
        document = json.loads(json.dumps(source))
        for pointer, value in patch.items():
            set_at(document, pointer, value)
        tok = Tokenizer.from_str(json.dumps(document))
        if name == "merges as strings":
            patch = {}  # large, and the test can make it
        lines.append({"variant": name, "patch": patch, **frame(tok)})
        lines += [case(tok, text) for text in cases]
    write_lines(out, lines)


def write_utf8(out: Path) -> None:
    rng = random.Random(19)
    bad = [b"\xff", b"a\x80b", b"\xc0\xaf", b"\xe0\x80\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xf0\x9f\x98", b"\xe2\x82", b"\xe2(\xa1", b"\xf0\x9fa\x98\x80",
           b"\xf8\x88\x80\x80\x80", b"\xc3", b"\xc3\xa9\xc3", b"\xe4\xbd\xe5\xa5\xbd", b"\xf1\x80\x80\xe1\x80\xc2", b"\x00\xfe\x00", b"\xef\xbf\xbd\xbd"]
    pool = [0x41, 0x20, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC1, 0xC2, 0xDF, 0xE0, 0xE1, 0xED, 0xEF, 0xF0, 0xF3, 0xF4, 0xF5, 0xFF]
    bad += [bytes(rng.choices(pool, k=rng.randint(2, 9))) for _ in range(150)]
    write_lines(out, [{"hex": data.hex(), "text": data.decode("utf-8", "replace")} for data in bad])


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--tokenizer", type=Path, help="a tokenizer.json")
    args.add_argument("--out", type=Path, help="the golden file to write for it")
    opts = args.parse_args()
    if opts.tokenizer:
        write_goldens(opts.tokenizer, opts.out)
        return
    DATA.mkdir(parents=True, exist_ok=True)
    for name, pre_tokenizer, vocab in (
        ("gpt2", byte_level(use_regex=True), 700),
        ("deepseek_v3", pre.Sequence([*splits(V3), byte_level()]), 900),
        ("digits", pre.Sequence([pre.Digits(individual_digits=True), byte_level(use_regex=True)]), 600),
    ):
        path = DATA / f"{name}.json"
        train(pre_tokenizer, vocab).save(str(path), pretty=False)
        write_goldens(path, DATA / f"{name}.jsonl")
    write_variants(DATA / "variants.jsonl")
    write_utf8(DATA / "utf8.jsonl")


if __name__ == "__main__":
    main()
