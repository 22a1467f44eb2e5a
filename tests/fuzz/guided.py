# SPDX-License-Identifier: Apache-2.0
"""Gives a target to libFuzzer, guided by what runs: `python -m tests.fuzz.guided NAME [OPTION...]`.

The options are libFuzzer's. It ends the process, with another status than 0 for a fault. What
guides it is the Python of the package and of argparse, and the C++ of the extension and of the
simulator in a build of their own: native.py.
"""

import gc
import random
import sys
import types
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fuzz import native  # noqa: E402

native.load()

from fuzz.targets import Target, opened  # noqa: E402

_GUIDES = ("jax_fp8gemm.", "argparse")  # how the names of modules begin


def _instrument() -> None:
    """Has functions say what of them runs. An editable install is not what atheris can import."""
    for function in gc.get_objects():
        if isinstance(function, types.FunctionType):
            if (function.__module__ or "").startswith(_GUIDES):
                atheris.instrument_func(function)


def _mutator(target: Target):
    def change(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if target.change is not None and rng.random() < 0.7:
            try:
                changed = target.change(rng, data)
                if len(changed) <= max_size:
                    return changed
            except (RecursionError, ValueError):
                pass
        return atheris.Mutate(data, max_size)

    return change


def main(name: str, *arguments: str) -> None:
    """Does not return."""
    with opened(name) as target:
        _instrument()
        atheris.Setup(
            [f"{sys.executable} {__file__} {name}", *arguments],  # what a merge runs by the shell
            target.attempt,
            custom_mutator=_mutator(target),
            internal_libfuzzer=True,
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
