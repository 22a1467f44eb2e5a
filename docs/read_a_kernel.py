# SPDX-License-Identifier: Apache-2.0
# %% [markdown]
# # Read a kernel
#
# This notebook reads the four files at the core of the dense kernel in the order in which data
# passes through them, and runs it in the simulator. What the simulator counts can be worked out by
# hand, and is. [A walk through the kernel](../kernel_1d2d/) says why each part is as it is.

# %%
import pathlib

import jax
import jax.numpy as jnp

import jax_fp8gemm as fp8

here = pathlib.Path.cwd()
root = next(folder for folder in (here, *here.parents) if (folder / "csrc").is_dir())
kernels = root / "csrc" / "kernels" / "fp8_gemm"


def show(file, first, last):
    """Prints the lines of a file from the one with `first` to the next one with `last`."""
    lines = iter((kernels / file).read_text().splitlines())
    for line in lines:
        if first in line:
            break
    else:
        raise LookupError(f"{file} has no line with {first!r}")
    print(line)
    for line in lines:
        print(line)
        if last in line:
            return
    raise LookupError(f"{file} has no line with {last!r} behind that with {first!r}")


# %% [markdown]
# ## The problem, and the tile that the heuristics choose for it
#
# There are 64 rows of activations, 128 rows of a weight and four K blocks of 128. The simulator has
# four SMs, so the heuristics cut the result into four tiles, and each is the work of one CTA.

# %%
m, n, k = 64, 128, 512
choice = fp8.plan(m, n, k, num_sms=4, implementation="sim")[0]
print(choice["config"])
for name in ("block_m", "block_n", "block_k", "num_consumers", "num_stages", "tiles", "k_blocks"):
    print(f"{name:14}{choice[name]}")

# %% [markdown]
# ## Entry: roles
#
# `sm90_fp8_gemm.cuh` has nothing but the roles. The warpgroup that comes last is the producer: one
# of its warps loads the operands, another one the scales of the weight. With two or three consumers
# it also gives up registers (`setmaxnreg_dec`), which they take.

# %%
show("sm90_fp8_gemm.cuh", "if (warp >= kConsumerWarps)", "consume<kConfig>")

# %% [markdown]
# ## Producer: from global to shared memory
#
# For each K block the producer waits until the slot is empty, announces on the barrier `full` how
# many bytes are going to arrive, and issues three TMA loads: a box of `a`, a box of `b`, and the
# scales of `a`.

# %%
show("producer.cuh", "for (uint32_t kb", "load_a_scales")

# %% [markdown]
# ## Consumer: from shared memory to the tensor cores
#
# A consumer waits for `full`, starts four `wgmma` of 32 along K, which begin at zero, and reads the
# scales meanwhile. When the products have come it releases the slot and promotes them.

# %%
show("consumer.cuh", "BlockScales<kConfig> scales", "scales.promote")

# %% [markdown]
# ## Promotion: scales, and sums in float32
#
# A thread has two rows of each fragment, 8 apart. The product of the scales is one number for each
# of the two rows and each block of 128 columns.

# %%
show("promotion.cuh", "float sfb[kBlocks]", "product[slice][half][i]")

# %% [markdown]
# ## Run it
#
# `implementation="sim"` runs a build of the same files for the CPU, every thread of every warp. A
# race, a wait that never ends or a barrier with the wrong count would be an error here.

# %%
a = fp8.quantize(jax.random.normal(jax.random.key(0), (m, k), jnp.bfloat16))
b = fp8.quantize(jax.random.normal(jax.random.key(1), (n, k), jnp.bfloat16), block=(128, 128))
with fp8.testing.simulator() as counts:
    out = jax.block_until_ready(fp8.gemm(a, b, implementation="sim"))
    counted = counts()
fp8.testing.assert_gemm_close(out, a, b)
for name, count in counted.items():
    print(f"{name:16}{count}")

# %% [markdown]
# ## Count it by hand
#
# Each K block of a tile takes three TMA loads. Their bytes are those of the two boxes and of the
# scales of the tile's rows, 4 bytes each. A `wgmma` covers 64 rows and 32 of K, so a block takes
# four. The result is stored once, in two bytes per element.

# %%
k_blocks = choice["tiles"] * choice["k_blocks"]  # of all tiles
rows, columns = choice["block_m"], choice["block_n"]
by_hand = {
    "loads": 3 * k_blocks,
    "bytes_loaded": k_blocks * (128 * (rows + columns) + 4 * rows),
    "wgmma": 4 * k_blocks * rows // 64,
    "bytes_stored": 2 * m * n,
}
for name, count in by_hand.items():
    print(f"{name:13}{count:8} by hand, {counted[name]:8} counted")
    assert counted[name] == count

# %% [markdown]
# Bank conflicts are extra passes through shared memory, 32 banks of 4 bytes wide. There are none in
# the main loop: `wgmma` and TMA agree on a swizzle, and the scales of a fragment's rows lie side by
# side. A longer K shows it, because it adds K blocks and nothing else.

# %%
for blocks in (2, 4, 8):
    x = fp8.quantize(jnp.ones((m, 128 * blocks)))
    w = fp8.quantize(jnp.ones((n, 128 * blocks)), block=(128, 128))
    with fp8.testing.simulator() as counts:
        jax.block_until_ready(fp8.gemm(x, w, implementation="sim"))
        found = counts()
    print(f"{blocks} K blocks: {found['bank_conflicts']} conflicts, {found['wgmma']} wgmma")
    assert found["bank_conflicts"] == 0

# %% [markdown]
# ## Any order of events
#
# Nothing may depend on when a copy lands or which thread runs next. The simulator plays orders that
# a GPU would hardly ever show, and the result is the same in each bit.

# %%
for timing in ("early", "late", "random"):
    with fp8.testing.simulator(timing=timing, scheduler="starve_warp", seed=7):
        again = jax.block_until_ready(fp8.gemm(a, b, implementation="sim"))
    print(timing, bool((again == out).all()))
    assert (again == out).all()
