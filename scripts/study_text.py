"""The tables and the sentences with numbers in "The evidence" of docs/numerics.md, from the result files (scripts/study.py)."""

import statistics
from dataclasses import dataclass

from results import mean, table

LATENT_FORMATS = ["token", "token-amax", "tensor-static", "tensor-dynamic", "block"]
ROPE_FORMATS = ["token-rope", "token-rope-shared", "tensor-static-rope", "tensor-dynamic-rope", "tensor-1-rope"]
SYNTHETIC = ["tails", "sink", "outlier", "uniform"]
WHAT = {
    "token": "a scale a token, power of two (ours)",
    "token-amax": "a scale a token, amax / 448 (the paper's)",
    "tensor-static": "one calibrated scale",
    "tensor-dynamic": "one scale, the tensor's own",
    "block": "a scale for 64 tokens",
    "token-rope": "token, RoPE too, its own scale",
    "token-rope-shared": "token, RoPE under the same scale",
    "tensor-static-rope": "one calibrated scale, RoPE too",
    "tensor-dynamic-rope": "one scale of its own, RoPE too",
    "tensor-1-rope": "scale 1, RoPE too",
    "decode": "ours, query and P quantized as well",
}


@dataclass
class StudyTable:
    """A table of `snapmla study`, or of bench/error_vs_length.py."""

    comment: str
    rows: list[dict]

    def value(self, column: str, **where) -> float:
        """Of the one row that agrees with `where`, or of the mean over layers where a model has several."""
        found = [float(row[column]) for row in self.rows if all(row[key] == str(value) for key, value in where.items())]
        if not found:
            raise KeyError(f"no row with {where}")
        return statistics.fmean(found)

    def values(self, column: str, **where) -> list[str]:
        """What a column holds, in the order it comes."""
        rows = (row for row in self.rows if all(row[key] == str(value) for key, value in where.items()))
        return list(dict.fromkeys(row[column] for row in rows))

    def model(self) -> str:
        return self.values("source", part="formats")[0]

    def source(self) -> str:
        place, _, command = self.comment.partition(": ")
        return f"<sub>`{command}` on {place}.</sub>"


@dataclass
class Results:
    attention: StudyTable
    sums: StudyTable
    measured: StudyTable
    model_cpu: dict
    model_gpu: dict | None
    attention_gpu: StudyTable | None


def percent(x: float) -> str:
    return f"{100 * x:.2f}" if x >= 0.001 else f"{100 * x:.2g}"


def span(values: list[float], digits: int = 1) -> str:
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


def tokens_text(tokens: int | str) -> str:
    tokens = int(tokens)
    return f"{tokens >> 20}M" if tokens >= 1 << 20 else f"{tokens >> 10}K" if tokens >= 1024 else str(tokens)


def longest(study: StudyTable, part: str) -> int:
    return max(int(tokens) for tokens in study.values("tokens", part=part))


def formats(results: Results) -> list[str]:
    study = results.attention
    model, far = study.model(), longest(study, "formats")
    layers = study.values("layer", part="formats", source=model)

    def error(variant: str, source: str, **where) -> float:
        return study.value("relative_l2", part="formats", variant=variant, source=source, tokens=far, **where)

    lines = []
    for variant in [*LATENT_FORMATS, *ROPE_FORMATS, "decode"]:
        by_layer = [percent(error(variant, model, layer=layer)) for layer in layers]
        lines.append([f"`{variant}`", WHAT[variant], *by_layer, *(percent(error(variant, source)) for source in SYNTHETIC)])
    header = ["format", "what has a scale", *(f"layer {layer}" for layer in layers), *SYNTHETIC]
    rope = [error(v, model, layer=layer) / error("token", model, layer=layer) for v in ROPE_FORMATS for layer in layers]
    tails = [error(v, s) / error("token", s) for v in ROPE_FORMATS for s in ("tails", "sink", "outlier")]
    coarse = [error(v, model, layer=layer) / error("token", model, layer=layer)
              for v in ("tensor-static", "tensor-dynamic", "block") for layer in layers]
    made_up = [error(v, s) / error("token", s) for v in ("tensor-static", "tensor-dynamic", "block") for s in ("tails", "sink", "outlier")]
    deepest = error("token-rope", model, layer=layers[-1]) / error("token-rope", model, layer=layers[0])
    cosine = study.value("cosine_distance", part="formats", variant="token", source=model, tokens=far)
    rmse = study.value("rmse", part="formats", variant="token", source=model, tokens=far)
    return [
        f"Relative L2 error of the attention output at {tokens_text(far)} tokens, in percent (the result file has RMSE, cosine distance, gain "
        "and the other lengths too).", "",
        *table(header, lines), "",
        f"- **RoPE in FP8: the paper's finding is reproduced.** Quantizing it multiplies the error by {span(rope)} on the model's own "
        f"activations, whose RoPE keys have no tails, and by {span(tails)} on synthetic ones that reach 10^3. On the model it grows with depth: "
        f"the last layer has {deepest:.1f} times the first one's.",
        f"- **Coarser scales of the latent: refuted for e4m3.** Per-tensor and per-block scales have {span(coarse, 2)} times the error of a scale "
        f"a token on the model, {span(made_up)} times on synthetic rows, now one better and now the other. A latent behind its RMSNorm has the same norm for every token, and e4m3 is a float: it needs a scale that keeps values "
        "off its two ends, 2^15 apart, not one that fits. What a scale a token buys is that nothing has to be calibrated or seen before.",
        "- A scale of 1 clips RoPE keys beyond 448. Here these pairs give every token almost the same, which a softmax does not see; a model whose "
        "large pairs turn would pay.",
        f"- RMSE and cosine distance of `token` over the model's layers: {rmse:.4f} and {cosine:.1e}.",
        "", study.source(),
    ]


