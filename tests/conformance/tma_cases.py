# SPDX-License-Identifier: Apache-2.0
"""TMA: boxes with every swizzle, out of bounds on each side, clipped stores, multicast."""

import conformance_models as models
import ml_dtypes
import numpy as np
from problems import Case, Problem, Tensor, as_bytes, as_words

_DTYPES = {
    "uint8": np.uint8,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float32": np.float32,
}
# Start of the box in a tensor of 24 rows, and of a few more columns than a box has. The column is a
# multiple of 16 bytes everywhere: a GPU traps where it is not.
_STARTS = {
    "inside": (0, 0),
    "offset": (16, 3),
    "past_right": (32, 0),
    "past_bottom": (0, 20),
    "past_left": (-16, 2),
    "past_top": (0, -7),
    "past_corner": (-16, -9),
    "right_of_all": (4096, 0),
    "above_all": (0, -100),
}


def _tensor(rows: int, columns: int, dtype: str, seed: int = 0) -> np.ndarray:
    """Returns elements whose bytes tell them apart."""
    data = np.random.default_rng(seed).integers(1, 255, (rows, columns * 4), np.uint8)
    return np.ascontiguousarray(data[:, : columns * np.dtype(_DTYPES[dtype]).itemsize]).view(
        _DTYPES[dtype]
    )


