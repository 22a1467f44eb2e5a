# SPDX-License-Identifier: Apache-2.0
"""Every public product and quantizer: custom calls on a GPU under transformations, and retraces."""

import re
import types
import warnings

import cases
import jax
import jax.monitoring
import jax.numpy as jnp
import pytest

import jax_fp8gemm as fp8
from jax_fp8gemm._src.transforms import platforms

B, T, K, N, G = 3, 48, 256, 136, 4
PRODUCT, QUANTIZER = "jax_fp8gemm.gemm.v1", "jax_fp8gemm.quantize.v1"

x, w, dy = (cases.normal(s, seed=i) for i, s in enumerate(((B, T, K), (B, K, N), (B, T, N))))
experts = cases.normal((B, G, K, N), seed=3)
sizes = jnp.asarray([[20, 0, 28, 0], [1, 2, 3, 4], [0, 0, 0, 48]], jnp.int32)


def loss(x, w, dy):
    return (fp8.dot(x, w) * dy).sum()


def ragged_loss(x, w, sizes, dy):
    return (fp8.ragged_dot(x, w, sizes) * dy).sum()


def layers(x, w, dy):
    """Layers of one width under lax.scan, each computed again in the backward pass."""
    square = jnp.concatenate([w, w], 2)[..., :K]

    def layer(x, w):
        return jnp.tanh(fp8.dot(x, w)), None

    return (jax.lax.scan(jax.checkpoint(layer), x, square)[0][..., :N] * dy).sum()


def per_batch(f, *in_axes):
    return jax.vmap(f, in_axes)


both = (0, 1)
# Name: function, arguments, products and quantizers in the program for a GPU.
PROGRAMS = {
    "dot": (fp8.dot, (x, w[0]), 1, 2),
    "vmap of dot, weight shared": (per_batch(fp8.dot, 0, None), (x, w[0]), 1, 2),
    "vmap of dot, activations shared": (per_batch(fp8.dot, None, 0), (x[0], w), 1, 2),
    "vmap of dot, nothing shared": (jax.vmap(fp8.dot), (x, w), 1, 2),
    "vmap of vmap of dot": (
        per_batch(per_batch(fp8.dot, None, 0), 0, None),
        (x[:, 0], w),
        1,
        2,
    ),
    # Forward, dx and dw; x and w, dy along N and along tokens at once, x along tokens.
    "grad of dot": (jax.grad(loss, both), (x[0], w[0], dy[0]), 2, 4),
    "value and grad of dot": (jax.value_and_grad(loss, both), (x[0], w[0], dy[0]), 3, 4),
    "grad of vmap": (
        jax.value_and_grad(lambda *a: per_batch(loss, 0, None, 0)(*a).sum(), both),
        (x, w[0], dy),
        3,
        4,
    ),
    "vmap of grad": (per_batch(jax.value_and_grad(loss, both), 0, None, 0), (x, w[0], dy), 3, 4),
    "vmap of grad, nothing shared": (jax.vmap(jax.value_and_grad(loss, both)), (x, w, dy), 3, 4),
    # One loop forward, and one that computes each layer again and its gradients.
    "grad of scan of checkpoint": (jax.grad(layers, both), (x, w, dy), 4, 6),
    "ragged_dot": (fp8.ragged_dot, (x[0], experts[0], sizes[0]), 1, 2),
    "value and grad of ragged_dot": (
        jax.value_and_grad(ragged_loss, both),
        (x[0], experts[0], sizes[0], dy[0]),
        3,
        4,
    ),
    "vmap of ragged_dot, experts shared": (
        per_batch(fp8.ragged_dot, 0, None, 0),
        (x, experts[0], sizes),
        1,
        2,
    ),
    "vmap of ragged_dot, activations shared": (
        per_batch(fp8.ragged_dot, None, None, 0),
        (x[0], experts[0], sizes),
        1,
        2,
    ),
    "vmap of ragged_dot": (jax.vmap(fp8.ragged_dot), (x, experts, sizes), 1, 2),
    "dot_general with a batch": (
        lambda x, w: fp8.dot_general(x, w, (((2,), (1,)), ((0,), (0,)))),
        (x, w),
        1,
        2,
    ),
    # Of a weight that is not trained there is no gradient, and none of what it would need.
    "grad of dot, frozen weight": (jax.grad(loss), (x[0], w[0], dy[0]), 1, 2),
    "grad of ragged_dot, frozen weights": (
        jax.grad(ragged_loss),
        (x[0], experts[0], sizes[0], dy[0]),
        1,
        2,
    ),
    # Nor of what is not an input of the model, as before its first layer.
    "grad of dot, of the weight alone": (jax.grad(loss, 1), (x[0], w[0], dy[0]), 1, 3),
    "grad of ragged_dot, of the weights alone": (
        jax.grad(ragged_loss, 1),
        (x[0], experts[0], sizes[0], dy[0]),
        1,
        3,
    ),
    "activations quantized once": (
        lambda x, w: sum(
            fp8.dot(q, v) for q in [fp8.QuantizedActivation.quantize(x)] for v in (w, -w)
        ),
        (x[0], w[0]),
        2,
        3,
    ),
    "einsum of quantized heads": (
        lambda x, w: fp8.frameworks.einsum("mhk,hnk->mhn", x, w),
        (x.swapaxes(0, 1), fp8.quantize(w.swapaxes(1, 2), (128, 128))),
        1,
        1,
    ),
    "grad of dot of swiglu": (
        jax.grad(lambda x, *a: loss(fp8.swiglu(x, x), *a), both),
        (x[0], w[0], dy[0]),
        2,
        4,
    ),
    "grad of dot of rms_norm": (
        jax.grad(lambda x, *a: loss(fp8.rms_norm(x, x[0]), *a), both),
        (x[0], w[0], dy[0]),
        2,
        4,
    ),
    "vmap of quantize of rms_norm": (
        jax.vmap(lambda x, weight: fp8.quantize(fp8.rms_norm(x, weight))),
        (x, x[:, 0]),
        0,
        1,
    ),
    "vmap of quantize": (jax.vmap(fp8.quantize), (x,), 0, 1),
    "vmap of quantize, square": (jax.vmap(lambda w: fp8.quantize(w, (128, 128))), (w,), 0, 1),
    "vmap of quantize_transposed": (jax.vmap(fp8.quantize_transposed), (x,), 0, 1),
    "vmap of quantize_k_grouped": (jax.vmap(fp8.quantize_k_grouped), (x, sizes), 0, 1),
}