def scale_rule(results: Results) -> list[str]:
    study = results.attention
    model, far = study.model(), longest(study, "scale-rule")

    def error(variant: str, source: str) -> float:
        return study.value("relative_l2", part="scale-rule", variant=variant, source=source, tokens=far)

    names = {"pow2": "power of two (ours)", "amax": "amax / 448 (the paper's)",
             "amax-wide-rope": "amax / 448, RoPE not rounded to BF16 behind the division"}
    lines = [[what, *(percent(error(v, s)) for s in [model, *SYNTHETIC])] for v, what in names.items()]
    same = all(error("pow2", s) == error("pow2-wide-rope", s) for s in [model, *SYNTHETIC])
    assert same, "dividing by a power of two must be exact"
    paid = [error("amax", s) / error("amax-wide-rope", s) for s in ("tails", "sink", "outlier")]
    return [
        f"Relative L2 error at {tokens_text(far)} tokens, in percent, query and key quantized, P exact; for the model the mean over layers.", "",
        *table(["scale", model, *SYNTHETIC], lines), "",
        "- With a power of two the line without BF16 rounding of RoPE is the same, bit for bit: dividing was exact.",
        f"- With amax / 448 that rounding costs {span(paid)} times the error where RoPE keys reach 10^3, which is what it was kept in BF16 to avoid.",
        f"- amax / 448 has a merit too: a row's largest element is stored without error. Where one element carries almost all of a token (`outlier`) "
        f"it has {error('amax', 'outlier') / error('pow2', 'outlier'):.2f} times the error of a power of two, on the model "
        f"{error('amax', model) / error('pow2', model):.2f} times.",
    ]


def weights(results: Results) -> list[str]:
    study = results.sums
    names = {"block": "the block's own largest f (reference backend)", "bound": "a bound over 128 tokens (CUDA kernel)",
             "running": "one running range", "paper": "the block's own, state kept in the tensor core (the paper's form)"}
    kinds = study.values("source", part="weights")
    lines = []
    for tokens in (32768, longest(study, "weights")):
        for variant, what in names.items():
            errors = [study.value("relative_l2", part="weights", variant=variant, source=k, tokens=tokens) for k in kinds]
            lines.append([what, tokens_text(tokens), *(percent(x) for x in errors)])
    far = longest(study, "weights")

    def error(variant: str, kind: str) -> float:
        return study.value("relative_l2", part="weights", variant=variant, source=kind, tokens=far)

    worse = [error("running", kind) / error("block", kind) for kind in ("sink8", "sink12")]
    without = [error("running", kind) / error("block", kind) for kind in ("flat", "peaked")]
    gain = [study.value("gain", part="weights", variant="paper", source=kind, tokens=far) for kind in kinds]
    return [
        "Relative L2 error against the formula on the same stored keys and exact logits, in percent. `sink8` and `sink12`: token 0 stands so many "
        "nats above a flat rest. The first three sum in fp64, so that only P's rounding shows.", "",
        *table(["P is quantized against", "tokens", *kinds], lines), "",
        f"- Behind a sink of 12 nats a running range has {worse[1]:.0f} times the error of the block's own at {tokens_text(far)} tokens, behind one of 8 "
        f"nats {worse[0]:.1f} times, where no sink but chance lets a token lead (flat, peaked) {span(without)} times: e4m3's floor is 2^-9 of the range, and the "
        "rest sinks towards it.",
        "- The paper's form, as its text describes it (its own kernel was not run here), quantizes P as well as ours does and loses what its "
        f"accumulator loses (next section): gains of {span(gain, 2)} at "
        f"{tokens_text(far)} tokens.",
        "", study.source(),
    ]


