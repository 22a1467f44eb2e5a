# SPDX-License-Identifier: Apache-2.0
"""Part: one device's part of a dimension whose blocks may lie on several devices."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


class Part:
    """Where a device's part lies among the blocks of a dimension.

    In its frame a part begins as far from a block's begin as it does in the whole, so that blocks
    are where operations on arrays expect them. A part inside of one block is its own frame.

    Attributes:
        size: Extent of the part.
        is_frame: Whether the part of each device is its own frame.
        touched: Blocks that the part of any device touches, at most.
        num_blocks: Blocks of the whole.
    """

    def __init__(self, size: int, extent: int, mesh_axes: tuple[str, ...]):
        """Says where the part lies.

        Args:
            size: Extent of the part, the same on every device.
            extent: That of a block.
            mesh_axes: Over which the parts lie; none where the part is the whole.
        """
        count = lax.axis_size(mesh_axes) if mesh_axes else 1
        start = lax.axis_index(mesh_axes) * size if mesh_axes else 0
        furthest = max(i * size % extent for i in range(count))
        self.size, self._extent = size, extent
        self._first, self._offset = start // extent, start % extent
        self._room = furthest + size
        if self._room <= extent:
            self._offset, self._room = 0, size
        self.is_frame = self._room == size
        self.touched = -(-self._room // extent)
        self.num_blocks = -(-size * count // extent)

    def framed(self, x: jax.Array, dim: int) -> jax.Array:
        """Returns x in its frame, among zeros."""
        if self.is_frame:
            return x
        # In one pass, unlike an update of zeros.
        most = self._room - self.size
        wide = jnp.pad(x, [(most if i == dim else 0,) * 2 for i in range(x.ndim)])
        return lax.dynamic_slice_in_dim(wide, most - self._offset, self._room, dim)

    def unframed(self, x: jax.Array, dim: int) -> jax.Array:
        """Undoes `framed`."""
        if self.is_frame:
            return x
        return lax.dynamic_slice_in_dim(x, self._offset, self.size, dim)

    def own(self, scales: jax.Array, dim: int) -> jax.Array:
        """Returns the scales of the blocks of the frame, of those of all blocks."""
        room = [(0, self.touched if i == dim else 0) for i in range(scales.ndim)]
        padded = jnp.pad(scales, room, constant_values=1)
        return lax.dynamic_slice_in_dim(padded, self._first, self.touched, dim)

    def block_maxima(self, bits: jax.Array, dim: int) -> jax.Array:
        """Returns the largest of each block of the whole: 0 where other devices have all of it."""
        framed = self.framed(bits, dim)
        missing = self.touched * self._extent - framed.shape[dim]
        framed = jnp.pad(framed, [(0, missing if i == dim else 0) for i in range(framed.ndim)])
        shape = (*bits.shape[:dim], self.touched, self._extent, *bits.shape[dim + 1 :])
        maxima = jnp.max(framed.reshape(shape), axis=dim + 1)
        # With room for blocks that are not touched after all.
        every = _placed(maxima, dim, self._first, self.num_blocks + self.touched)
        return lax.slice_in_dim(every, 0, self.num_blocks, axis=dim)

    def per_element(self, scales: jax.Array, dim: int) -> jax.Array:
        """Returns the scale of each element of the part, of the scales of all blocks."""
        wide = jnp.repeat(self.own(scales, dim), self._extent, axis=dim)
        return lax.dynamic_slice_in_dim(wide, self._offset, self.size, dim)


def axis_names(axis_name: Any) -> tuple[str, ...]:
    """Returns the mesh axes that collectives take as one name or several."""
    return tuple(axis_name) if isinstance(axis_name, tuple | list) else (axis_name,)


def _placed(x: jax.Array, dim: int, start, size: int) -> jax.Array:
    """Returns x from `start` on among zeros, of extent `size` along a dimension."""
    shape = (*x.shape[:dim], size, *x.shape[dim + 1 :])
    return lax.dynamic_update_slice_in_dim(lax.full_like(x, 0, shape=shape), x, start, dim)
