# SPDX-License-Identifier: Apache-2.0
"""MaxText multiplies by our products, as docs/frameworks.md has it."""

import functools
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _frameworks import needs, program_of, run_section, same_bits

import jax_fp8gemm as fp8
from jax_fp8gemm import frameworks

X = jax.random.normal(jax.random.key(1), (24, 256))
EXPERTS = jax.random.normal(jax.random.key(6), (2, 256, 128))
SIZES = jnp.asarray([10, 12])
xla = {"implementation": "xla"}


def maxtext_arguments(**changed):
    """What MaxText gives its `gmm`."""
    arguments = {
        "group_sizes": SIZES,
        "preferred_element_type": jnp.bfloat16,
        "tiling": (512, 1024, 1024) * 3,
        "group_offset": 0,
        "lhs_quantize_dtype": None,
        "rhs_quantize_dtype": None,
        "use_qwix_quantization": False,
        "use_tokamax_backend": False,
        "weight_gather_axes": [],
        "lhs_vma_axes": (),
        "rhs_vma_axes": (),
        "use_gmm_v2": False,
        "use_gmm_v2_heuristic_tiling": False,
        "partial_sum": None,
        "interpret": True,
    }
    return arguments | changed


def gmm(*operands, **changed):
    """As MaxText calls it."""
    return frameworks.maxtext_gmm(*operands, **maxtext_arguments(**changed), **xla)


def product(*operands, sizes=SIZES, dtype=jnp.bfloat16, offset=None):
    return fp8.ragged_dot(*operands, sizes, None, dtype, offset, **xla)


def test_maxtext_gmm():
    same_bits(gmm(X, EXPERTS), product(X, EXPERTS))
    same_bits(gmm(X, EXPERTS[:1]), product(X, EXPERTS[:1], sizes=SIZES[:1]))
    offset = jnp.asarray(1)
    same_bits(gmm(X, EXPERTS[1:], group_offset=offset), product(X, EXPERTS[1:], offset=offset))


@pytest.mark.slow
def test_maxtext_gmm_adds_with_gradients():
    total = jnp.full((24, 128), 1000, jnp.bfloat16)

    def want(x, w, total):
        y = product(x, w, dtype=jnp.float32) + total.astype(jnp.float32)
        return y.astype(jnp.bfloat16)

    def value_and_grad(f):
        def function(*operands):
            return (f(*operands).astype(jnp.float32) ** 2).sum()

        return jax.value_and_grad(function, (0, 1, 2))(X, EXPERTS, total)

    got = value_and_grad(lambda x, w, total: gmm(x, w, partial_sum=total))
    same_bits(got, value_and_grad(want))


def test_maxtext_gmm_of_a_dtype_that_is_not_given():
    x, w, total = (each.astype(jnp.bfloat16) for each in (X, EXPERTS, jnp.ones((24, 128))))
    got = gmm(x, w, preferred_element_type=None, partial_sum=total)
    assert got.dtype == gmm(x, w, preferred_element_type=None).dtype == jnp.bfloat16


def test_maxtext_gmm_of_a_qarray():
    needs("qwix")
    weights = fp8.quantize(EXPERTS.mT, (128, 128), **xla)
    same_bits(gmm(X, frameworks.to_qarray(weights).mT), product(X, weights))


@pytest.mark.parametrize(
    ("error", "match", "changed"),
    [
        (NotImplementedError, "existing_out must not be set", {"existing_out": X}),
        (NotImplementedError, "transpose_rhs must not be set", {"transpose_rhs": True}),
        (NotImplementedError, "lhs_quantize_dtype must not", {"lhs_quantize_dtype": jnp.int8}),
        (NotImplementedError, "axes must not be set", {"weight_gather_axes": [("fsdp", 0)]}),
        (ValueError, "group_offset must be an int from 0 to 0, got 1", {"group_offset": 1}),
        (ValueError, "group_offset must be an int from 0 to 0, got -1", {"group_offset": -1}),
        (NotImplementedError, "a_later_one must not be set", {"a_later_one": 3}),
        (TypeError, "partial_sum must be an array, got float", {"partial_sum": 1.0}),
        (ValueError, "group_offset must be", {"group_offset": np.int32(1)}),
        (
            ValueError,
            r"partial_sum must .* \(24, 128\), got \(1, 128\)",
            {"partial_sum": X[:1, :128]},
        ),
    ],
)
def test_maxtext_gmm_refuses(error, match, changed):
    with pytest.raises(error, match=f"^maxtext_gmm: .*{match}"):
        frameworks.maxtext_gmm(X, EXPERTS, **maxtext_arguments(**changed), **xla)


