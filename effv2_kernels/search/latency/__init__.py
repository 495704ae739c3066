"""How long networks take on a device: measuring, predicting, and proving that predictions hold."""

from effv2_kernels.search.latency.fit import Reading, table_of
from effv2_kernels.search.latency.table import BlockTime, Device, LatencyTable
from effv2_kernels.search.latency.task import Task, block_names

__all__ = ["BlockTime", "Device", "LatencyTable", "Reading", "Task", "block_names", "table_of"]
