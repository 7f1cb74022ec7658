#!/usr/bin/env python3
"""Times diffusers' transformer at the shapes of device_bench, as lines "result: NAME = VALUE UNIT".

diffusers_baseline.py LAYERS HEADS HEAD_DIM TOKENS_HIGH TOKENS_WIDE BATCH [eager|compile]
Needs torch with a device and diffusers; bf16, random weights, prefix from the cache as in sampling (kv_cache "cached").
"""
import sys
import time

import torch
from diffusers import QwenImage21Transformer2DModel
from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21KVCache

layers, heads, head_dim, high, wide, batch = map(int, sys.argv[1:7])
how = sys.argv[7] if len(sys.argv) > 7 else "compile"
device = "cuda" if torch.cuda.is_available() else "cpu"
text, width, tokens = 128, heads * head_dim, high * wide
torch.manual_seed(1)
with torch.device(device):
    model = QwenImage21Transformer2DModel(num_layers=layers, num_attention_heads=heads, attention_head_dim=head_dim, context_in_dim=width,
                                          axes_dims_rope=(head_dim // 8, head_dim // 16 * 7, head_dim // 16 * 7)).to(torch.bfloat16).eval()
    inputs = dict(
        hidden_states=torch.randn(batch, tokens, 64, dtype=torch.bfloat16),
        encoder_hidden_states=torch.randn(batch, text, width, dtype=torch.bfloat16),
        timestep=torch.full((batch,), 0.5, dtype=torch.bfloat16),
        img_shapes=[[(1, high, wide)]] * batch,
        # Text alone, then one slot for each 2 x 2 group of the target's tokens.
        img_mask=torch.cat([torch.zeros(batch, text, dtype=torch.bool), torch.ones(batch, tokens // 4, dtype=torch.bool)], dim=1),
    )


@torch.no_grad()
def run(cache, mode, call):
    return call(**inputs, kv_cache=cache, kv_cache_mode=mode, return_dict=False)


def synchronise():
    if device == "cuda":
        torch.cuda.synchronize()


cache = QwenImage21KVCache(layers)
run(cache, "extract", model)
call = torch.compile(model) if how == "compile" else model
for _ in range(3):
    run(cache, "cached", call)
best = float("inf")
for _ in range(5):
    synchronise()
    begin = time.perf_counter()
    for _ in range(5):
        run(cache, "cached", call)
    synchronise()
    best = min(best, (time.perf_counter() - begin) / 5)
print(f"result: diffusers {how} {layers} blocks of width {width}, {batch} x {tokens} tokens, forward = {1e3 * best:.4g} ms")
