# SPDX-License-Identifier: MIT
"""The wire: every number, record, operation, limit and rule that two peers share, declared once.

Declarations only; it imports nothing else of pcisplit, so that a tool can read it alone. From it ``python -m pcisplit.gen``
writes the C header, the tables of the specification, the golden vectors and the Wireshark dissector.
All numbers are little-endian. Every record is a multiple of 8 octets, and reserved octets are zero [REG-4].

``numbers`` has the enumerations, ``limits`` the limits with their clauses, ``rules`` the rules that refuse, ``records`` the
octets, ``ops`` one row per operation.
"""

from pcisplit.wire.limits import *  # noqa: F403
from pcisplit.wire.numbers import *  # noqa: F403
from pcisplit.wire.ops import *  # noqa: F403
from pcisplit.wire.record import *  # noqa: F403
from pcisplit.wire.records import *  # noqa: F403
