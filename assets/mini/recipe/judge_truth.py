"""What labels of the world tell about words of a prompt, places of a picture and defects: targets for heads of train_judge.py."""
import re

import numpy as np

from judge_data import GRID, MERGE, MERGED, PATCH, TOKENS
from measure_judge import WHOLE

NUMBERS = {"one": 1, "two": 2, "three": 3}
# Clauses of reasons that no word of the prompt stands for.
DEFECTS = ["nothing to see", "noise", "smears and residue", "no face", "the eyes are not alike", "one eye is missing", "no eyes", "no mouth",
           "the face is lopsided", "was not done", "was done in part", "the rest was lost", "other things changed as well", "the face was lost",
           "another face", "the face has another shape", "the mouth has changed"]
OF = dict(aesthetics=range(0, 3), portrait=range(3, 9), instruction=range(9, 13), identity=range(13, 17))
DIMENSIONS = ["alignment", "aesthetics", "portrait", "instruction", "identity"]


def objects_of(prompt):
    """Colours and shapes of a prompt for coloured shapes, one pair a thing."""
    if m := re.fullmatch(r"(one|two|three) (\w+) (\w+?)s? on (\w+)", prompt):
        return [(m[2], m[3])] * NUMBERS[m[1]]
    m = re.fullmatch(r"a (\w+) (\w+) (?:left of|right of|above|below) a (\w+) (\w+) on (\w+)", prompt)
    return [(m[1], m[2]), (m[3], m[4])]


def failing_words(prompt, reason):
    """How much each word of a prompt for a picture is to blame: ({index of word: 0 ... 1}, the same for the colour of a shape)."""
    words, clauses = prompt.split(" "), [c.strip() for c in reason.split(";") if c.strip() not in WHOLE]
    blame, colour = {}, {}
    at = lambda *names: next(i for i, w in enumerate(words) if w in names)
    if words[0] == "portrait":
        for place, test in ((at("skin"), "no face with"), (at("hair"), f"the hair is not {words[at('hair') - 1]}"),
                            (at("hair") - 2, f"the hair is not {words[at('hair') - 2]}"), (at("glasses"), "glasses"), (len(words) - 1, "the background")):
            blame[place] = float(any(test in c for c in clauses))
    elif words[0] == "landscape":
        blame = {0: float("no clear sun" in clauses or "no clear moon" in clauses), 2: float(any(c.startswith("the ground") for c in clauses)),
                 4: float(any(c.startswith("the sky") for c in clauses))}
        if len(words) > 5:
            blame[len(words) - 1] = float(any("instead of" in c for c in clauses))
            blame[5] = float("ragged trees" in clauses)
    elif words[0] == "the":
        blame = {1: float(any(c.startswith("the letters of") for c in clauses)), 2: float(any(c.startswith("reads rather") for c in clauses)),
                 4: float(any(c.startswith("the letters are") for c in clauses)), 6: float(any(c.startswith("the background") for c in clauses))}
    else:
        blame[len(words) - 1] = float(any(c.startswith("the background") for c in clauses))
        more = [int(c.split()[0]) for c in clauses if c.endswith("that were not asked for")]
        blame[len(words) - 2] = min(3, sum(more)) / 3
        objects = objects_of(prompt)
        for c, s in set(objects):
            n = objects.count((c, s))
            none = sum(x == f"no {c} {s}" for x in clauses) / n
            place = next(i for i in range(1, len(words)) if words[i] in (s, s + "s") and words[i - 1] == c)
            blame[place] = min(1.0, none + sum(x == f"the {c} thing is no clear {s}" for x in clauses) / n)
            colour[place] = min(1.0, none + sum(x == f"the {s} is not {c}" for x in clauses) / n)
            if n > 1:
                blame[0] = none
        if len(objects) == 2 and words[0] == "a":
            blame[at("left", "right", "above", "below")] = float(any(" is not left of " in c or " is not above " in c for c in clauses))
    return blame, colour


def defects_of(known):
    """[len(DEFECTS)] 0 or 1 for the dimensions that were judged, NaN for the rest; the labels [len(DIMENSIONS)], NaN where none."""
    found, labels = np.full(len(DEFECTS), np.nan, np.float32), np.full(len(DIMENSIONS), np.nan, np.float32)
    for dimension, (rationale, label) in known.items():
        labels[DIMENSIONS.index(dimension)] = label
        for k in OF.get(dimension, ()):
            found[k] = any((c.strip().startswith(DEFECTS[k]) if DEFECTS[k] != "no face" else c.strip() == "no face") if dimension != "instruction"
                           else DEFECTS[k] in c for c in rationale.split(";"))
    return found, labels


def differences(a, b):
    """Of each patch of two pictures uint8 [128, 128, 3]: mean distance of colours over 40, at most 2.5: [16, 4]."""
    d = np.sqrt(((a.astype(np.float32) - b) ** 2).sum(-1))
    means = np.minimum(d / 40, 2.5).reshape(GRID, PATCH, GRID, PATCH).mean((1, 3))
    return means.reshape(MERGED, MERGE, MERGED, MERGE).transpose(0, 2, 1, 3).reshape(TOKENS, MERGE * MERGE)
