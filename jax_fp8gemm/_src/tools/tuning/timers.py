# SPDX-License-Identifier: Apache-2.0
"""Times one call: kernels by CUPTI where there is a GPU, wall clock elsewhere.

CUPTI gives the duration of every kernel on the device, whichever library launched it, so that all
peers are timed by the same clock and launch gaps are in nobody's number. It comes with jaxlib. The
fallback is the wall clock of a blocking call, for all peers alike, which then contains the launch.
"""

import time
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp

# A warning for a record: what the fallback means.
WITHOUT_CUPTI = "CUPTI does not start: times are of the wall clock, with launches in them"
# More than twice any Hopper's L2.
_FLUSH_BYTES = 256 << 20


class TimedCall(Protocol):
    """What a timer times."""

    def start(self) -> Any:
        """Starts the work and returns what `finish` waits for."""

    def finish(self, started: Any) -> None:
        """Returns when the work is done."""


class Flusher:
    """Replaces what the L2 cache holds, as the rest of a model would."""

    def __init__(self) -> None:
        """Allocates a buffer larger than the cache."""
        self._buffer = jnp.zeros(_FLUSH_BYTES // 4, jnp.int32)
        self._step = jax.jit(lambda x: x + 1, donate_argnums=0)

    def __call__(self) -> None:
        """Writes the buffer and waits."""
        self._buffer = self._step(self._buffer).block_until_ready()


def _cupti() -> Any | None:
    """Returns jaxlib's CUPTI binding, or None where it is missing or does not start."""
    try:
        from jax._src.lib import mosaic_gpu

        # JAX has no public way to it.
        extension = mosaic_gpu._mosaic_gpu_ext  # pyright: ignore[reportPrivateImportUsage]
        extension._cupti_init()
        extension._cupti_get_timings(False)
    except Exception:  # no such module, no CUPTI library, or another profiler is attached
        return None
    return extension


class CuptiTimer:
    """Sum of the durations of all kernels that a call launches; the L2 cache is flushed before."""

    method = "cupti kernel time, L2 flushed"

    def __init__(self, extension: Any) -> None:
        """Takes jaxlib's binding."""
        self._cupti, self._flush = extension, Flusher()

    def sample(self, call: TimedCall) -> float:
        """Returns seconds of one call."""
        return sum(seconds for _, seconds in self.kernels(call))

    def kernels(self, call: TimedCall) -> list[tuple[str, float]]:
        """Returns name and seconds of each kernel of one call.

        Raises:
            RuntimeError: The profiler saw no kernel.
        """
        self._flush()
        self._cupti._cupti_init()
        try:
            call.finish(call.start())
        finally:
            timings = self._cupti._cupti_get_timings(False)
        if not timings:
            raise RuntimeError("the profiler saw no kernel")
        return [(name, milliseconds * 1e-3) for name, milliseconds in timings]


class WallTimer:
    """Wall clock from start to finish of one call."""

    def __init__(self, flush: Callable[[], None] | None = None) -> None:
        """Takes what to run before each call."""
        self._flush = flush
        self.method = "wall clock with launch, L2 flushed" if flush else "wall clock"

    def sample(self, call: TimedCall) -> float:
        """Returns seconds of one call."""
        if self._flush:
            self._flush()
        begin = time.perf_counter()
        call.finish(call.start())
        return time.perf_counter() - begin

    def kernels(self, call: TimedCall) -> list[tuple[str, float]]:
        """Returns nothing: the wall clock knows no kernels."""
        return []


def best_timer(platform: str) -> CuptiTimer | WallTimer:
    """Returns the best timer that works on a platform, "gpu" or "cpu"."""
    if platform != "gpu":
        return WallTimer()
    extension = _cupti()
    return CuptiTimer(extension) if extension is not None else WallTimer(Flusher())
