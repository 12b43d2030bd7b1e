"""The delay pattern: a prompt laid out and read back."""

import pytest
import torch

from dia_engine.model.delay import OPEN, playable_codes, prompt_grid, undelay


def test_the_example_in_the_module():
    bos, prompt = 9, torch.tensor([[10, 11, 12], [20, 21, 22]])
    grid = prompt_grid(prompt, (0, 2, 3), bos, rows=6)
    assert grid.T.tolist() == [
        [9, 10, 20, OPEN, OPEN, OPEN],
        [9, 9, 9, 11, 21, OPEN],
        [9, 9, 9, 9, 12, 22],
    ]


@pytest.mark.parametrize("delay", [(0,), (0, 0), (0, 5, 2), (0, 8, 9, 10, 11, 12, 13, 14, 15), (3, 0)])
def test_undelay_takes_the_delay_back(delay):
    codes = torch.randint(100, (7, len(delay)))
    grid = prompt_grid(codes, delay, bos=200, rows=7 + 1 + max(delay))
    assert torch.equal(undelay(grid, delay, first=0, frames=7), codes)
    assert torch.equal(undelay(grid, delay, first=3, frames=4), codes[3:])
    assert undelay(grid, delay, first=7, frames=0).shape == (0, len(delay))


def test_a_grid_too_short_for_the_delay_is_cut():
    grid = prompt_grid(torch.ones(2, 2, dtype=torch.int64), (0, 4), bos=9, rows=3)
    assert grid.tolist() == [[9, 9], [1, 9], [1, 9]]


def test_a_channel_that_begins_behind_the_grid_is_all_bos():
    grid = prompt_grid(torch.tensor([[1, 5], [2, 6], [3, 7]]), (0, 4), bos=9, rows=4)
    assert grid.tolist() == [[9, 9], [1, 9], [2, 9], [3, 9]]


def test_special_ids_and_open_cells_are_played_as_zero():
    eos, pad, bos = 20, 21, 22
    grid = torch.tensor([[bos], [eos - 1], [eos], [pad], [OPEN], [0]])
    assert playable_codes(grid, (0,), eos, first=0, frames=5).tolist() == [[eos - 1], [0], [0], [0], [0]]
