# SPDX-License-Identifier: Apache-2.0
"""Operation: what an operation computes and how it can be sharded, said once for all transforms."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import mlir

from jax_fp8gemm._src.operands import checks
from jax_fp8gemm._src.transforms import platforms
from jax_fp8gemm._src.xla.part import Part

Dims = tuple[str, ...]


class Layout(NamedTuple):
    """The dimensions of an operation.

    Equal names are one axis, and "k/128" counts blocks of 128 along axis "k". What is in an operand
    and not in the first result is summed over there; other results are of one part each.

    Attributes:
        operands: Dimensions of each operand; None where an optional one is absent.
        results: Dimensions of each result.
        names: What each operand is called in messages.
        replicated: Axes that are never sharded.
        added: Indices of operands that are added to a sum over devices, and not summed.
        units: Units of axes, `(axis, elements)`, that no dimension shows: what is sharded must be
            a multiple.
        can_cut: Axes whose blocks may lie on several devices, each of which has all scales along
            them: `Operation.local_of_cut` computes their parts.
    """

    operands: tuple[Dims | None, ...]
    results: tuple[Dims, ...]
    names: tuple[str, ...]
    replicated: tuple[str, ...] = ()
    added: tuple[int, ...] = ()
    units: tuple[tuple[str, int], ...] = ()
    can_cut: tuple[str, ...] = ()

    def batched(self, name: str, in_batched: Sequence[bool]) -> "Layout":
        """Returns the layout of a batch, which some operands and all results have in front."""
        pairs = zip(self.operands, in_batched, strict=True)
        return self._replace(
            operands=tuple(
                (name, *dims) if is_batched and dims is not None else dims
                for dims, is_batched in pairs
            ),
            results=tuple((name, *dims) for dims in self.results),
        )

    def of_present(self, operands: Sequence[Any]) -> "Layout":
        """Returns the layout with None for the operands that are absent."""
        pairs = zip(self.operands, operands, strict=True)
        return self._replace(operands=tuple(None if x is None else dims for dims, x in pairs))

    def contracted(self) -> list[str]:
        """Returns the axes that the first result is summed over."""
        kept = {axis_of(dim) for dim in self.results[0]}
        axes = dict.fromkeys(axis_of(dim) for dims in self.operands for dim in dims or ())
        return [axis for axis in axes if axis not in kept]

    def unit(self, axis: str) -> int:
        """Returns how many elements along an axis must stay together."""
        shown = shown_unit((*self.operands, *self.results), axis)
        return max(shown, dict(self.units).get(axis, 1))


def axis_of(dim: str) -> str:
    """Returns the axis that a dimension is along."""
    return dim.partition("/")[0]


def shown_unit(every: Sequence[Dims | None], axis: str) -> int:
    """Returns the unit of an axis as the dimensions of some arrays show it."""
    dims = (dim for dims in every for dim in dims or () if axis_of(dim) == axis)
    return max((int(dim.partition("/")[2] or 1) for dim in dims), default=1)


def sizes_of(layout: Layout, shapes: Sequence[tuple[int, ...] | None]) -> dict[str, int]:
    """Returns the extent of each axis."""
    return {
        dim: size
        for dims, shape in zip(layout.operands, shapes, strict=True)
        for dim, size in zip(dims or (), shape or (), strict=True)
        if "/" not in dim
    }


class Operation:
    """An operation on arrays, None where an optional operand is absent.

    Subclasses are frozen dataclasses of what is static: equal ones share traces and compilations,
    and their `repr` tells programs apart in XLA's cache.

    Attributes:
        op_name: Public name of the function that asks for it, for messages.
        implementation: None, "cuda", "xla" or "sim", as in the public functions.
        result_dtype: Dtype of the result, for operations that sum over devices.
        reduce_dtype: Dtype in which devices add up their results, or FP8 in which they send them.
    """

    op_name: str
    implementation: str | None
    result_dtype: np.dtype
    reduce_dtype: np.dtype = np.dtype(np.float32)

    def layout(self, *operands) -> Layout:
        """Returns the dimensions of operands and results."""
        raise NotImplementedError

    def result_types(self, *operands) -> Any:
        """Returns a `jax.ShapeDtypeStruct`, or a tree of them, like the results.

        By default one of `result_dtype`, whose extents are those of the operands.
        """
        layout = self.layout(*operands)
        sizes = sizes_of(layout, [None if x is None else x.shape for x in operands])
        return like(tuple(sizes[dim] for dim in layout.results[0]), self.result_dtype)

    def kernel(self, *operands, backend: str) -> Any:
        """Returns the results from a custom call for "cuda" or "sim"."""
        raise NotImplementedError

    def xla(self, *operands) -> Any:
        """Returns the results from plain JAX."""
        raise NotImplementedError

    def batch(self, apply: Callable, axis_size: int, in_batched, operands: tuple) -> Any:
        """Returns the results of a batch, in front of all of them: the rule of `jax.vmap`.

        Args:
            apply: `apply(op, operands)`, for the operation that computes the batch.
            axis_size: Extent of the batch.
            in_batched: Whether each operand has the batch, in front.
            operands: The operands.
        """
        raise NotImplementedError

    def once(self, in_batched, operands: tuple) -> tuple | None:
        """Returns operands that give one result for all of a batch; None where each has its own."""
        return None

    def jvp(self, primals: tuple, tangents: tuple) -> Any:
        """Returns results and their tangents. Refuses by default."""
        raise TypeError(
            f"{self.op_name} is not differentiable: float8 operands have no useful gradients. Wrap"
            f" the computation from quantize to {self.op_name} in jax.custom_vjp, or stop the"
            " gradient at its operands with jax.lax.stop_gradient."
        )

    def is_empty(self, *operands) -> bool:
        """Says whether there is nothing for a kernel to do. Extents are numbers."""
        return any(x is not None and x.size == 0 for x in operands)

    def check_extents(self, *operands) -> None:
        """Raises NotImplementedError for symbolic extents that plain JAX cannot have either."""

    @property
    def is_left_to_xla(self) -> bool:
        """Whether XLA's partitioner shards the plain-JAX form well by itself."""
        return False

    # ---- Several devices -----------------------------------------------------------------------

    def placed(self, axes: Mapping[str, tuple[str, ...]]) -> "Operation":
        """Returns the operation on one device's part, given the mesh axes of each axis."""
        return self

    def partial_sum(self) -> "Operation":
        """Returns the operation whose results devices add up."""
        if self.reduce_dtype in checks.FP8_DTYPES:
            return self
        return dataclasses.replace(cast(Any, self), result_dtype=self.reduce_dtype)

    def sum_quantizer(self) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]] | None:
        """Returns what rounds results that devices add up to FP8; None to send them as they are."""
        return None

    def finish(self, total: jax.Array, *operands) -> jax.Array:
        """Returns the first result, made of the sum over all devices."""
        return total.astype(self.result_dtype)

    def local_of_cut(self, cut: Mapping[str, tuple[str, ...]], *operands) -> Any:
        """Returns one device's results where blocks lie on several devices.

        By default those of its part in frames of blocks (`Part`): nothing is exchanged. No result
        counts the blocks of a cut axis then.

        Args:
            cut: By axis of `Layout.can_cut`, the mesh axes whose devices share its blocks.
            operands: What the device holds, and the scales of all blocks along those axes.
        """
        layout = self.layout(*operands)
        parts: dict[str, Part] = {}
        for dims, x in zip(layout.operands, operands, strict=True):
            for i, dim in enumerate(dims or ()):
                if dim in cut and dim not in parts:
                    parts[dim] = Part(x.shape[i], layout.unit(dim), cut[dim])

        def framed(x, dims):
            for i, dim in enumerate(dims or ()):
                if part := parts.get(axis_of(dim)):
                    x = part.own(x, i) if "/" in dim else part.framed(x, i)
            return x

        def unframed(x, dims):
            for i, dim in enumerate(dims):
                if dim in parts:
                    x = parts[dim].unframed(x, i)
            return x

        results = self.local(*map(framed, operands, layout.operands))
        leaves, structure = jax.tree.flatten(results)
        return structure.unflatten(map(unframed, leaves, layout.results))

    # ---- What one device computes --------------------------------------------------------------

    def local(self, *operands) -> Any:
        """Returns the results on what one device holds, by the implementation for its platform.

        Lowering them for a platform on which `implementation` does not run raises
        NotImplementedError.
        """
        if self.implementation == "xla":
            return self.xla(*operands)
        if self.implementation is None and not platforms.default_is_kernels():
            return self.xla(*operands)
        arrays, structure = jax.tree.flatten(operands)
        types, results = jax.tree.flatten(self.result_types(*operands))
        leaves = _local_p.bind(*arrays, op=self, structure=structure, types=tuple(types))
        return results.unflatten(leaves)

    def implementation_on(self, platform: str | None, *operands) -> Callable[..., Any]:
        """Returns the function of the operands that runs on a platform, or raises."""
        backend = self.implementation or "cuda"
        if self.implementation is None and platform != "cuda":
            return self.xla
        for x in jax.tree.leaves(operands):
            if not checks.is_static(x.shape):
                raise NotImplementedError(
                    f"{self.op_name}: the kernels are chosen by shape, which must be numbers, got"
                    f" {x.shape}; export with numbers, or with implementation='xla'."
                )
        if platforms.PLATFORM[backend] != platform:
            raise NotImplementedError(
                f"{self.op_name}: implementation={backend!r} runs on the platform"
                f" {platforms.PLATFORM[backend]!r}, not on {platform or 'this one'!r};"
                " use implementation=None or 'xla' there."
            )
        if self.is_empty(*operands):
            return self.xla
        return functools.partial(self.kernel, backend=backend)