def accumulation(results: Results) -> list[str]:
    study = results.sums
    kinds = study.values("source", part="accumulation")
    lengths = [1024, 8192, 32768, 131072, longest(study, "accumulation")]
    lines = []
    for kind in kinds:
        for variant in study.values("variant", part="accumulation"):
            rows = [{"part": "accumulation", "source": kind, "variant": variant, "tokens": n} for n in lengths]
            lines.append([kind, variant, *(f"{percent(study.value('relative_l2', **row))} / {study.value('gain', **row):.4f}" for row in rows)])
    compared = []
    for kind in ("uniform", "flat", "peaked"):
        for n in (8192, 32768, 131072):
            modelled = study.value("gain", part="accumulation", source=kind, variant="never", tokens=n)
            measured = results.measured.value("gain", kernel="vllm_dense_fp8", case=f"{kind} mean", batch=132, seq_len=n)
            compared.append([kind, tokens_text(n), f"{modelled:.3f}", f"{measured:.3f}"])
    worst = max(abs(1 - study.value("gain", part="accumulation", source=k, variant="every-128", tokens=n)) for k in kinds for n in lengths)
    return [
        "Relative L2 error in percent / gain, against the formula on the same stored numbers, with every sum done as the tensor core does it "
        "(`src/core/e4m3_accumulator.h`, equal to an H100 on all of 425,984 random sums: `tests/cuda/accumulator_test.cu`).", "",
        *table(["attention", "promoted", *(tokens_text(n) for n in lengths)], lines), "",
        f"- A chain of 128 tokens, what the CUDA kernel does, keeps the gain within {percent(worst)} % of 1 at every length and kind.",
        "- A chain that never ends stops growing where a product falls below 2^-13 of the sum. Beside it what vLLM's dense FP8 kernel, "
        "which sums like that, does on an H100 (batch 132), with its own way of splitting and of quantizing P:", "",
        *table(["attention", "tokens", "gain by the model", "gain measured"], compared), "",
        results.measured.source(),
    ]


def splits(results: Results) -> list[str]:
    lines = []
    for study in filter(None, (results.attention, results.attention_gpu)):
        rows = [row for row in study.rows if row["part"] == "splits"]
        where = "H100" if study is results.attention_gpu else "CPU"
        for kind, variants in (("fixed splits of 128 to 8,192 tokens", ("every-",)), ("fixed splits of 64 tokens", ("every-64",)),
                               ("2, 7 and 64 workers", ("workers-",)), ("8 times the batch, fixed splits", ("batch-",))):
            found = [float(row["relative_l2"]) for row in rows
                     if row["variant"].startswith(variants) and (row["variant"] == "every-64") == ("every-64" in variants)]
            lines.append([where, kind, str(len(found)), "equal in every bit" if max(found) == 0 else f"{max(found):.1e}"])
    return [
        "Largest relative difference from the same rows decoded in one piece, over all sources and lengths; the last kind against the batch alone.", "",
        *table(["backend", "what changes", "compared", "largest difference"], lines), "",
        "Splits of 64 tokens cut the 128-token blocks of the CUDA kernel in two, and each half of P is then quantized against its own range.",
    ]


def run_of(record: dict, name: str) -> dict | None:
    found = record["runs"].get(name)
    return found["result"] if found else None


def hits(result: dict) -> dict[int, tuple[int, int]]:
    """length -> (right under the cache called FP8, prompts)"""
    return {row["length"]: (row["fp8"], row["prompts"]) for task in result["retrieval"] for row in task["lengths"]}


