"""Training sequences (natural text with key-value facts and questions) and test prompts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import retrieval
from tokenizers import Tokenizer

BEGIN, END = 0, 1


class Text:
    """Token ids with the places where sentences end.

    A unit is a sentence with the white space before it; units can be cut apart
    and joined again without changing how they tokenize.
    """

    def __init__(self, ids: np.ndarray, tok: Tokenizer) -> None:
        self.ids = ids[ids > END].astype(np.int64)
        names = [tok.id_to_token(i) for i in range(tok.get_vocab_size())]
        stops = np.array([n[-1] in ".?!" for n in names])
        starts = np.array([n[0] in "\u0120\u010a" for n in names])  # a space or a newline
        cut = stops[self.ids[:-1]] & starts[self.ids[1:]]
        self.cuts = np.flatnonzero(cut) + 1

    def units(self, first: int, count: int) -> list[np.ndarray]:
        """`count` consecutive units, from the start again after the last one."""
        order = np.arange(first, first + count) % (len(self.cuts) - 1)
        return [self.ids[self.cuts[i] : self.cuts[i + 1]] for i in order]

    def run(self, tokens: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Consecutive units from a random place, `tokens` in all (the first is the end of a unit)."""
        stop = int(rng.integers(tokens, len(self.ids)))
        last = int(np.searchsorted(self.cuts, stop, "right")) - 1
        stop = int(self.cuts[max(last, 0)])
        start = max(0, stop - tokens)
        inner = self.cuts[np.searchsorted(self.cuts, start, "right") : max(last, 0)]
        return np.split(self.ids[start:stop], inner - start)


def digits(rng: np.random.Generator) -> str:
    return "".join(map(str, rng.integers(0, 10, 5)))


