"""A CPU's own code, see docs/cpu.md.

native, build      the decode step and the codec's decoder in C, where there is a compiler, for one of the `variants`
matmul             products with int8 and NF4 weights by that code
convolution        the codec's layers by that code
onednn             without it, int8 in the order of the library that torch brings
read_back          neither: the matrix is read back part by part for every product
pages              room for weights in large pages
"""
