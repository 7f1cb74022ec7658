"""Prompt files and reference pictures of the miniature, from folders that atelier-world wrote.

    atelier-world --task t2i  --count 728 --seed 201 --output DIR/prompts-t2i
    atelier-world --task edit --count 368 --seed 202 --output DIR/prompts-edit
    python make_prompts.py --t2i DIR/prompts-t2i --edit DIR/prompts-edit --out assets/mini/prompts

The last 128 of each are held out; scenes are drawn without regard to which file they go to, and a held-out text that
stands in the training file as well is left out of the training file.
"""
import argparse
import json
from pathlib import Path

from PIL import Image

from common import read_world

HELD_OUT = 128


def write(path, lines):
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    print(path, len(lines))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--t2i", required=True)
    parser.add_argument("--edit", required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    (args.out / "images").mkdir(parents=True, exist_ok=True)
    for task, folder in (("t2i", args.t2i), ("edit", args.edit)):
        pictures, scenes = read_world(folder)
        lines = []
        for i, scene in enumerate(scenes):
            line = dict(id=f"{task}-{i:04d}", task=task, category=scene["category"], text=scene["text"], images=[],
                        attributes=scene["attributes"])
            if task == "edit":
                line["images"] = [f"images/{line['id']}.png"]
                Image.fromarray(pictures[i][0][..., :3]).save(args.out / line["images"][0], optimize=True)
            lines.append(line)
        held = lines[-HELD_OUT:]
        known = {(x["text"], json.dumps(x["attributes"].get("source"))) for x in held}
        write(args.out / f"{task}-heldout.jsonl", held)
        write(args.out / f"{task}-train.jsonl",
              [x for x in lines[:-HELD_OUT] if (x["text"], json.dumps(x["attributes"].get("source"))) not in known])


if __name__ == "__main__":
    main()
