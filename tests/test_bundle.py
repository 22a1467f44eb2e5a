# SPDX-License-Identifier: Apache-2.0
"""Bundles of compiled kernels: made with one cache, taken into another, and what is refused."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import _stand_in_nvrtc
import jax
import jax.numpy as jnp
import pytest
from _tiers import slow_unless

import jax_fp8gemm as fp8
from jax_fp8gemm._src.native import bundle, environment
from jax_fp8gemm._src.tools import cli

IMAGES = {"a": b"machine code\n of a", "b.pdl": b"\0\1\2"}


class Core:
    """What bundles use of the extension; its kernels are IMAGES."""

    def __init__(self):
        self.stored, self.failure, self.nvrtc = {}, "", "nvrtc 13.5, build-id 12"

    def nvrtc_version(self):
        return 13, 5

    def kernel_image(self, config):
        return IMAGES[config]

    def cache_key(self, config):
        if config not in IMAGES:
            raise RuntimeError(f"no kernel {config}")
        return f"header kernel.cuh 01\n{self.nvrtc}\noption --gpu-architecture=sm_90a\n{config}"

    def disk_cache_refusal(self):
        return ""

    def store_kernel(self, config, image):
        self.stored[config] = image
        return self.failure


@pytest.fixture
def core(replace_ffi, monkeypatch, tmp_path):
    """Puts a stand-in in the place of the extension."""
    core = Core()
    replace_ffi(core=lambda: core)
    monkeypatch.setenv(environment.CACHE_DIR, str(tmp_path / "cache"))
    return core


@pytest.fixture
def path(core, tmp_path) -> Path:
    """A bundle of all kernels."""
    bundle.write(tmp_path / "kernels.bundle", list(IMAGES))
    return tmp_path / "kernels.bundle"


def sealed(content: bytes) -> bytes:
    """Returns a bundle of any content, with its digest."""
    return b"\n".join([bundle._FORMAT, hashlib.sha256(content).hexdigest().encode(), content])


def test_is_taken_whole(core, path):
    assert bundle.unpack(path) == list(IMAGES)
    assert core.stored == IMAGES


def test_is_written_whole_or_not_at_all(core, path, monkeypatch):
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        bundle.write(path, ["a"])
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
    monkeypatch.undo()
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    "what", ["some flips", slow_unless(False, "flips"), "truncations", "extensions"]
)
def test_damage_is_seen(core, path, what):
    good = path.read_bytes()
    if what.endswith("flips"):
        step = 1 if what == "flips" else 11  # which goes through all eight bits
        bad = [
            good[: i // 8] + bytes([good[i // 8] ^ 1 << i % 8]) + good[i // 8 + 1 :]
            for i in range(0, 8 * len(good), step)
        ]
    elif what == "truncations":
        bad = [good[:size] for size in range(len(good))]
    else:
        bad = [good + b"\0", good + b"\n", good + good]
    for content in bad:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"kernels\.bundle is (damaged|no bundle|of format)"):
            bundle.unpack(path)
    assert core.stored == {} and len(bad) >= 3


FOREIGN = {
    "empty": b"",
    "zip": b"PK\3\4" + bytes(100),
    "another format": bundle._NAME + b"2\n" + bytes(100),
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_other_files_are_refused(core, path, content, capsys):
    path.write_bytes(content)
    assert cli.main(["cache", "import", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"cache: {path} is " in line


GOOD = {"config": "a", "key": "k", "size_bytes": 3}
LISTS = {
    "no JSON": b"{",
    "no list": b"7",
    "no objects": b"[7]",
    "deep": b"[" * 100_000,
    "too large": json.dumps([GOOD | {"size_bytes": 4}]).encode(),
    "negative": json.dumps([GOOD | {"size_bytes": -1}, GOOD | {"size_bytes": 4}]).encode(),
    "a fraction": json.dumps([GOOD | {"size_bytes": 3.0}]).encode(),
    "a boolean": json.dumps([GOOD | {"size_bytes": True}]).encode(),
    "a number": json.dumps([GOOD | {"config": 1}]).encode(),
    "half a character": json.dumps([GOOD | {"key": "\ud800"}]).encode(),
    "two lines": json.dumps([GOOD | {"config": "a\nb"}]).encode(),
    "colours": json.dumps([GOOD | {"config": "\x1b[31m"}]).encode(),
    "half a key": json.dumps([GOOD | {"config": "\ud800"}]).encode(),
    "a field more": json.dumps([GOOD | {"more": 1}]).encode(),
    "a field less": json.dumps([{"config": "a", "key": "k"}]).encode(),
}


@pytest.mark.parametrize("head", LISTS.values(), ids=LISTS)
def test_forged_lists_are_refused(core, path, head):
    path.write_bytes(sealed(head + b"\nabc"))
    with pytest.raises(ValueError, match=r"kernels\.bundle: its list of kernels is "):
        bundle.unpack(path)
    assert core.stored == {}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("build-id 12", "build-id 13"),
        ("sm_90a", "sm_100a"),
        ("kernel.cuh 01", "kernel.cuh 02"),
        ("b.pdl", "b.of_a_later_version"),
    ],
)
def test_kernels_that_are_not_this_machines_are_refused(core, path, old, new, capsys):
    """Of another NVRTC, architecture or version of the package."""
    head, _, rest = path.read_bytes().split(b"\n", 2)[2].partition(b"\n")
    path.write_bytes(sealed(head.replace(old.encode(), new.encode()) + b"\n" + rest))
    assert cli.main(["cache", "import", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is not for this machine: " in line and new in line
    assert core.stored == {}


def test_a_key_that_goes_on_is_refused(core, path, capsys):
    content = path.read_bytes().split(b"\n", 2)[2]
    head, _, images = content.partition(b"\n")
    kernels = json.loads(head)
    kernels[0]["key"] += "\n"
    path.write_bytes(sealed(json.dumps(kernels).encode() + b"\n" + images))
    assert cli.main(["cache", "import", str(path)]) == 2
    assert "is not for this machine: '' in its key is '' here" in capsys.readouterr().err


def test_where_a_bundle_cannot_go_is_said_first(tmp_path):
    with pytest.raises(TypeError, match="precompile: bundle must be a path, got int"):
        bundle.checked_path("precompile", 3)
    for path in (tmp_path, tmp_path / "none" / "a.bundle"):
        with pytest.raises(FileNotFoundError, match="bundle must be a file in a folder that exi"):
            bundle.checked_path("precompile", path)
        arguments = ["precompile", "64x128x128", "--bundle", str(path)]
        assert cli.main(arguments) == 2
    assert bundle.checked_path("precompile", b"a.bundle").name == "a.bundle"


def test_more_than_the_cache_keeps_is_refused(core, path, monkeypatch):
    big = {config: bytes(1 << 20) for config in IMAGES}
    monkeypatch.setattr(core, "kernel_image", big.get)
    bundle.write(path, list(big))
    monkeypatch.setenv(environment.CACHE_LIMIT, "2")
    with pytest.raises(ValueError, match=f"{environment.CACHE_LIMIT} lets the cache keep"):
        bundle.unpack(path)
    monkeypatch.setenv(environment.CACHE_LIMIT, "3")
    assert bundle.unpack(path) == list(big)


def test_a_cache_that_keeps_nothing_fails(core, path, monkeypatch, capsys):
    core.failure = "cannot write: disk full"
    assert cli.main(["cache", "import", str(path)]) == 1
    assert capsys.readouterr().err == "cache: cannot write: disk full\n"
    monkeypatch.setenv(environment.CACHE_DIR, "")
    assert cli.main(["cache", "import", str(path)]) == 1
    assert "no kernels are kept" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words", [["import"], ["show", "file"], ["import", "/no/such/file"], ["import", "/"]]
)
def test_wrong_arguments_are_one_line(core, words, capsys):
    assert cli.main(["cache", *words]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


# ---- With the extension and NVRTC ----------------------------------------------------------------


@pytest.fixture
def nvrtc(extension):
    """Skips the test where there is no NVRTC; afterwards the cache is as the environment says."""
    core = extension.core()
    try:
        core.nvrtc_version()
    except RuntimeError as error:
        pytest.skip(str(error).splitlines()[0])
    yield core
    extension.keep_kernels(core)


def test_second_cache_compiles_nothing(nvrtc, tmp_path):
    """A program's kernels, quantizers too, are compiled with one cache, found in another."""
    path = tmp_path / "kernels.bundle"

    def begin(name: str) -> None:
        nvrtc.clear_memory_cache()
        nvrtc.set_cache_directory(str(tmp_path / name))

    def counted(counter: str) -> int:
        return nvrtc.cache_counters()[counter]

    x = jax.ShapeDtypeStruct((64, 256), jnp.bfloat16)
    layer = jax.jit(lambda x, w: fp8.gemm(fp8.quantize(x), fp8.quantize(w, (128, 128))))
    traced = layer.trace(x, jax.ShapeDtypeStruct((384, 256), jnp.bfloat16))
    begin("first")
    before = counted("builds")
    configs = fp8.precompile(traced, bundle=path)
    assert counted("builds") - before == len(configs) == 3
    begin("second")
    before, hits = counted("builds"), counted("disk_hits")
    assert bundle.unpack(path) == configs
    assert fp8.precompile(traced) == configs
    assert counted("builds") == before and counted("disk_hits") - hits == 3
    first, second = (sorted((tmp_path / name).glob("*.bin")) for name in ("first", "second"))
    assert [p.name for p in first] == [p.name for p in second]
    assert all(p.read_bytes() == q.read_bytes() for p, q in zip(first, second, strict=True))
    assert not any(nvrtc.disk_entry_fault(name) for name, *_ in nvrtc.list_disk_cache())


