"""Train the model: natural text and retrieval together, with growing lengths.

The schedule follows the clock, so that a recipe fits its time on any machine;
`work/NAME.pt` is written every few minutes and an interrupted run goes on from it.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from data import BEGIN, Pieces, Sequences, Text, load, prompt
from model import Config, Model, Past, initialise
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info


@dataclass(frozen=True)
class Stage:
    """Until `until` (a share of the time), train on sequences of `length` tokens."""

    until: float
    length: int
    batch: int
    plain: float  # share of sequences that are text alone
    dense: float  # share of a retrieval sequence that is facts and questions
    limit: int = 32768  # positions jump up to here
    tail: int = 0  # >0: gradients only in the last so many tokens, the rest is a frozen cache


@dataclass(frozen=True)
class Recipe:
    minutes: float
    stages: tuple[Stage, ...]
    attention_rate: float = 0.004
    mixing_rate: float = 0.015
    adam_rate: float = 0.002
    embedding_rate: float = 0.02
    decay_from: float = 0.4  # the rates fall linearly from here to a twentieth
    weight_decay: float = 0.02  # of matrices
    mean_penalty: float = 0  # on the mean square of what all latents of a batch have in common
    round_to: torch.dtype | None = None  # kv_b_proj's input, as FP8 training rounds the inputs of its products


RECIPES = {
    # 2 CPU cores (AMD Zen 3), one of them used
    "cpu": Recipe(
        minutes=62,
        stages=(
            Stage(0.34, 512, 8, 0.4, 0.5),
            Stage(0.50, 512, 8, 0.5, 0.6),
            Stage(0.68, 1024, 4, 0.5, 0.6),
            Stage(0.84, 2048, 2, 0.5, 0.6),
            Stage(0.93, 4096, 1, 0.4, 0.5),
            Stage(1.01, 8192, 1, 0.0, 0.3, tail=2048),
        ),
    ),
    # one H200 with 16 CPU cores (which make the sequences)
    "gpu": Recipe(
        minutes=8,
        stages=(
            Stage(0.20, 512, 128, 0.3, 0.5),
            Stage(0.40, 1024, 64, 0.3, 0.4),
            Stage(0.60, 2048, 32, 0.3, 0.3),
            Stage(0.75, 4096, 16, 0.3, 0.25),
            Stage(0.87, 8192, 8, 0.3, 0.2),
            Stage(0.95, 16384, 4, 0.2, 0.15),
            Stage(1.01, 32768, 2, 0.1, 0.1),
        ),
    ),
    # after "gpu", from its weights (--from), beside two more runs on the same GPU
    "settle": Recipe(
        minutes=1.8,
        stages=(
            Stage(0.35, 1024, 64, 0.4, 0.4),
            Stage(0.60, 4096, 16, 0.4, 0.25),
            Stage(0.80, 8192, 8, 0.4, 0.2),
            Stage(1.01, 16384, 4, 0.3, 0.15),
        ),
        attention_rate=0.0024,
        mixing_rate=0.009,
        adam_rate=0.0012,
        embedding_rate=0.012,
        decay_from=0.0,
        weight_decay=0.1,
        mean_penalty=0.5,
        round_to=torch.float8_e4m3fn,
    ),
    # a minute, to see that everything runs
    "smoke": Recipe(minutes=1, stages=(Stage(0.7, 128, 4, 0.3, 0.6), Stage(1.01, 1024, 1, 0.0, 0.2, tail=256))),
}


class Batches(IterableDataset):
    """Endless batches of a stage; every worker process draws its own."""

    def __init__(self, text: Text, tok: Tokenizer, stage: Stage, seed: int) -> None:
        self.text, self.tok, self.stage, self.seed = text, tok, stage, seed

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        worker, stage = get_worker_info(), self.stage
        sequences = Sequences(self.text, self.tok, seed=[self.seed, worker.id if worker else 0])
        while True:
            made = sequences.batch(stage.batch, stage.length, stage.plain, stage.dense, stage.limit, stage.tail)
            yield tuple(torch.from_numpy(m) for m in made)


def orthogonalise(g: Tensor, steps: int = 4) -> Tensor:
    """Newton-Schulz iteration towards the nearest orthogonal matrix (batched)."""
    x = g / (g.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    for _ in range(steps):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, then orthogonalised updates, scaled to the size of an Adam update."""

    def __init__(self, params: list[dict], lr: float, momentum: float = 0.95, decay: float = 0.02) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["m"] = torch.zeros_like(p)
                state["m"].lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(state["m"], group["momentum"])
                heads = getattr(p, "heads", None)  # (axis, count): a matrix per head
                if heads:
                    update = update.unflatten(heads[0], (heads[1], -1)).movedim(heads[0], 0)
                size = math.sqrt(max(update.shape[-2:]))
                update = orthogonalise(update)
                if heads:
                    update = update.movedim(0, heads[0]).flatten(heads[0], heads[0] + 1)
                p.mul_(1 - group["lr"] * group["decay"])
                p.add_(update, alpha=-group["lr"] * 0.2 * size)


