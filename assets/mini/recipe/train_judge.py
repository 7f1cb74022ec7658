"""Step 8: the vision-language model that becomes the judge. Writes DIR/NAME (a transformers directory) and DIR/NAME.pt, from which --init starts.

    python train_judge.py --labels DIR/drawn.h5 DIR/samples.h5 --heldout DIR/heldout.h5 --eyes DIR/eyes.pt \
        --templates ../../../configs/mini-judge --out DIR --minutes 20

Questions in the judge's form, answered with the rationale and score of the labels. All questions about a picture run as one row: pictures and prompt
once, each question after them and blind to the others. So that it looks rather than guesses, what is to be known is asked for where it is to be known,
by heads that are thrown away: at each word of the prompt whether it holds in the picture, at the prompt's end what is wrong and all scores,
at each place of an edited picture how much it differs from the source. And the score must not be read off the true rationale: where it is written
the rationale is out of sight half of the time, and another picture's a quarter.

The last thing to learn is to judge over words of its own (--own): every 40 updates the model writes its reasons for the pictures that come next. The score
is learnt with them in sight, whatever they say; and behind its own caption it learns the true verdict, so that this is read off the pictures rather than the caption.
What is answered with a caption is asked for twice in a row, for the words and for the score over its own; the rest for one of the two. On pictures that it
learns from its verdicts are right more often than on others, so that it trusts them too much: --doubt puts another verdict behind its caption.

The first updates (--seeing) teach nothing but to say what is seen: captions, with another picture's prompt in the prompt's place, so that nothing is
gained by copying it.
"""
import argparse
import json
import shutil
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from transformers import Qwen3VLForConditionalGeneration

from common import make_optimizers, save_state, set_lr
from export_judge import KEPT
from judge_data import GRID, MERGE, TOKENS, Labels, caption_of, make_config, patches
from judge_model import Cache, Questions, rotations, run_text
from judge_truth import DEFECTS, DIMENSIONS, defects_of, differences, failing_words
from measure_judge import clauses, ranks

EMBEDDED = 4.0   # length of a word's vector, and about that of a place's
VERDICT = 5   # weight of the words behind the caption, few and decisive, in the language loss
LOOK = 3   # layers after which the heads read
DEFAULT_SHARE = dict(alignment=1, aesthetics=0.6, portrait=1, instruction=1, identity=0.4)
AHEAD = 40   # updates for which reasons are written at once
CAPTIONED = ("alignment", "instruction")   # dimensions whose reason begins with what is seen
FACES = ("portrait", "identity")
SOUND = dict(portrait="a face with its features in place", identity="the same person", alignment=" everything asked for is there",
             instruction=" done, and everything else is as it was")


