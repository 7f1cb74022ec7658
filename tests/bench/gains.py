"""Totals of each task by model with 95 % intervals, whether the base's and the model's overlap, and the student's share of the teachers'
gains.   python3 gains.py RUN/eval/summary.json..."""
import json
import sys


def interval(v):
    return f"{v['mean']:.2f} [{v['low']:.2f}, {v['high']:.2f}]"


print("| run | task | base | base, guided | teacher | mix | student | teacher's gain | student's gain, share |")
print("|---|---|---|---|---|---|---|---|---|")
shares = {}
for path in sys.argv[1:]:
    summary = json.load(open(path))
    models = summary["models"]
    for task in sorted({name.split("/")[0] for name in models["base"]}):
        key, teacher = f"{task}/total", f"teacher-{task}"
        base = models["base"][key]
        cells = []
        for name in ("base", "base-guided", teacher, "mix", "student"):
            if name not in models:
                cells.append("")
                continue
            v = models[name][key]
            apart = name in ("base", "base-guided") or v["low"] > base["high"]
            cells.append(interval(v) + ("" if apart else " (overlaps the base's)"))
        gains = [summary["gain"][name][key]["mean"] for name in (teacher, "student")]
        share = gains[1] / gains[0]
        shares.setdefault(task, []).append(share)
        print(f"| {path.split('/eval/')[0].split('/')[-1]} | {task} | {' | '.join(cells)} | {gains[0]:+.2f} | {gains[1]:+.2f}, {share:.0%} |")
for task, values in shares.items():
    print(f"\n{task}: the student has {sum(values) / len(values):.0%} of its teacher's gain (mean of {len(values)} runs)")
