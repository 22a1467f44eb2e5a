# SPDX-License-Identifier: Apache-2.0
"""What depends on the release of jaxlib: `python -m tests.jaxlibs` from the repository."""
