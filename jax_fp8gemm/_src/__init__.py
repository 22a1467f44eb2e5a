# SPDX-License-Identifier: Apache-2.0
"""The package behind the public modules, in folders by audience; see docs/architecture.md."""
