"""Guide, filter and draw one token per channel, as nari-labs/dia and transformers define it for Dia.

For each slot and channel, over the V logits of the conditional and the unconditional row:
    guided = cond + cfg_scale * (cond - uncond)       only chooses the top_k ids; what follows uses cond
    cond of -infinity forbids an id; guided that is no number, by logits of -infinity, counts as -infinity
    ids above EOS are forbidden, and EOS itself on channels 1..C-1
    before its first row EOS is forbidden on channel 0 too, and top_k does not count it
    temperature 0: the largest of what is left
    else: p = softmax(cond / temperature); if EOS is the largest only EOS stays, otherwise EOS goes;
          top_p drops an id if the mass of the ids before it, from the largest down, exceeds top_p
The draw is an exponential race, argmax p / -log(u), which has the law p; u comes from Philox with the slot's seed as
key and (id, channel, row) as counter, so it depends on neither the batch nor the order of work.
"""

import torch
import torch.nn.functional as F

from .philox import uniform


def sample_tokens(
    logits: torch.Tensor,
    cfg_scale: torch.Tensor,
    temperature: torch.Tensor,
    top_p: torch.Tensor,
    top_k: torch.Tensor,
    seed: torch.Tensor,
    row: torch.Tensor,
    eos: int,
    first_eos_row: torch.Tensor | None = None,
) -> torch.Tensor:
    """Draw the next row of tokens.

    Args:
        logits: [2B, C, V] float32; rows 2i, 2i+1 are (unconditional, conditional) of slot i.
        cfg_scale, temperature, top_p: [B] float32.
        top_k: [B] int64, in [1, V].
        seed: [B] int64.
        row: [B] int64, the grid row that is drawn.
        eos: end-of-sequence id.
        first_eos_row: [B] int64, the first row in which EOS may be drawn; None for any.

    Returns:
        tokens [B, C] int64.
    """
    may_end = None if first_eos_row is None else row >= first_eos_row
    probabilities = filter_probabilities(logits, cfg_scale, temperature, top_p, top_k, eos, may_end)
    _, channels, vocab = probabilities.shape
    token = torch.arange(vocab, device=logits.device)
    channel = torch.arange(channels, device=logits.device)[:, None]
    noise = uniform(seed[:, None, None], (token, channel, row[:, None, None], torch.zeros_like(token)))
    return (probabilities / -noise.log()).argmax(dim=-1)


def filter_probabilities(
    logits: torch.Tensor,
    cfg_scale: torch.Tensor,
    temperature: torch.Tensor,
    top_p: torch.Tensor,
    top_k: torch.Tensor,
    eos: int,
    may_end: torch.Tensor | None = None,
) -> torch.Tensor:
    """The probabilities that a token is drawn from; arguments as for `sample_tokens`.

    may_end: [B] bool, whether EOS is allowed in this row; None if it is in all slots.

    Where no id is left (top_k chose forbidden ids only) all mass is on id 0, as the reference's argmax has it.

    Returns:
        [B, C, V] float32.
    """
    unconditional, conditional = logits.view(-1, 2, *logits.shape[1:]).unbind(dim=1)
    cfg_scale, temperature, top_p, top_k = (t[:, None, None] for t in (cfg_scale, temperature, top_p, top_k))
    guided = conditional + cfg_scale * (conditional - unconditional)
    guided = guided.where(~guided.isnan(), -torch.inf)
    if may_end is not None:
        guided[:, 0, eos] = guided[:, 0, eos].where(may_end, -torch.inf)
    scores = conditional.masked_fill(~largest(guided, top_k), -torch.inf)
    scores[..., eos + 1 :] = -torch.inf
    scores[:, 1:, eos] = -torch.inf
    if may_end is not None:
        scores[:, 0, eos] = scores[:, 0, eos].where(may_end, -torch.inf)

    best = scores.argmax(dim=-1, keepdim=True)
    certain = (temperature == 0) | (scores.gather(-1, best) == -torch.inf)
    ids = torch.arange(scores.shape[-1], device=scores.device)
    is_eos = ids == eos
    scores = scores.masked_fill(torch.where(best == eos, ~is_eos, is_eos), -torch.inf)
    probabilities = torch.softmax(scores / torch.where(temperature == 0, 1.0, temperature), dim=-1)
    probabilities = nucleus(probabilities, top_p)
    return torch.where(certain, (ids == best).float(), probabilities)


def largest(scores: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """Which of the last dimension's entries are the `count` largest (per row, at least 1); among equals the first."""
    threshold = scores.sort(dim=-1, descending=True).values.gather(-1, (count - 1).expand(*scores.shape[:-1], 1))
    above = scores > threshold
    level = scores == threshold
    room = count - above.sum(dim=-1, keepdim=True)
    return above | (level & (level.cumsum(dim=-1) <= room))


def nucleus(probabilities: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Drop the tail: an id goes if the mass strictly before it exceeds top_p. The rest is scaled to sum 1."""
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    mass_before = F.pad(ordered.cumsum(dim=-1)[..., :-1], (1, 0))
    # The running sum can pass 1 by a rounding; top_p = 1 must drop nothing.
    dropped = (mass_before > top_p) & (top_p < 1)
    kept = torch.empty_like(probabilities).scatter_(-1, order, ordered.masked_fill(dropped, 0.0))
    return kept / kept.sum(dim=-1, keepdim=True)
