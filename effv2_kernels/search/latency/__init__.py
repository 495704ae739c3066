"""How long networks take on a device: measuring, predicting, and proving that predictions hold."""

from effv2_kernels.search.latency.table import BlockTime, Device, LatencyTable, Reading, block_names, table_of

__all__ = ["BlockTime", "Device", "LatencyTable", "Reading", "block_names", "table_of"]
