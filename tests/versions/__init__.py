# SPDX-License-Identifier: Apache-2.0
"""What depends on versions of Python and jax: `python -m tests.versions` from the repository."""
