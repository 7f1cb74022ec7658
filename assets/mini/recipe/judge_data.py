"""What the steps that make the judge share: its tokenizer, its size, labels as pictures with all that is asked about them."""
import json
from pathlib import Path

import h5py
import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, pre_tokenizers, trainers
from transformers import Qwen3VLConfig
from transformers.models.qwen3_vl import modeling_qwen3_vl

from common import SIDE

PATCH, MERGE = 16, 2
GRID = SIDE // PATCH            # patches a side
MERGED = GRID // MERGE          # tokens a side
TOKENS = MERGED * MERGED        # of a picture


def attend_pictures(self, hidden_states, cu_seqlens, position_embeddings=None, **_):
    """Vision attention over pictures of one size: one batch in place of a loop over them."""
    n = hidden_states.shape[0]
    q, k, v = self.qkv(hidden_states).reshape(n, 3, self.num_heads, -1).permute(1, 0, 2, 3).unbind(0)
    q, k = modeling_qwen3_vl.apply_rotary_pos_emb_vision(q, k, *position_embeddings)
    q, k, v = (x.reshape(n // GRID**2, GRID**2, self.num_heads, -1).transpose(1, 2) for x in (q, k, v))
    return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, -1))


def embed_patches(self, rows):
    """The convolution that takes each patch once, as the matrix product that it is: ten times as fast backwards."""
    return F.linear(rows, self.proj.weight.flatten(1), self.proj.bias)


modeling_qwen3_vl.Qwen3VLVisionAttention.forward = attend_pictures
modeling_qwen3_vl.Qwen3VLVisionPatchEmbed.forward = embed_patches


def make_tokenizer(base, texts, out):
    """The base model's processor with a tokenizer in which every word of these texts is one token: a word that is seen and one
    that is asked for are then the same embedding. Writes the files of a judge's directory to `out`,
    once."""
    if (out / "tokenizer.json").exists():   # the eyes' words are its numbers
        return Tokenizer.from_file(str(out / "tokenizer.json"))
    out.mkdir(parents=True, exist_ok=True)
    for file in (base / "processor").iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    old = Tokenizer.from_file(str(base / "processor" / "tokenizer.json"))
    special = [t for _, t in sorted(old.get_added_tokens_decoder().items())]
    old.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=2000, show_progress=False, min_frequency=2,
                                                       initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    new = json.loads(old.to_str())
    plain = {t: i for t, i in new["model"]["vocab"].items() if t not in {s.content for s in special}}
    new["model"]["vocab"] = {t: i for i, (t, _) in enumerate(sorted(plain.items(), key=lambda x: x[1]))}
    new["added_tokens"] = [dict(id=len(plain) + i, content=s.content, single_word=False, lstrip=False, rstrip=False, normalized=False,
                                special=True) for i, s in enumerate(special)]
    (out / "tokenizer.json").write_text(json.dumps(new))
    return Tokenizer.from_file(str(out / "tokenizer.json"))


def make_config(tokenizer):
    ids = tokenizer.token_to_id
    return Qwen3VLConfig(
        text_config=dict(hidden_size=128, intermediate_size=320, num_hidden_layers=5, num_attention_heads=4, num_key_value_heads=4,
                         head_dim=32, vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=4096, rms_norm_eps=1e-6,
                         rope_parameters=dict(rope_type="default", rope_theta=10000.0, mrope_section=[6, 5, 5], mrope_interleaved=True)),
        vision_config=dict(depth=4, hidden_size=96, num_heads=3, intermediate_size=384, out_hidden_size=128, deepstack_visual_indexes=[0, 2],
                           num_position_embeddings=GRID * GRID, patch_size=PATCH, spatial_merge_size=MERGE, temporal_patch_size=2),
        image_token_id=ids("<|image_pad|>"), video_token_id=ids("<|video_pad|>"), vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"), tie_word_embeddings=False)


def make_embedding(vocabulary, width=128, seed=14):
    """Unit vectors, one a token, nearly orthogonal: what the eyes say and the text reads; fixed in all steps."""
    return F.normalize(torch.randn(vocabulary, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


class Labels:
    """pictures uint8 [N, 128, 128, 3]; items: dicts of kind, category, prompt, pictures (numbers, what is judged last) and known
    {dimension: (rationale, mean label)}."""

    def __init__(self, files):
        self.items, pictures, offset, first = [], [], 0, {}
        for file in files:
            if file in first:   # named again: drawn as often again
                self.items += self.items[first[file]]
                continue
            begin = len(self.items)
            with h5py.File(file) as f:
                text = {k: f[f"samples/{k}"].asstr()[:] for k in ("kind", "category", "dimension", "prompt", "rationale", "id")}
                shown, sources = f["samples/picture"][:], dict(zip(f["sources/sample"][:], f["sources/picture"][:]))
                at, scores = f["scores/sample"][:], f["scores/score"][:]
                labels = np.bincount(at, scores) / np.bincount(at)
                count = len(f["pictures"])
                pictures += [f[f"pictures/{i}"][..., :3] for i in range(count)]
            by_id = {}
            for i, name in enumerate(text["id"]):
                if not np.isnan(labels[i]):   # else it does not apply
                    by_id.setdefault(name, []).append(i)
            for rows in by_id.values():
                i = rows[0]
                numbers = [sources[i], shown[i]] if text["kind"][i] == "edit" else [shown[i]]
                self.items.append(dict(kind=text["kind"][i], category=text["category"][i], prompt=text["prompt"][i], id=text["id"][i],
                                       pictures=[offset + int(n) for n in numbers],
                                       known={text["dimension"][r]: (text["rationale"][r], float(labels[r])) for r in rows}))
            offset += count
            first[file] = slice(begin, len(self.items))
        self.pictures = np.stack(pictures)

    def texts(self):
        for item in self.items:
            yield item["prompt"]
            for rationale, _ in item["known"].values():
                yield rationale


def caption_of(item):
    known = item["known"].get("alignment") or item["known"].get("instruction")
    return known[0].split(";")[0]


def patches(pictures):
    """uint8 [P, 128, 128, 3] -> the processor's rows [P * 64, 3 * 2 * 16 * 16]."""
    x = torch.from_numpy(np.ascontiguousarray(pictures)).float() / 127.5 - 1
    x = x.reshape(-1, MERGED, MERGE, PATCH, MERGED, MERGE, PATCH, 3).permute(0, 1, 4, 2, 5, 7, 3, 6)
    return x.unsqueeze(6).expand(*x.shape[:6], 2, PATCH, PATCH).reshape(-1, 3 * 2 * PATCH * PATCH)
