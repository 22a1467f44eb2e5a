# SPDX-License-Identifier: Apache-2.0
"""The kernel cache under fire: threads, processes, kills, damage, disks and other users."""

import contextlib
import itertools
import os
import random
import signal
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import _runtime_programs
import pytest
from _runtime_programs import run

# C++ programs, which g++ compiles first.
pytestmark = pytest.mark.slow

LOCK = ".lock"  # of builds; empty, and stays


@pytest.fixture(scope="module")
def programs(tmp_path_factory) -> dict[str, Path]:
    """Test programs by name."""
    return _runtime_programs.build(
        _runtime_programs.CACHE_PROGRAMS, tmp_path_factory.mktemp("cache")
    )


def names(folder: Path) -> list[str]:
    """Returns what lies in a cache, but for its lock."""
    return sorted(path.name for path in folder.iterdir() if path.name != LOCK)


def test_cache_single_flight(programs):
    run(programs["runtime_cache_test"], "threads")


def test_cache_disk(programs, tmp_path):
    run(programs["runtime_cache_test"], "disk", tmp_path)


def test_cache_entries_of_another_version_or_architecture_are_not_loaded(programs, tmp_path):
    run(programs["runtime_cache_test"], "foreign", tmp_path)


def test_cache_unwritable_directory_only_warns(programs, tmp_path):
    # Under a regular file: permission bits would not stop a test that runs as root.
    run(programs["runtime_cache_test"], "unwritable", tmp_path)


def test_cache_full_disk_only_warns(programs, tmp_path):
    run(programs["runtime_cache_test"], "full", tmp_path / "cache")


def test_cache_second_process_builds_nothing(programs, tmp_path):
    worker = [programs["runtime_cache_test"], "worker", tmp_path, 5]
    assert run(*worker).split() == ["5", "0"]
    assert run(*worker).split() == ["0", "5"]


def test_cache_concurrent_processes(programs, tmp_path):
    num_keys = 100
    worker = [programs["runtime_cache_test"], "worker", tmp_path, num_keys]
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(lambda _: run(*worker), range(4)))
    for output in outputs:
        assert sum(map(int, output.split())) == num_keys
    assert len(names(tmp_path)) == num_keys  # and no temporary file
    assert run(*worker).split() == ["0", str(num_keys)]


def test_cache_keeps_to_its_limit_and_removes_what_dead_writers_left(programs, tmp_path):
    run(programs["runtime_cache_test"], "room", tmp_path / "cache")


def test_cache_processes_that_make_room_at_once(programs, tmp_path):
    num_keys, limit_bytes = 60, 300_000  # of which 14 entries fit
    worker = [programs["runtime_cache_test"], "worker", tmp_path, num_keys, limit_bytes]
    with ThreadPoolExecutor(2) as pool:
        outputs = list(pool.map(lambda _: run(*worker), range(2)))
    for output in outputs:
        assert sum(map(int, output.split())) == num_keys
    sizes = [(tmp_path / name).stat().st_size for name in names(tmp_path)]
    assert 0 < sum(sizes) <= limit_bytes and len(sizes) < num_keys


def test_cache_outlives_killed_writers(programs, tmp_path):
    """Whatever moment a writer is killed at, there is a whole entry or none."""
    worker = [programs["runtime_cache_test"], "worker", tmp_path]
    num_keys = 0
    for i in itertools.count():
        writer = subprocess.Popen([str(part) for part in [*worker, 100_000]])
        time.sleep(0.001 * i)
        writer.kill()
        assert writer.wait() == -signal.SIGKILL
        num_keys = len(list(tmp_path.glob("*.bin")))
        if i >= 30 and num_keys > 0:  # with sanitizers they start slowly
            break
    # Fails at a damaged entry. What was begun and not finished is not found.
    assert run(*worker, num_keys).split() == ["0", str(num_keys)]


@pytest.mark.parametrize("what", ["directories", "entries", "created"])
def test_cache_loads_only_what_nobody_else_can_have_written(programs, tmp_path, what):
    run(programs["runtime_trust_test"], what, tmp_path)


def test_cache_and_other_users(programs):
    if os.geteuid() != 0:
        pytest.skip("needs root, who can give files away and be another user")
    # Not under tmp_path, which other users cannot look into, as they cannot for leaks.
    environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=0"}
    with tempfile.TemporaryDirectory() as folder:
        run(programs["runtime_trust_test"], "foreign", folder, env=environment)


# ---- Storms ------------------------------------------------------------------------------------


def start(*command: object) -> subprocess.Popen:
    """Starts a program whose output is read."""
    return subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True)


def test_cache_builds_each_kernel_once_among_processes(programs, tmp_path):
    """8 processes of 8 threads each, on one directory that does not exist yet."""
    num_processes, num_keys = 8, 100
    storm = [programs["runtime_storm_test"], "race", tmp_path / "cache", num_keys]
    racing = [start(*storm, seed) for seed in range(num_processes)]
    builds = [int(process.communicate(timeout=120)[0]) for process in racing]
    assert [process.returncode for process in racing] == [0] * num_processes
    assert sum(builds) == num_keys, builds
    assert len(names(tmp_path / "cache")) == num_keys
    assert (tmp_path / "cache" / LOCK).stat().st_size == 0


