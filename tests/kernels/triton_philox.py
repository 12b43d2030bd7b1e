"""Prints Triton's random words [seed][word][offset] as JSON. A program, so that a test can choose the interpreter."""

import json
import sys

import torch
import triton
import triton.language as tl


@triton.jit
def _words(seed_pointer, offset_pointer, output_pointer, COUNT: tl.constexpr):
    lanes = tl.arange(0, COUNT)
    words = tl.randint4x(tl.load(seed_pointer), tl.load(offset_pointer + lanes))
    tl.store(output_pointer + lanes, words[0])
    tl.store(output_pointer + COUNT + lanes, words[1])
    tl.store(output_pointer + 2 * COUNT + lanes, words[2])
    tl.store(output_pointer + 3 * COUNT + lanes, words[3])


seeds, offsets = map(json.loads, sys.argv[1:])
table = []
for seed in seeds:
    output = torch.zeros(4, len(offsets), dtype=torch.uint32)
    _words[(1,)](torch.tensor([seed]), torch.tensor(offsets, dtype=torch.int32), output, len(offsets))
    table.append(output.tolist())
print(json.dumps(table))
