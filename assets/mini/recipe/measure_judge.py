"""How well a judge's own judgements agree with the truth, from RUN/judge/judgements.csv of atelier-reward-train (held-out labels of
`atelier-world --annotators 0`).

    python measure_judge.py RUN/judge/judgements.csv

By dimension: Spearman's correlation with the truth, and over flawed pictures (truth below 4.5) in which share of the judge's reasons a clause
of the true reason stands, word for word but for numbers; `all`: every clause and none besides; `false`: in which share of the pictures that are not flawed a
defect is named; `seen`: in which share of all judgements that say what they see the
caption is the true one. Only the standard library.
"""
import collections
import csv
import re
import sys

WHOLE = {"everything asked for is there", "flat areas are flat and edges crisp", "a face with its features in place",
         "done, and everything else is as it was", "the same person"}


def caption(row, key):
    """What is said to be seen, ahead of the defects of what was asked for."""
    return row[key].split(";")[0] if row["dimension"] in ("alignment", "instruction") else ""


def clauses(row, key):
    text = row[key].removeprefix(caption(row, key))
    return {re.sub(r"\d+", "N", part.strip()) for part in text.split(";")} - WHOLE - {""}


def ranks(values):
    order, result, i = sorted(range(len(values)), key=values.__getitem__), [0.0] * len(values), 0
    while i < len(order):
        j = i
        while j + 1 < len(order) and values[order[j + 1]] == values[order[i]]:
            j += 1
        for k in range(i, j + 1):
            result[order[k]] = (i + j) / 2
        i = j + 1
    return result


def spearman(a, b):
    a, b = ranks(a), ranks(b)
    ma, mb = sum(a) / len(a), sum(b) / len(b)
    cross = sum((x - ma) * (y - mb) for x, y in zip(a, b))
    return cross / (sum((x - ma) ** 2 for x in a) * sum((y - mb) ** 2 for y in b)) ** 0.5


def main():
    groups = collections.defaultdict(list)
    for row in csv.DictReader(open(sys.argv[1], newline="")):
        if row["score"] and "none" not in (row["score"], row["label"]):
            origin = "drawn" if row["id"].startswith("drawn-") else "samples"
            for part in ("all", origin):
                groups[f"{row['kind']}/{row['dimension']}", part].append(row)
                groups["every dimension", part].append(row)
    print(f"{'dimension':<20} {'pictures':<9} {'n':>5} {'Spearman':>9} {'flawed':>7} {'named':>7} {'all':>7} {'false':>7} {'seen':>7}")
    for (name, part), rows in sorted(groups.items()):
        labels = [float(r["label"]) for r in rows]
        flawed = [r for r in rows if float(r["label"]) < 4.5 and clauses(r, "rationale")]
        named = sum(bool(clauses(r, "rationale") & clauses(r, "reason")) for r in flawed)
        sound = [r for r in rows if not clauses(r, "rationale")]
        wrongly = sum(bool(clauses(r, "reason")) for r in sound)
        exact = sum(clauses(r, "rationale") == clauses(r, "reason") for r in flawed)
        told = [caption(r, "rationale") == caption(r, "reason") for r in rows if caption(r, "rationale")]
        rho = "" if name == "every dimension" else f"{spearman([float(r['score']) for r in rows], labels):.3f}"
        print(f"{name:<20} {part:<9} {len(rows):>5} {rho:>9} {len(flawed):>7} {named / max(1, len(flawed)):>7.3f} {exact / max(1, len(flawed)):>7.3f} {wrongly / max(1, len(sound)):>7.3f} {sum(told) / len(told) if told else float('nan'):>7.3f}")


if __name__ == "__main__":
    main()