def keys(count: int, rng: np.random.Generator) -> list[str]:
    """Distinct keys to train on, often from few words so that they resemble each other."""
    a, b = len(retrieval.ADJECTIVES), len(retrieval.NOUNS)
    if rng.random() < 0.6:
        side = 2
        while side * side < count:
            side += 1
        side = min(side + int(rng.integers(0, 3)), a)
    else:
        side = a
    first, second = rng.permutation(a)[:side], rng.permutation(b)[:side]
    grid = rng.permutation(side * side)[:count]
    return [retrieval.TRAINED_KEYS[b * first[g // side] + second[g % side]] for g in grid]


class Pieces:
    """Encodes the pieces of the prompts, remembering what it has seen."""

    def __init__(self, tok: Tokenizer) -> None:
        self.tok = tok
        self.known: dict[str, list[int]] = {}

    def __call__(self, text: str) -> list[int]:
        if text not in self.known:
            self.known[text] = self.tok.encode(text, add_special_tokens=False).ids
        return self.known[text]

    def number(self, value: str) -> list[int]:
        return [*self(" "), *(self(d)[0] for d in value)]


@dataclass
class Piece:
    ids: list[int]
    weights: list[float]


class Sequences:
    """Random training sequences of a given length."""

    def __init__(self, text: Text, tok: Tokenizer, seed: int | list[int], answer_weight: float = 8.0) -> None:
        self.text, self.piece = text, Pieces(tok)
        self.rng = np.random.default_rng(seed)
        self.answer_weight = answer_weight

    def fact(self, key: str | None, value: str, weight: float) -> Piece:
        """A statement; `weight` is that of its digits (0 where they are new)."""
        made = retrieval.passkey_fact("@") if key is None else retrieval.pair_fact(key, "@")
        head, tail = made.split(" @")
        ids, number, rest = self.piece(head), self.piece.number(value), self.piece(tail)
        return Piece(ids + number + rest, [0.1] * len(ids) + [0.1] + [weight] * 5 + [0.1] * len(rest))

    def question(self, key: str | None, value: str) -> Piece:
        asked = retrieval.passkey_question() if key is None else retrieval.pair_question(key)
        ids, number, rest = self.piece(asked), self.piece.number(value), self.piece(".")
        return Piece(ids + number + rest, [0.1] * len(ids) + [0.3] + [self.answer_weight] * 5 + [0.1])

    def plain(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        start = int(self.rng.integers(len(self.text.ids) - length))
        ids = np.concatenate(([BEGIN], self.text.ids[start : start + length - 1]))
        return ids, np.ones(length, np.float32)

    def recall(self, length: int, dense: float, tail: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Text with facts in it and questions (or restatements) later on.

        `dense`: the share of the tokens that facts and questions take; with `tail`,
        all questions stand in the last so many tokens.
        """
        rng = self.rng
        room = int(length * dense)
        together = tail > 0 or rng.random() < 0.4  # all questions at the end, as in the tests
        facts: list[tuple[str | None, str]] = []
        asked: list[tuple[int, Piece]] = []  # which fact, and the question or restatement
        if rng.random() < 0.5:
            facts.append((None, digits(rng)))
            asked.append((0, self.question(*facts[0])))
            room -= 50
        most = min(200, max(2, int(room / rng.choice([11, 16, 22]))))
        if asked and rng.random() < 0.2:
            most = 0
        wanted = keys(int(rng.integers(1, most + 1)), rng) if most else []
        first = len(facts)
        facts += [(key, digits(rng)) for key in wanted]
        room = tail - 100 if tail else room - 11 * len(wanted)
        for i in first + rng.permutation(len(wanted)):
            full = rng.random() < 0.5
            piece = self.question(*facts[i]) if full else self.fact(*facts[i], self.answer_weight)
            room -= len(piece.ids)
            if room < 0 and asked:
                break
            asked.append((i, piece))
        stated = [self.fact(*f, 0.0) for f in facts]
        used = sum(len(p.ids) for p in stated) + sum(len(p.ids) for _, p in asked)
        units = self.text.run(max(0, length - 1 - used), rng)
        # a piece at place x stands before unit int(x); pieces in one gap go by place
        end = len(units)
        places = rng.uniform(0, end + 0.5, len(facts))
        items = list(zip(places, stated, strict=True))
        for i, piece in asked:
            items.append((end + 0.5 + rng.random() / 2 if together else rng.uniform(places[i], end + 1), piece))
        slots: list[list[Piece]] = [[] for _ in range(end + 1)]
        for place, piece in sorted(items, key=lambda item: item[0]):
            slots[min(end, int(place))].append(piece)
        ids, weights = [BEGIN], [0.0]
        for i, slot in enumerate(slots):
            for piece in slot:
                ids += piece.ids
                weights += piece.weights
            if i < end:
                ids += units[i].tolist()
                weights += [1.0] * len(units[i])
        pad = max(0, length - len(ids))
        return (np.array(ids[:length] + [END] * pad), np.array(weights[:length] + [0.0] * pad, np.float32))

    def positions(self, length: int, limit: int) -> np.ndarray:
        """0, 1, 2, ... with a few random jumps, so that short sequences show long distances."""
        rng = self.rng
        step = np.ones(length, np.int64)
        step[0] = 0
        if limit > length and rng.random() < 0.6:
            spare = int(np.exp(rng.uniform(np.log(length), np.log(limit)))) - length
            jumps = int(rng.integers(1, 5))
            for share in rng.dirichlet(np.ones(jumps)):
                step[int(rng.integers(1, length))] += int(share * spare)
        return step.cumsum()

    def batch(self, size: int, length: int, plain: float, dense: float, limit: int,
              tail: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """ids, loss weights (of each token as a target) and positions, each size x length."""
        rows = []
        for _ in range(size):
            made = self.plain(length) if self.rng.random() < plain else self.recall(length, dense, tail)
            rows.append((*made, self.positions(length, limit)))
        ids, weights, places = (np.stack(column) for column in zip(*rows, strict=True))
        return ids, weights, places


def prompt(text: Text, pieces: Pieces, length: int, pairs: int,
           rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """A test prompt (ids with <|begin|>) and the tokens of its answer; see ../RETRIEVAL.md.

    `pairs` 0 asks for the passkey, otherwise for one of that many look-alike pairs.
    """
    if pairs > len(retrieval.TESTED_KEYS):
        raise ValueError(f"pairs must be at most {len(retrieval.TESTED_KEYS)}; got {pairs}")
    if pairs:
        chosen = rng.permutation(len(retrieval.TESTED_KEYS))[:pairs]
        stated = [(retrieval.TESTED_KEYS[c], digits(rng)) for c in chosen]
        key, answer = stated[int(rng.integers(pairs))]
        facts = [retrieval.pair_fact(*pair) for pair in stated]
        asked = retrieval.pair_question(key)
    else:
        answer = digits(rng)
        facts, asked = [retrieval.passkey_fact(answer)], retrieval.passkey_question()
    inserted = [pieces.tok.encode(f, add_special_tokens=False).ids for f in facts]
    end = pieces(asked)
    room = length - 8 - 1 - len(end) - sum(map(len, inserted))
    if room < 0:
        raise ValueError(f"a prompt with {len(facts)} facts must be at least {length - room} tokens long; got {length}")
    units: list[np.ndarray] = []
    at = int(rng.integers(len(text.cuts) - 1))
    while True:
        unit = text.units(at, 1)[0]
        room -= len(unit)
        if room < 0:
            break
        units.append(unit)
        at += 1
    slots: list[list[int]] = [[] for _ in range(len(units) + 1)]
    for fact in inserted:
        slots[int(rng.integers(len(units) + 1))] += fact
    ids = [BEGIN]
    for i, slot in enumerate(slots):
        ids += slot
        if i < len(units):
            ids += units[i].tolist()
    return ids + end, pieces.number(answer)


def load(work: Path, tokenizer: Path) -> tuple[Tokenizer, dict[str, Text]]:
    """The tokenizer and the encoded texts that tokenizer.py has left in `work`."""
    tok = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    return tok, {n: Text(np.load(work / f"{n}.npy"), tok) for n in ("train", "val", "held_out")}
