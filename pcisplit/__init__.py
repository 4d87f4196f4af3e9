# SPDX-License-Identifier: MIT
"""pcisplit: a PCI split driver without Xen.

General layout: ``wire`` (every layout and number), ``states``, ``errors``, ``messages``, ``bootinfo`` and ``pci`` are
sans-IO and importable alone; ``ring`` is shared memory; ``front`` and ``back`` are two shells around that core which
never import each other; ``cli``, ``demo`` and ``conformance`` are programs on top.
"""

__version__ = "0.2.0"