def _load(name: str, tensor: Tensor, x: int, y: int) -> Case:
    rows, columns = tensor.box
    box = models.box_of(tensor.data, x, y, columns, rows)
    image = models.box_in_smem(box, tensor.swizzle)
    out_bytes = image.size + 256  # what follows the box must stay as it was
    expected = np.full(out_bytes, models.BACKGROUND, np.uint8)
    expected[: image.size] = image
    args = (image.size, x, y, out_bytes // 4)
    problem = Problem(out_words=out_bytes // 4, args=args, tensors=(tensor,))
    return Case(f"tma_load.{name}", "tma_load", problem, as_bytes(expected))


def _load_cases() -> list[Case]:
    cases = []
    for swizzle in (0, 32, 64, 128):
        columns = swizzle or 48
        tensor = Tensor(_tensor(24, columns + 20, "uint8"), (16, columns), swizzle=swizzle)
        starts = _STARTS if swizzle in (0, 128) else {"offset": (16, 3)}
        cases += [_load(f"u8.sw{swizzle}.{s}", tensor, x, y) for s, (x, y) in starts.items()]
    # The scales of A: a row of float32, no swizzle, box of one row.
    scales = Tensor(_tensor(3, 100, "float32", 1), (1, 64), "float32")
    cases += [_load("f32.row", scales, 0, 1), _load("f32.row_past_right", scales, 64, 2)]
    # Of a group that starts at any row of A: from the multiple of 16 bytes before its first scale.
    cases += [_load(f"f32.row_from_{x}", scales, x, 1) for x in (4, 68, 96)]
    # Accumulator tiles.
    for dtype, swizzle in (("bfloat16", 128), ("float16", 32), ("float32", 64)):
        columns = swizzle // np.dtype(_DTYPES[dtype]).itemsize
        tensor = Tensor(_tensor(70, columns + 8, dtype, 2), (64, columns), dtype, swizzle)
        cases.append(_load(f"{dtype}.sw{swizzle}.past_corner", tensor, 8, 32))
    # The largest box, and a tensor smaller than its box.
    cases.append(
        _load("u8.sw128.rows256", Tensor(_tensor(256, 128, "uint8"), (256, 128), swizzle=128), 0, 0)
    )
    tiny = Tensor(_tensor(1, 7, "uint8", 3), (8, 128), swizzle=128)
    cases.append(_load("u8.sw128.tiny_tensor", tiny, 0, 0))
    return cases


def _store(name: str, tensor: Tensor, starts: tuple[tuple[int, int], tuple[int, int]]) -> Case:
    rows, columns = tensor.box
    memory = tensor.memory().reshape(tensor.shape[0], -1)
    images = []
    for i, (x, y) in enumerate(starts):
        box = np.random.default_rng(10 + i).integers(1, 255, (rows, columns * 4), np.uint8)
        box = np.ascontiguousarray(box[:, : columns * tensor.data.itemsize]).view(tensor.data.dtype)
        images.append(models.box_in_smem(box, tensor.swizzle))
        models.store_box(memory, tensor.shape[1] * tensor.data.itemsize, box, x, y)
    args = (images[0].size // 4, *starts[0], *starts[1])
    problem = Problem(as_words(*images), 0, args, (tensor,))
    return Case(f"tma_store.{name}", "tma_store", problem, as_bytes(memory))


def _store_cases() -> list[Case]:
    cases = []
    apart = {
        "inside": ((0, 0), (8, 32)),
        "past_right_and_bottom": ((40, 0), (0, 60)),
        "past_left_and_top": ((-8, 0), (0, -9)),
        "outside": ((4096, 0), (0, -64)),
    }
    for swizzle in (0, 32, 64, 128):
        columns = (swizzle or 64) // 2
        data = _tensor(70, columns + 12, "bfloat16", 4)
        tensor = Tensor(data, (32, columns), "bfloat16", swizzle, is_output=True)
        chosen = apart if swizzle in (0, 128) else {"inside": apart["inside"]}
        for name, starts in chosen.items():
            if name == "past_right_and_bottom":
                starts = ((columns - 8, 0), (0, 60))
            cases.append(_store(f"bf16.sw{swizzle}.{name}", tensor, starts))
    floats = Tensor(_tensor(80, 40, "float32", 5), (64, 32), "float32", 128, is_output=True)
    cases.append(_store("f32.sw128.corner", floats, ((20, 0), (20, 40))))
    return cases


def _multicast(name: str, starts: tuple, masks: tuple[int, int]) -> Case:
    tensor = Tensor(_tensor(40, 128, "uint8", 6), (16, 128), swizzle=128)
    box_bytes = 16 * 128
    num_bytes = 2 * box_bytes
    expected = np.full((2, num_bytes), models.BACKGROUND, np.uint8)
    arriving = [0, 0]
    for source, ((x, y), mask) in enumerate(zip(starts, masks, strict=True)):
        image = models.box_in_smem(models.box_of(tensor.data, x, y, 128, 16), 128)
        for target in range(2):
            if mask >> target & 1:
                expected[target, source * box_bytes :][:box_bytes] = image
                arriving[target] += box_bytes
    args = (box_bytes, num_bytes // 4)
    for start, mask, num_arriving in zip(starts, masks, arriving, strict=True):
        args += (*start, mask, num_arriving)
    problem = Problem(out_words=2 * num_bytes // 4, args=args, tensors=(tensor,), num_ctas=2)
    return Case(f"tma_multicast.{name}", "tma_multicast", problem, as_bytes(expected))


def trapping() -> list[Case]:
    """Returns boxes whose innermost coordinate is no multiple of 16 bytes.

    A GPU ends the context with error 715, illegal instruction; the simulator refuses them.
    """
    scales = Tensor(_tensor(3, 100, "float32", 1), (1, 64), "float32")
    results = Tensor(_tensor(70, 44, "float32", 4), (32, 32), "float32", 128, is_output=True)
    return [_load("f32.row_from_1", scales, 1, 1), _store("f32.from_1", results, ((1, 0), (0, 32)))]


def cases() -> list[Case]:
    """Returns all cases that a GPU runs."""
    return [
        *_load_cases(),
        *_store_cases(),
        _multicast("halves_to_both", ((0, 0), (0, 16)), (0b11, 0b11)),
        _multicast("first_to_both", ((0, 8), (0, 0)), (0b11, 0)),
        _multicast("crossed", ((0, 0), (0, 24)), (0b10, 0b01)),
        _multicast("past_bottom", ((0, 32), (0, 48)), (0b11, 0b11)),
    ]