def model_table(record: dict) -> list[str]:
    names = [name.removesuffix(" text") for name in record["runs"] if name.endswith(" text")]
    tasks = [task for task in ("passkey", "pairs") if run_of(record, f"fp8 {task}")]
    lengths = {task: list(hits(run_of(record, f"fp8 {task}"))) for task in tasks}
    baseline = run_of(record, "fp8 text")["text"]
    bf16 = ["BF16", mean(baseline["perplexity_bf16"], 2), "1", "0", "100"]
    for task in tasks:
        for row in run_of(record, f"fp8 {task}")["retrieval"][0]["lengths"]:
            bf16.append(f"{row['bf16']} of {row['prompts']}")
    lines = [bf16]
    for name in names:
        text = run_of(record, f"{name} text")["text"]
        line = ["**ours**" if name == "fp8" else f"`{name}`", mean(text["perplexity_fp8"], 2), mean(text["perplexity_ratio"], 4),
                mean(text["kl_bf16_fp8"], 2, 1e3), mean(text["top1_agreement"], 1, 100)]
        for task in tasks:
            found = hits(run_of(record, f"{name} {task}"))
            line += ["{} of {}".format(*found[length]) for length in lengths[task]]
        lines.append(line)
    header = ["cache", "perplexity", "ratio", "KL, 1e-3 nats", "same top-1, %",
              *(f"{'64 pairs' if task == 'pairs' else task} {tokens_text(length)}" for task in tasks for length in lengths[task])]
    commands = "; ".join(f"`{record['runs'][name]['command']}`" for name in record["runs"] if name.startswith("fp8 "))
    return [*table(header, lines), "",
            f"<sub>{commands}, and the same with `--fake-format`, on {record['machine']}, {record['date']}, at {record['commit']}.</sub>"]


def greedy_lines(record: dict) -> list[str]:
    lines = []
    for name in record["runs"]:
        if not name.endswith(" greedy"):
            continue
        greedy = run_of(record, name)["greedy"]
        places = [d["at"] for d in greedy.get("differences", [])]
        lines.append([
            name.removesuffix(" greedy").replace("fp8", "ours"), str(greedy["texts"]), str(greedy["tokens"]), str(greedy["same"]),
            f"{statistics.median(places):.0f}" if places else "-", f"{greedy['median_gap']:.3f}", f"{greedy['largest_gap']:.3f}",
            f"{greedy['median_margin']:.3f}", f"{100 * greedy['margins_below_largest_gap']:.1f}",
        ])
    header = ["cache", "texts", "tokens each", "same to the end", "first difference, median token", "gap there, median nats", "largest gap",
              "margin of all first choices, median nats", "margins below the largest gap, %"]
    return table(header, lines)


def model(results: Results) -> list[str]:
    lines = []
    for record in filter(None, (results.model_gpu, results.model_cpu)):
        text = run_of(record, "fp8 text")["text"]
        scored = f"{text['tokens']:,} scored tokens, contexts to {tokens_text(text['by_context'][-1]['to'])}"
        lines += [f"{record['machine']}, {scored}:", "", *model_table(record), ""]
    lines += ["Greedy texts of both caches, token by token:", ""]
    for record in filter(None, (results.model_gpu, results.model_cpu)):
        lines += [*greedy_lines(record), ""]
    best = results.model_gpu or results.model_cpu
    # Fakes do not quantize queries and P, so the fake of our format is what they are compared with, where the grid has it.
    ours = "token" if run_of(best, "token text") else "fp8"
    kl = {name: run_of(best, f"{name} text")["text"]["kl_bf16_fp8"]["value"] for name in (ours, "token-rope", "tensor-static", "tensor-dynamic", "block")}
    ratio = run_of(best, "fp8 text")["text"]["perplexity_ratio"]
    lines += [
        f"- Ours changes perplexity by {100 * (ratio['value'] - 1):+.2f} ± {100 * ratio['standard_error']:.2f} % of BF16's.",
        f"- RoPE in FP8 has {kl['token-rope'] / kl[ours]:.1f} times the KL divergence of `{ours}`, coarser scales of the latent "
        f"{span([kl[name] / kl[ours] for name in ('tensor-static', 'tensor-dynamic', 'block')], 2)} times: what attention says, the model says.",
        "- Texts part where two tokens are about equally likely: mostly the gap there is a small part of the usual margin between first and second "
        "choice. From there on the two are different texts, and comparing them says nothing.",
    ]
    return lines


def blocks(results: Results) -> dict[str, list[str]]:
    """What stands between the marks of docs/numerics.md."""
    return {"formats": formats(results), "scale-rule": scale_rule(results), "weights": weights(results),
            "accumulation": accumulation(results), "splits": splits(results), "model": model(results)}
