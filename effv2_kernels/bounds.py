"""How far a result may be from the float64 reference: L2 norm of the difference over that of the output."""

from __future__ import annotations

# In float32.
BLOCK = 5e-7
NETWORK = 1e-6

# Where weights and maps are in 16 bits, against the reference of the rounded input.
HALF_BLOCK = 5e-3
HALF_NETWORK = 2e-2
