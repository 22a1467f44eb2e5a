# SPDX-License-Identifier: Apache-2.0
"""Batches, meshes and platforms: the one way from an operation to its computation."""
