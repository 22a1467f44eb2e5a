# SPDX-License-Identifier: Apache-2.0
"""gemm under JAX's transformations and on each platform, by what its lowered program contains."""

import re

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jax_fp8gemm as fp8

CASE = cases.GemmCase("", 24, 40, 200)


def xla_gemm(lhs, rhs, **kwargs):
    return fp8.gemm(lhs, rhs, implementation="xla", preferred_element_type=jnp.float32, **kwargs)


def batch_operands(*batch, rhs_block=(128, 128)):
    """Returns operands of CASE with leading batch dimensions."""
    lhs = cases.quantize(cases.normal((*batch, CASE.m, CASE.k), seed=0))
    rhs = cases.quantize(cases.normal((*batch, CASE.n, CASE.k), seed=1), rhs_block)
    return lhs, rhs


def assert_close(got, want):
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


def pick(tree, *index):
    return jax.tree.map(lambda t: t[index], tree)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("rhs_block", [(128, 128), (1, 128)], ids=str)
@pytest.mark.parametrize("in_axes", [(0, None), (None, 0), (0, 0)], ids=str)
def test_vmap(in_axes, rhs_block, jit):
    lhs, rhs = batch_operands(3, rhs_block=rhs_block)
    args = [x if axis == 0 else pick(x, 0) for x, axis in zip((lhs, rhs), in_axes, strict=True)]
    f = jax.vmap(xla_gemm, in_axes)
    got = (jax.jit(f) if jit else f)(*args)
    want = [
        xla_gemm(*(pick(x, i) if axis == 0 else x for x, axis in zip(args, in_axes, strict=True)))
        for i in range(3)
    ]
    assert_close(got, jnp.stack(want))


def test_vmap_over_another_axis():
    lhs, rhs = batch_operands(3)
    moved = jax.tree.map(lambda t: jnp.moveaxis(t, 0, 1), lhs)
    got = jax.vmap(xla_gemm, (1, 0))(moved, rhs)
    assert_close(got, jax.vmap(xla_gemm)(lhs, rhs))


@pytest.mark.parametrize("axes", [((0, None), (None, 0)), ((None, 0), (0, None)), ((0, 0), (0, 0))])
def test_nested_vmap(axes):
    outer, inner = axes
    lhs, rhs = batch_operands(2, 3)
    args = [
        pick(x, *(slice(None) if axis == 0 else 0 for axis in which))
        for x, which in zip((lhs, rhs), zip(outer, inner, strict=True), strict=True)
    ]
    got = jax.vmap(jax.vmap(xla_gemm, inner), outer)(*args)

    def at(x, which, ij):
        return pick(x, *(i for i, axis in zip(ij, which, strict=True) if axis == 0))

    for ij in np.ndindex(got.shape[:2]):
        operands = [
            at(x, which, ij) for x, which in zip(args, zip(outer, inner, strict=True), strict=True)
        ]
        assert_close(got[ij], xla_gemm(*operands))


@pytest.mark.parametrize("in_axes", [(0, None, 0), (None, None, 0), (0, 0, None)], ids=str)
def test_vmap_with_an_accumulator(in_axes):
    lhs, rhs = batch_operands(3)
    accumulator = cases.normal((3, CASE.m, CASE.n), seed=2)
    args = [
        x if axis == 0 else pick(x, 0)
        for x, axis in zip((lhs, rhs, accumulator), in_axes, strict=True)
    ]
    got = jax.vmap(lambda a, b, c: xla_gemm(a, b, accumulator=c), in_axes)(*args)
    for i in range(3):
        a, b, c = (pick(x, i) if axis == 0 else x for x, axis in zip(args, in_axes, strict=True))
        assert_close(got[i], xla_gemm(a, b, accumulator=c))


def test_scan_and_checkpoint():
    lhs, rhs = batch_operands(3)
    step = jax.checkpoint(lambda carry, ab: (carry + xla_gemm(*ab), None))
    got, _ = jax.lax.scan(step, jnp.zeros((CASE.m, CASE.n)), (lhs, rhs))
    assert_close(got, jax.vmap(xla_gemm)(lhs, rhs).sum(0))


@pytest.mark.sampled(9)
@pytest.mark.parametrize("transform", [jax.grad, jax.jacfwd, jax.jacrev])
@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("implementation", [None, "xla", "cuda", "sim"])
def test_differentiating_raises(fake_ffi, implementation, jit, transform):
    lhs, rhs = cases.gemm_operands(CASE)

    def loss(scales):
        out = fp8.gemm((lhs.values, scales), rhs, implementation=implementation)
        return out.astype(jnp.float32).sum()

    with pytest.raises(TypeError, match="gemm is not differentiable"):
        transform(jax.jit(loss) if jit else loss)(lhs.scales)


