"""How the identity by face embeddings agrees with the world's truth on a model's own pictures. Two evaluations of the same models with the
same seed, one scored by the world, one with reward.identity = "small" (python with h5py and numpy):

    for name in truth small; do
        atelier-plan --config configs/mini.toml --run $name $([[ $name == truth ]] || echo --set reward.identity=small \
            --set identity.network=assets/mini/identity --set identity.table='["0=1", "1=5"]')
        atelier-evaluate --run $name
    done
    python tests/bench/identity_agreement.py truth/eval/base/edit small/eval/base/edit

Prints pictures, Spearman's correlation with a 95 % bootstrap interval over pictures, the mean absolute error, how well "a face in the
source" agrees.
"""
import sys
from pathlib import Path

import h5py
import numpy as np


def read(folder):
    scores, present, pictures = [], [], []
    for path in sorted(Path(folder).glob("shard-*.h5")):
        with h5py.File(path) as shard:
            group = shard[next(name for name in shard if name.startswith("shape-"))]
            scores.append(group["reward/identity/score"][:])
            present.append(group["reward/identity/present"][:] > 0)
            pictures.append(group["picture"][:])
    return np.concatenate(scores), np.concatenate(present), np.concatenate(pictures)


def ranks(x):
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def spearman(a, b):
    return np.corrcoef(ranks(a), ranks(b))[0, 1]


(truth, has_truth, pictures), (found, has_found, same) = (read(folder) for folder in sys.argv[1:3])
assert (pictures == same).all(), "the two evaluations drew different pictures"
both = has_truth & has_found
truth, found = truth[both], found[both]
rng = np.random.default_rng(1)
draws = [spearman(truth[rows], found[rows]) for rows in rng.integers(0, len(truth), (2000, len(truth)))]
low, high = np.percentile(draws, [2.5, 97.5])
print(f"{len(truth)} pictures: Spearman {spearman(truth, found):.3f} [{low:.3f}, {high:.3f}], mean absolute error {np.abs(truth - found).mean():.2f}, "
      f"means {truth.mean():.2f} (truth) and {found.mean():.2f}; a face in the source: the same of {(has_truth == has_found).mean():.1%}")
