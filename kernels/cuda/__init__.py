"""The CUDA backend: C++ sources and, beside each, its host wrapper in torch terms."""
