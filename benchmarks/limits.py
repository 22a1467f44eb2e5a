# SPDX-License-Identifier: Apache-2.0
"""The limits of the machine at hand, measured: copy bandwidth and tensor rate."""

import jax
import jax.numpy as jnp

from benchmarks.cases import BenchCase
from benchmarks.operands import Operands
from benchmarks.peer import NotApplicableError, Peer, PeerMissingError, Prepared, prepared_jax
from benchmarks.peers import all_peers
from jax_fp8gemm._src.tools.tuning import sampling

_COPY_BYTES = {"gpu": 2 << 30, "cpu": 256 << 20}
_SQUARE = {"gpu": 8192, "cpu": 512}
_ROUNDS = 10
# Peers whose best rate on a large square is taken as the tensor cores' rate.
_FP8_PEERS = ("cublaslt_tensor", "jax_fp8_scalar", "ours")
_BF16_PEERS = ("torch_bf16", "jax_bf16")


def _copy(num_bytes: int) -> Prepared:
    source = jnp.ones(num_bytes // 4, jnp.int32)
    return prepared_jax(lambda x: (x + 1)[None], source)


def _rate(timer, call: Prepared, amount: float) -> dict:
    call.finish(call.start())
    taken = [timer.sample(call) for _ in range(_ROUNDS)]
    result = sampling.summary(taken)
    return {"per_s": amount / result["minimum"], "samples_s": taken, "summary": result}


def _best_rate(timer, names: tuple[str, ...], peers: dict[str, Peer], operands) -> dict | None:
    best = None
    for name in names:
        if name not in peers:
            continue
        try:
            peers[name].probe()
            call = peers[name].prepare(operands)
            measured = _rate(timer, call, operands.case.flops) | {"by": name}
        except (PeerMissingError, NotApplicableError):
            continue
        except Exception as error:  # a peer may fail in any way; another may give the rate
            print(f"  limit: {name} failed: {error}")
            continue
        if best is None or measured["per_s"] > best["per_s"]:
            best = measured
    return best


def measure(timer, platform: str) -> dict[str, dict]:
    """Returns copy bandwidth (bytes read plus written) and the best fp8 and bfloat16 rates.

    Each is the best of several samples: a limit, not a typical value. On a CPU they say nothing of
    a GPU.
    """
    num_bytes, size = _COPY_BYTES[platform], _SQUARE[platform]
    limits = {"copy_bytes": _rate(timer, _copy(num_bytes), 2 * num_bytes)}
    jax.clear_caches()
    operands = Operands(BenchCase("limits", "square", size, size, size))
    peers = {peer.name: peer for peer in all_peers(platform)}
    for name, choices in (("fp8_flops", _FP8_PEERS), ("bf16_flops", _BF16_PEERS)):
        best = _best_rate(timer, choices, peers, operands)
        if best is not None:
            limits[name] = best
    return limits