class Rows:
    """What is asked about pictures, as rows of tokens."""

    def __init__(self, labels, questions, trusted=0.25, doubt=0):
        self.labels, self.q, self.trusted, self.doubt = labels, questions, trusted, doubt
        self.own = {}   # (id, dimension): a reason of the model's own
        self.by_dimension, self.verdicts = {}, {}
        for item in labels.items:
            for d, (rationale, _) in item["known"].items():
                self.by_dimension.setdefault((item["kind"], d), []).append(rationale)
                if d in CAPTIONED:
                    self.verdicts.setdefault((item["prompt"], d), [SOUND[d]]).append(rationale.partition(";")[2])

    def seeing(self, item, others):
        """One picture and its caption, with the prompt of the first of `others` that names two things in the same order (captions follow it)."""
        q, kind = self.q, item["kind"]
        turned = lambda x: " right of " in x["prompt"] or " below " in x["prompt"]
        other = next((o for o in others if turned(o) == turned(item)), item)
        prefix, _ = q.prefix(kind, other["prompt"])
        question = q.tails[kind, "alignment" if kind == "t2i" else "instruction"]
        answer = q.encode(caption_of(item) + ";")
        ids = prefix + question + answer[:-1]
        first = len(prefix) + len(question) - 1
        none = [0] * len(ids)
        return dict(ids=ids, places=[q.places(ids)], branch=none, veiled=none, tail=none, shown=item["pictures"], at=list(range(first, len(ids))), targets=answer,
                    weights=[1] * len(answer), scores=[], blame=[], end=0, defects=[], labels=[])

    def row(self, item, rng, plain=None):
        """One picture with its questions. `plain`: every question, the rationale the true one and out of sight of the score ("blind") or the model's own
        ("own")."""
        kind, shown, prompt, known = (item[k] for k in ("kind", "pictures", "prompt", "known"))
        q = self.q
        prefix, words = q.prefix(kind, prompt)
        n = len(prefix)
        row = dict(ids=list(prefix), places=[q.places(prefix)], branch=[0] * n, veiled=[0] * n, tail=[0] * n, at=[], targets=[], weights=[], scores=[], shown=shown)
        start = row["places"][0][0, -1] + 1
        asked = []
        for k, d in q.templates:
            if k == kind and (d in known or q.templates[k, d].get("may_not_apply")):
                if plain or not self.own or d not in known:
                    asked.append((d, None))
                else:   # its words, and apart from them the score over the model's own where there are any
                    written = (item["id"], d) in self.own
                    asked += [(d, 0.5 * rng.random())] * (d in CAPTIONED or not written) + [(d, 1)] * written
        for number, (d, sight) in enumerate(asked):
            if d in known:
                if not plain and rng.random() > DEFAULT_SHARE[d]:
                    continue
                rationale, score = known[d]
                own = self.own.get((item["id"], d))
                if plain:
                    sight = dict(blind=0, own=1)[plain]
                elif sight is None:
                    sight = rng.random()
                other = sight > 0.5 + self.trusted or (own is not None and sight > 0.5)   # nothing of it is taught
                mended = own is not None and not plain and d in CAPTIONED and sight < 0.25
                if mended:
                    rationale = own.split(";")[0] + rationale[rationale.index(";"):]
                elif own is not None and other:
                    rationale = own
                    if not plain and d in CAPTIONED and rng.random() < self.doubt:   # a verdict on some picture of this prompt
                        rationale = own.split(";")[0] + ";" + rng.choice(self.verdicts[prompt, d])
                elif other:
                    pool = self.by_dimension[kind, d]
                    rationale = pool[rng.integers(len(pool))]
            elif plain or rng.random() > 0.1:
                continue
            else:
                rationale, score, sight, other = "no face was asked for" if kind == "t2i" else "no face in the source", np.nan, 1, False
                mended = False
            answer, place = q.answer(rationale, score)
            question = q.tails[kind, d]
            first = len(row["ids"]) + len(question) - 1           # predicts the answer's first token
            said = len(q.encode(rationale))
            seen = len(q.encode(rationale.split(";")[0])) if d in CAPTIONED else 0
            row["ids"] += question + answer[:-1]
            m = len(question) + len(answer) - 1
            row["places"].append(np.tile(np.arange(start, start + m), (3, 1)))
            row["branch"] += [number + 1] * m
            hide = sight < 0.5 and place >= 0
            row["veiled"] += [0] * len(question) + [int(hide)] * said + [0] * (m - len(question) - said)
            row["tail"] += [0] * (len(question) + said) + [int(hide)] * (m - len(question) - said)
            for i, token in enumerate(answer):
                if i == place:
                    row["scores"].append((first + i, score, DIMENSIONS.index(d)))
                elif (not other and (not mended or i >= seen)) or i > said:
                    row["at"].append(first + i)
                    row["targets"].append(token)
                    row["weights"].append(VERDICT if seen < i < said else 1)
        blame, colour = failing_words(prompt, known["alignment"][0]) if kind == "t2i" else ({}, {})
        row["blame"] = [(words[w], 0, b) for w, b in blame.items()] + [(words[w], 1, b) for w, b in colour.items()]
        row["end"] = n - 1
        row["defects"], row["labels"] = defects_of(known)
        if kind == "edit":
            pad = [i for i, t in enumerate(prefix) if t == q.special["image_pad"]][TOKENS:]
            row["cells"] = pad, differences(*(self.labels.pictures[p] for p in shown))
        return row


