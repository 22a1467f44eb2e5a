# SPDX-License-Identifier: Apache-2.0
"""Random changes of bytes, of words and of what JSON can hold."""

import copy
import json
import random
from collections.abc import Sequence
from typing import Any

NUMBERS = (0, 1, -1, 3, 127, 128, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**30)
TEXTS = ("", "a", "..", "/etc/passwd", "\0", "\ud800", "é", "x" * 5000, "1e999", "NaN", "{}", "%s")
VALUES = (*NUMBERS, *TEXTS, None, True, False, 0.5, float("nan"), float("inf"), [], {}, [[1]])
_TOKENS = (b'"', b"{", b"}", b"[", b"]", b":", b",", b"\\", b"\0", b"\xff", b"-", b"1e9", b"null")


def change_bytes(rng: random.Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """Returns data with one to four changes in it."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(data) + 1)
        length = min(rng.choice((1, 2, 8, 64)), len(data) - at)
        piece, rest = data[at : at + length], data[at + length :]
        match rng.randrange(7):
            case 0 if piece:
                piece = bytes([piece[0] ^ 1 << rng.randrange(8)]) + piece[1:]
            case 1:
                piece = b""
            case 2:
                piece *= rng.choice((2, 3, 100))
            case 3:
                piece = rng.choice(_TOKENS) + piece
            case 4:
                piece, rest = piece, b""
            case 5:
                piece = str(rng.choice(NUMBERS)).encode()
            case 6 if others:
                other = rng.choice(others)
                piece, rest = other[rng.randrange(len(other) + 1) :], rest[:0]
        data = data[:at] + piece + rest
    return data


def change_word(rng: random.Random, word: str) -> str:
    """Returns a word with changes in its characters."""
    changed = change_bytes(rng, word.encode(errors="surrogatepass"))
    return changed.decode(errors="surrogateescape")


def change_words(rng: random.Random, words: Sequence[str], tokens: Sequence[str]) -> list[str]:
    """Returns arguments with some left out, put in, exchanged or changed."""
    words = list(words)
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(words) + 1)
        match rng.randrange(4):
            case 0:
                words.insert(at, rng.choice(tokens))
            case 1 if words:
                del words[at % len(words)]
            case 2 if words:
                words[at % len(words)] = rng.choice((*tokens, *TEXTS, *map(str, NUMBERS)))
            case 3 if words:
                words[at % len(words)] = change_word(rng, words[at % len(words)])
    return words


def change_json(rng: random.Random, value: Any) -> Any:
    """Returns a value with another in the place of one of its parts, missing, or beside it."""
    root = [copy.deepcopy(value)]
    place, key = root, 0
    while isinstance(place[key], dict | list) and place[key] and rng.random() < 0.85:
        place = place[key]
        key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
    choice = rng.randrange(8)
    if choice == 0 and place is not root:
        del place[key]
    elif choice == 1 and isinstance(place, dict):
        place[rng.choice(TEXTS)] = place[key]
    else:
        place[key] = copy.deepcopy(rng.choice(VALUES))
    return root[0]


def json_bytes(rng: random.Random, value: Any) -> bytes:
    """Returns JSON of a changed value, now and then with changed bytes."""
    for _ in range(rng.choice((1, 1, 2))):
        value = change_json(rng, value)
    data = json.dumps(value).encode(errors="surrogatepass")
    return change_bytes(rng, data) if rng.random() < 0.3 else data
