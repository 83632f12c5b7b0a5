#!/usr/bin/env python3
"""Times how long a checkpoint of a gigabyte takes to load, beside plainly reading its files, both with nothing in the page cache.

    bench/load_time.py [--program build/cpu/apps/snapmla] [--runs 15] [--dir FOLDER]

Two checkpoints of random weights are made in a temporary folder, with the widths of DeepSeek-V2-Lite and two of its layers, one
dense and one of experts: BF16, and FP8 with a scale for 128 x 128 weights, which become BF16 as they are loaded. Each run drops
the files from the page cache, reads them in blocks of 8 MiB, drops them again and loads them; every second run loads first. A
load is what `snapmla run --json` gives as load_seconds: until the engine can take a request. The figures go to standard output
as JSON. Standard library only; Linux.
"""

import argparse
import json
import math
import os
import random
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SIZES = {"BF16": 2, "F32": 4, "F8_E4M3": 1}
BLOCK = 128  # rows and columns of FP8 weights to a scale
CONFIG = {
    "model_type": "deepseek_v2", "vocab_size": 32768, "hidden_size": 2048, "intermediate_size": 10944,
    "moe_intermediate_size": 1408, "num_hidden_layers": 2, "num_attention_heads": 16, "n_shared_experts": 2,
    "num_experts_per_tok": 6, "first_k_dense_replace": 1, "topk_method": "greedy", "scoring_func": "softmax",
    "norm_topk_prob": False, "routed_scaling_factor": 1.0, "kv_lora_rank": 512, "q_lora_rank": None,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "max_position_embeddings": 4096, "eos_token_id": 1,
}
# Bytes of random weights: all of a BF16's low byte, of its high one only those of 2^-7 to 2^-5; an e4m3 that is no NaN.
HIGH_BYTES = bytes(0xBC if byte & 0x80 else 0x3C for byte in range(256))
E4M3_BYTES = bytes(byte & 0xBF for byte in range(256))