def optimizers(model: Model, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for matrices (attention, which starts with a structure to keep, slower), Adam for the rest."""
    for layer in model.layers:
        heads = model.c.num_attention_heads
        layer.self_attn.q_proj.weight.heads = layer.self_attn.kv_b_proj.weight.heads = (0, heads)
        layer.self_attn.o_proj.weight.heads = (1, heads)
    attention, mixing, small, embedding = [], [], [], []
    for name, p in model.named_parameters():
        if "embed" in name:
            embedding.append(p)
        elif p.ndim >= 2 and not name.endswith("router"):
            (attention if "self_attn" in name else mixing).append(p)
        else:
            small.append(p)
    final = [p for p in small if p is model.norm.weight]
    small = [p for p in small if p is not model.norm.weight]
    groups = [
        {"params": embedding, "lr": recipe.embedding_rate},
        {"params": small, "lr": recipe.adam_rate},
        {"params": final, "lr": 0.1 * recipe.adam_rate},
    ]
    matrices = [{"params": attention, "lr": recipe.attention_rate}, {"params": mixing, "lr": recipe.mixing_rate}]
    made = [Muon(matrices, recipe.mixing_rate, decay=recipe.weight_decay), torch.optim.Adam(groups, betas=(0.9, 0.97), eps=1e-10)]
    for opt in made:
        for group in opt.param_groups:
            group["base"] = group["lr"]
    return made


def loss_of(model: Model, ids: Tensor, weights: Tensor, positions: Tensor,
            tail: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weighted loss, the (detached) losses and weights of the targets, and the mean square of the latents' means."""
    past = None
    if tail:
        head = ids.shape[1] - tail
        with torch.no_grad():
            entries: list[Past] | None = None
            for at in range(0, head, 4096):
                stop = min(at + 4096, head)
                _, kept = model(ids[:, at:stop], positions[:, at:stop], entries)
                entries = kept if entries is None else [
                    Past(torch.cat((e.latent, k.latent), 1), torch.cat((e.rope, k.rope), 1))
                    for e, k in zip(entries, kept, strict=True)
                ]
        past = entries
        ids, weights, positions = ids[:, head:], weights[:, head:], positions[:, head:]
    hidden, kept = model(ids, positions, past)
    logits = model.logits(hidden[:, :-1]).float()
    targets = weights[:, 1:].flatten()
    each = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    common = sum(k.latent.flatten(0, 1).float().mean(0).square().mean() for k in kept)
    return (each * targets).sum() / targets.sum(), each.detach(), targets, common


@torch.no_grad()
def recall_rate(model: Model, text: Text, tok: Tokenizer, length: int, pairs: int, count: int,
                seed: int = 1) -> tuple[float, float]:
    """Shares of answers (and of single digits) that greedy decoding gets right.

    One pass over prompt and answer: greedy decoding finds the answer if and only
    if every digit of it is the most likely one after those before.
    """
    rng, pieces, right, single = np.random.default_rng(seed), Pieces(tok), 0, 0.0
    device = next(model.parameters()).device
    for _ in range(count):
        asked, answer = prompt(text, pieces, length, pairs, rng)
        ids = torch.tensor([asked + answer[:-1]], device=device)
        rows = torch.arange(len(asked) - 1, ids.shape[1], device=device)
        hidden, _ = model(ids, torch.arange(ids.shape[1], device=device)[None], rows=rows)
        found = model.logits(hidden)[0].argmax(-1) == torch.tensor(answer, device=device)
        right += bool(found.all())
        single += float(found[1:].float().mean())
    return right / count, single / count


@torch.no_grad()
def text_loss(model: Model, ids: np.ndarray, window: int = 512, count: int = 40) -> float:
    device = next(model.parameters()).device
    total = 0.0
    for i in range(count):
        start = i * (len(ids) - window) // count
        row = torch.tensor([[BEGIN, *ids[start : start + window].tolist()]], device=device)
        hidden, _ = model(row, torch.arange(window + 1, device=device)[None])
        total += float(F.cross_entropy(model.logits(hidden)[0, :-1].float(), row[0, 1:]))
    return total / count


def weights_of(path: Path, like: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a checkpoint of this script, or of an exported model.safetensors."""
    if path.suffix == ".pt":
        return torch.load(path, map_location="cpu", weights_only=False)["model"]
    exported = load_file(path)
    weights = {}
    for name, value in like.items():
        *module, last = name.split(".")
        prefix = ".".join(["model", *module])
        if last == "router":
            weights[name] = exported[f"{prefix}.gate.weight"]
        elif last == "e_score_correction_bias":
            weights[name] = exported[f"{prefix}.gate.{last}"]
        elif value.ndim == 3:
            weights[name] = torch.stack([exported[f"{prefix}.experts.{e}.{last}.weight"] for e in range(len(value))])
        else:
            weights[name] = exported[f"model.{name}"]
    return {name: w.float() for name, w in weights.items()}


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--work", type=Path, default=Path("work"))
    args.add_argument("--tokenizer", type=Path, default=Path(__file__).parent.parent / "tiny-mla")
    args.add_argument("--recipe", choices=RECIPES, default="cpu")
    args.add_argument("--name", default="model")
    args.add_argument("--threads", type=int, default=0)
    args.add_argument("--workers", type=int, default=-1,
                      help="processes that make sequences; -1: none on a CPU, else one a core but two")
    args.add_argument("--scale", type=float, default=1.0, help="of all learning rates")
    args.add_argument("--minutes", type=float, default=0, help="instead of the recipe's time")
    args.add_argument("--from", dest="start", type=Path,
                      help="take the weights of this checkpoint or model.safetensors, start the clock anew")
    opts = args.parse_args()
    if opts.threads:
        torch.set_num_threads(opts.threads)
    recipe = RECIPES[opts.recipe]
    minutes = opts.minutes or recipe.minutes
    device = "cuda" if torch.cuda.is_available() else "cpu"
    workers = opts.workers if opts.workers >= 0 else 0 if device == "cpu" else max(1, (os.cpu_count() or 1) - 2)
    torch.set_float32_matmul_precision("high")
    cast = torch.autocast("cuda", torch.bfloat16) if device == "cuda" else nullcontext()
    tok, texts = load(opts.work, opts.tokenizer)
    model = Model(Config(vocab_size=tok.get_vocab_size()))
    initialise(model)
    model.to(device)
    optims = optimizers(model, recipe)
    for layer in model.layers:
        layer.self_attn.round_to = recipe.round_to
    done, steps, tokens, asked = 0.0, 0, 0, 0
    path = opts.work / f"{opts.name}.pt"
    if path.exists():
        saved = torch.load(path, map_location=device, weights_only=False)
        model.load_state_dict(saved["model"])
        for opt, state in zip(optims, saved["optimizers"], strict=True):
            base = [group["base"] for group in opt.param_groups]
            opt.load_state_dict(state)
            for group, rate in zip(opt.param_groups, base, strict=True):
                group["base"] = rate
        done, steps, tokens = saved["seconds"], saved["steps"], saved["tokens"]
        print(f"resuming after {done / 60:.1f} minutes, {steps} steps")
    elif opts.start:
        model.load_state_dict(weights_of(opts.start, model.state_dict()))

    def save() -> None:
        state = {
            "model": model.state_dict(), "optimizers": [o.state_dict() for o in optims], "config": model.c.dict(),
            "seconds": done, "steps": steps, "tokens": tokens, "recipe": opts.recipe,
        }
        torch.save(state, path.with_suffix(".new"))
        path.with_suffix(".new").rename(path)

    began, last_save, last_print = time.time() - done, time.time(), 0.0
    mean: dict[str, float] = {}
    stage, batches = None, iter(())
    while True:
        done = time.time() - began
        share = done / (60 * minutes)
        if share >= 1:
            break
        now = next(s for s in recipe.stages if share < s.until)
        if now is not stage:
            stage = now
            print(f"-- length {stage.length} x {stage.batch}", flush=True)
            feed = Batches(texts["train"], tok, stage, seed=1000 + steps)
            batches = iter(DataLoader(feed, batch_size=None, num_workers=workers, pin_memory=device == "cuda"))
        rate = min(1.0, (steps + 1) / 50) * max(0.05, min(1.0, (1 - share) / (1 - recipe.decay_from)))
        for opt in optims:
            for group in opt.param_groups:
                group["lr"] = opts.scale * rate * group["base"]
        ids, weights, positions = (made.to(device, non_blocking=True) for made in next(batches))
        with cast:
            loss, each, targets, common = loss_of(model, ids, weights, positions, stage.tail)
        (loss + recipe.mean_penalty * common).backward()
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0))
        for opt in optims:
            opt.step()
            opt.zero_grad(set_to_none=True)
        for layer in model.layers:
            if hasattr(layer.mlp, "balance"):
                layer.mlp.balance(0.01 * rate)
        steps += 1
        tokens += ids.numel()
        found = {"loss": float(loss.detach()), "norm": norm, "common": float(common.detach())}
        for name, wanted in (("text", targets == 1), ("answers", targets > 1)):
            if wanted.any():
                found[name] = float(each[wanted].mean())
        for name, value in found.items():
            mean[name] = value if name not in mean else 0.95 * mean[name] + 0.05 * value
        if time.time() - last_print > 20:
            last_print = time.time()
            print(f"{done / 60:6.2f} min, step {steps}, {tokens / 1e6:.2f} M tokens, rate {rate:.3f}: "
                  + ", ".join(f"{k} {v:.3f}" for k, v in mean.items()), flush=True)
        if time.time() - last_save > 300:
            save()
            checks = [recall_rate(model, texts["val"], tok, n, p, 10) for n, p in ((512, 0), (2048, 0), (1024, 16))]
            print(f"   val text {text_loss(model, texts['val'].ids):.3f}; passkey 512, 2048, 16 pairs 1024: "
                  + ", ".join(f"{a:.2f} ({b:.2f})" for a, b in checks), flush=True)
            last_save = time.time()
    save()
    print(f"{steps} steps, {tokens} tokens, {done / 60:.1f} minutes; val text {text_loss(model, texts['val'].ids):.3f}")


if __name__ == "__main__":
    main()
