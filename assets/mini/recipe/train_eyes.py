"""Step 7: eyes for the judge: a Qwen3-VL's vision tower that says in words what a picture shows. Resumable; writes DIR/eyes.pt
and the judge's tokenizer.

    python train_eyes.py --t2i DIR/eyes-t2i --edit DIR/eyes-edit --labels DIR/drawn.h5 DIR/samples.h5 --base ../base --templates ../../../configs/mini-judge --out DIR

A picture has 16 places in the text. Each says one thing about the whole picture: place 1 the first thing's colour (or the skin, the ground,
the word), place 2 its shape, and so on, as the embedding of the word that captions use for it. The text then reads a picture by copying.
Other places hold numbers (how clean, how good a face, its lengths) that linear heads read, and the deepstack features hold the places' surfaces (colours,
residue, edges).
"""
import argparse
import re
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import Qwen3VLForConditionalGeneration

from common import SIDE, make_optimizers, read_world, save_state, set_lr
from judge_data import GRID, TOKENS, Labels, caption_of, make_config, make_embedding, make_tokenizer, patches

WORDS = 7    # places that say words; then clean (7), tens (8) of spoilt percent, face (9), lengths (10 to 13), landscape (14)
NUMBERS = dict(aesthetics=7, spoilt=7, edges=7, portrait=9, half_width=10, half_height=11, eye_distance=12, mouth_width=13)
FLAGS = {"eyes are not alike": 9, "eye is missing": 9, "no eyes": 9, "no mouth": 9, "lopsided": 9, "no face": 9, "ragged": 14, "no clear sun": 14,
         "no clear moon": 14}
LENGTHS = dict(half_width=(27.5, 2), half_height=(34.5, 2), eye_distance=(12.2, 1), mouth_width=(10, 1.7))  # mean and deviation in the world


def words_of(caption):
    """The words that the first places say of a picture with this caption."""
    w = caption.split()
    if w[0] == "portrait":
        return ["portrait", w[5], w[8], w[9], w[11], None, w[14]]
    if w[0] == "landscape":
        return ["landscape", w[2], w[4], w[6] if len(w) > 6 else None, None, None, None]
    if w[0] == "the":
        return ["the", w[2], w[4], None, None, None, w[6]]
    if w[0] in ("one", "two", "three"):
        return [w[0], w[1], w[2], None, None, None, w[4]]
    if w[3] not in ("left", "right", "above", "below"):   # a single thing, called "a"
        return [w[0], w[1], w[2], None, None, None, w[-1]]
    at = 5 if w[3] in ("left", "right") else 4
    first, second = w[1:3], w[at + 1:at + 3]
    if w[3] in ("right", "below"):
        first, second = second, first
    return ["a", *first, *second, {"right": "left", "below": "above"}.get(w[3], w[3]), w[-1]]


def percent(reason, what):
    found = re.search(what + r" in (\d+) %", reason)
    return float(found[1]) if found else None