def custom_calls(text: str, target: str) -> int:
    """Counts the calls of a target in StableHLO, through the functions that it is divided into."""
    parts = re.split(r"func\.func (?:public|private) @(\w+)", text)[1:]
    bodies = dict(zip(parts[::2], parts[1::2], strict=True))

    def count(body):
        called = re.findall(r"\bcall @(\w+)", body)
        return body.count(f"custom_call @{target}(") + sum(count(bodies[name]) for name in called)

    return count(bodies["main"])


@pytest.mark.sampled(3)
@pytest.mark.usefixtures("extension")
@pytest.mark.parametrize("name", PROGRAMS)
def test_custom_calls(name):
    f, arguments, products, quantizers = PROGRAMS[name]
    text = jax.jit(f).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    assert custom_calls(text, PRODUCT) == products
    assert custom_calls(text, QUANTIZER) == quantizers
    assert "stablehlo.dot_general" not in text


def equations(jaxpr):
    """Yields the equations of a program; jax 0.12 inlines calls that are to be inlined late."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("jit", "pjit"):
            yield from equations(equation.params["jaxpr"].jaxpr)
        else:
            yield equation


def test_an_operation_is_one_equation():
    """What it consists of is traced when it is lowered."""
    f, arguments, *_ = PROGRAMS["value and grad of dot"]
    found = list(equations(jax.make_jaxpr(f)(*arguments).jaxpr))
    operations = [each for each in found if each.primitive.name == "fp8_operation"]
    assert len(operations) == 5  # x, w, their product; dw with dy, and dx
    assert len(found) <= 20


@pytest.mark.usefixtures("extension")
def test_equal_operations_are_one_function():
    def network(x, w):
        for _ in range(3):
            x = fp8.dot(x, w)
        return x

    square = jnp.ones((K, K))
    text = jax.jit(network).trace(x[0], square).lower(lowering_platforms=("cuda",)).as_text()
    assert custom_calls(text, PRODUCT) == 3
    assert text.count(f"custom_call @{PRODUCT}(") == 1


@pytest.mark.usefixtures("extension")
@pytest.mark.parametrize(
    ("name", "along_tokens"),
    [
        ("grad of dot, of the weight alone", "transposed"),
        ("grad of ragged_dot, of the weights alone", "k_grouped"),
    ],
)
def test_gradients_that_nobody_reads_along_rows_are_not_written_so(name, along_tokens):
    f, arguments, *_ = PROGRAMS[name]
    text = jax.jit(f).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    layouts = re.findall(r'layout = "(\w+)"', text)
    assert sorted(layouts) == sorted(["rows", along_tokens, along_tokens])


@pytest.mark.usefixtures("extension")
def test_activations_that_examples_share_are_read_once():
    f, arguments, *_ = PROGRAMS["vmap of ragged_dot, activations shared"]
    text = jax.jit(f).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    assert f"(tensor<1x{T}x{K}xf32>, tensor<1x1xi32>) -> (tensor<1x{T}x{K}xf8E4M3FN>" in text


lhs, square = fp8.quantize(x[0]), fp8.quantize(w[0].T, (128, 128))
groups = fp8.quantize(experts[0].swapaxes(1, 2), (128, 128))
columns = [fp8.quantize_k_grouped(each, sizes[0]) for each in (x[0], dy[0])]
ids = jnp.repeat(jnp.asarray([2, 0], jnp.int32), 128)
FUNCTIONS = {
    "dot": (fp8.dot, (x[0], w[0])),
    "dot, gradients": (lambda *a: jax.grad(loss, both)(*a), (x[0], w[0], dy[0])),
    "ragged_dot": (fp8.ragged_dot, (x[0], experts[0], sizes[0])),
    "ragged_dot, gradients": (
        lambda *a: jax.grad(ragged_loss, both)(*a),
        (x[0], experts[0], sizes[0], dy[0]),
    ),
    "dot_general": (
        lambda x, w: fp8.dot_general(x, w, (((1,), (0,)), ((), ()))),
        (x[0], w[0]),
    ),
    "gemm": (fp8.gemm, (lhs, square)),
    "vmap of gemm": (lambda *a: per_batch(fp8.gemm, 0, None)(*a), (fp8.quantize(x), square)),
    "grouped_gemm": (fp8.grouped_gemm, (lhs, groups, sizes[0])),
    "grouped_gemm_contiguous": (
        fp8.grouped_gemm_contiguous,
        (fp8.quantize(cases.normal((256, K), seed=5)), groups, ids),
    ),
    "grouped_gemm_masked": (
        fp8.grouped_gemm_masked,
        (fp8.quantize(cases.normal((G, 8, K), seed=6)), groups, sizes[0] % 9),
    ),
    "k_grouped_gemm": (fp8.k_grouped_gemm, (*columns, sizes[0])),
    "quantize": (fp8.quantize, (x[0],)),
    "quantize_transposed": (fp8.quantize_transposed, (x[0],)),
    "quantize_k_grouped": (fp8.quantize_k_grouped, (x[0], sizes[0])),
}


@pytest.fixture
def gpus(monkeypatch):
    """Lets JAX have GPUs of the compute capabilities in the list that it returns."""
    capabilities = []
    kinds = {"8.0": "NVIDIA A100", "9.0": "NVIDIA H100", "10.0": "NVIDIA B200"}

    def devices():
        return [
            types.SimpleNamespace(compute_capability=c, device_kind=kinds[c]) for c in capabilities
        ]

    monkeypatch.setattr(platforms, "_gpus", devices)
    for each in range(2):  # before and after the test, nothing is remembered
        platforms.default_is_kernels.cache_clear()
        jax.clear_caches()
        if each == 0:
            yield capabilities


def lowered(f, arguments):
    return jax.jit(f).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.sampled(3)
@pytest.mark.usefixtures("extension")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_default_is_plain_jax_beside_another_gpu(gpus, name):
    """A100s run nothing of ours, and nothing fails at the first run either."""
    gpus += ["9.0", "8.0", "8.0"]
    with pytest.warns(RuntimeWarning, match=r"sees NVIDIA A100 \(compute capability 8.0\): impl"):
        assert "jax_fp8gemm" not in lowered(*FUNCTIONS[name])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it was said once
        jax.clear_caches()
        assert "jax_fp8gemm" not in lowered(*FUNCTIONS[name])


@pytest.mark.usefixtures("extension")
@pytest.mark.parametrize("capabilities", [[], ["9.0"], ["9.0", "9.0"]])
def test_the_default_is_kernels_where_all_gpus_are_hopper(gpus, capabilities):
    gpus += capabilities
    assert custom_calls(lowered(fp8.dot, (x[0], w[0])), PRODUCT) == 1


@pytest.mark.usefixtures("extension")
def test_kernels_that_are_asked_for_stay(gpus):
    gpus += ["10.0"]
    product = lambda a, b: fp8.gemm(a, b, implementation="cuda")  # noqa: E731
    assert custom_calls(lowered(product, (lhs, square)), PRODUCT) == 1


@pytest.fixture
def work():
    """Returns the traces and compilations that JAX has done since."""
    events = []

    def listen(event, *_, **__):
        if event.endswith(("jaxpr_trace_duration", "backend_compile_duration")):
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield events
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.sampled(7)
@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_second_call_traces_and_compiles_nothing(work, name, jit):
    f, arguments = FUNCTIONS[name]
    other = jax.tree.map(
        lambda leaf: jnp.roll(leaf.view(jnp.int8), 1, 0).view(leaf.dtype), arguments
    )
    if jit:
        f = jax.jit(f)
    jax.clear_caches()
    jax.block_until_ready(f(*arguments))
    assert work  # the listener hears the first call
    work.clear()
    jax.block_until_ready(f(*other))
    if "gradients" in name and not jit:  # jax.grad itself traces every time
        assert not [event for event in work if "compile" in event]
    else:
        assert work == []
