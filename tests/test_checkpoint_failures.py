# SPDX-License-Identifier: Apache-2.0
"""checkpoint.save that fails leaves nothing, whatever it fails of, and overwrites nothing."""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import jax.numpy as jnp
import numpy as np
import pytest
from _source import ROOT

pytest.importorskip("safetensors")

from _checkpoints import content, quantized, write

import jax_fp8gemm as fp8
from jax_fp8gemm import checkpoint
from jax_fp8gemm._src.checkpoints import safetensors_files

VALUES, SCALES, _ = quantized(np.random.default_rng(0), (128, 128))
TENSORS = {"a": np.ones(3, np.float32), "w": fp8.BlockScaled(VALUES, SCALES, (128, 128))}
INDEX = "model.safetensors.index.json"
MANY = {"max_file_bytes": 1}
FILES = {
    1: ["config.json", "model.safetensors"],
    2: ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
}
FILES[2] += ["config.json", INDEX]


def tree(folder):
    """Every file below a folder with its content, and every folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def failing(function, error, call):
    """Returns a function that fails at its call of that number, after it has done its work."""
    calls = []

    def wrapper(*arguments, **options):
        result = function(*arguments, **options)
        calls.append(arguments)
        if len(calls) == call:
            raise error
        return result

    return wrapper


@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (safetensors_files, "write_file", 2),
        (pathlib.Path, "write_text", 1),
        (pathlib.Path, "write_text", 2),
        (os, "fsync", 3),
        (pathlib.Path, "rename", 1),
        (pathlib.Path, "rename", 3),
        (pathlib.Path, "rename", 4),
    ],
)
def test_leaves_nothing(tmp_path, monkeypatch, owner, name, call, error):
    """In a folder of its own, whose parents it made too, and in one with other files."""
    (tmp_path / "used").mkdir()
    (tmp_path / "used/tokenizer.json").write_text("{}")
    before = tree(tmp_path)
    for folder in ("used", "new", "far/away/new"):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, failing(getattr(owner, name), error, call))
            with pytest.raises(type(error)):
                checkpoint.save(tmp_path / folder, TENSORS, **MANY)
        assert tree(tmp_path) == before
        checkpoint.save(tmp_path / folder, TENSORS, **MANY)
        assert set(checkpoint.load(tmp_path / folder)) == set(TENSORS)
        before = tree(tmp_path)


def test_leaves_nothing_of_an_array_that_cannot_be_read(tmp_path):
    gone = jnp.ones(5)
    gone.delete()
    with pytest.raises(RuntimeError, match="deleted"):
        checkpoint.save(tmp_path / "new", {**TENSORS, "gone": gone}, **MANY)
    assert tree(tmp_path) == {}


def test_keeps_what_others_put_into_the_folder(tmp_path, monkeypatch):
    def write_file(path, tensors):
        (tmp_path / "new/notes.txt").write_text("mine")
        raise OSError("No space left on device")

    monkeypatch.setattr(safetensors_files, "write_file", write_file)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(tmp_path / "new", TENSORS)
    assert tree(tmp_path) == {"new": None, "new/notes.txt": b"mine"}


@pytest.mark.parametrize("count", FILES)
def test_names_files_when_all_are_on_the_disk_and_the_entrance_last(tmp_path, monkeypatch, count):
    events = []
    fsync, rename = os.fsync, pathlib.Path.rename
    monkeypatch.setattr(os, "fsync", lambda number: (events.append("fsync"), fsync(number)))

    def recorded(path, target):
        assert path.parent.parent == target.parent and path.parent.name.startswith(".saving-")
        events.append(target.name)
        return rename(path, target)

    monkeypatch.setattr(pathlib.Path, "rename", recorded)
    checkpoint.save(tmp_path, TENSORS, max_file_bytes=1 if count == 2 else 10**9)
    assert events == ["fsync"] * len(FILES[count]) + FILES[count]
    assert sorted(tree(tmp_path)) == sorted(FILES[count])


KILLED = """
    import os, pathlib, signal, sys
    import numpy as np
    from jax_fp8gemm import checkpoint
    rename, calls = pathlib.Path.rename, []
    def kill(path, target):
        calls.append(target)
        if len(calls) == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(path, target)
    pathlib.Path.rename = kill
    checkpoint.save(sys.argv[1], {"a": np.ones(3, np.float32)})
"""


def test_a_killed_process_leaves_no_checkpoint(tmp_path):
    """Not to load; a folder .saving-* is not in the way of the next call."""
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), tmp_path, "1"],
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
        },
        check=False,
    )
    assert run.returncode == -signal.SIGKILL
    assert [path.name[:8] for path in tmp_path.iterdir()] == [".saving-"]
    with pytest.raises(FileNotFoundError):
        checkpoint.load(tmp_path)
    checkpoint.save(tmp_path, TENSORS)
    assert set(checkpoint.load(tmp_path)) == set(TENSORS)


@pytest.mark.parametrize("taken", ["config.json", "model.safetensors", INDEX])
@pytest.mark.parametrize("is_late", [False, True])
def test_overwrites_nothing(tmp_path, monkeypatch, taken, is_late):
    """Neither what was there nor what another process has put there meanwhile."""
    write_file = safetensors_files.write_file
    put = lambda: (tmp_path / taken).write_text("{}")  # noqa: E731
    if is_late:
        monkeypatch.setattr(
            safetensors_files, "write_file", lambda *arguments: (write_file(*arguments), put())
        )
    else:
        put()
    rule = "config.json, which is written" if taken == "config.json" else f"checkpoint.*{taken}"
    with pytest.raises(FileExistsError, match=f"must not hold.*{rule}"):
        checkpoint.save(tmp_path, TENSORS)
    assert tree(tmp_path) == {taken: b"{}"}


def test_saves_beside_what_was_loaded(tmp_path):
    write(tmp_path, {"a": np.ones(3, np.float32)})
    checkpoint.save(tmp_path / "new", checkpoint.load(tmp_path))
    assert content(tmp_path / "new") == content(tmp_path)
