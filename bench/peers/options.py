"""What the family `options` adds to plain attention: numbers of keys and sequences, masks for PyTorch, pairs that count."""

import torch


def side(row, seed):
    """The tensors that a row's rule needs beside q, k, v."""
    generator = torch.Generator().manual_seed(seed + 1)
    keys = (row.batch, row.kv_heads, row.keys)
    if row.rule == "key_bias":
        return {"key_bias": torch.randn(keys, generator=generator)}
    if row.rule == "lifetimes":
        lives = torch.empty(keys).exponential_(1 / row.reach, generator=generator).ceil().long().clamp(min=1)
        return {"until": torch.arange(row.keys) + lives}
    if row.rule == "segments":
        return {"offsets": torch.arange(0, row.keys + 1, row.reach)}
    return {}


def pairs(row, x):
    """Pairs of queries and keys that see each other, all heads counted; plain causal attention counts half of N·M."""
    heads = row.batch * row.heads
    if row.rule == "window":
        return heads * sum(min(i + 1, row.reach) for i in range(row.queries))
    if row.rule == "lifetimes":
        seen = x["until"].clamp(max=row.queries) - torch.arange(row.keys)
        return seen.sum().item() * row.heads // row.kv_heads
    whole = row.reach * row.keys if row.rule == "segments" else row.queries * row.keys
    return heads * whole * (0.5 if row.causal else 1)


def flops(row, x):
    """4·D per visible pair, 3.5 times as much with the backward pass."""
    return 4 * row.head_dim * pairs(row, x) * (3.5 if row.kind == "backward" else 1)


def mask(row, x, queries=None):
    """What PyTorch adds to the scores of these queries (all), [B|1, H|1, N|1, M]; -inf hides. None for the plain rule."""
    if row.rule == "plain":
        return None
    i = (torch.arange(row.queries) if queries is None else queries)[:, None]
    j = torch.arange(row.keys)
    seen = i >= j if row.causal else None
    if row.rule == "key_bias":
        bias = x["key_bias"][:, :, None, :]
        return bias if seen is None else torch.where(seen, bias, -torch.inf)
    if row.rule == "window":
        seen = seen & (i - j < row.reach)
    elif row.rule == "lifetimes":
        seen = seen & (i < x["until"][:, :, None, :])
    elif row.rule == "segments":
        same = i // row.reach == j // row.reach
        seen = same if seen is None else seen & same
    seen = seen if seen.dim() == 4 else seen[None, None]
    return torch.zeros(seen.shape).masked_fill_(~seen, -torch.inf)


def call(row):
    """The rule as the protocol writes it."""
    return {"window": row.reach} if row.rule == "window" else row.rule
