"""Compiled CPU kernels: for tiny networks, entered by `autograd` and `inference`, and for pixels (`pixels`)."""
