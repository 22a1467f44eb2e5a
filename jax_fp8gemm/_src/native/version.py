# SPDX-License-Identifier: Apache-2.0
"""The version of the package, which builds read here, and tuned tables name."""

__version__ = "0.1.0"
