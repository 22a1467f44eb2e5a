# SPDX-License-Identifier: Apache-2.0
# %% [markdown]
# # First steps
#
# A notebook: every output on this page was computed when the page was built, on a CPU. On a Hopper
# GPU the same cells run with the kernels.

# %%
import jax
import jax.numpy as jnp
import numpy as np

import jax_fp8gemm as fp8

x = jax.random.normal(jax.random.key(0), (512, 1024), jnp.bfloat16)  # activations (M, K)
w = jax.random.normal(jax.random.key(1), (768, 1024), jnp.bfloat16)  # a weight (N, K)

# %% [markdown]
# ## Quantize
#
# A `BlockScaled` is an array of float8 with one float32 scale per block: 1x128 for activations,
# 128x128 for weights.

# %%
activations = fp8.quantize(x)
weight = fp8.quantize(w, block=(128, 128))
print(weight.shape, weight.dtype, "scales", weight.scales.shape)
print(f"{weight.nbytes / w.nbytes:.3f} of the bytes in bfloat16")

# %% [markdown]
# Rounding to float8 costs about 2.65 % in the mean square; what is exactly zero stays so.

# %%
back = weight.dequantize()
error = jnp.linalg.norm(back - w.astype(jnp.float32)) / jnp.linalg.norm(w.astype(jnp.float32))
print(f"{error:.2%}")

# %% [markdown]
# ## Multiply
#
# `gemm` computes `activations @ weight.T` with float32 sums and one rounding to the result.

# %%
y = jax.jit(fp8.gemm)(activations, weight)
fp8.testing.assert_gemm_close(y, activations, weight)
exact = np.asarray(x, np.float64) @ np.asarray(w, np.float64).T
print(y.shape, y.dtype)
print(f"{np.linalg.norm(np.asarray(y, np.float64) - exact) / np.linalg.norm(exact):.2%} off")

# %% [markdown]
# ## Train
#
# `dot` takes what a layer has, and its gradients are in FP8 too.


# %%
@jax.jit
def loss(w, x):
    return (fp8.dot(x, w) ** 2).mean()


value, gradient = jax.value_and_grad(loss)(w.T.astype(jnp.float32), x)
print(f"{value:.1f}", gradient.shape, gradient.dtype)

# %% [markdown]
# ## Which kernel
#
# The heuristics are a pure function: they say on any machine what a Hopper GPU would run.

# %%
for choice in fp8.plan(512, 768, 1024, num_sms=132)[:3]:
    print(choice["config"], f"{choice['microseconds']:.2f} us, modelled")

# %% [markdown]
# ## The kernel itself, on a CPU
#
# `implementation="sim"` runs the kernel's own source, thread by thread, with its barriers and
# asynchronous copies, and complains of races.

# %%
small = fp8.quantize(x[:64, :256]), fp8.quantize(w[:136, :256], block=(128, 128))
simulated = fp8.gemm(*small, implementation="sim")
plain = fp8.gemm(*small, implementation="xla")
print(f"largest difference {jnp.abs(simulated - plain).max():.3g} of {jnp.abs(plain).max():.3g}")
