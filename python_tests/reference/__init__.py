"""Slow, obvious NumPy versions of what is in csrc: the truth that the kernels are tested against."""
