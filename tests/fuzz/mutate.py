# SPDX-License-Identifier: Apache-2.0
"""Random changes of what JSON can hold and of words; libFuzzer changes bytes."""

import copy
import json
import random
from typing import Any

NUMBERS = (0, 1, -1, 3, 127, 128, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**30)
TEXTS = ("", "a", "..", "/etc/passwd", "\0", "\ud800", "é", "x" * 5000, "1e999", "NaN", "{}", "%s")
VALUES = (*NUMBERS, *TEXTS, None, True, False, 0.5, float("nan"), float("inf"), [], {}, [[1]])


def change_word(rng: random.Random, word: str) -> str:
    """Returns a word without some of its characters, and maybe with a number in their place."""
    at = rng.randrange(len(word) + 1)
    return word[:at] + rng.choice(("", str(rng.choice(NUMBERS)))) + word[at + rng.randrange(3) :]


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


def change_text(rng: random.Random, data: bytes) -> bytes:
    """Returns the JSON of a changed value.

    Raises:
        ValueError: It is no JSON, or none that can be written.
    """
    return json.dumps(change_json(rng, json.loads(data))).encode(errors="surrogatepass")
