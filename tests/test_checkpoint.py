# SPDX-License-Identifier: Apache-2.0
"""checkpoint: block-quantized safetensors against hand dequantization, memory, sharding, files."""

import json
import sys
import tracemalloc

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("safetensors")

import safetensors
from _checkpoints import E4M3, SCALE_DTYPES, quantized, run_program, write

import jax_fp8gemm as fp8
from jax_fp8gemm import checkpoint

MLP = "model.layers.0.mlp"


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def raw(array):
    """The bytes of an array: equality that NaN does not disturb."""
    return np.asarray(array).tobytes()


@pytest.mark.parametrize("scale_dtype", SCALE_DTYPES)
@pytest.mark.parametrize("shape", [(128, 256), (200, 300), (1, 1), (130, 128)])
def test_loads_what_the_blocks_stand_for(tmp_path, rng, shape, scale_dtype):
    name = f"{MLP}.up_proj.weight"
    values, scales, dense = quantized(rng, shape, SCALE_DTYPES[scale_dtype])
    norm = rng.normal(size=200).astype(ml_dtypes.bfloat16)
    write(tmp_path, {name: values, name + "_scale_inv": scales, "model.norm.weight": norm})

    loaded = checkpoint.load(tmp_path)

    assert set(loaded) == {name, "model.norm.weight"}
    weight = loaded[name]
    assert isinstance(weight, fp8.BlockScaled)
    assert (weight.dtype, weight.scales.dtype, weight.block) == (E4M3, np.float32, (128, 128))
    assert raw(weight.values) == raw(values)
    np.testing.assert_array_equal(np.asarray(weight.dequantize()), dense)
    assert loaded["model.norm.weight"].dtype == jnp.bfloat16
    assert raw(loaded["model.norm.weight"]) == raw(norm)


def moe(rng, num_experts=3, shape=(200, 256)):
    """Two files of a mixture of experts; scales of one expert are in the other file."""
    first, second, dense = {}, {}, []
    for i in range(num_experts):
        name = f"{MLP}.experts.{i}.gate_proj.weight"
        values, scales, exact = quantized(rng, shape)
        (first if i % 2 else second)[name] = values
        first[name + "_scale_inv"] = scales
        dense.append(exact)
    second[f"{MLP}.gate.weight"] = rng.normal(size=(num_experts, shape[1])).astype(np.float32)
    second[f"{MLP}.gate.e_score_correction_bias"] = np.zeros(num_experts, np.float32)
    return first, second, np.stack(dense)


def test_stacks_experts_over_several_files(tmp_path, rng):
    first, second, dense = moe(rng)
    loaded = checkpoint.load(write(tmp_path, first, second))
    weight = loaded[f"{MLP}.experts.gate_proj.weight"]
    assert weight.shape == (3, 200, 256) and weight.scales.shape == (3, 2, 2)
    np.testing.assert_array_equal(np.asarray(weight.dequantize()), dense)
    assert loaded[f"{MLP}.gate.weight"].shape == (3, 256)
    assert len(loaded) == 3


def test_tensors_and_files_are_logged(tmp_path, rng, caplog):
    first, second, _ = moe(rng)
    with caplog.at_level("INFO", logger="jax_fp8gemm"):
        loaded = checkpoint.load(write(tmp_path, first, second))
        checkpoint.save(tmp_path / "new", loaded)
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"loaded {name}, {i} of 3" for i, name in enumerate(loaded, 1)] + [
        "wrote model.safetensors, 1 of 1"
    ]


def test_more_than_ten_experts_keep_their_order(tmp_path):
    tensors = {}
    for i in range(12):
        tensors[f"{MLP}.experts.{i}.bias"] = np.full(4, i, np.float32)
        tensors[f"{MLP}.experts.{i}.number"] = np.full((), i, np.float16)
    loaded = checkpoint.load(write(tmp_path, tensors, quantization=None))
    np.testing.assert_array_equal(loaded[f"{MLP}.experts.bias"][:, 0], np.arange(12))
    np.testing.assert_array_equal(loaded[f"{MLP}.experts.number"], np.arange(12))


