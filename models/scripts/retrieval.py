"""The wording of the retrieval prompts: see ../RETRIEVAL.md."""

from __future__ import annotations

FIRST_WORDS = ("red", "blue", "green", "white", "black", "gold", "silver", "grey",
               "dark", "light", "hot", "cold", "old", "new", "long", "short")
SECOND_WORDS = ("king", "stone", "water", "house", "tree", "river", "field", "city",
                "fire", "book", "sword", "horse", "ship", "road", "door", "wall")
KEYS = tuple(f"{a} {b}" for a in FIRST_WORDS for b in SECOND_WORDS)


def passkey_fact(digits: str) -> str:
    return f" The passkey is {digits}. Remember it."


def passkey_question() -> str:
    return "\nQuestion: What is the passkey?\nAnswer: The passkey is"


def pair_fact(key: str, digits: str) -> str:
    return f" Remember: {key} {digits}."


def pair_question(key: str) -> str:
    return f"\nQuestion: What is {key}?\nAnswer: {key}"
