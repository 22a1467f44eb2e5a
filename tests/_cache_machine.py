# SPDX-License-Identifier: Apache-2.0
"""The kernel cache against a model, by random sequences of uses and of damage (hypothesis).

Run by test_cache_model.py in a process of its own, whose NVRTC gives a kernel's name for its code.
argv: directory, number of sequences. Prints the numbers of loads, builds and of what was damaged.
"""

import collections
import os
import pathlib
import shutil
import sys
import time

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from jax_fp8gemm._src.native import extension

CORE = extension.core()
KEYS = CORE.candidate_configs()[:6]
ROOT = pathlib.Path(sys.argv[1])
COUNTS: collections.Counter = collections.Counter()
SOME_KEY = st.sampled_from(KEYS)


class CacheMachine(RuleBasedStateMachine):
    """Whatever happens to the directory, a kernel is its own code, and built only if it must be."""

    @initialize()
    def begin(self):
        shutil.rmtree(ROOT, ignore_errors=True)
        CORE.set_cache_directory(str(ROOT))
        CORE.clear_memory_cache()
        self.in_memory: set[str] = set()
        self.good: dict[str, bytes] = {}  # what was written
        self.whole: set[str] = set()  # keys whose entry is on disk and can be loaded

    def entries(self) -> list[pathlib.Path]:
        return sorted(ROOT.glob("*.bin")) if ROOT.is_dir() else []

    def key_of(self, path: pathlib.Path) -> str:
        (key,) = (key for key in KEYS if path.name.startswith(f"{key}-"))
        return key

    @rule(key=SOME_KEY)
    def use(self, key):
        before = CORE.cache_counters()
        assert CORE.kernel_image(key) == f"{key}.cu".encode()
        after = CORE.cache_counters()
        built = after["builds"] - before["builds"]
        assert built == (key not in self.in_memory and key not in self.whole)
        assert after["write_failures"] == before["write_failures"]
        COUNTS["loads"] += after["disk_hits"] - before["disk_hits"]
        COUNTS["builds"] += built
        self.in_memory.add(key)
        if built:
            self.whole.add(key)
            (path,) = ROOT.glob(f"{key}-*.bin")
            self.good[key] = path.read_bytes()

    @rule()
    def begin_a_process(self):
        CORE.clear_memory_cache()
        self.in_memory.clear()

    @rule()
    def clear(self):
        num_entries = len(self.entries())
        assert CORE.clear_disk_cache() == num_entries and not self.entries()
        self.whole.clear()

    @precondition(lambda self: self.entries())
    @rule(data=st.data())
    def damage(self, data):
        path = data.draw(st.sampled_from(self.entries()))
        content = path.read_bytes()
        kinds = ["flip", "truncate", "extend", "remove", "writable", "link", "swap"]
        kind = data.draw(st.sampled_from(kinds))
        if kind == "flip" and content:
            bit = data.draw(st.integers(0, 8 * len(content) - 1))
            changed = bytearray(content)
            changed[bit // 8] ^= 1 << bit % 8
            path.write_bytes(changed)
        elif kind == "truncate" and content:
            path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
        elif kind == "remove":
            path.unlink()
        elif kind == "writable":
            path.chmod(0o666)
        elif kind == "link":
            # Written anew: a link that was moved there would lead to itself.
            (ROOT.parent / "elsewhere").write_bytes(content)
            path.unlink()
            path.symlink_to(ROOT.parent / "elsewhere")
        elif kind == "swap":
            other = data.draw(st.sampled_from(self.entries()))
            if other == path:
                return
            path.write_bytes(other.read_bytes())
        else:
            path.write_bytes(content + b"x")
        COUNTS[kind] += 1
        key = self.key_of(path)
        if path.exists() and self.is_good(path, key):  # the damage has undone an earlier one
            self.whole.add(key)
        else:
            self.whole.discard(key)

    def is_good(self, path: pathlib.Path, key: str) -> bool:
        is_ours = not path.is_symlink() and not path.stat().st_mode & 0o022
        return is_ours and path.read_bytes() == self.good[key]

    @precondition(lambda self: self.entries())
    @rule(data=st.data(), days=st.integers(-4000, 4000))
    def change_the_clock(self, data, days):
        path = data.draw(st.sampled_from(self.entries()))
        if not path.is_symlink():
            os.utime(path, (time.time() + 86400 * days,) * 2)

    @rule(key=SOME_KEY)
    def die_amid_a_write(self, key):
        if ROOT.is_dir():
            (ROOT / f"{key}-{'0' * 32}.bin.tmp-1-{len(os.listdir(ROOT))}").write_bytes(b"half")

    @invariant()
    def verify_finds_what_is_damaged(self):
        bad = {name for name, *_ in CORE.list_disk_cache() if CORE.disk_entry_fault(name)}
        assert {path.name for path in self.entries() if self.key_of(path) not in self.whole} == bad
        assert len(CORE.list_disk_cache()) == len(self.entries())


if __name__ == "__main__":
    run_state_machine_as_test(
        CacheMachine,
        settings=settings(
            max_examples=int(sys.argv[2]),
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],  # to make a failure short would take minutes
        ),
    )
    print(dict(COUNTS))
