"""Questions to the judge in tokens as the engine has them, and passes over many questions that share pictures and prompt."""
import tomllib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from judge_data import MERGED, TOKENS


class Questions:
    """Questions and answers in tokens as the engine's judge has them (lib/judge/template.hpp, judge_model.cpp). What all questions about a picture
    begin with (turns, pictures, prompt) is apart from how each goes on."""

    def __init__(self, tokenizer, templates):
        self.tokenizer, self.templates = tokenizer, {}
        for file in sorted(Path(templates).glob("*.toml")):
            t = tomllib.loads(file.read_text())
            self.templates[t["kind"], t["dimension"]] = t
        self.special = {s: tokenizer.token_to_id(f"<|{s}|>") for s in ("im_start", "im_end", "vision_start", "vision_end", "image_pad")}
        self.scores = [tokenizer.token_to_id(str(s)) for s in range(1, 6)]
        s, e = self.special, self.encode
        self.tails = {}
        for key, t in self.templates.items():
            text = "\n" + t["rubric"] + "\n" + "".join(f"{i + 1}: {level}\n" for i, level in enumerate(t["levels"])) + t["answer"]
            assert t["question"] == "{prompt}" and e("on white" + text) == e("on white") + e(text)
            self.tails[key] = [*e(text), s["im_end"], *e("\n"), s["im_start"], *e("assistant\n")]
        self.systems = {kind: [s["im_start"], *e("system\n" + t["system"]), s["im_end"], *e("\n"), s["im_start"], *e("user\n")]
                        for (kind, _), t in self.templates.items()}

    def encode(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def prefix(self, kind, prompt):
        """Tokens, and the places of the last token of each word of the prompt."""
        s = self.special
        ids = list(self.systems[kind])
        for _ in range(2 if kind == "edit" else 1):
            ids += [s["vision_start"], *[s["image_pad"]] * TOKENS, s["vision_end"]]
        coded = self.tokenizer.encode(prompt, add_special_tokens=False)
        ends = {end: len(ids) + i for i, (_, end) in enumerate(coded.offsets)}
        at, words = 0, []
        for word in prompt.split(" "):
            at += len(word)
            words.append(ends[at])
            at += 1
        return ids + coded.ids, words

    def answer(self, rationale, score):
        """Tokens, and the place of the score among them."""
        if np.isnan(score):
            return self.encode(rationale + "\nScore: none") + [self.special["im_end"]], -1
        ids = self.encode(rationale + "\nScore: ")
        return ids + [self.scores[int(np.floor(score + 0.5)) - 1], self.special["im_end"]], len(ids)

    def places(self, ids):
        """Positions [3, T]: a picture's tokens share their time and have a row and a column."""
        places, at, i = [], 0, 0
        while i < len(ids):
            if ids[i] == self.special["image_pad"]:
                places += [(at, at + k // MERGED, at + k % MERGED) for k in range(TOKENS)]
                at += MERGED
                i += TOKENS
            else:
                places.append((at, at, at))
                at += 1
                i += 1
        return np.array(places).T


def rotations(text, places):
    """cos and sin [B, 1, T, 32] of places [3, B, T]."""
    cos, sin = text.rotary_emb(torch.zeros(1), places)
    return cos.unsqueeze(1), sin.unsqueeze(1)


def rotated(x, cos, sin):
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


class Cache:
    """Keys and values [B, H, room, 32] of each layer, those of the places that ran so far."""

    def __init__(self, room):
        self.room, self.layers, self.used = room, [], 0

    def put(self, i, k, v):
        if i == len(self.layers):
            self.layers.append([x.new_zeros(*x.shape[:2], self.room, x.shape[3]) for x in (k, v)])
        for whole, new in zip(self.layers[i], (k, v)):
            whole[:, :, self.used:self.used + new.shape[2]] = new
        return (x[:, :, :self.used + k.shape[2]] for x in self.layers[i])


def run_text(text, x, cos, sin, mask, deepstack, look=3, cache=None):
    """States [B, T, D] after `look` layers and after the last one, normed. `deepstack`: added after the first layers. With a cache, x goes on
    where the cache ends."""
    b, t, d = x.shape
    norm = lambda m, v: F.rms_norm(v.float(), m.weight.shape, m.weight, m.variance_epsilon)
    looked = None
    for i, layer in enumerate(text.layers):
        a = layer.self_attn
        y = norm(layer.input_layernorm, x)
        q, k, v = (p(y).view(b, t, -1, a.head_dim) for p in (a.q_proj, a.k_proj, a.v_proj))
        q, k = (rotated(norm(n, z).transpose(1, 2), cos, sin) for n, z in ((a.q_norm, q), (a.k_norm, k)))
        v = v.float().transpose(1, 2)
        if cache is not None:
            k, v = cache.put(i, k, v)
        with torch.autocast("cpu", enabled=False):   # its backward pass is five times as slow in bf16
            seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + a.o_proj(seen.transpose(1, 2).reshape(b, t, -1))
        y = norm(layer.post_attention_layernorm, x)
        x = x + layer.mlp.down_proj(F.silu(layer.mlp.gate_proj(y)) * layer.mlp.up_proj(y))
        if i < len(deepstack):
            x = x + deepstack[i]
        if i + 1 == look:
            looked = x
    if cache is not None:
        cache.used += t
    return looked, norm(text.norm, x)