@contextlib.contextmanager
def building(programs, folder: Path, hold_ms: int = 60_000):
    """Runs a process that builds a kernel for so long, and kills it at the end."""
    with start(programs["runtime_storm_test"], "build", folder, hold_ms) as builder:
        try:
            assert builder.stdout.readline() == "building\n"
            yield builder
        finally:
            builder.kill()


def waited(programs, folder: Path, patience_ms: int) -> tuple[str, int]:
    """Returns who built the same kernel, and how long another process waited for it."""
    who, milliseconds = run(programs["runtime_storm_test"], "wait", folder, patience_ms).split()
    return who, int(milliseconds)


def test_cache_waits_for_another_process_and_loads_what_it_built(programs, tmp_path):
    with building(programs, tmp_path, hold_ms=300):
        assert waited(programs, tmp_path, 60_000)[0] == "another"


def test_cache_does_not_wait_for_a_dead_process(programs, tmp_path):
    with building(programs, tmp_path) as builder, ThreadPoolExecutor(1) as pool:
        waiter = pool.submit(waited, programs, tmp_path, 60_000)
        time.sleep(0.2)
        assert not waiter.done()
        builder.kill()
        who, milliseconds = waiter.result()
    assert who == "this" and milliseconds < 10_000


def test_cache_loses_patience_with_a_stopped_process(programs, tmp_path):
    with building(programs, tmp_path) as builder:
        builder.send_signal(signal.SIGSTOP)
        who, milliseconds = waited(programs, tmp_path, 300)
    assert who == "this" and milliseconds >= 300


@pytest.mark.parametrize("obstacle", ["a directory", "a link", "a pipe"])
def test_cache_builds_without_a_lock_where_there_can_be_none(programs, tmp_path, obstacle):
    lock = tmp_path / LOCK
    if obstacle == "a directory":
        lock.mkdir()
    elif obstacle == "a link":
        lock.symlink_to(tmp_path / "elsewhere")
    else:
        os.mkfifo(lock)
    with building(programs, tmp_path):
        assert waited(programs, tmp_path, 60_000)[0] == "this"
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.slow
def test_cache_survives_a_storm_of_kills(programs, tmp_path):
    """100 writers of one directory are killed, four at a time; no entry is ever damaged."""
    worker = [programs["runtime_cache_test"], "worker", tmp_path]
    rng = random.Random(0)
    num_kills = 0
    for _ in range(25):
        writers = [start(*worker, 100_000) for _ in range(4)]
        for writer in writers:
            time.sleep(0.03 * rng.random())
            writer.kill()
        num_kills += sum(writer.wait() == -signal.SIGKILL for writer in writers)
        for writer in writers:
            writer.stdout.close()
    assert num_kills == 100
    num_keys = len(list(tmp_path.glob("*.bin")))
    leftovers = [name for name in names(tmp_path) if not name.endswith(".bin")]
    assert num_keys > 0 and len(leftovers) <= num_kills  # one a writer at most
    assert run(*worker, num_keys).split() == ["0", str(num_keys)]  # fails at a damaged entry
    long_ago = time.time() - 7200
    for name in leftovers:
        os.utime(tmp_path / name, (long_ago, long_ago))
    run(*worker, num_keys + 1)  # stores one, and so makes room
    assert names(tmp_path) == sorted(path.name for path in tmp_path.glob("*.bin"))


@pytest.mark.parametrize("name", ["with space", "größe-缓存", "-dash", "a'b\"c$d", "n" * 250])
def test_cache_in_directories_of_any_name(programs, tmp_path, name):
    worker = [programs["runtime_cache_test"], "worker", tmp_path / name / "cache", 2]
    assert run(*worker).split() == ["2", "0"]
    assert run(*worker).split() == ["0", "2"]


@pytest.mark.parametrize("seconds", [-10 * 365 * 86400, 365 * 86400])
def test_cache_does_not_mind_clocks(programs, tmp_path, seconds):
    """Entries from hosts whose clock is years off are loaded and evicted like others."""
    worker = [programs["runtime_cache_test"], "worker", tmp_path]
    assert run(*worker, 3).split() == ["3", "0"]
    off = time.time() + seconds
    for name in names(tmp_path):
        os.utime(tmp_path / name, (off, off))
    assert run(*worker, 3, 70_000).split() == ["0", "3"]
    assert run(*worker, 4, 70_000).split() == ["1", "3"]
    assert len(names(tmp_path)) == 3


def test_cache_on_a_small_full_file_system(programs, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k,mode=0700", "none", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        filler = disk / "filler"
        with filler.open("wb", buffering=0) as file:
            for _ in itertools.count():
                try:
                    file.write(b"x" * 4096)
                except OSError:
                    break
        assert run(programs["runtime_cache_test"], "refusing", disk, "No space left").strip() == ""
        assert [name for name in names(disk) if name != filler.name] == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_cache_on_a_read_only_file_system(programs, tmp_path):
    worker = [programs["runtime_cache_test"], "worker", tmp_path, 3]
    assert run(*worker).split() == ["3", "0"]
    (tmp_path / LOCK).unlink()
    mounts = ["-o", "bind"], ["-o", "remount,ro,bind"]
    for options in mounts:
        if subprocess.run(
            ["mount", *options, str(tmp_path), str(tmp_path)], capture_output=True
        ).returncode:
            pytest.skip("needs the right to mount")
    try:
        assert run(*worker).split() == ["0", "3"]
        run(programs["runtime_cache_test"], "refusing", tmp_path, "Read-only file system")
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
