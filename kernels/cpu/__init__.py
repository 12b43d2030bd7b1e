"""Quantized weights on a CPU.

build, matmul      the C files, where there is a C compiler: int8 and NF4 as they are in memory
onednn             otherwise, int8 in the order of the library that torch brings
read_back          neither: the matrix is read back part by part for every product
"""
