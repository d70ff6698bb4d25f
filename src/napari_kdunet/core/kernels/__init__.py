"""Compiled CPU kernels for tiny networks, with the doors `autograd` and `inference`, and for pixels (`pixels`)."""