def test_what_does_not_reach_the_operands_is_differentiable():
    x, w = cases.normal((CASE.m, CASE.k), seed=0), cases.gemm_operands(CASE)[1]

    def loss(x, bias):
        stopped = fp8.quantize(jax.lax.stop_gradient(x))
        return (xla_gemm(stopped, w) + bias).sum() + x.sum()

    for f in (loss, jax.jit(loss)):
        dx, dbias = jax.grad(f, (0, 1))(x, jnp.float32(1))
        np.testing.assert_array_equal(dx, 1)
        assert dbias == CASE.m * CASE.n


def test_eval_shape():
    lhs, rhs = cases.gemm_operands(CASE)
    out = jax.eval_shape(xla_gemm, lhs, rhs)
    assert (out.shape, out.dtype) == ((CASE.m, CASE.n), jnp.float32)


# ---- Platforms: with a custom call of its own in the place of the extension's -------------------


@pytest.fixture
def fake_ffi(replace_ffi):
    """Puts a traceable custom call in the place of the extension's; nothing can run it."""

    def matmul(problem, factors, group_data=None, accumulator=None, *, backend, **_):
        arrays = [x for x in (*factors, group_data, accumulator) if x is not None]
        result = jax.typeof(arrays[0]).update(
            shape=(problem.d_rows, problem.n), dtype=jnp.dtype(problem.d_dtype)
        )
        return jax.ffi.ffi_call("fake_gemm", result)(*arrays, kind=problem.kind, backend=backend)

    replace_ffi(matmul=matmul, TARGET_NAMES=("fake_gemm",))
    jax.clear_caches()  # gemm's own trace cache must neither know the real one nor keep this one
    yield
    jax.clear_caches()


def lower(f, *args, platforms):
    return jax.jit(f).trace(*args).lower(lowering_platforms=platforms).as_text()


def fake_calls(text):
    return len(re.findall(r"custom_call @fake_gemm", text))


def with_implementation(implementation):
    return lambda lhs, rhs: fp8.gemm(lhs, rhs, implementation=implementation)


@pytest.mark.parametrize(
    ("implementation", "platform", "num_calls"),
    [(None, "cuda", 1), (None, "cpu", 0), (None, "tpu", 0), ("cuda", "cuda", 1), ("sim", "cpu", 1)],
)
def test_implementation_by_platform(fake_ffi, implementation, platform, num_calls):
    text = lower(
        with_implementation(implementation), *cases.gemm_operands(CASE), platforms=(platform,)
    )
    assert fake_calls(text) == num_calls
    assert ("dot_general" in text) == (num_calls == 0)
    if num_calls:
        assert f'backend = "{implementation or "cuda"}"' in text


@pytest.mark.parametrize(
    ("implementation", "platforms", "named"),
    [
        ("cuda", ("cpu",), "'cpu'"),
        ("cuda", ("tpu",), "'tpu'"),
        ("cuda", ("cuda", "cpu"), "'cpu'"),
        ("sim", ("cuda",), "'cuda'"),
    ],
)
def test_the_wrong_platform_is_refused_while_lowering(fake_ffi, implementation, platforms, named):
    with pytest.raises(NotImplementedError, match=f"'{implementation}'.*{named}"):
        lower(with_implementation(implementation), *cases.gemm_operands(CASE), platforms=platforms)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="shows what the CPU refuses")
def test_cuda_on_the_cpu_is_refused_in_eager_mode(fake_ffi):
    lhs, rhs = cases.gemm_operands(CASE)
    with pytest.raises(NotImplementedError, match="'cuda'.*'cpu'"):
        fp8.gemm(lhs, rhs, implementation="cuda")
    with jax.disable_jit(), pytest.raises(NotImplementedError, match="'cuda'.*'cpu'"):
        fp8.gemm(lhs, rhs, implementation="cuda")


