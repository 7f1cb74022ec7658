#!/usr/bin/env python3
"""judge_speed.py MODEL TOKENS THREADS IDS.json: judgements a second of transformers' generate on the questions that judge_speed
wrote: one left-padded batch, greedy, exactly TOKENS new tokens; with TOKENS "own" until all have ended their turn, at most 72. Needs torch and
transformers."""
import json
import sys
import time

import torch
from transformers import Qwen3VLForConditionalGeneration

model_directory, threads, file = sys.argv[1], int(sys.argv[3]), sys.argv[4]
if sys.argv[2] == "own":
    added = json.load(open(model_directory + "/tokenizer.json"))["added_tokens"]
    length_of = dict(max_new_tokens=72, eos_token_id=next(t["id"] for t in added if t["content"] == "<|im_end|>"))
else:
    length_of = dict(max_new_tokens=int(sys.argv[2]), min_new_tokens=int(sys.argv[2]))
torch.set_num_threads(threads)
model = Qwen3VLForConditionalGeneration.from_pretrained(model_directory, dtype=torch.float32).eval()
questions = json.load(open(file))
length = max(len(q["ids"]) for q in questions)
ids = torch.tensor([[0] * (length - len(q["ids"])) + q["ids"] for q in questions])
mask = torch.tensor([[0] * (length - len(q["ids"])) + [1] * len(q["ids"]) for q in questions])
grids = torch.tensor([g for q in questions for g in q["grid"]])
vision = model.config.vision_config
patches = int(grids.prod(dim=1).sum())
pixels = torch.randn(patches, vision.in_channels * vision.temporal_patch_size * vision.patch_size**2)
types = (ids == model.config.image_token_id).long()
inputs = dict(input_ids=ids, attention_mask=mask, pixel_values=pixels, image_grid_thw=grids, mm_token_type_ids=types)
for repetition in range(3):
    begin = time.perf_counter()
    with torch.no_grad():
        out = model.generate(**inputs, **length_of, do_sample=False)
    seconds = time.perf_counter() - begin
    print(f"{len(questions)} judgements in {seconds:.3f} s: {len(questions) / seconds:.1f} a second, {out.shape[1] - length} tokens each")
