"""The wording of the retrieval prompts: see ../RETRIEVAL.md."""

from __future__ import annotations

ADJECTIVES = ("red", "blue", "green", "white", "black", "gold", "silver", "grey",
              "dark", "light", "hot", "cold", "old", "new", "long", "short")
NOUNS = ("king", "stone", "water", "house", "tree", "river", "field", "city",
         "fire", "book", "sword", "horse", "ship", "road", "door", "wall")
TRAINED_KEYS = tuple(f"{a} {n}" for a in ADJECTIVES for n in NOUNS)
TESTED_KEYS = tuple(f"{a} {key}" for a in ADJECTIVES for key in TRAINED_KEYS)


def passkey_fact(digits: str) -> str:
    return f" The passkey is {digits}. Remember it."


def passkey_question() -> str:
    return "\nQuestion: What is the passkey?\nAnswer: The passkey is"


def pair_fact(key: str, digits: str) -> str:
    return f" Remember: {key} {digits}."


def pair_question(key: str) -> str:
    return f"\nQuestion: What is {key}?\nAnswer: {key}"