@pytest.mark.parametrize(
    ("in_axes", "rhs_block", "shape", "kind"),
    [
        ((0, None), (128, 128), (3 * CASE.m, CASE.k), "dense"),
        ((0, 0), (128, 128), (3 * CASE.m, CASE.k), "masked"),
        ((None, 0), (128, 128), (3 * CASE.m, CASE.k), "masked"),
        ((0, None), (1, 128), (3 * CASE.m, CASE.k), "dense"),
        ((0, 0), (1, 128), (CASE.m, 3 * 256), "k_grouped"),
    ],
    ids=str,
)
def test_vmap_lowers_to_one_custom_call(fake_ffi, in_axes, rhs_block, shape, kind):
    lhs, rhs = batch_operands(3, rhs_block=rhs_block)
    args = [x if axis == 0 else pick(x, 0) for x, axis in zip((lhs, rhs), in_axes, strict=True)]
    text = lower(jax.vmap(with_implementation(None), in_axes), *args, platforms=("cuda",))
    assert fake_calls(text) == 1
    call = re.search(r"@fake_gemm.*", text)[0]
    assert f"tensor<{shape[0]}x{shape[1]}xf8E4M3FN>" in call and f'kind = "{kind}"' in call
    assert "stablehlo.while" not in text


def test_no_custom_call_where_there_is_nothing_to_multiply(fake_ffi):
    for case in cases.EMPTY_CASES:
        operands = cases.gemm_operands(case)
        assert fake_calls(lower(with_implementation("cuda"), *operands, platforms=("cuda",))) == 0


@pytest.mark.sampled(4)
@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("implementation", [None, "xla", "cuda", "sim"])
@pytest.mark.parametrize("batched", [False, True])
def test_shard_map_lowers(fake_ffi, batched, implementation, check_vma):
    mesh = jax.make_mesh((1,), ("x",), axis_types=(AxisType.Auto,))
    f = with_implementation(implementation)
    lhs, rhs = batch_operands(2) if batched else cases.gemm_operands(CASE)
    local = jax.vmap(f) if batched else f
    sharded = jax.shard_map(
        local, mesh=mesh, in_specs=(P("x"), P()), out_specs=P("x"), check_vma=check_vma
    )
    platform = "cpu" if implementation == "sim" else "cuda"
    text = lower(sharded, lhs, rhs, platforms=(platform,))
    assert fake_calls(text) == (implementation != "xla")


@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map_runs(check_vma):
    mesh = jax.make_mesh((1,), ("x",), axis_types=(AxisType.Auto,))
    lhs, rhs = cases.gemm_operands(CASE)
    sharded = jax.shard_map(
        xla_gemm, mesh=mesh, in_specs=(P("x"), P()), out_specs=P("x"), check_vma=check_vma
    )
    assert_close(jax.jit(sharded)(lhs, rhs), xla_gemm(lhs, rhs))


def test_export_needs_the_checks_that_the_package_names(fake_ffi):
    pytest.importorskip("flatbuffers")
    operands = cases.gemm_operands(CASE)
    f = jax.jit(with_implementation(None))
    with pytest.raises(ValueError, match="fake_gemm"):
        jax.export.export(f, platforms=["cuda", "cpu"])(*operands)
    jax.export.export(f, platforms=["cuda", "cpu"], disabled_checks=fp8.export_checks())(*operands)


# ---- Meshes that only the operands say -----------------------------------------------------------


@pytest.mark.parametrize("f", [fp8.quantize, lambda x: fp8.quantize(fp8.swiglu(x, x))])
def test_eager_derivatives_in_an_explicit_mesh_of_the_operands(f):
    """Without jax.set_mesh: what a rule computes is a program too."""
    mesh = jax.make_mesh((1,), ("d",), axis_types=(AxisType.Explicit,))
    plain = cases.normal((16, 256), seed=0)
    x = jax.device_put(plain, jax.sharding.NamedSharding(mesh, P("d")))
    values = lambda x: f(x).dequantize()  # noqa: E731
    got, want = (jax.vjp(values, each)[1](each)[0] for each in (x, plain))
    np.testing.assert_array_equal(got, want)
    got, want = (jax.jvp(f, (each,), (each,))[1].scales for each in (x, plain))
    np.testing.assert_array_equal(got, want)


def test_a_program_may_be_lowered_in_another_mesh_than_it_was_traced_in():
    x = cases.normal((16, 256), seed=0)
    traced = jax.make_jaxpr(fp8.quantize)(x)
    mesh = jax.make_mesh((1,), ("d",), axis_types=(AxisType.Auto,))
    program = lambda x: jax.core.eval_jaxpr(traced.jaxpr, traced.consts, x)[0]  # noqa: E731
    spec = P("d")
    got = jax.jit(jax.shard_map(program, mesh=mesh, in_specs=spec, out_specs=spec))(x)
    np.testing.assert_array_equal(got, fp8.quantize(x).values)