class Batch:
    """Rows side by side."""

    def __init__(self, rows, q):
        b, t = len(rows), max(len(r["ids"]) for r in rows)
        whole = lambda key, fill=0: torch.from_numpy(np.array([r[key] + [fill] * (t - len(r[key])) for r in rows]))
        self.ids = whole("ids")
        self.places = torch.zeros(3, b, t, dtype=torch.long)
        for i, r in enumerate(rows):
            self.places[:, i, :len(r["ids"])] = torch.from_numpy(np.concatenate(r["places"], 1))
        branch, veiled, tail = whole("branch"), whole("veiled").bool(), whole("tail").bool()
        order = torch.arange(t)
        self.mask = (order[:, None] >= order) & ((branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])) & ~(tail[:, :, None] & veiled[:, None, :])
        self.mask = self.mask.unsqueeze(1)
        self.image = self.ids == q.special["image_pad"]
        self.shown = [p for r in rows for p in r["shown"]]
        flat = lambda key: [(i, *v) if isinstance(v, tuple) else (i, v) for i, r in enumerate(rows) for v in r[key]]
        self.at = torch.tensor(flat("at")).T
        self.targets = torch.tensor([x for r in rows for x in r["targets"]])
        self.weights = torch.tensor([x for r in rows for x in r["weights"]]).float()
        scores = flat("scores")
        self.score_at = torch.tensor([s[:2] for s in scores], dtype=torch.long).view(-1, 2).T
        self.label = torch.tensor([s[2] for s in scores]).float()
        self.dimension = torch.tensor([s[3] for s in scores])
        blame = flat("blame")
        self.blame_at = torch.tensor([x[:3] for x in blame], dtype=torch.long).view(-1, 3).T
        self.blame = torch.tensor([x[3] for x in blame]).float()
        self.end = torch.tensor([r["end"] for r in rows])
        self.defects = torch.from_numpy(np.array([r["defects"] for r in rows]))
        self.labels = torch.from_numpy(np.array([r["labels"] for r in rows]))
        cells = [(i, p, d) for i, r in enumerate(rows) if "cells" in r for p, d in zip(*r["cells"])]
        self.cell_at = torch.tensor([c[:2] for c in cells], dtype=torch.long).view(-1, 2).T
        self.cell = torch.from_numpy(np.array([c[2] for c in cells], np.float32)).view(-1, MERGE * MERGE)


