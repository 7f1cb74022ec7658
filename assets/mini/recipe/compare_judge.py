"""The engine's judge beside transformers at the same weights: its reasons, the likeliest token each time, and its expected scores.

    python compare_judge.py --judge RUN/judge --labels DIR/heldout.h5 --templates ../../../configs/mini-judge --every 12

RUN/judge: of atelier-reward-train, with judgements.csv of these held-out labels.
"""
import argparse
import csv
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import Qwen3VLForConditionalGeneration

from judge_data import GRID, Labels, patches
from judge_model import Questions
from train_judge import see, write


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", type=Path, required=True)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--templates", type=Path, required=True)
    parser.add_argument("--every", type=int, default=1)
    args = parser.parse_args()
    q = Questions(Tokenizer.from_file(str(args.judge / "tokenizer.json")), args.templates)
    labels = Labels([args.labels])
    items = {(x["kind"], x["id"]): x for x in labels.items}
    model = Qwen3VLForConditionalGeneration.from_pretrained(args.judge, dtype=torch.float32).eval()
    rows = [r for r in csv.DictReader(open(args.judge / "judgements.csv", newline="")) if "none" not in (r["label"], r["score"]) and r["score"]][::args.every]
    same, off = 0, 0.0
    for r in rows:
        item = items[r["kind"], r["id"]]
        asked = dict(item, known={r["dimension"]: item["known"][r["dimension"]]})
        reason = write(model, [asked], lambda shown: see(model, labels.pictures[shown]), q, longest=64)[r["id"], r["dimension"]]
        same += reason.strip() == r["reason"]
        ids = torch.tensor([q.prefix(r["kind"], item["prompt"])[0] + q.tails[r["kind"], r["dimension"]] + q.encode(r["reason"] + "\nScore: ")])
        with torch.no_grad():
            out = model(input_ids=ids, pixel_values=patches(labels.pictures[item["pictures"]]), image_grid_thw=torch.tensor([[1, GRID, GRID]] * len(item["pictures"])),
                        attention_mask=torch.ones_like(ids), mm_token_type_ids=(ids == model.config.image_token_id).int())
        score = (out.logits[0, -1, q.scores].softmax(-1) * torch.arange(1, 6)).sum()
        off = max(off, abs(float(score) - float(r["score"])))
    print(f"{len(rows)} judgements: {same} reasons the same, scores within {off:.1e} (written with four digits)")


if __name__ == "__main__":
    main()
