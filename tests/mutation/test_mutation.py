# SPDX-License-Identifier: Apache-2.0
"""A few planted bugs are found in every run; `python -m tests.mutation` tries them all."""

import importlib.util
from concurrent.futures import ThreadPoolExecutor

import pytest

if importlib.util.find_spec("jax_fp8gemm._core") is None:
    pytest.skip("needs the compiled extension jax_fp8gemm._core", allow_module_level=True)

from mutation.build import build_engine, compiler
from mutation.catalogue import FAST_NAMES, MUTANTS
from mutation.harness import kernel_key, try_mutant, try_original
from mutation.mutant import StaleMutantError
from mutation.problems import PROBLEMS

BY_NAME = {mutant.name: mutant for mutant in MUTANTS}
FAST = [BY_NAME[name] for name in FAST_NAMES]

needs_compiler = pytest.mark.skipif(compiler() is None, reason="needs g++")


def test_names_are_unique():
    assert len(BY_NAME) == len(MUTANTS)


@pytest.mark.parametrize("name", BY_NAME)
def test_mutant_fits_the_kernel_as_it_is(name):
    """An edit of the kernel that makes a mutant meaningless fails here, not silently."""
    mutant = BY_NAME[name]
    assert mutant.source() != ""
    assert mutant.old != mutant.new
    assert [kernel_key(tile) for tile in mutant.kernels]
    assert set(mutant.problems) <= set(PROBLEMS)


def test_stale_mutant_is_an_error():
    mutant = MUTANTS[0]
    with pytest.raises(StaleMutantError, match="0 times"):
        type(mutant)("stale", mutant.file, "no such text", "", "Nothing.", ()).source()


@pytest.mark.slow
@needs_compiler
def test_fast_mutants_are_caught_and_the_original_is_clean(tmp_path, simulator_library):
    engine = build_engine(tmp_path)
    with ThreadPoolExecutor(2) as pool:
        original = pool.submit(try_original, tmp_path / "original", engine, FAST)
        tries = [
            pool.submit(try_mutant, tmp_path / str(i), engine, mutant)
            for i, mutant in enumerate(FAST)
        ]
        verdicts = {m.name: t.result() for m, t in zip(FAST, tries, strict=True)}
    assert [name for name, verdict in verdicts.items() if not verdict.is_caught] == []
    assert original.result().outcome == "", original.result()
