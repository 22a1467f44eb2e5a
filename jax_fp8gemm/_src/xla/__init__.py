# SPDX-License-Identifier: Apache-2.0
"""Every operation in plain JAX, for any device; the oracle of the tests."""
