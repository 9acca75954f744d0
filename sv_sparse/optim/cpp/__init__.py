"""Update kernels in C++ for parameters on a CPU, compiled once on this machine; optional."""
