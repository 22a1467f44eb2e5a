# SPDX-License-Identifier: Apache-2.0
"""What XLA:GPU makes of calls of this package for an H100, compiled ahead of time without a GPU."""

import math
import re
from pathlib import Path

import _aot
import pytest
from _hlo import Module, parse_module

PRODUCT, QUANTIZER = "jax_fp8gemm.gemm.", "jax_fp8gemm.quantize."
CHAIN_LENGTH = 6  # of _aot_programs.chain


pytestmark = _aot.marks()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Compiles all programs; returns the folder of the dumps."""
    return _aot.compiled(tmp_path_factory, "_aot_programs.py")


def _module(folder: Path, program: str) -> Module:
    return parse_module((folder / f"{program}.hlo").read_text())


def _thunks(folder: Path, program: str) -> list[str]:
    """Lines of the thunk sequence that would run; XLA indents what a command buffer holds."""
    passed = list(folder.glob(f"*jit_{program}.thunk_sequence_after_thunk_passes.txt"))
    (path,) = passed or folder.glob(f"*jit_{program}.thunk_sequence.txt")
    return path.read_text().splitlines()


@pytest.mark.parametrize(
    ("program", "products", "quantizers"),
    [
        ("quantized_lhs", 1, 1),
        ("given_scales", 1, 0),
        ("accumulated", 1, 1),
        ("chain", CHAIN_LENGTH, CHAIN_LENGTH),
        ("batched", 1, 1),
        # Forward, gradient of the activations, gradient of the weight; activations, weight and the
        # result's gradient along both, and for the weight's gradient activations along tokens.
        ("trained", 3, 4),
        ("grouped", 1, 1),
        ("grouped_weight_gradient", 1, 2),
        ("sharded", 1, 1),
        ("trained_on_8", 3, 4),
        ("experts_on_8", 1, 1),
        ("expert_layer_on_8", 3, 4),
        ("fp8_expert_layer_on_8", 3, 4),
        ("fp8_gradients_expert_layer_on_8", 3, 6),
    ],
)
def test_one_custom_call_per_product_and_quantizer(folder, program, products, quantizers):
    module = _module(folder, program)
    assert len(module.custom_calls(PRODUCT)) == products
    assert len(module.custom_calls(QUANTIZER)) == quantizers


def test_kernels_are_compiled_with_the_program(folder):
    """Nothing is left to compile while it runs; and no driver is needed for it."""
    assert list((folder / "cache").rglob("1d2d.*.bin"))


@pytest.mark.parametrize("program", ["quantized_lhs", "chain", "batched", "grouped", "sharded"])
def test_scales_quantized_in_the_program_need_no_transpose(folder, program):
    module = _module(folder, program)
    for call in module.custom_calls(PRODUCT):
        assert "{0,1}" in call.text  # the scales' M is innermost
    assert module.layout_kernels() == []


def test_scales_from_outside_cost_one_transpose(folder):
    """Scales in JAX's layout must be transposed, and the check above would see it."""
    assert len(_module(folder, "given_scales").layout_kernels()) == 1


@pytest.mark.parametrize(
    ("program", "count"),
    [
        ("quantized_lhs", 2),
        ("accumulated", 2),
        ("batched", 2),
        ("chain", 2 * CHAIN_LENGTH),
        ("grouped", 2),
        ("grouped_weight_gradient", 3),
    ],
)
def test_nothing_runs_beside_quantizers_and_products(folder, program, count):
    """No copy, padding or transpose lies between them."""
    module = _module(folder, program)
    assert len(module.kernels()) == count
    assert len(module.custom_calls(PRODUCT) + module.custom_calls(QUANTIZER)) == count


def test_donated_accumulator_is_updated_in_place(folder):
    module = _module(folder, "accumulated")
    (call,) = module.custom_calls(PRODUCT)
    assert "output_to_operand_aliasing={{}: (4, {})}" in call.text
    assert "input_output_alias={ {}: (3, {}" in module.header
    assert module.layout_kernels() == []


def test_grouped_weight_gradient_reads_tokens_directly(folder):
    """No transpose of them is written but the float8 one, and the accumulator is used in place."""
    module = _module(folder, "grouped_weight_gradient")
    (call,) = module.custom_calls(PRODUCT)
    assert "output_to_operand_aliasing={{}: (5, {})}" in call.text
    assert "input_output_alias={ {}: (3, {}" in module.header
    assert module.layout_kernels() == []
    text = (folder / "grouped_weight_gradient.hlo").read_text()
    entry = text[text.index("ENTRY") :]
    # Tokens are padded to 1152 = 9 * 128 columns: values of 512 rows in 8 bits, scales in 32.
    shapes = re.findall(r"(\w+)\[([0-9,]+)\]", entry)
    large = {t for t, s in shapes if math.prod(map(int, s.split(","))) == 512 * 9 * 128}
    assert large == {"f8e4m3fn"}, large


def test_calls_land_in_a_command_buffer(folder):
    thunks = _thunks(folder, "chain")
    assert any("kCommandBuffer" in line for line in thunks), thunks
    calls = [line for line in thunks if "kCustomCall" in line]
    assert len(calls) == 2 * CHAIN_LENGTH  # a quantizer and a product each
    assert all(line.startswith(" ") for line in calls), thunks


def test_programs_too_short_for_a_command_buffer_have_none(folder):
    """Shows that the test above can fail: the dump looks different without a command buffer."""
    thunks = _thunks(folder, "quantized_lhs")
    assert not any("kCommandBuffer" in line or line.startswith(" ") for line in thunks)