class Targets:
    """words [WORDS + 2] (-1: not asked), numbers (NaN: not asked), flags (-1: not asked)."""

    def __init__(self, tokenizer):
        self.id = tokenizer.token_to_id

    def word(self, text, first):
        token = self.id(text if first else "Ġ" + text)
        assert token is not None, text
        return token

    def of(self, caption, known, lengths):
        words = [-1 if w is None else self.word(w, k == 0) for k, w in enumerate(words_of(caption))] + [-1, -1]
        numbers, flags = dict.fromkeys(NUMBERS, np.nan), dict.fromkeys(FLAGS, -1)
        if "aesthetics" in known:
            reason, score = known["aesthetics"]
            numbers["aesthetics"] = (score - 3.5) / 1.2
            words[7] = self.word(reason.split()[0].rstrip(":"), True)
            spoilt, edges = percent(reason, "residue"), percent(reason, "edges")
            if spoilt is not None:
                numbers["spoilt"] = (spoilt - 15) / 8
                words[8] = self.id(str(int(spoilt) // 10))
            if edges is not None:
                numbers["edges"] = (edges - 30) / 8
        if "portrait" in known:
            numbers["portrait"] = (known["portrait"][1] - 3.5) / 1.2
            flags.update({f: int(f in known["portrait"][0]) for f, place in FLAGS.items() if place == 9})
        if "alignment" in known and caption.startswith("landscape"):
            flags.update({f: int(f in known["alignment"][0]) for f, place in FLAGS.items() if place == 14})
        if lengths is not None:
            numbers.update({k: (lengths[k] - c) / s for k, (c, s) in LENGTHS.items()})
        return words, list(numbers.values()), list(flags.values())


def world_caption(scene):
    """As lib/world writes it."""
    if scene["category"] == "portrait":
        return (f"portrait of a person with {scene['skin']} skin , {scene['hair_style']} {scene['hair_colour']} hair "
                f"{'with' if scene['glasses'] else 'without'} glasses on {scene['background']}")
    o = scene["objects"]
    if len(o) == 1:
        return f"one {o[0]['colour']} {o[0]['shape']} on {scene['background']}"
    return f"a {o[0]['colour']} {o[0]['shape']} {scene['relation']} a {o[1]['colour']} {o[1]['shape']} on {scene['background']}"


class Data:
    def __init__(self, args, labels, tokenizer, own=4):
        targets = Targets(tokenizer)
        self.pictures = labels.pictures
        self.labelled = [(item["pictures"][-1], targets.of(caption_of(item), item["known"], None), item["category"]) for item in labels.items]
        # Shapes are the hardest to tell, and a model's own pictures are few.
        shares = np.array([(3 if item["category"] == "general" else 1) * (1 if item["id"].startswith("drawn") else own) for item in labels.items], float)
        self.share = np.cumsum(shares / shares.sum())
        t2i, scenes = read_world(args.t2i)
        edits, pairs = read_world(args.edit)
        self.drawn = []
        for i, s in enumerate(scenes):
            if s["category"] == "portrait":
                self.drawn.append((t2i, i, None, targets.of(s["text"], {}, s["attributes"])))
        for i, s in enumerate(pairs):
            for k, w in enumerate(("source", "result")):
                scene = s["attributes"][w]
                self.drawn.append((edits, i, k, targets.of(world_caption(scene), {}, scene if scene["category"] == "portrait" else None)))

    def batch(self, rng, size):
        pictures, targets = [], []
        for _ in range(size):
            if rng.random() < 0.75:
                number, known, category = self.labelled[np.searchsorted(self.share, rng.random())]
                picture = self.pictures[number]
                if category == "general":   # a few pixels aside
                    dy, dx = rng.integers(-6, 7, 2)
                    rows, columns = (np.arange(SIDE) + d for d in (dy, dx))
                    picture = picture[rows.clip(0, SIDE - 1)][:, columns.clip(0, SIDE - 1)]
                pictures.append(picture)
            else:
                raw, i, k, known = self.drawn[rng.integers(len(self.drawn))]
                picture = np.array(raw[i] if k is None else raw[i][k])[..., :3].astype(np.float32)
                if rng.random() < 0.5:   # so that lesser pictures are read as well
                    picture += rng.normal(0, rng.uniform(0, 8), picture.shape)
                    picture += rng.uniform(0, 0.3) * (rng.uniform(80, 210) - picture)
                pictures.append(picture.clip(0, 255).round().astype(np.uint8))
            targets.append(known)
        words, numbers, flags = (np.array(t) for t in zip(*targets))
        return np.stack(pictures), torch.tensor(words), torch.tensor(numbers).float(), torch.tensor(flags)


SURFACE = 5   # numbers of a patch: mean colours, and how much of it is residue and edges as lib/world counts them


def surfaces_of(rows):
    """Of the processor's rows: mean colours of the four patches of each place, shares of pixels with a step of 5 to 24 and above [P, 16, 20]."""
    x = rows.reshape(-1, 3, 2, 16, 16)[:, :, 0]
    steps = torch.maximum((x[..., :-1, 1:] - x[..., :-1, :-1]).abs(), (x[..., 1:, :-1] - x[..., :-1, :-1]).abs()).amax(1) * 127.5
    shares = torch.stack([((steps > 5) & (steps <= 24)).float().mean((1, 2)), (steps > 24).float().mean((1, 2))], 1)
    return torch.cat([x.mean((2, 3)), shares.sqrt()], 1).reshape(-1, TOKENS, 4 * SURFACE)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--t2i", required=True)
    parser.add_argument("--edit", required=True)
    parser.add_argument("--labels", type=Path, nargs="+", required=True)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--templates", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=450)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--init", type=Path, help="a tower to start from (eyes.pt of other losses)")
    parser.add_argument("--seed", type=int, default=16)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    labels = Labels(args.labels)
    templates = [file.read_text() for file in sorted(args.templates.glob("*.toml"))]
    shown = [f"system\nuser\nassistant\n {word} {word}s\nScore: none" for word in ("circle", "square", "triangle", "star")]
    tokenizer = make_tokenizer(args.base, [*labels.texts(), *templates * 3, *shown * 50], args.out / "tokenizer")
    print(tokenizer.get_vocab_size(), "tokens", len(labels.pictures), "pictures", flush=True)
    data = Data(args, labels, tokenizer)
    embedding = make_embedding(tokenizer.get_vocab_size())
    model = Qwen3VLForConditionalGeneration(make_config(tokenizer)).model.visual
    width = model.config.out_hidden_size
    codes = make_embedding(TOKENS, width, 15)
    numbers_at, flags_at = list(NUMBERS.values()), list(FLAGS.values())
    head = torch.nn.Linear(width, len(NUMBERS) + len(FLAGS))
    surface_heads = torch.nn.ModuleList(torch.nn.Linear(width, 4 * SURFACE) for _ in model.deepstack_merger_list)
    named = [*model.named_parameters(), *(("head." + n, p) for n, p in head.named_parameters()),
             *(("head.surface." + n, p) for n, p in surface_heads.named_parameters())]
    optimizers = make_optimizers(named, args.lr, 0.01, plain=("pos_embed", "head"))
    if args.init:
        model.load_state_dict(torch.load(args.init, weights_only=False)["parts"][0])
    state_file, start = args.out / "eyes.pt", 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=False)
        for part, weights in zip((model, head, surface_heads), state["parts"]):
            part.load_state_dict(weights)
        for o, saved in zip(optimizers, state["optimizers"]):
            o.load_state_dict(saved)
        start = state["step"]
    clock, history = time.process_time(), []
    for step in range(start, args.steps):
        set_lr(optimizers, args.lr, step, args.steps, 30)
        pictures, words, numbers, flags = data.batch(np.random.default_rng([args.seed, step]), args.batch)
        rows = patches(pictures)
        seen = model(rows, grid_thw=torch.tensor([[1, GRID, GRID]] * len(pictures)))
        said = seen.pooler_output.view(len(pictures), TOKENS, width)
        logits = said[:, :WORDS + 2] @ embedding.T
        asked = words >= 0
        word_loss = F.cross_entropy(logits[asked], words[asked], reduction="sum") / len(pictures)
        right = (logits.argmax(-1) == words)[:, :WORDS][asked[:, :WORDS]].float().mean()
        clean = (logits.argmax(-1) == words)[:, WORDS:][asked[:, WORDS:]].float().mean()
        out = torch.stack([head(said[:, place])[:, i] for i, place in enumerate(numbers_at + flags_at)], 1)
        known = ~numbers.isnan()
        off = (out[:, :len(NUMBERS)] - numbers.nan_to_num()).square() * known
        told = flags >= 0
        flag_loss = F.binary_cross_entropy_with_logits(out[:, len(NUMBERS):][told], flags[told].float(), reduction="sum") / len(pictures)
        surfaces = surfaces_of(rows)
        surface_off = sum((h(f.view(len(pictures), TOKENS, width)) - surfaces).square().mean((0, 1)) for h, f in zip(surface_heads, seen.deepstack_features))
        surface_loss, share_loss = surface_off.mean(), surface_off.view(4, SURFACE)[:, 3:].mean()
        # Which place it is stands in the same vectors, for the text to find it by.
        place_loss = F.cross_entropy((said @ codes.T).flatten(0, 1), torch.arange(TOKENS).repeat(len(pictures)))
        loss = word_loss + 2 * place_loss + off.sum() / len(pictures) + flag_loss + 30 * surface_loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for _, p in named], 1.0)
        for o in optimizers:
            o.step()
        for _, p in named:
            p.grad = None
        by_number = np.where(known.sum(0) > 0, (off.sum(0) / known.sum(0)).detach().numpy(), np.nan)
        history.append((loss.item(), place_loss.item(), right.item(), clean.item(), flag_loss.item(), surface_loss.item(), share_loss.item(), *by_number))
        if (step + 1) % 25 == 0:
            m = np.nanmean(history, 0)
            print(f"{time.strftime('%H:%M:%S')} step {step + 1} loss {m[0]:.3f} places {m[1]:.3f} words {m[2]:.3f} clean {m[3]:.3f} flags {m[4]:.3f} surfaces {m[5]:.4f} shares {m[6]:.4f} "
                  + " ".join(f"{n} {v:.2f}" for n, v in zip(NUMBERS, m[7:])) + f" {(time.process_time() - clock) / 25 * 1000:.0f} ms/step", flush=True)
            clock, history = time.process_time(), []
            save_state(state_file, parts=[p.state_dict() for p in (model, head, surface_heads)], optimizers=[o.state_dict() for o in optimizers],
                       words=embedding, step=step + 1)


if __name__ == "__main__":
    main()