def test_leaves_experts_apart_and_chooses(tmp_path, rng):
    first, second, dense = moe(rng)
    write(tmp_path, first, second)
    apart = checkpoint.load(tmp_path, stack_experts=False)
    np.testing.assert_array_equal(
        np.asarray(apart[f"{MLP}.experts.1.gate_proj.weight"].dequantize()), dense[1]
    )
    chosen = checkpoint.load(tmp_path, include=lambda name: "experts" not in name)
    assert set(chosen) == {f"{MLP}.gate.weight", f"{MLP}.gate.e_score_correction_bias"}


def test_loads_experts_stored_as_one_tensor(tmp_path, rng):
    name = f"{MLP}.experts.gate_up_proj"
    values, scales, dense = quantized(rng, (2, 130, 129))
    loaded = checkpoint.load(write(tmp_path, {name: values, name + "_scale_inv": scales}))
    np.testing.assert_array_equal(np.asarray(loaded[name].dequantize()), dense)


def test_multiplies_by_what_was_loaded(tmp_path, rng):
    name = f"{MLP}.down_proj.weight"
    values, scales, dense = quantized(rng, (200, 256))
    weight = checkpoint.load(write(tmp_path, {name: values, name + "_scale_inv": scales}))[name]
    x = fp8.quantize(jnp.asarray(rng.normal(size=(8, 256)), jnp.float32))
    out = fp8.gemm(x, weight, preferred_element_type=jnp.float32, implementation="xla")
    exact = np.asarray(x.dequantize(), np.float64) @ dense.T.astype(np.float64)
    np.testing.assert_allclose(out, exact, rtol=1e-5, atol=1e-3)


def test_64_bit_tensors_get_the_dtype_of_jax(tmp_path):
    write(tmp_path, {"ids": np.arange(5, dtype=np.int64)}, quantization=None)
    loaded = checkpoint.load(tmp_path)["ids"]
    assert loaded.dtype == jnp.int32
    np.testing.assert_array_equal(loaded, np.arange(5))


# ---- Memory -----------------------------------------------------------------------------------


def test_makes_no_copy_of_a_weight(tmp_path):
    """What numpy allocates: nothing for a matrix, the float8 stack itself for experts."""
    size = 4096 * 2048
    scales = np.ones((32, 16), np.float32)
    names = ["dense.weight", *(f"m.experts.{i}.weight" for i in range(4))]
    tensors = {n: np.zeros((4096, 2048), E4M3) for n in names}
    write(tmp_path, {**tensors, **{f"{n}_scale_inv": scales for n in names}})
    del tensors

    def peak(name):
        tracemalloc.start()
        loaded = checkpoint.load(tmp_path, include=lambda n: n == name)
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        jax.block_until_ready(loaded[name])
        return peak_bytes

    assert peak("dense.weight") < 0.05 * size
    assert peak("m.experts.weight") < 1.05 * 4 * size


MEMORY_PROGRAM = """
import json, resource, sys
import jax
from jax_fp8gemm import checkpoint
def peak_bytes():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
checkpoint.load(sys.argv[1], include=lambda name: name == "small.weight")
before = peak_bytes()
loaded = jax.block_until_ready(checkpoint.load(sys.argv[1]))
print(json.dumps([peak_bytes() - before, sum(x.nbytes for x in jax.tree.leaves(loaded))]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads ru_maxrss as Linux counts it")
def test_memory_of_a_process_grows_by_less_than_two_float8_copies(tmp_path, rng):
    """A float32 copy of the weights would be four; the mapped file and a stack are one each."""
    names = [f"m.experts.{i}.weight" for i in range(8)]
    tensors = {n: np.zeros((4096, 2048), E4M3) for n in names}
    scales = {f"{n}_scale_inv": np.ones((32, 16), np.float32) for n in names}
    small, scale, _ = quantized(rng, (128, 128))
    extra = {"small.weight": small, "small.weight_scale_inv": scale}
    grown, held = run_program(MEMORY_PROGRAM, write(tmp_path, {**tensors, **scales, **extra}))
    assert held > 8 * 4096 * 2048
    assert grown < 2.2 * held


# ---- Sharding ---------------------------------------------------------------------------------

SHARDED_PROGRAM = """
import json, sys
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from jax_fp8gemm import checkpoint
from jax_fp8gemm._src.checkpoints import place as reader
folder, case = sys.argv[1:]
mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
specs = {"n": P("x", None), "k": P(None, "y"), "nk": P("x", "y"), "all": P(("x", "y"), None),
         "cut": P(None, ("x", "y")), "cut twice": P("y", "x")}