def _collectives(folder: Path, program: str) -> list[tuple[str, str]]:
    """Kinds and shapes of what the devices exchange."""
    names = "all-reduce|all-gather|reduce-scatter|ragged-all-to-all|all-to-all|collective-permute"
    text = (folder / f"{program}.hlo").read_text()
    # A start's shape is a tuple of what goes in and out, a done's the result's alone.
    return re.findall(rf" = (\S+?)(?:{{\S*)? ({names})(?:-done)?\(", text)


def test_eight_devices_add_up_once(folder):
    """K is divided among four: each multiplies what it has, and one sum follows."""
    (call,) = _module(folder, "sharded").custom_calls(PRODUCT)
    assert "m = 128" in call.text and "k = 128" in call.text, call.text
    assert _collectives(folder, "sharded") == [("f32[128,512]", "all-reduce")]


def test_eight_devices_train_with_one_sum_per_gradient(folder):
    """Tokens over two devices, columns over four: no operand moves."""
    shapes = sorted(_collectives(folder, "trained_on_8"))
    # The loss; the activations' gradient over the columns; the weight's over the tokens. Each in
    # the dtype of its operand, as XLA's own product has it.
    assert shapes == [
        ("bf16[128,512]", "all-reduce"),
        ("bf16[512,128]", "all-reduce"),
        ("f32[]", "all-reduce"),
    ]


def test_experts_on_eight_devices_move_nothing(folder):
    """Groups over two devices, columns over four."""
    (call,) = _module(folder, "experts_on_8").custom_calls(PRODUCT)
    assert "num_groups = 4" in call.text and "n = 128" in call.text, call.text
    assert _collectives(folder, "experts_on_8") == []


def test_rows_travel_to_their_experts_by_ragged_all_to_all(folder):
    """There and back, forward and backward; beside them only counts are exchanged."""
    found = _collectives(folder, "expert_layer_on_8")
    rows = [shape for shape, kind in found if kind == "ragged-all-to-all"]
    assert len(rows) == 4, found
    assert sorted(rows) == ["bf16[192,512]"] * 2 + ["bf16[64,512]"] * 2  # room for three times
    others = {shape.partition("[")[0] for shape, kind in found if kind != "ragged-all-to-all"}
    assert others == {"s32"}, found


def test_rows_travel_to_their_experts_in_fp8(folder):
    """Half the bytes there, scales and all; results and gradients travel in bfloat16."""
    found = _collectives(folder, "fp8_expert_layer_on_8")
    rows = sorted(shape for shape, kind in found if kind == "ragged-all-to-all")
    assert rows == ["bf16[192,512]", *["bf16[64,512]"] * 2, "f32[192,4]", "u8[192,512]"]
    assert round(_bytes_of_a_row(rows) / (4 * 1024), 2) == 0.88  # docs/sharding.md


def test_gradients_travel_to_the_experts_in_fp8(folder):
    """As rows do; results, and gradients of rows, come back in bfloat16."""
    found = _collectives(folder, "fp8_gradients_expert_layer_on_8")
    rows = sorted(shape for shape, kind in found if kind == "ragged-all-to-all")
    assert rows == [*["bf16[64,512]"] * 2, *["f32[192,4]"] * 2, *["u8[192,512]"] * 2]
    assert _bytes_of_a_row(["f32[192,4]", "u8[192,512]"]) < 0.52 * 1024
    assert round(_bytes_of_a_row(rows) / (4 * 1024), 2) == 0.76  # docs/sharding.md


def test_results_come_back_in_fp8(folder):
    """And gradients of rows: nothing travels in bfloat16."""
    found = _collectives(folder, "fp8_results_expert_layer_on_8")
    rows = sorted(shape for shape, kind in found if kind == "ragged-all-to-all")
    there, back = ["f32[192,4]", "u8[192,512]"], ["f32[64,4]", "u8[64,512]"]
    assert rows == sorted(2 * (there + back))
    assert round(_bytes_of_a_row(rows) / (4 * 1024), 2) == 0.52  # docs/sharding.md


def _bytes_of_a_row(shapes: list[str]) -> int:
    """What is sent of each row: as many rows go there as come back, whatever the room."""
    found = [re.fullmatch(r"(\w+)\[\d+,(\d+)\]", shape).groups() for shape in shapes]
    return sum({"u8": 1, "bf16": 2, "f32": 4}[dtype] * int(width) for dtype, width in found)


def _weights_written(tmp_path: Path, fusion: str) -> list[str]:
    """Weights of a layer that the loop over the layers writes, and what writes them."""
    path = tmp_path / f"{fusion}.hlo"
    _aot.run(tmp_path, "_aot_slices.py", str(path), fusion)
    body = next(part for part in path.read_text().split("\n\n") if "jax_fp8gemm.quantize" in part)
    return re.findall(r" = f8e4m3fn\[1,512,512\]\S* (fusion|copy|dynamic-slice)\(", body)


def test_slices_of_weights_are_read_where_they_lie(tmp_path):
    """With dynamic-slice fusion each layer's weights are read once, and never written."""
    assert _weights_written(tmp_path, "true") == []


def test_without_slice_fusion_each_layer_is_copied(tmp_path):
    """Read, written, and read again; and shows that the test above can fail."""
    assert _weights_written(tmp_path, "false") == ["fusion"]
