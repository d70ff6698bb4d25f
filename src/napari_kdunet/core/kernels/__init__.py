"""Compiled CPU kernels for tiny networks; `autograd` and `inference` are their doors."""
