# SPDX-License-Identifier: MIT
"""``python -m tests.fuzz SECONDS``: every harness for so long, with progress. ``make fuzz`` calls this."""

import sys
import tempfile
from pathlib import Path

from tests.fuzz.harness import missing, run_all

with tempfile.TemporaryDirectory() as folder:
    if reason := missing(Path(folder)):
        sys.exit(f"fuzz: {reason}")
for line in run_all(int(sys.argv[1]) if len(sys.argv) > 1 else 600):
    print(line, flush=True)
