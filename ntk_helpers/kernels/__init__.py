"""Kernels: of infinitely wide networks by formulas, and of finite networks by differentiation."""
