"""Step 7: the vision-language model that becomes the judge. Resumable; writes DIR/judge-start (a transformers directory).

    python train_judge.py --labels DIR/drawn.h5 DIR/samples.h5 --base ../base --templates ../../../configs/mini-judge --out DIR --minutes 40

A Qwen3-VL at toy size with the base model's tokenizer, from random weights: a question in the judge's form, answered with the rationale and
the score of the labels (`atelier-world --labels`). Besides, it says what pictures show that fit their prompt (the prompt itself), and
which dimensions don't apply. All pictures are 128 x 128; a picture runs once for all questions about it, and answers alone are learnt.
`atelier-reward-train` makes the judge from it.
"""
import argparse
import json
import shutil
import time
import tomllib
from pathlib import Path

import h5py
import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen3_vl import modeling_qwen3_vl

from common import SIDE, make_optimizers, save_state, set_lr

PATCH, MERGE = 16, 2
GRID = SIDE // PATCH            # patches a side
MERGED = GRID // MERGE          # tokens a side
TOKENS = MERGED * MERGED        # of a picture
WHAT = "what"                   # the question whose answer is the prompt


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


def make_config(tokenizer):
    ids = tokenizer.token_to_id
    return Qwen3VLConfig(
        text_config=dict(hidden_size=128, intermediate_size=384, num_hidden_layers=5, num_attention_heads=4, num_key_value_heads=2,
                         head_dim=32, vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=4096, rms_norm_eps=1e-6,
                         rope_parameters=dict(rope_type="default", rope_theta=10000.0, mrope_section=[6, 5, 5], mrope_interleaved=True)),
        vision_config=dict(depth=4, hidden_size=96, num_heads=3, intermediate_size=384, out_hidden_size=128, deepstack_visual_indexes=[0, 2],
                           num_position_embeddings=GRID * GRID, patch_size=PATCH, spatial_merge_size=MERGE, temporal_patch_size=2),
        image_token_id=ids("<|image_pad|>"), video_token_id=ids("<|video_pad|>"), vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"), tie_word_embeddings=False)


class Questions:
    """Questions and answers as the engine's judge has them, in tokens (lib/judge/template.hpp, judge_model.cpp)."""

    def __init__(self, tokenizer, templates):
        self.tokenizer = tokenizer
        self.templates = {}
        for file in sorted(Path(templates).glob("*.toml")):
            t = tomllib.loads(file.read_text())
            self.templates[t["kind"], t["dimension"]] = t
        self.special = {s: tokenizer.token_to_id(f"<|{s}|>") for s in ("im_start", "im_end", "vision_start", "vision_end", "image_pad")}
        self.scores = [tokenizer.token_to_id(str(s)) for s in range(1, 6)]

    def encode(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def question(self, kind, prompt, dimension, silent=False):
        s, e = self.special, self.encode
        if dimension == WHAT:
            text, system, pictures = WHAT, "assistant", 1
        else:
            t = self.templates[kind, dimension]
            text = t["question"].replace("{prompt}", prompt) + "\n" + t["rubric"] + "\n"
            text += "".join(f"{i + 1}: {level}\n" for i, level in enumerate(t["levels"])) + t["answer"] + ("?" if silent else "")
            system, pictures = t["system"], 2 if t.get("shows_source") else 1
        ids = [s["im_start"], *e("system\n" + system), s["im_end"], *e("\n"), s["im_start"], *e("user\n")]
        for _ in range(pictures):
            ids += [s["vision_start"], *[s["image_pad"]] * TOKENS, s["vision_end"]]
        return ids + [*e(text), s["im_end"], *e("\n"), s["im_start"], *e("assistant\n")]

    def answer(self, rationale, score):
        """Tokens, and the place of the score among them (-1: none)."""
        if score is None:
            return self.encode(rationale) + [self.special["im_end"]], -1
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


class Data:
    """Pictures with all that is asked about them, read and cut into tokens as they are drawn; `batch(rng)` draws of one kind."""

    def __init__(self, files, questions, silent=0.0):
        self.q, self.silent = questions, silent
        self.files = [h5py.File(file) for file in files]
        self.items = {"t2i": [], "edit": []}   # file, pictures shown, prompt, {dimension: (rationale, mean label)}
        for number, f in enumerate(self.files):
            text = {k: f[f"samples/{k}"].asstr()[:] for k in ("kind", "dimension", "prompt", "rationale")}
            shown, sources = f["samples/picture"][:], dict(zip(f["sources/sample"][:], f["sources/picture"][:]))
            at, scores = f["scores/sample"][:], f["scores/score"][:]
            labels = np.bincount(at, scores) / np.bincount(at)
            by_picture = {}
            for i, picture in enumerate(shown):
                by_picture.setdefault(picture, []).append(i)
            for picture, rows in by_picture.items():
                kind = text["kind"][rows[0]]
                self.items[kind].append((number, [sources[rows[0]], picture] if kind == "edit" else [picture], text["prompt"][rows[0]],
                                         {text["dimension"][i]: (text["rationale"][i], labels[i]) for i in rows}))

    def asked(self, kind, prompt, known, rng):
        """Question ids, answer ids, place of the score among them, label: of every dimension, and what the picture shows."""
        for (k, dimension), template in self.q.templates.items():
            if k != kind:
                continue
            if dimension in known:
                yield self.pair(kind, prompt, dimension, *known[dimension], rng.random() < self.silent)
            elif template.get("may_not_apply") and rng.random() < 0.3:  # learnt soon
                yield self.pair(kind, prompt, dimension, "no face was asked for" if kind == "t2i" else "no face in the source", np.nan)
        if kind == "t2i" and known["alignment"][1] >= 4.4:
            yield self.pair(kind, prompt, WHAT, prompt, None)

    def pair(self, kind, prompt, dimension, rationale, score, silent=False):
        answer, at = self.q.answer("" if silent else rationale, score)
        return self.q.question(kind, prompt, dimension, silent), answer, at, score

    def batch(self, rng, tokens):
        """Pictures uint8, and rows of what they are asked: numbers of the pictures shown, then as `asked`."""
        kind = "t2i" if rng.random() < 0.55 else "edit"
        pictures, rows, total = [], [], 0
        while total < tokens:
            number, shown, prompt, known = self.items[kind][rng.integers(len(self.items[kind]))]
            first = len(pictures)
            pictures += [self.files[number][f"pictures/{i}"][..., :3] for i in shown]
            for pair in self.asked(kind, prompt, known, rng):
                rows.append((list(range(first, len(pictures))), *pair))
                total += len(pair[0]) + len(pair[1])
        return pictures, rows


def patches(pictures):
    """uint8 [P, 128, 128, 3] -> the processor's rows [P * 64, 3 * 2 * 16 * 16]."""
    x = torch.from_numpy(np.stack(pictures)).float() / 127.5 - 1
    x = x.reshape(-1, MERGED, MERGE, PATCH, MERGED, MERGE, PATCH, 3).permute(0, 1, 4, 2, 5, 7, 3, 6)
    return x.unsqueeze(6).expand(*x.shape[:6], 2, PATCH, PATCH).reshape(-1, 3 * 2 * PATCH * PATCH)


def answer_logits(model, data, vision, shown, rows):
    """Logits where the rows' answers are predicted, one row after another; targets; places of scores among them; labels."""
    q = data.q
    width = max(len(r[1]) + len(r[2]) - 1 for r in rows)
    ids, places = np.zeros((len(rows), width), np.int64), np.zeros((3, len(rows), width), np.int64)
    at_row, at_column, targets, score_at, labels, order = [], [], [], [], [], []
    for b, (seen, question, answer, place, score) in enumerate(rows):
        whole = question + answer[:-1]
        ids[b, :len(whole)] = whole
        places[:, b, :len(whole)] = q.places(whole)
        order += seen
        if place >= 0:
            score_at.append(len(targets) + place)
            labels.append(score)
        at_row += [b] * len(answer)
        at_column += range(len(question) - 1, len(question) - 1 + len(answer))
        targets += answer
    ids = torch.from_numpy(ids)
    mask = ids == q.special["image_pad"]
    gather = lambda x: x.view(shown, TOKENS, -1)[order].reshape(len(order) * TOKENS, -1)
    text = model.model.language_model
    embeds = text.embed_tokens(ids).masked_scatter(mask.unsqueeze(-1), gather(vision.pooler_output))
    states = text(inputs_embeds=embeds, position_ids=torch.from_numpy(places), visual_pos_masks=mask, use_cache=False,
                  deepstack_visual_embeds=[gather(x) for x in vision.deepstack_features]).last_hidden_state
    return model.lm_head(states[at_row, at_column]), torch.tensor(targets), torch.tensor(score_at, dtype=torch.long), torch.tensor(labels)


def losses(model, data, shown, rows):
    """Language loss of the answers, (R - label)^2, cross-entropy to the label's two neighbouring levels, -ln p(any score)."""
    q = data.q
    vision = model.model.visual(patches(shown), grid_thw=torch.tensor([[1, GRID, GRID]] * len(shown)))
    rows = sorted(rows, key=lambda r: len(r[1]) + len(r[2]))  # halves of like lengths: less is padded
    parts = [answer_logits(model, data, vision, len(shown), half) for half in (rows[:len(rows) // 2], rows[len(rows) // 2:]) if half]
    language, count, at_score, labels = 0, 0, [], []
    for logits, targets, score_at, label in parts:
        words = torch.ones(len(targets), dtype=torch.bool)
        words[score_at] = False
        language = language + F.cross_entropy(logits[words], targets[words], reduction="sum")
        count += int(words.sum())
        at_score.append(logits[score_at])
        labels.append(label.float())
    at_score, labels = torch.cat(at_score), torch.cat(labels)
    mass = (at_score.logsumexp(-1) - at_score[:, q.scores].logsumexp(-1)).mean()
    log_p = at_score[:, q.scores].log_softmax(-1)
    expected = (log_p.exp() * torch.arange(1, 6)).sum(-1)
    near = (1 - (labels[:, None] - torch.arange(1, 6)).abs()).clamp(min=0)
    return language / count, (expected - labels).square().mean(), -(near * log_p).sum(-1).mean(), mass


def export(model, args):
    out = args.out / args.name
    out.mkdir(exist_ok=True)
    model.save_pretrained(out)
    for file in (args.base / "processor").iterdir():
        shutil.copy(file, out)
    config = json.loads((out / "config.json").read_text())
    config.pop("_name_or_path", None)
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=Path, nargs="+", required=True)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--templates", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--name", default="judge-start")
    parser.add_argument("--init", type=Path, help="a state (*.pt) to start from, without its optimizers")
    parser.add_argument("--eyes", type=Path, help="a vision tower to start from (train_eyes.py)")
    parser.add_argument("--minutes", type=float, default=40, help="of processor time: the learning rate decays to zero within it")
    parser.add_argument("--wall", type=float, default=1e9, help="the same, minutes on the clock since this start")
    parser.add_argument("--silent", type=float, default=0.0, help="share of questions (marked by a ?) that ask for the score alone: where the "
                        "rationale stands before it the score is read from that, and nothing makes it look at the picture")
    parser.add_argument("--tokens", type=int, default=3000, help="of a batch, at least")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=15)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    tokenizer = Tokenizer.from_file(str(args.base / "processor" / "tokenizer.json"))
    data = Data(args.labels, Questions(tokenizer, args.templates), args.silent)
    print({k: len(v) for k, v in data.items.items()}, "pictures", flush=True)
    model = Qwen3VLForConditionalGeneration(make_config(tokenizer))
    print(sum(p.numel() for p in model.parameters()), "parameters", flush=True)
    if args.init:
        model.load_state_dict(torch.load(args.init, weights_only=False)["model"])
    if args.eyes:
        model.model.visual.load_state_dict(torch.load(args.eyes, weights_only=False)["visual"])
    optimizers = make_optimizers(model.named_parameters(), args.lr, 0.01, plain=("embed", "lm_head"))
    state_file, start, used = args.out / (args.name + ".pt"), 0, 0.0
    if state_file.exists():
        state = torch.load(state_file, weights_only=False)
        model.load_state_dict(state["model"])
        for o, s in zip(optimizers, state["optimizers"]):
            o.load_state_dict(s)
        start, used = state["step"], state["minutes"]
    began = time.time()
    begin, clock, history = time.process_time(), time.process_time(), []
    step = start
    while True:
        minutes = used + (time.process_time() - begin) / 60
        fraction = max(minutes / args.minutes, (time.time() - began) / 60 / args.wall)
        if fraction >= 1:
            break
        set_lr(optimizers, args.lr, step if step < 100 else int(max(0.01, fraction) * 10**6), 10**6 if step >= 100 else 10**9)
        shown, rows = data.batch(np.random.default_rng([args.seed, step]), args.tokens)
        language, distance, soft, mass = losses(model, data, shown, rows)
        (language + 0.5 * distance + 0.5 * soft + 0.1 * mass).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for o in optimizers:
            o.step()
        model.zero_grad(set_to_none=True)
        history.append((language.item(), distance.item(), soft.item(), mass.item(), len(rows)))
        step += 1
        if step % 50 == 0:
            means = np.mean(history, 0)
            print(f"{time.strftime('%H:%M')} step {step} {minutes:.1f} min language {means[0]:.4f} distance {means[1]:.4f} soft {means[2]:.4f} mass {means[3]:.4f} "
                  f"questions {means[4]:.0f} {(time.process_time() - clock) / 50 * 1000:.0f} ms/step lr {optimizers[0].param_groups[0]['lr']:.1e}", flush=True)
            history, clock = [], time.process_time()
        if step % 200 == 0:
            save_state(state_file, model=model.state_dict(), optimizers=[o.state_dict() for o in optimizers], step=step, minutes=minutes)
            export(model, args)
    save_state(state_file, model=model.state_dict(), optimizers=[o.state_dict() for o in optimizers], step=step, minutes=args.minutes)
    export(model, args)


if __name__ == "__main__":
    main()
