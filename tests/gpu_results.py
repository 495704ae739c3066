"""Results of a GPU benchmark that never ran."""

ENVIRONMENT = {"torch": "2.13.0", "triton": "3.7.0", "cuda": "13.0", "commit": "0123", "changed_files": []}