def test_a_directory_that_is_not_trusted_gets_nothing(nvrtc, tmp_path):
    bundle.write(tmp_path / "kernels.bundle", nvrtc.quantize_configs()[:1])
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    nvrtc.set_cache_directory(str(shared))
    with pytest.raises(RuntimeError, match="can be written to by other users"):
        bundle.unpack(tmp_path / "kernels.bundle")
    assert list(shared.iterdir()) == []


@pytest.mark.slow
def test_processes_on_the_command_line(nvrtc, tmp_path):
    """One compiles, the next ones import, find all, and refuse what another NVRTC has made."""
    words = ["precompile", "64x256x384", "ragged:300x256x384:groups=4", "--num-sms", "132"]
    path = tmp_path / "kernels.bundle"

    def command(cache: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
        settings = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)}
        settings[environment.CACHE_DIR] = str(tmp_path / cache)
        return subprocess.run(
            [sys.executable, "-m", "jax_fp8gemm", *arguments],
            env=os.environ | settings | variables,
            capture_output=True,
            text=True,
        )

    assert command("first", *words, "--bundle", str(path)).returncode == 0
    assert command("second", "cache", "import", str(path)).returncode == 0
    names = [sorted(p.name for p in (tmp_path / c).glob("*.bin")) for c in ("first", "second")]
    assert names[0] == names[1] and len(names[0]) == 2
    before = (tmp_path / "second" / names[1][0]).stat().st_ino
    assert command("second", *words).returncode == 0
    assert (tmp_path / "second" / names[1][0]).stat().st_ino == before  # not written again
    another = _stand_in_nvrtc.build(tmp_path)
    other = command("third", "cache", "import", str(path), JAX_FP8GEMM_NVRTC=another)
    (line,) = other.stderr.splitlines()
    assert other.returncode == 2 and "is not for this machine: 'nvrtc " in line
    assert not (tmp_path / "third").exists()
