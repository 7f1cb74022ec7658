#!/usr/bin/env python3
"""Times diffusers' transformer at the shapes of device_bench, as lines "result: NAME = VALUE UNIT".

diffusers_baseline.py LAYERS HEADS HEAD_DIM HOW SIZE...
HOW: eager, blocks (each block compiled once) or whole (the model compiled); SIZE: TOKENS_HIGHxTOKENS_WIDExBATCH.
Needs torch with a device and diffusers; bf16, random weights, prefix from the cache as in sampling (kv_cache "cached"); attention by each
backend of PyTorch that takes it.
"""
import sys
import time

import torch
from diffusers import QwenImage21Transformer2DModel
from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21KVCache

layers, heads, head_dim = map(int, sys.argv[1:4])
how, sizes = sys.argv[4], [tuple(map(int, size.split("x"))) for size in sys.argv[5:]]
device = "cuda" if torch.cuda.is_available() else "cpu"
text, width = 128, heads * head_dim
torch.manual_seed(1)
torch._dynamo.config.recompile_limit = torch._dynamo.config.cache_size_limit = 64
with torch.device(device):
    torch.set_default_dtype(torch.bfloat16)
    model = QwenImage21Transformer2DModel(num_layers=layers, num_attention_heads=heads, attention_head_dim=head_dim, context_in_dim=width,
                                          axes_dims_rope=(head_dim // 8, head_dim // 16 * 7, head_dim // 16 * 7)).to(torch.bfloat16).eval()
    torch.set_default_dtype(torch.float32)
if how == "blocks":
    model.compile_repeated_blocks(dynamic=False)
call = torch.compile(model, dynamic=False) if how == "whole" else model


def synchronise():
    if device == "cuda":
        torch.cuda.synchronize()


@torch.no_grad()
def measure(high, wide, batch):
    """Seconds of a forward pass: the fastest of five series of half a second each."""
    with torch.device(device):
        inputs = dict(
            hidden_states=torch.randn(batch, high * wide, 64, dtype=torch.bfloat16),
            encoder_hidden_states=torch.randn(batch, text, width, dtype=torch.bfloat16),
            timestep=torch.full((batch,), 0.5, dtype=torch.bfloat16),
            img_shapes=[[(1, high, wide)]] * batch,
            # Text alone, then one slot for each 2 x 2 group of the target's tokens.
            img_mask=torch.cat([torch.zeros(batch, text, dtype=torch.bool), torch.ones(batch, high * wide // 4, dtype=torch.bool)], dim=1),
        )
    cache = QwenImage21KVCache(layers)
    model(**inputs, kv_cache=cache, kv_cache_mode="extract", return_dict=False)

    def series(calls):
        synchronise()
        begin = time.perf_counter()
        for _ in range(calls):
            call(**inputs, kv_cache=cache, kv_cache_mode="cached", return_dict=False)
        synchronise()
        return (time.perf_counter() - begin) / calls

    series(2)
    calls = max(1, int(0.5 / series(1)))
    return min(series(calls) for _ in range(5))


for backend in ("native", "_native_cudnn") if how != "whole" else ("native",):
    if device == "cpu" and backend != "native":
        continue
    model.set_attention_backend(backend)
    for high, wide, batch in sizes:
        begin = time.perf_counter()
        seconds = measure(high, wide, batch)
        print(f"result: diffusers {how}, attention {backend}, {layers} blocks of width {width}, {batch} x {high * wide} tokens, forward = "
              f"{1e3 * seconds:.4g} ms", flush=True)
        print(f"{time.perf_counter() - begin:.0f} s with compiling", flush=True)
