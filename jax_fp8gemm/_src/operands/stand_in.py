# SPDX-License-Identifier: Apache-2.0
"""StandIn: what a pytree that stands for an array says of its shape and dtype."""

import json
from typing import TypeVar

import jax.export
import numpy as np

_Class = TypeVar("_Class", bound=type)


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


def exported(pytree: _Class) -> _Class:
    """Lets `jax.export` write a pytree, under its name, whose static part is a tuple for JSON."""
    jax.export.register_pytree_node_serialization(
        pytree,
        serialized_name=f"jax_fp8gemm.{pytree.__name__}",
        serialize_auxdata=lambda static: json.dumps(static).encode(),
        deserialize_auxdata=lambda data: tuple(json.loads(bytes(data) or b"[]")),
    )
    return pytree