expert_specs = {"n": P("y", "x", None), "k": P("y", None, None), "nk": P(None, "x", "y"),
                "all": P(None, None, None), "cut": P(None, ("x", "y"), None),
                "cut twice": P(None, "x", "y")}
num_read = 0
read = reader._read
def counting(tensor, index, dtype):
    global num_read
    array = read(tensor, index, dtype)
    num_read += array.size if array.dtype.itemsize == 1 else 0
    return array
reader._read = counting
def sharding(name, shape):
    if len(shape) == 3:
        return NamedSharding(mesh, expert_specs[case])
    return NamedSharding(mesh, specs[case]) if len(shape) == 2 else jax.devices()[3]
loaded = checkpoint.load(folder, sharding=sharding)
plain = checkpoint.load(folder)
result = {"num_read": num_read}
for name, array in loaded.items():
    for a, b in zip(jax.tree.leaves(array), jax.tree.leaves(plain[name]), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), name
    leaves = jax.tree.leaves(array)
    result[name] = [a.addressable_shards[0].data.shape for a in leaves]
result["norm"] = [d.id for d in loaded["norm"].devices()]
print(json.dumps(result))
"""


@pytest.mark.parametrize(
    ("case", "dense", "experts", "num_read"),
    [
        ("n", [[256, 384], [2, 3]], [[1, 128, 256], [1, 1, 2]], 2),
        ("nk", [[256, 128], [2, 1]], [[2, 128, 128], [2, 1, 1]], 1),
        ("all", [[128, 384], [1, 3]], [[2, 512, 256], [2, 4, 2]], 1),
        # Devices have parts of blocks: 48 columns and 64 rows, and then 96 columns.
        ("cut", [[1024, 48], [8, 3]], [[2, 64, 256], [2, 4, 2]], 1),
        ("cut twice", [[512, 96], [4, 3]], [[2, 128, 128], [2, 1, 1]], 1),
    ],
)
def test_shards(tmp_path, rng, case, dense, experts, num_read):
    """Each device reads its slice and no more, and the scales of its blocks; all where it cuts one.

    `num_read`: how often the matrix is read, twice where two devices hold each slice.
    """
    width = 256 if case == "nk" else 384
    tensors = {"norm": np.ones(7, np.float32)}
    shapes = {"w": (1024, width), "m.experts.0.w": (512, 256), "m.experts.1.w": (512, 256)}
    for name, shape in shapes.items():
        tensors[name], tensors[name + "_scale_inv"], _ = quantized(rng, shape)
    result = run_program(SHARDED_PROGRAM, write(tmp_path, tensors), case, num_devices=8)
    assert result["w"] == dense
    assert result["m.experts.w"] == experts
    assert result["norm"] == [3]
    num_experts = 2 * 512 * 256
    num_plain = 1024 * width + num_experts
    assert result["num_read"] == num_read * 1024 * width + num_experts + num_plain


UNFIT_PROGRAM = """
import json, sys
import jax
from jax.sharding import NamedSharding, PartitionSpec as P
from jax_fp8gemm import checkpoint
seven = jax.make_mesh((7,), ("y",))
messages = []
for spec in (P("y"), P(None, None, "y")):
    try:
        checkpoint.load(sys.argv[1], sharding=NamedSharding(seven, spec))
        messages.append("loaded")
    except ValueError as error:
        messages.append(str(error))
