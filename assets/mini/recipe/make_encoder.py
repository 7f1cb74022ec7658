"""Step 2: tokenizer, processor, scheduler and the frozen text encoder; prompt embeddings and latents of the data.

    python make_encoder.py --t2i DIR/t2i --edit DIR/edit --out DIR         # parts: DIR/{processor,text_encoder,scheduler}
    python make_encoder.py ... --latents                                   # after step 1: DIR/data.pt

The text encoder is a Qwen3-VL at toy size with random weights: embeddings of unit size, layers that mix gently, pictures
that whisper. Frozen, it is enough for a vocabulary of 80 words (the transformer reads the words from it).
"""
import argparse
import random
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLQwenImage21, FlowMatchEulerDiscreteScheduler
from PIL import Image
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (Qwen2TokenizerFast, Qwen2VLImageProcessor, Qwen3VLConfig, Qwen3VLForConditionalGeneration,
                          Qwen3VLProcessor)
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

from common import read_world, to_model

SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
           "<|image_pad|>", "<|video_pad|>"]
SYSTEM = "Comprehend and analyze the provided prompt."
CHAT_TEMPLATE = ("{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['content'] is string %}"
                 "{{ m['content'] }}{% else %}{% for c in m['content'] %}{% if c['type'] == 'image' %}"
                 "{{ '<|vision_start|><|image_pad|><|vision_end|>' }}{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
                 "{% endif %}{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}"
                 "{{ '<|im_start|>assistant\n' }}{% endif %}")


def make_tokenizer(texts):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator([SYSTEM] * 50 + ["system\nuser\nassistant\n <image1> <image2>"] * 50 + texts,
                                  trainers.BpeTrainer(vocab_size=800, show_progress=False, min_frequency=2,
                                                      initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIAL])
    return Qwen2TokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>",
                              unk_token="<|endoftext|>", chat_template=CHAT_TEMPLATE)


def make_vlm(tokenizer, seed):
    ids = tokenizer.convert_tokens_to_ids
    config = Qwen3VLConfig(
        text_config=dict(hidden_size=96, intermediate_size=192, num_hidden_layers=3, num_attention_heads=4,
                         num_key_value_heads=2, head_dim=32, vocab_size=len(tokenizer), max_position_embeddings=4096,
                         rms_norm_eps=1e-6, rope_parameters=dict(rope_type="default", rope_theta=5000000.0,
                                                                 mrope_section=[6, 5, 5], mrope_interleaved=True)),
        vision_config=dict(depth=3, hidden_size=64, num_heads=2, intermediate_size=128, out_hidden_size=96,
                           deepstack_visual_indexes=[0, 1], num_position_embeddings=64, patch_size=16,
                           spatial_merge_size=2, temporal_patch_size=2),
        image_token_id=ids("<|image_pad|>"), video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"), vision_end_token_id=ids("<|vision_end|>"))
    model = Qwen3VLForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1:
                p.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            fan_in = p[0].numel()
            gain = 1.0 if "embed" in name or "visual" in name else 0.5
            if "merger" in name and "linear_fc2" in name:
                gain = 0.1
            scale = gain if "embed_tokens" in name else gain / fan_in ** 0.5
            p.copy_(torch.randn(p.shape, generator=generator) * scale)
    return model.bfloat16().float()  # exactly representable in the dtype it is stored in


def prompts_of(texts, picture):
    image = "<image1><|vision_start|><|image_pad|><|vision_end|>" if picture else ""
    return [f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{image}{t or ' '}<|im_end|>\n"
            f"<|im_start|>assistant\n" for t in texts]


@torch.no_grad()
def embed(vlm, processor, texts, pictures=None):
    """States before the final norm without the system turn, one tensor [T, 96] a text (bf16)."""
    drop = len(processor.tokenizer(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n")["input_ids"])
    handle = vlm.model.language_model.norm.register_forward_hook(lambda m, a, o: a[0])
    order = np.argsort([len(t) for t in texts], kind="stable")
    out = [None] * len(texts)
    for begin in range(0, len(order), 128):
        rows = order[begin:begin + 128]
        images = None if pictures is None else [Image.fromarray(np.array(pictures[r][..., :3])) for r in rows]
        inputs = processor(text=prompts_of([texts[r] for r in rows], images is not None), images=images, padding=True,
                           padding_side="left", return_tensors="pt")
        states = vlm(**inputs, output_hidden_states=True).hidden_states[-1]
        for k, r in enumerate(rows):
            out[r] = states[k][inputs["attention_mask"][k].bool()][drop:].bfloat16()
    handle.remove()
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--t2i", required=True)
    parser.add_argument("--edit", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--latents", action="store_true")
    parser.add_argument("--seed", type=int, default=12)
    args = parser.parse_args()
    pictures, scenes = read_world(args.t2i)
    pairs, edits = read_world(args.edit)
    if not args.latents:
        random.seed(args.seed)
        tokenizer = make_tokenizer([s["text"] for s in scenes[:20000] + edits[:8000]])
        vlm = make_vlm(tokenizer, args.seed)
        processor = Qwen3VLProcessor(
            Qwen2VLImageProcessor(patch_size=16, merge_size=2, temporal_patch_size=2, image_mean=[0.5] * 3,
                                  image_std=[0.5] * 3, size=dict(shortest_edge=32 * 32, longest_edge=512 * 512)),
            tokenizer, Qwen3VLVideoProcessor(patch_size=16, merge_size=2, temporal_patch_size=2),
            chat_template=CHAT_TEMPLATE)
        vlm.bfloat16().save_pretrained(args.out / "text_encoder")
        vlm.float()
        processor.save_pretrained(args.out / "processor")
        FlowMatchEulerDiscreteScheduler(
            num_train_timesteps=1000, shift=1.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9,
            base_image_seq_len=64, max_image_seq_len=4096, shift_terminal=0.02,
            time_shift_type="exponential").save_pretrained(args.out / "scheduler")
        texts = sorted({s["text"] for s in scenes} | {""})
        table = dict(zip(texts, embed(vlm, processor, texts)))
        print(len(texts), "captions, lengths", sorted({len(v) for v in table.values()}), flush=True)
        edit_states = embed(vlm, processor, [s["text"] for s in edits], pairs[:, 0])
        plain = embed(vlm, processor, [""] * 2000, pairs[:2000, 0])
        torch.save(dict(table=table, t2i=[s["text"] for s in scenes], edit=edit_states, edit_empty=plain),
                   args.out / "embeddings.pt")
        print("edit lengths", sorted({len(v) for v in edit_states}), len(plain[0]))
        return
    vae = AutoencoderKLQwenImage21.from_pretrained(args.out / "vae").eval()
    torch.save(dict(t2i=encode(vae, pictures), source=encode(vae, pairs[:, 0]), result=encode(vae, pairs[:, 1])),
               args.out / "latents.pt")


if __name__ == "__main__":
    main()
