"""The sparse engine: a network as a program for CPU kernels."""