print(json.dumps(messages))
"""


def test_a_sharding_that_does_not_fit_is_an_error(tmp_path, rng):
    """512 rows over 7 devices; three axes for a matrix."""
    name = f"{MLP}.up_proj.weight"
    values, scales, _ = quantized(rng, (512, 512))
    folder = write(tmp_path, {name: values, name + "_scale_inv": scales})
    messages = run_program(UNFIT_PROGRAM, folder, num_devices=7)
    assert len(messages) == 2
    for message in messages:
        assert name in message and "model.safetensors" in message
        assert "must fit" in message and "(512, 512)" in message


# ---- Writing ----------------------------------------------------------------------------------


def model(rng):
    """Tensors of every kind that a model has."""
    dense = fp8.quantize(jnp.asarray(rng.normal(size=(200, 300)), jnp.float32), (128, 128))
    experts = fp8.quantize(jnp.asarray(rng.normal(size=(3, 130, 256)), jnp.float32), (128, 128))
    return {
        "model.embed_tokens.weight": jnp.asarray(rng.normal(size=(16, 8)), jnp.bfloat16),
        f"{MLP}.up_proj.weight": dense,
        f"{MLP}.experts.gate_proj.weight": experts,
        f"{MLP}.gate.e_score_correction_bias": np.arange(3, dtype=np.float32),
        "model.norm.weight": jnp.ones(8, jnp.bfloat16),
    }


def assert_same(loaded, tensors):
    assert set(loaded) == set(tensors)
    for name, tensor in tensors.items():
        assert jax.tree.structure(loaded[name]) == jax.tree.structure(tensor)
        for a, b in zip(jax.tree.leaves(loaded[name]), jax.tree.leaves(tensor), strict=True):
            assert (a.shape, a.dtype, raw(a)) == (b.shape, b.dtype, raw(b))


@pytest.mark.parametrize("limit", [1, 40_000, 10**9])
@pytest.mark.parametrize("unstack", [True, False])
def test_round_trip(tmp_path, rng, limit, unstack):
    tensors = model(rng)
    checkpoint.save(tmp_path / "new", tensors, max_file_bytes=limit, unstack_experts=unstack)
    assert_same(checkpoint.load(tmp_path / "new"), tensors)


def test_the_package_reads_what_we_write(tmp_path, rng):
    """Names, dtypes, shapes and bytes, through the reader that other projects use."""
    tensors = model(rng)
    checkpoint.save(tmp_path, tensors, config={"model_type": "tiny"}, max_file_bytes=70_000)

    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    count = len(files)
    assert count > 1
    assert files == [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    found, written = {}, {}
    for file in files:
        with safetensors.safe_open(tmp_path / file, framework="numpy") as opened:
            assert opened.metadata() == {"format": "pt"}
            for name in opened.keys():  # noqa: SIM118
                piece = opened.get_slice(name)
                found[name] = (file, piece.get_dtype(), tuple(piece.get_shape()))
        content = safetensors.deserialize((tmp_path / file).read_bytes())
        sizes = [len(entry["data"]) for _, entry in content]
        assert sum(sizes) <= 70_000 or len(sizes) == 2  # a tensor and its scales may pass it
        written |= {name: bytes(entry["data"]) for name, entry in content}
    assert {name: file for name, (file, _, _) in found.items()} == index["weight_map"]
    stacked, expert = (
        tensors[f"{MLP}.experts.gate_proj.weight"],
        f"{MLP}.experts.1.gate_proj.weight",
    )
    assert written[expert] == raw(stacked.values[1])
    assert written[expert + "_scale_inv"] == raw(stacked.scales[1])
    leaves = jax.tree.leaves(tensors)
    assert index["metadata"]["total_size"] == sum(leaf.nbytes for leaf in leaves)
    up = f"{MLP}.up_proj.weight"
    assert found[up][1:] == ("F8_E4M3", (200, 300))
    assert found[up + "_scale_inv"][1:] == ("F32", (2, 3))
    assert found["model.embed_tokens.weight"][1:] == ("BF16", (16, 8))
    assert found[f"{MLP}.experts.2.gate_proj.weight"][1:] == ("F8_E4M3", (130, 256))

    config = json.loads((tmp_path / "config.json").read_text())
    assert config == {
        "model_type": "tiny",
        "quantization_config": {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [128, 128],
            "modules_to_not_convert": ["model.embed_tokens"],
        },
    }


def test_writes_a_model_without_float8_as_it_is(tmp_path):
    tensors = {"a": np.ones(3, np.float32), "b": jnp.zeros((0, 4), jnp.bfloat16)}
    checkpoint.save(tmp_path, tensors)
    assert json.loads((tmp_path / "config.json").read_text()) == {}
    assert_same(checkpoint.load(tmp_path), tensors)
