# SPDX-License-Identifier: Apache-2.0
"""What the code of each kernel must be: what a key implies for products and for quantizers."""

from collections.abc import Mapping

from _sass.gates import Expected, gate_failures, log_failures
from jax_fp8gemm._src.native.extension import core
from jax_fp8gemm._src.tools.sass.facts import KernelFacts

# Operand types as wgmma and its SASS name them.
_MNEMONICS = {"float8_e4m3fn": "E4M3", "float8_e5m2": "E5M2"}
# Bytes that one lane loads at once: four elements of a row, two where x is transposed.
_ELEMENT_BYTES = {"bf16": 2, "f16": 2, "f32": 4, "e4m3": 1}
_LOADS = {
    2: "LDG.E.U16.CONSTANT",
    4: "LDG.E.CONSTANT",
    8: "LDG.E.64.CONSTANT",
    16: "LDG.E.128.CONSTANT",
}
# Two CTAs of 256 threads must fit on an SM.
_MAX_QUANTIZER_REGISTERS = 128


def kernel_failures(
    key: str, facts: KernelFacts, opcodes: Mapping[str, int], log: str
) -> list[str]:
    """Returns one sentence for each thing that is wrong with the code of the kernel `key`.

    The log is that of its compilation; `opcodes` counts its instructions.
    """
    if key.startswith("quantize"):
        return log_failures(log) + _quantizer_failures(key, facts, opcodes)
    return log_failures(log) + gate_failures(facts, expected_code(key))


def expected_code(key: str) -> Expected:
    """What the configuration `key` of a product implies for its code."""
    config = core().describe_config(key)
    block_n, row_slices = config["block_n"], config["row_slices"]
    # A thread has two rows of a row slice, so two scales of A. With 128x128 scales of B it
    # multiplies each with those of the one or two column blocks; with 1x128 scales each with those
    # of its block_n / 4 columns, which it loads in pairs. It loads while the tensor core works;
    # ptxas may move one load before the first wgmma.
    row_scales = 2 * row_slices
    is_1d1d = config["scaling"] == "1d1d"
    column_loads = block_n // 8 if is_1d1d else 0
    loads = row_scales + (column_loads or 1)
    products = row_scales * (block_n // 4 if is_1d1d else config["scale_blocks_n"])
    # Releases to the cluster, where CTAs share operands: of a group table at the start, of
    # everything at the end. Sums of split K are released by the stores themselves.
    is_shared = config["cluster_m"] * config["cluster_n"] > 1
    has_table = config["kind"] in ("ragged", "masked", "k_grouped")
    releases = is_shared + (is_shared and has_table)
    return Expected(
        kernel=f"sm90_fp8_gemm_{config['family']}",
        scale_products=products,
        scale_loads=loads,
        scale_loads_under_mma=loads - 1,
        gpu_barriers=releases,
        block_n=block_n,
        row_slices=row_slices,
        num_consumers=config["num_consumers"],
        moves_registers=config["moves_registers"],
        consumer_registers=config["consumer_registers"],
        producer_registers=config["producer_registers"],
        a_type=_MNEMONICS[config["a_type"]],
        b_type=_MNEMONICS[config["b_type"]],
    )


def _quantizer_failures(key: str, facts: KernelFacts, opcodes: Mapping[str, int]) -> list[str]:
    """What quantizers must do: keep to registers, and load, convert and store in vectors."""
    family, x_type, dtype, _ = key.split(".")
    is_transposed = family.endswith(("transposed", "kgrouped"))
    is_activation = family.endswith("lu")
    is_norm = family.endswith("norm")
    has_rows = family.startswith("quantize_rows") or is_activation or is_norm
    columns = 2 if is_transposed and not has_rows else 4
    rows = 8 if has_rows and not is_transposed else 16
    factors = 2 if family.endswith("glu") else 1
    load = _LOADS[_ELEMENT_BYTES[x_type] * columns]
    maxima = rows if has_rows else 0 if is_transposed else 2

    def count(prefix: str) -> int:
        return sum(num for opcode, num in opcodes.items() if opcode.startswith(prefix))

    stacked = facts.local_memory, facts.frame_bytes, facts.stack_bytes
    # Every element once, two at a time; of two layouts twice.
    conversions = rows * columns // 2 * (1 + (is_transposed and has_rows))
    converted = count(f"F2FP.SATFINITE.{dtype.upper()}.F32")
    rules = [
        (facts.kernel == f"sm90_{family}", f"the entry point is {facts.kernel}"),
        (stacked == (0, 0, 0), f"local memory, frame, stack: {stacked}"),
        (facts.registers <= _MAX_QUANTIZER_REGISTERS, f"{facts.registers} registers"),
        (opcodes[load] >= rows * factors, f"{opcodes[load]} {load}, expected {rows * factors}"),
        (converted == conversions, f"{converted} conversions, expected {conversions}"),
        (count("REDUX.MAX") == maxima, f"{count('REDUX.MAX')} maxima, expected {maxima}"),
    ]
    if is_norm:
        # Factors of four columns once for all rows; two products and one with the scale.
        wide = 1 + rows * (load == _LOADS[16])
        products = 3 * rows * columns
        rules += [
            (opcodes[_LOADS[16]] == wide, f"{opcodes[_LOADS[16]]} wide loads, expected {wide}"),
            (opcodes["FMUL"] == products, f"{opcodes['FMUL']} FMUL, expected {products}"),
        ]
    if is_activation:
        exponentials, reciprocals = opcodes["MUFU.EX2"], opcodes["MUFU.RCP"]
        rules.append(
            (
                exponentials == rows * columns <= reciprocals,
                f"{exponentials} MUFU.EX2 and {reciprocals} MUFU.RCP, expected {rows * columns}",
            )
        )
    if is_transposed:
        vectors = {opcode: opcodes[opcode] for opcode in ("STS.128", "LDS.128", "STG.E.128")}
        rules.append((all(vectors.values()), f"not in vectors: {vectors}"))
    return [message for holds, message in rules if not holds]
