"""Python imports this at start-up where the folder is in PYTHONPATH; see torchvision_ops."""

import torchvision_ops

torchvision_ops.install()
