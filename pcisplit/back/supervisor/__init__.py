# SPDX-License-Identifier: MIT
"""`pcisplit serve`: meets fronts, has descriptors made and sent, watches, quarantines; maps nothing, touches no device."""
