"""Every public layer through the same behaviours. A layer joins by one entry in `layer_cases.py`."""
