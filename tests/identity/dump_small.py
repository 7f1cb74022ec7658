"""What torch makes of some of the miniature's pictures with its face embedding: data/small.txt.   python dump_small.py data/small.txt

A line a picture: its name, how many numbers its embedding has (0: no face), the numbers.
"""
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

root = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(root / "assets/mini/recipe"))
from train_identity import FaceNet  # noqa: E402

net = FaceNet().double()
net.load_state_dict({name: p.double() for name, p in load_file(root / "assets/mini/identity/model.safetensors").items()})
with torch.no_grad(), open(sys.argv[1], "w") as out:
    for name in ("edit-0000.png", "edit-0001.png", "edit-0002.png", "edit-0003.png", "edit-0005.png", "edit-0007.png"):
        picture = torch.from_numpy(np.array(Image.open(root / "assets/mini/prompts/images" / name).convert("RGBA")))[None]
        embedding, face = net(picture)
        numbers = embedding[0].tolist() if face.item() > 0 else []
        print(name, len(numbers), *(f"{n:.9g}" for n in numbers), file=out)
