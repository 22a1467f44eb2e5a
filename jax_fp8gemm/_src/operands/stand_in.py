# SPDX-License-Identifier: Apache-2.0
"""StandIn: what a pytree that stands for an array says of its shape and dtype."""

import numpy as np


class StandIn:
    """A pytree that stands for an array; `_leaf` names the leaf of its shape and dtype."""

    __slots__ = ()
    _leaf: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return getattr(self, self._leaf).shape

    @property
    def ndim(self) -> int:
        """Number of dimensions of the array."""
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the array; float8 where the array is quantized."""
        return getattr(self, self._leaf).dtype
