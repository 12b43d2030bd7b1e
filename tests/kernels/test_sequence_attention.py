"""Attention of a sequence, compiled, against its reference."""

import pytest
import torch

from dia_engine.kernels import sequence_attention as module
from dia_engine.kernels.cpu.build import library, library_of
from dia_engine.kernels.sequence_attention import attend_compiled, sequence_attention_ref
from tests.kernels.builds import HERE

pytestmark = pytest.mark.skipif(library() is None, reason="there is no compiled code")

# rows, positions, heads, groups, head_dim
SIZES = [
    (1, 1, 1, 1, 1),
    (1, 7, 2, 1, 5),
    (25, 25, 6, 2, 32),
    (30, 93, 4, 4, 34),
    (116, 244, 6, 2, 32),
    (7, 600, 3, 1, 128),
]


def heads_of(rows, positions, heads, groups, head_dim):
    """Query, key and value as parts of larger tensors, as a projection and a cache leave them."""
    generator = torch.Generator().manual_seed(rows + positions)
    query = torch.randn(rows, heads + groups, head_dim, generator=generator)[:, :heads]
    key, value = torch.randn(2, groups, positions + 9, head_dim, generator=generator)[:, :, :positions].transpose(1, 2)
    return query, key, value


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_compiled_it_is_the_reference(sizes, causal):
    query, key, value = heads_of(*sizes)
    found = attend_compiled(query, key, value, causal, library())
    expected = sequence_attention_ref(query.double(), key.double(), value.double(), causal)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=2e-5)
    assert torch.equal(attend_compiled(query, key.contiguous(), value.contiguous(), causal, library()), found)


def test_a_row_has_the_bits_that_it_has_in_any_piece_and_by_any_threads_and_variant(monkeypatch):
    query, key, value = heads_of(130, 130, 6, 2, 34)
    expected = attend_compiled(query, key, value, True, library())
    for first, last in ((0, 1), (0, 77), (64, 128), (129, 130)):
        part = attend_compiled(query[first:last], key[:last], value[:last], True, library())
        assert torch.equal(part, expected[first:last])
    for variant in HERE:
        if (functions := library_of(variant)) is None:
            pytest.skip("no compiler")
        for threads in (1, 3):
            monkeypatch.setattr(module, "thread_count", lambda threads=threads: threads)
            assert torch.equal(attend_compiled(query, key, value, True, functions), expected)
