"""Retrieval, perplexity and samples of an exported folder, with transformers.

`--dtype bfloat16` computes in BF16. CPUs without BF16 units are several times faster with
`--dtype float32 --cache bfloat16`: FP32 arithmetic on the BF16 weights, and every entry of
the cache is rounded to BF16 once it is written.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from data import Pieces, Text, prompt
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

CHUNK = 1024


class RoundedCache(DynamicCache):
    """A cache whose entries are rounded to `dtype` before anything reads them."""

    dtype: torch.dtype | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if self.dtype is not None:
            key_states = key_states.to(self.dtype).to(key_states.dtype)
            value_states = value_states.to(self.dtype).to(value_states.dtype)
        return super().update(key_states, value_states, *args, **kwargs)


@torch.no_grad()
def prefill(model: torch.nn.Module, ids: Tensor) -> tuple[Tensor, DynamicCache]:
    """The cache of a prompt, filled chunk by chunk, and the logits after its last token."""
    cache = RoundedCache(config=model.config)
    for at in range(0, ids.shape[1], CHUNK):
        out = model(ids[:, at : at + CHUNK], past_key_values=cache, use_cache=True, logits_to_keep=1)
    return out.logits[0, -1], cache


@torch.no_grad()
def greedy(model: torch.nn.Module, ids: list[int], count: int) -> list[int]:
    device = model.device
    logits, cache = prefill(model, torch.tensor([ids], device=device))
    out = [int(logits.argmax())]
    while len(out) < count:
        step = torch.tensor([[out[-1]]], device=device)
        logits = model(step, past_key_values=cache, use_cache=True).logits[0, -1]
        out.append(int(logits.argmax()))
    return out


def recall(model: torch.nn.Module, text: Text, pieces: Pieces, length: int, pairs: int, count: int,
           seed: int) -> int:
    """How many of `count` prompts are answered with the right five digits."""
    rng = np.random.default_rng([seed, length, pairs])
    right = 0
    for _ in range(count):
        ids, answer = prompt(text, pieces, length, pairs, rng)
        right += greedy(model, ids, len(answer)) == answer
    return right


@torch.no_grad()
def perplexity(model: torch.nn.Module, documents: list[list[int]], window: int) -> dict[str, float]:
    """Of <|begin|> + text in windows without overlap; per token and per byte."""
    ids = [i for d in documents for i in d]
    total, count = 0.0, 0
    for at in range(0, len(ids), window):
        row = torch.tensor([[model.config.bos_token_id, *ids[at : at + window]]], device=model.device)
        logits = model(row).logits[0, :-1].float()
        total += float(F.cross_entropy(logits, row[0, 1:], reduction="sum"))
        count += row.shape[1] - 1
    return {"tokens": count, "nll": total, "perplexity": math.exp(total / count)}


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--model", type=Path, default=Path(__file__).parent.parent / "tiny-mla")
    args.add_argument("--dtype", default="bfloat16")
    args.add_argument("--cache", default="", help="round cache entries to this type")
    args.add_argument("--passkey", type=int, nargs="*", default=[], metavar="LENGTH")
    args.add_argument("--pairs", type=int, default=64)
    args.add_argument("--pairs-lengths", type=int, nargs="*", default=[], metavar="LENGTH")
    args.add_argument("--count", type=int, default=100)
    args.add_argument("--seed", type=int, default=1)
    args.add_argument("--perplexity", type=int, default=0, metavar="WINDOW")
    args.add_argument("--sample", nargs="*", default=[], metavar="PROMPT")
    args.add_argument("--threads", type=int, default=0)
    opts = args.parse_args()
    if opts.threads:
        torch.set_num_threads(opts.threads)
    RoundedCache.dtype = getattr(torch, opts.cache) if opts.cache else None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(opts.model, dtype=getattr(torch, opts.dtype)).to(device).eval()
    tok = Tokenizer.from_file(str(opts.model / "tokenizer.json"))
    held_out = (opts.model / "held_out.txt").read_text("ascii")
    documents = [d.strip("\n") for d in held_out.split("\n\n")]
    encoded = [tok.encode(d, add_special_tokens=False).ids for d in documents if d]
    filler = tok.encode(re.sub("\n+", "\n", held_out).strip("\n"), add_special_tokens=False).ids
    text, pieces = Text(np.array(filler), tok), Pieces(tok)
    if opts.perplexity:
        found = perplexity(model, encoded, opts.perplexity)
        found["per_byte_bits"] = found["nll"] / math.log(2) / len(held_out)
        print(json.dumps(found), flush=True)
    for test, pairs, lengths in (("passkey", 0, opts.passkey), ("pairs", opts.pairs, opts.pairs_lengths)):
        for length in lengths:
            began = time.time()
            right = recall(model, text, pieces, length, pairs, opts.count, opts.seed)
            print(json.dumps({"test": test, "pairs": pairs, "length": length, "right": right, "of": opts.count,
                              "seconds": round(time.time() - began, 1)}), flush=True)
    if opts.sample:
        hf = AutoTokenizer.from_pretrained(opts.model)
        for start in opts.sample:
            ids = hf(start, return_tensors="pt", return_token_type_ids=False).input_ids.to(device)
            for how in ({"do_sample": False}, {"do_sample": True, "temperature": 0.8, "top_k": 40}):
                torch.manual_seed(opts.seed)
                made = model.generate(ids, max_new_tokens=80, pad_token_id=1, **how)
                print(json.dumps({"sampled": how["do_sample"], "text": hf.decode(made[0], skip_special_tokens=True)}))


if __name__ == "__main__":
    main()