# A transformer with experts, small.
SETTINGS = {
    **{"run_name": "test", "enable_checkpointing": False, "dataset_type": "synthetic"},
    **{"decoder_block": "mixtral", "num_experts": 4, "num_experts_per_tok": 1},
    **{"base_emb_dim": 256, "base_mlp_dim": 256, "base_moe_mlp_dim": 256},
    **{"base_num_query_heads": 2, "base_num_kv_heads": 2, "head_dim": 128},
    **{"base_num_decoder_layers": 1, "scan_layers": False, "vocab_size": 256},
    **{"max_target_length": 16, "per_device_batch_size": 2, "attention": "dot_product"},
    "dtype": "float32",
}
# Whose experts are multiplied how, and the settings for it.
EXPERTS_OF_MAXTEXT = {
    "gmm": {},
    "ragged_dot": {"megablox": False},
    "einsum": {"sparse_matmul": False},
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("by_qwix", "experts"),
    [(True, "gmm"), (True, "ragged_dot"), (False, "gmm"), (False, "einsum")],
)
def test_maxtext(monkeypatch, tmp_path, by_qwix, experts):
    """A transformer with experts, as MaxText makes it, and one of its dense layers."""
    needs("maxtext", "optax")
    import maxtext
    from flax import linen, nnx
    from maxtext.configs import pyconfig
    from maxtext.kernels import megablox
    from maxtext.layers import linears, quantizations
    from maxtext.utils import maxtext_utils, model_creation_utils

    for module, name in (
        (frameworks, "qwix_provider"),
        (frameworks, "maxtext_gmm"),
        (frameworks, "einsum"),
        (fp8, "dot_general"),
    ):
        monkeypatch.setattr(module, name, functools.partial(getattr(module, name), **xla))
    monkeypatch.setattr(quantizations, "get_qt_provider", None)
    monkeypatch.setattr(megablox, "gmm", None)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        names = run_section("MaxText")
        layer = linears.DenseGeneral(256, 384, quant=names["BlockFp8"](), rngs=nnx.Rngs(0))
        same_bits(layer(X), fp8.dot(X, layer.kernel[...], **xla))
        if experts == "ragged_dot":
            names["LAYERS"] = names["LAYERS"].replace("(", "(MoeBlock_0|")

        config = pyconfig.initialize(
            ["", f"{maxtext.__path__[0]}/configs/base.yml"],
            **SETTINGS,
            **EXPERTS_OF_MAXTEXT[experts],
            base_output_directory=str(tmp_path),
            use_qwix_quantization=by_qwix,
            quantization="fp8" if by_qwix else "",
        )
        if not by_qwix:
            quant = names["BlockFp8"]()
            monkeypatch.setattr(quantizations, "configure_quantization", lambda *_, **__: quant)
        mesh = jax.sharding.Mesh(maxtext_utils.create_device_mesh(config), config.mesh_axes)
        with mesh, linen.logical_axis_rules(config.logical_axis_rules):
            rngs = nnx.Rngs(params=0, dropout=1)
            model = model_creation_utils.create_model(config, mesh, rngs=rngs)
            graph, parameters, rest = nnx.split(model, nnx.Param, ...)
            tokens = jnp.arange(32).reshape(2, 16)
            positions = jnp.broadcast_to(jnp.arange(16), tokens.shape)

            def loss(parameters):
                model = nnx.merge(graph, parameters, rest, copy=True)
                logits = model(tokens, positions, jnp.ones_like(tokens), enable_dropout=False)
                return -jax.nn.log_softmax(logits.astype(jnp.float32))[..., 5].mean()

            program = str(jax.make_jaxpr(loss)(parameters))
            # JAX's own has no underscore.
            assert ("name=_ragged_dot" in program) == (experts != "einsum")
            assert "pallas_call" not in program and "name=ragged_dot" not in program
            assert "f8_e4m3fn" in program
            _, losses = names["train"](loss, parameters, num_steps=4)
        assert losses[-1] < 0.9 * losses[0]


@pytest.mark.slow
def test_trainer_of_maxtext(tmp_path):
    """With the lines of the page before it, and experts divided among devices."""
    needs("maxtext")
    program = tmp_path / "program.py"
    program.write_text(f"""{program_of("MaxText")}
import sys
import maxtext
from absl import logging
from maxtext.trainers.pre_train import train

calls = 0

def counted(*arguments, gmm=megablox.gmm, **options):
    global calls
    calls += 1
    return gmm(*arguments, **options)

megablox.gmm = counted
logging.set_verbosity(logging.INFO)
sys.argv.insert(1, f"{{maxtext.__path__[0]}}/configs/base.yml")
train.main(sys.argv)
print(calls)
""")
    settings = SETTINGS | {
        **{"base_output_directory": tmp_path, "hardware": "cpu", "steps": 4},
        **{"quantization": "fp8", "use_qwix_quantization": True, "learning_rate": 0.01},
        **{"ici_expert_parallelism": 4, "ici_fsdp_parallelism": 1, "use_ring_of_experts": True},
        **{"skip_jax_distributed_system": True, "enable_goodput_recording": False},
    }
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    run = subprocess.run(
        [sys.executable, program, *(f"{name}={value}" for name, value in settings.items())],
        env=os.environ | flags,
        capture_output=True,
        text=True,
    )
    losses = [float(loss) for loss in re.findall(r"completed step.* loss: ([\d.]+),", run.stderr)]
    assert len(losses) == 4 and losses[-1] < 0.5 * losses[0], run.stderr[-2000:]
    assert int(run.stdout.split()[-1]) >= 3, run.stdout  # gate, up and down of the experts