class Heads(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.word = torch.nn.Linear(width, 2)
        self.end = torch.nn.Linear(width, len(DEFECTS) + len(DIMENSIONS))
        self.cell = torch.nn.Linear(width, MERGE * MERGE)


def forward(model, batch, eyes):
    """States after LOOK layers and at the end. `eyes`: features [P, 16, D] of the pictures shown, for the merger and each deepstack layer."""
    text = model.model.language_model
    x = text.embed_tokens(batch.ids)
    index = batch.image.unsqueeze(-1)
    x = x.masked_scatter(index, eyes[0].flatten(0, 1))
    deep = [torch.zeros_like(x).masked_scatter(index, e.flatten(0, 1)) for e in eyes[1:]]
    return run_text(text, x, *rotations(text, batch.places), batch.mask, deep, LOOK)


def see(model, pictures):
    seen = model.model.visual(patches(pictures), grid_thw=torch.tensor([[1, GRID, GRID]] * len(pictures)))
    return [f.float().view(len(pictures), TOKENS, -1) for f in (seen.pooler_output, *seen.deepstack_features)]


def expected(model, states, batch, q):
    logits = model.lm_head(states[batch.score_at[0], batch.score_at[1]]).float()
    log_p = logits[:, q.scores].log_softmax(-1)
    return logits, log_p, (log_p.exp() * torch.arange(1, 6)).sum(-1)


def losses(model, heads, batch, eyes, q):
    looked, states = forward(model, batch, eyes)
    language = F.cross_entropy(model.lm_head(states[batch.at[0], batch.at[1]]).float(), batch.targets, reduction="none")
    language = (language * batch.weights).sum() / batch.weights.sum()
    if not len(batch.label):
        return dict(language=language)
    logits, log_p, score = expected(model, states, batch, q)
    near = (1 - (batch.label[:, None] - torch.arange(1, 6)).abs()).clamp(min=0)
    mass = (logits.logsumexp(-1) - logits[:, q.scores].logsumexp(-1)).mean()
    judged = dict(language=language, distance=(score - batch.label).square().mean(), soft=-(near * log_p).sum(-1).mean(), mass=mass)
    if heads is None:
        return judged
    looked = F.rms_norm(looked, looked.shape[-1:])
    zero = language * 0
    blame = F.binary_cross_entropy_with_logits(heads.word(looked[batch.blame_at[0], batch.blame_at[1]]).float().gather(1, batch.blame_at[2:].T)[:, 0],
                                               batch.blame) if len(batch.blame) else zero
    end = heads.end(looked[torch.arange(len(batch.end)), batch.end]).float()
    found, rated = end.split([len(DEFECTS), len(DIMENSIONS)], -1)
    known = ~batch.defects.isnan()
    defects = (F.binary_cross_entropy_with_logits(found, batch.defects.nan_to_num(), reduction="none") * known).sum() / known.sum()
    known = ~batch.labels.isnan()
    rates = ((rated - (batch.labels.nan_to_num() - 3.5) / 1.2).square() * known).sum() / known.sum()
    cells = F.mse_loss(heads.cell(looked[batch.cell_at[0], batch.cell_at[1]]).float(), batch.cell) if len(batch.cell) else zero
    return dict(**judged, blame=blame, defects=defects, rates=rates, cells=cells)


WEIGHTS = dict(distance=0.5, soft=0.5, mass=0.1, blame=2, defects=2, rates=0.5, cells=1)


@torch.no_grad()
def agreement(model, rows, items, plain, eyes_of, q):
    """Spearman of scores with the labels by dimension, of scores for which the rationale is out of sight ("blind") or the model's own ("own")."""
    said, labels, dims = [], [], []
    for i in range(0, len(items), 32):
        batch = Batch([rows.row(x, None, plain) for x in items[i:i + 32]], q)
        _, states = forward(model, batch, eyes_of(batch.shown))
        said.append(expected(model, states, batch, q)[2])
        labels.append(batch.label)
        dims.append(batch.dimension)
    said, labels, dims = (torch.cat(x).numpy() for x in (said, labels, dims))
    return {d: round(float(np.corrcoef(ranks(said[dims == k]), ranks(labels[dims == k]))[0, 1]), 3) for k, d in enumerate(DIMENSIONS) if (dims == k).any()}


def named(items, own):
    """In which share of flawed pictures a clause of the true reason stands in the model's own, and of the others in which it names a defect."""
    share = {}
    for d in DIMENSIONS:
        told = [(x["known"][d][1], *(clauses(dict(dimension=d, reason=t), "reason") for t in (x["known"][d][0], own[x["id"], d]))) for x in items if d in x["known"]]
        flawed, sound = [bool(a & b) for score, a, b in told if a and score < 4.5], [bool(b) for _, a, b in told if not a]
        if told:
            share[d] = round(float(np.mean(flawed)), 2), round(float(np.mean(sound)), 2)
    return share


@torch.no_grad()
def write(model, items, eyes_of, q, rng=None, size=256, longest=48):
    """{(id, dimension): reason that the model writes} of all that is known of these pictures: the likeliest token each time; with `rng` for half of them,
    the others drawn by their probabilities, and for every second of what has no caption."""
    asked = {(x["kind"], d, x["id"]): x for x in items for d in x["known"] if rng is None or d in CAPTIONED or rng.random() < 0.5}
    asked = sorted(asked.items(), key=lambda a: a[0])
    text, reasons = model.model.language_model, {}
    stops = torch.tensor([q.encode("\n")[0], q.special["im_end"]])
    for begin in range(0, len(asked), size):
        part = asked[begin:begin + size]
        lines = [q.prefix(kind, x["prompt"])[0] + q.tails[kind, d] for (kind, d, _), x in part]
        t, b = max(len(ids) for ids in lines), len(lines)
        ids, places, there = torch.zeros(b, t, dtype=torch.long), torch.zeros(3, b, t, dtype=torch.long), torch.zeros(b, t + longest, dtype=torch.bool)
        for i, line in enumerate(lines):   # ends side by side
            ids[i, t - len(line):] = torch.tensor(line)
            places[:, i, t - len(line):] = torch.from_numpy(q.places(line))
            there[i, t - len(line):] = True
        image = (ids == q.special["image_pad"]).unsqueeze(-1)
        x, eyes = text.embed_tokens(ids), eyes_of([p for _, x in part for p in x["pictures"]])
        deep = [torch.zeros_like(x).masked_scatter(image, e.flatten(0, 1)) for e in eyes[1:]]
        x, cache, order = x.masked_scatter(image, eyes[0].flatten(0, 1)), Cache(t + longest), torch.arange(t)
        mask = there[:, None, None, :t] & (order[:, None] >= order) | torch.eye(t, dtype=torch.bool)   # what is not there sees itself
        warm = torch.from_numpy(rng.random(b) < 0.5) if rng else torch.zeros(b, dtype=torch.bool)
        place, said, live = places[:, :, -1:], [], torch.ones(b, dtype=torch.bool)
        _, states = run_text(text, x, *rotations(text, places), mask, deep, cache=cache)
        while len(said) < longest:
            logits = model.lm_head(states[:, -1]).float()
            logits[warm] += -torch.empty_like(logits[warm]).exponential_().log()
            token = logits.argmax(-1)
            live &= ~torch.isin(token, stops)
            if not live.any():
                break
            said.append(torch.where(live, token, -1))
            place = place + 1
            _, states = run_text(text, text.embed_tokens(token[:, None]), *rotations(text, place), there[:, None, None, :cache.used + 1], [], cache=cache)
        for (key, _), line in zip(part, torch.stack(said, 1).tolist() if said else [[]] * b):
            reasons[key[2], key[1]] = q.tokenizer.decode([x for x in line if x >= 0])
    return reasons


def show(model, rows, items, eyes_of, q):
    rows.own = write(model, items, eyes_of, q)
    for plain in ("blind", "own"):
        print(time.strftime("%H:%M:%S"), f"held out, {plain}:", {k: v for kind in ("t2i", "edit") for k, v in
                                                                 agreement(model, rows, [x for x in items if x["kind"] == kind], plain, eyes_of, q).items()}, flush=True)
    print("    named, falsely:", named(items, rows.own), flush=True)
    for x in items[::len(items) // 8]:
        d = "alignment" if x["kind"] == "t2i" else "instruction"
        print("   ", x["prompt"], "|", x["known"][d][0], "|", rows.own[x["id"], d], flush=True)


def export(model, args):
    out = args.out / args.name
    out.mkdir(exist_ok=True)
    model.save_pretrained(out)
    for name in KEPT:
        shutil.copy(args.tokenizer / name, out)
    config = json.loads((out / "config.json").read_text())
    config.pop("_name_or_path", None)
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def take_eyes(model, eyes, pictures):
    """Words as the eyes say them, and a place's vector of a word's length: merger and deepstack features end in a matrix."""
    visual = model.model.visual
    visual.load_state_dict(eyes["parts"][0])
    with torch.no_grad():
        model.model.language_model.embed_tokens.weight.copy_(EMBEDDED * eyes["words"])
        model.lm_head.weight.copy_(eyes["words"])
        for merger, f in zip((visual.merger, *visual.deepstack_merger_list), see(model, pictures)):
            scale = EMBEDDED / f.norm(dim=-1).mean()
            merger.linear_fc2.weight.mul_(scale)
            merger.linear_fc2.bias.mul_(scale)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=Path, nargs="+", required=True)
    parser.add_argument("--heldout", type=Path, required=True, help="labels to look at on the way; nothing is chosen by them")
    parser.add_argument("--templates", type=Path, required=True)
    parser.add_argument("--eyes", type=Path, help="the vision tower of train_eyes.py")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--name", default="judge-start")
    parser.add_argument("--init", type=Path, help="what to start from: a state (*.pt), without its optimizers, or a judge (a directory), with its eyes")
    parser.add_argument("--new-eyes", action="store_true", help="the state's text on the vision tower of --eyes")
    parser.add_argument("--minutes", type=float, default=20, help="on the clock: the learning rate decays to zero within it")
    parser.add_argument("--seeing", type=int, default=0, help="updates before that, which teach captions alone")
    parser.add_argument("--shut", type=float, default=0.6, help="share of the time for which the eyes stay as they are")
    parser.add_argument("--trusted", type=float, default=0.25, help="share of scores that see the true rationale; half see none, the rest another picture's")
    parser.add_argument("--own", action="store_true", help="reasons of the model's own in sight")
    parser.add_argument("--doubt", type=float, default=0, help="share of its own reasons whose verdict is replaced by another one on the same prompt, for the score alone")
    parser.add_argument("--words", type=float, default=1, help="weight of the language loss, a mean over words of which few decide")
    parser.add_argument("--t2i", type=float, default=0.55, help="share of updates on text to image")
    parser.add_argument("--batch", type=int, default=32, help="pictures with all their questions")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=15)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    made = args.init is not None and args.init.is_dir()
    args.tokenizer = args.init if made else args.out / "tokenizer"
    tokenizer = Tokenizer.from_file(str(args.tokenizer / "tokenizer.json"))
    q = Questions(tokenizer, args.templates)
    labels, held = Labels(args.labels), Labels([args.heldout])
    rows, held_rows = Rows(labels, q, args.trusted, args.doubt), Rows(held, q)
    by_kind = {k: [i for i, x in enumerate(labels.items) if x["kind"] == k] for k in ("t2i", "edit")}
    by_kind["edit"] += [i for i in by_kind["edit"] if labels.items[i]["category"] == "general"]   # the hardest
    for kept in by_kind.values():   # faces with something wrong are few: three times as often
        kept += 2 * [i for i in kept if any(labels.items[i]["known"].get(d, (SOUND[d], 5))[0] != SOUND[d] for d in FACES)]
    model = Qwen3VLForConditionalGeneration.from_pretrained(args.init, dtype=torch.float32) if made else Qwen3VLForConditionalGeneration(make_config(tokenizer))
    heads = None if made else Heads(model.config.text_config.hidden_size)   # a judge's were thrown away
    print(sum(p.numel() for p in model.parameters()), "parameters", {k: len(v) for k, v in by_kind.items()}, flush=True)
    if not made:
        take_eyes(model, torch.load(args.eyes, weights_only=False), labels.pictures[:512])
    model.model.language_model.embed_tokens.requires_grad_(False)
    if args.init and not made:
        state = torch.load(args.init, weights_only=False)
        own = {k: v for k, v in state["model"].items() if not args.new_eyes or "visual" not in k}
        assert not model.load_state_dict(own, strict=False).unexpected_keys
        heads.load_state_dict(state["heads"])
    named_parameters = [*model.named_parameters(), *(("head." + n, p) for n, p in (heads.named_parameters() if heads else ()))]
    optimizers = make_optimizers(named_parameters, args.lr, 0.01, plain=("embed", "lm_head", "head."))
    features = None
    if args.shut > 0:
        with torch.no_grad():
            parts = [see(model, labels.pictures[i:i + 128]) for i in range(0, len(labels.pictures), 128)]
            features = [torch.cat([p[k] for p in parts]).half() for k in range(len(parts[0]))]
        print(time.strftime("%H:%M:%S"), "pictures seen", flush=True)
    def drawn(step):
        rng = np.random.default_rng([args.seed, step])
        kind = "t2i" if rng.random() < args.t2i else "edit"
        return rng, kind, [labels.items[by_kind[kind][i]] for i in rng.integers(len(by_kind[kind]), size=args.batch)]

    def look(shown):
        return [f[shown].float() for f in features] if shut else see(model, labels.pictures[shown])

    weights = {**WEIGHTS, "language": args.words}
    history, step, shown_at, spent, began = [], 0, 0, 0.0, time.time()
    while spent < 1:
        set_lr(optimizers, args.lr, step if step < 50 else int(max(0.01, spent) * 10**6), 10**6 if step >= 50 else 10**9)
        rng, kind, chosen = drawn(step)
        seeing, shut = step < args.seeing, spent < args.shut
        if args.own and step % AHEAD == 0:
            with torch.autocast("cpu", torch.bfloat16):
                rows.own = write(model, [x for k in range(AHEAD) for x in drawn(step + k)[2]], look, q, np.random.default_rng([args.seed, step, 1]))
        if seeing:
            others = [labels.items[by_kind[kind][i]] for i in rng.integers(len(by_kind[kind]), size=8 * args.batch)]
            batch = [rows.seeing(x, others[8 * k:8 * k + 8]) for k, x in enumerate(chosen)]
        else:
            batch = sorted((rows.row(x, rng) for x in chosen), key=lambda r: len(r["ids"]))
        total = {}
        for half in range(2):   # long rows apart: less is filled up
            some = Batch(batch[half * len(batch) // 2:(half + 1) * len(batch) // 2], q)
            with torch.autocast("cpu", torch.bfloat16):
                parts = losses(model, heads, some, look(some.shown), q)
            (sum(weights[k] * v for k, v in parts.items()) / 2).backward()
            for k, v in parts.items():
                total[k] = total.get(k, 0) + v.item() / 2
        torch.nn.utils.clip_grad_norm_([p for _, p in named_parameters], 1.0)
        for o in optimizers:
            o.step()
        for _, p in named_parameters:
            p.grad = None
        history.append({"kind": kind, **total})
        step += 1
        if step <= args.seeing:
            began = time.time()
        spent = (time.time() - began) / 60 / args.minutes
        if step % 40 == 0:
            for kind in ("t2i", "edit"):
                mine = [h for h in history if h["kind"] == kind]
                if mine:
                    print(time.strftime("%H:%M:%S"), step, kind, " ".join(f"{k} {np.mean([h[k] for h in mine if k in h]):.3f}" for k in total), flush=True)
            history = []
        if not seeing and spent > shown_at + 0.2:
            shown_at = spent
            show(model, held_rows, held.items[::3], lambda s: see(model, held.pictures[s]), q)
            save_state(args.out / (args.name + ".pt"), model=model.state_dict(), heads=heads.state_dict() if heads else {}, step=step)
    show(model, held_rows, held.items, lambda s: see(model, held.pictures[s]), q)
    save_state(args.out / (args.name + ".pt"), model=model.state_dict(), heads=heads.state_dict() if heads else {}, step=step)
    export(model, args)


if __name__ == "__main__":
    main()
