"""The void rule of github.com/manishemirani/void_in_language_models (lac.py), step by step as its
hook does it, for one prompt at a time.

The release keeps, per forward pass: the norm of the state before, the change of norm of every layer so
far, and (for skipping) what left the last layer that was not void. In a batch of several prompts its
threshold at layer 0 is the spread of the changes over the *batch*; with one prompt that is 0, which is
what is transcribed here. `dtype` is that of its norms: the release runs in bfloat16, the comparison with
lamina in float32.
"""
import torch


def release_rule(states, alpha, dtype=torch.float32):
    """states [L + 1, T, D]: entering layer 0, then leaving every layer. Returns active [L, T] (bool),
    delta [L, T], threshold [L, T], and what the release sends to the final norm [T, D]."""
    states = states.to(dtype)
    layers, tokens = states.shape[0] - 1, states.shape[1]
    deltas = torch.zeros(layers, tokens, dtype=dtype)
    thresholds = torch.zeros(layers, tokens, dtype=dtype)
    active = torch.zeros(layers, tokens, dtype=torch.bool)
    norm_before = torch.linalg.norm(states[0], dim=-1)
    kept = states[0].clone()
    for layer in range(layers):
        norm = torch.linalg.norm(states[layer + 1], dim=-1)
        deltas[layer] = norm - norm_before
        if layer == 0:
            spread = deltas[0] - deltas[0]          # over a batch of one prompt
        else:
            spread = deltas[:layer].max(dim=0).values - deltas[:layer].min(dim=0).values
        thresholds[layer] = spread * alpha
        halted = deltas[layer] < thresholds[layer]
        active[layer] = ~halted
        kept = torch.where(halted[:, None], kept, states[layer + 1])
        norm_before = norm
    return active, deltas, thresholds, kept


def halting_rule(states, alpha, dtype=torch.float32):
    """LAC: |delta| below the same threshold halts the token for good. Returns active [L, T]."""
    _, deltas, thresholds, _ = release_rule(states, alpha, dtype)
    halted = (deltas.abs() < thresholds).to(torch.int32).cumsum(0) > 0
    return ~halted