def tensors(config: dict) -> dict[str, tuple[int, ...]]:
    """Name and shape of all that a checkpoint of the config holds."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    nope, v = config["qk_nope_head_dim"], config["v_head_dim"]
    inter, experts = config["moe_intermediate_size"], config["n_routed_experts"]
    found = {name: (config["vocab_size"], hidden) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    found["model.norm.weight"] = (hidden,)

    def ffn(prefix: str, width: int) -> None:
        found.update({prefix + "gate_proj.weight": (width, hidden), prefix + "up_proj.weight": (width, hidden),
                      prefix + "down_proj.weight": (hidden, width)})

    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        found.update({
            at + "input_layernorm.weight": (hidden,),
            at + "post_attention_layernorm.weight": (hidden,),
            at + "self_attn.q_proj.weight": (heads * (nope + 64), hidden),
            at + "self_attn.kv_a_proj_with_mqa.weight": (576, hidden),
            at + "self_attn.kv_a_layernorm.weight": (512,),
            at + "self_attn.kv_b_proj.weight": (heads * (nope + v), 512),
            at + "self_attn.o_proj.weight": (hidden, heads * v),
        })
        if layer < config["first_k_dense_replace"]:
            ffn(at + "mlp.", config["intermediate_size"])
            continue
        found[at + "mlp.gate.weight"] = (experts, hidden)
        for expert in range(experts):
            ffn(f"{at}mlp.experts.{expert}.", inter)
        ffn(at + "mlp.shared_experts.", config["n_shared_experts"] * inter)
    return dict(sorted(found.items()))  # as checkpoints have them


def stored(config: dict, fp8: bool) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name, dtype and shape of what is written: in FP8, all matrices of a layer but the router."""
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, shape in tensors(config).items():
        in_fp8 = fp8 and len(shape) == 2 and ".layers." in name and not name.endswith("mlp.gate.weight")
        found[name] = ("F8_E4M3" if in_fp8 else "BF16", shape)
        if in_fp8:
            found[name + "_scale_inv"] = ("F32", tuple(-(-extent // BLOCK) for extent in shape))
    return found


def random_bytes(rng: random.Random, dtype: str, count: int) -> bytes:
    if dtype == "F32":
        return struct.pack(f"<{count}f", *(rng.uniform(0.001, 0.002) for _ in range(count)))
    if dtype == "F8_E4M3":
        return rng.randbytes(count).translate(E4M3_BYTES)
    both = bytearray(2 * count)
    both[0::2] = rng.randbytes(count)
    both[1::2] = rng.randbytes(count).translate(HIGH_BYTES)
    return bytes(both)


def write_checkpoint(folder: Path, config: dict, fp8: bool) -> list[Path]:
    """The folder of a checkpoint in two shards and an index; returns the shards."""
    folder.mkdir(parents=True)
    if fp8:
        config = config | {"quantization_config": {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]}}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "models" / "tiny-mla" / name, folder)
    rng = random.Random(1)
    everything = list(stored(config, fp8).items())
    half = len(everything) // 2
    weight_map, shards = {}, []
    for part, chosen in enumerate((everything[:half], everything[half:]), start=1):
        shard = folder / f"model-{part:05d}-of-00002.safetensors"
        header, at = {}, 0
        for name, (dtype, shape) in chosen:
            end = at + SIZES[dtype] * math.prod(shape)
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
            weight_map[name], at = shard.name, end
        text = json.dumps(header).encode()
        with shard.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for _, (dtype, shape) in chosen:
                file.write(random_bytes(rng, dtype, math.prod(shape)))
            file.flush()
            os.fsync(file.fileno())  # only what is on the disk can be dropped from the page cache
        shards.append(shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return shards


def drop_from_page_cache(files: list[Path]) -> None:
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_seconds(files: list[Path]) -> float:
    block = memoryview(bytearray(8 << 20))
    begin = time.perf_counter()
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(block):
                pass
    return time.perf_counter() - begin


def load_seconds(program: str, folder: Path) -> float:
    command = [program, "run", str(folder), "--prompt", "a", "--max-tokens", "1", "--max-model-len", "64", "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)["load_seconds"]


def measure(program: str, folder: Path, files: list[Path], runs: int) -> dict:
    """Seconds of both, in turns, and how they compare."""
    seconds: dict[str, list[float]] = {"read": [], "load": []}
    work = {"read": lambda: read_seconds(files), "load": lambda: load_seconds(program, folder)}
    for run in range(runs):
        for what in ("read", "load") if run % 2 == 0 else ("load", "read"):
            drop_from_page_cache(files)
            seconds[what].append(work[what]())
        print(f"{folder.name}: read {seconds['read'][-1]:.2f} s, load {seconds['load'][-1]:.2f} s", file=sys.stderr)
    fastest = {what: min(found) for what, found in seconds.items()}
    middle = {what: statistics.median(found) for what, found in seconds.items()}
    return {
        "checkpoint": folder.name,
        "bytes": sum(path.stat().st_size for path in files),
        "read_seconds": {"min": round(fastest["read"], 3), "median": round(middle["read"], 3)},
        "load_seconds": {"min": round(fastest["load"], 3), "median": round(middle["load"], 3)},
        "ratio": {"min": round(fastest["load"] / fastest["read"], 3), "median": round(middle["load"] / middle["read"], 3)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default=str(ROOT / "build/cpu/apps/snapmla"))
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--dir", help="make the checkpoints below this folder: it chooses the disk")
    args = parser.parse_args()
    results = []
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        for name, fp8, experts in (("bf16", False, 32), ("fp8", True, 64)):
            files = write_checkpoint(Path(folder) / name, CONFIG | {"n_routed_experts": experts}, fp8)
            results.append(measure(args.program, files[0].parent, files, args.runs))
            shutil.rmtree(files[0].parent)
    result = {"runs": args.runs, "load_average": [round(load_before, 2), round(os.getloadavg()[0], 2)], "checkpoints": results}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