class InRule(Operation):
    """An operation inside a derivative rule, which refuses a second derivative."""

    def jvp(self, primals, tangents):
        raise TypeError("gradients of FP8 products are not differentiable: no second derivatives.")


def result_avals(first: Any, types: Sequence[Any], shardings: Sequence[Any] | None) -> list[Any]:
    """Returns results for a tracer: as the first operand, of these types; None: not sharded."""
    if shardings is None:
        shardings = [first.sharding.update(spec=())] * len(types)
    return [
        first.update(shape=t.shape, dtype=t.dtype, weak_type=False, sharding=sharding)
        for t, sharding in zip(types, shardings, strict=True)
    ]


# ---- The choice of an implementation, made while lowering ----------------------------------------

# Only the implementation that runs is traced: `jax.lax.platform_dependent` would trace all of them.
_local_p = Primitive("jax_fp8gemm")
_local_p.multiple_results = True


@_local_p.def_abstract_eval
def _local_abstract_eval(first, *_, op, structure, types):
    # Operations get here with what one device holds.
    return result_avals(first, types, None)


def _on_platform(platform: str | None, *arrays, op: Operation, structure, types):
    operands = structure.unflatten(arrays)
    return jax.tree.leaves(op.implementation_on(platform, *operands)(*operands))


for _platform in ("cuda", "cpu", "rocm", "tpu", None):  # None: all others
    _lowering = mlir.lower_fun(functools.partial(_on_platform, _platform), multiple_results=True)
    mlir.register_lowering(_local_p, _lowering, platform=_platform)


def like(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    """Returns the type of a result."""
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
