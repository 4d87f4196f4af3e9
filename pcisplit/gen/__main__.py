# SPDX-License-Identifier: MIT
"""``python -m pcisplit.gen``."""

import sys

from pcisplit.gen import main

sys.exit(main())
