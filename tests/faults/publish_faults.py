#!/usr/bin/env python3
"""Every call that publishing and reading make, made to fail in every way, one at a time.

    publish_faults.py PUBLISH_CHECK FAULTS_LIBRARY [--quick] [--only order|writers|readers]

Over nothing, and over an older version, of a text, an HDF5 file, a directory with weights and a manifest, and a metrics file with other
records: whatever happens, what stands under the name afterwards is the old version or the new one, whole; success means the new one;
an error ends with a documented code and names a file; doing it again without the fault succeeds and leaves no temporary.
"""
import collections
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

check, library = (str(pathlib.Path(p).resolve()) for p in sys.argv[1:3])
work = pathlib.Path(tempfile.mkdtemp(prefix="atelier-publish."))
WRITING = "create+write+close+fsync+rename+exchange+unlink+mkdir+open+read+stat+map"
READING = "open+read+stat+map"
FAULTS = {"create": ["EIO", "ENOSPC", "EACCES", "kill"], "write": ["EIO", "ENOSPC", "EDQUOT", "short", "torn", "kill", "EINTR"],
          "close": ["EIO", "ENOSPC", "EDQUOT", "kill"], "fsync": ["EIO", "ENOSPC", "kill"], "rename": ["EIO", "ENOSPC", "ESTALE", "kill"],
          "exchange": ["EIO", "EINVAL", "kill"], "unlink": ["EIO", "ESTALE", "kill"], "mkdir": ["ENOSPC", "EACCES", "kill"],
          "open": ["ESTALE", "EIO", "EACCES"], "read": ["ESTALE", "EIO"], "stat": ["ESTALE", "EIO"], "map": ["ESTALE", "EIO"]}
tally = collections.Counter()


def run(arguments, directory, rules=None):
    env = dict(os.environ)
    if rules:
        log = work / "log"
        log.unlink(missing_ok=True)
        env.update(LD_PRELOAD=library, ATELIER_FAULTS=";".join(f"{r},path={directory}" for r in rules), ATELIER_FAULTS_LOG=str(log))
    done = subprocess.run([check, *map(str, arguments)], capture_output=True, text=True, env=env, timeout=60)
    return done.returncode, done.stdout.strip(), done.stderr.strip()


def wrong(what, *details):
    print("FAILED:", what, *details, sep="\n    ", file=sys.stderr)
    print("kept:", work, file=sys.stderr)
    sys.exit(1)


def fresh(kind, old):
    directory = work / "d"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    if not old:
        return directory
    made = work / f"{kind}-{old}"
    if not made.exists():
        if kind == "metrics":
            (directory / "metrics.jsonl").write_text("".join(json.dumps({"stage": "curate", "iteration": i}) + "\n" for i in range(500)))
        run(["publish", kind, directory, old], directory)
        shutil.copytree(directory, made)
    shutil.copytree(made, directory, dirs_exist_ok=True)
    return directory


def chosen(index, faults):
    """All faults of a call, or with --quick one of them, in turn."""
    return faults if "--quick" not in sys.argv else [faults[index % len(faults)]]


def is_documented(code, said, directory):
    return code in (3, 4) and str(directory) in said


def struck():
    log = work / "log"
    return log.exists() and " struck" in log.read_text()


def calls(kind, old, arguments, watched):
    """The calls in order: (number of its kind, kind)."""
    directory = fresh(kind, old)
    run([arguments[0], kind, directory, *arguments[1:]], directory, [f"calls={watched},at=1,do=count"])
    seen, result = collections.Counter(), []
    for line in (work / "log").read_text().splitlines():
        call = line.split()[1]
        seen[call] += 1
        result.append((seen[call], call))
    return result


def order(kind, old):
    """Power may fail at any time: a file is on disk before it gets its name, and its name before success is reported or an older
    version is removed."""
    directory = fresh(kind, old)
    run(["publish", kind, directory, "n"], directory, [f"calls={WRITING.replace('+open+read+stat+map', '')},do=count"])
    log = (work / "log").read_text().splitlines()
    dirty, unnamed = set(), set()
    for line in log:
        call, path = line.split(" ", 2)[1:]
        if call in ("create", "write") and not path.endswith(".lock"):
            dirty.add(path)
        elif call == "fsync":
            dirty.discard(path)
            unnamed.discard(path)
        elif call in ("rename", "exchange"):
            source, target = path.split(" -> ")
            unflushed = [p for p in dirty if p == source or p.startswith(source + "/")]
            if unflushed:
                wrong(f"{kind}: {target} got its name before its bytes were on disk", *unflushed)
            unnamed.add(str(pathlib.Path(target).parent))
        elif call == "unlink" and old and unnamed & {str(directory)}:
            wrong(f"{kind}: the older version is removed before the new name is on disk", path)
    if str(directory) in unnamed:
        wrong(f"{kind}: success was reported before the new name was on disk")
    tally["order", "publications"] += 1


def writers():
    """Many writers of one metrics file lose no record."""
    directory = fresh("metrics", "o")
    running = [subprocess.Popen([check, "records", "metrics", str(directory), str(w), "20"]) for w in range(8)]
    if any(p.wait(120) != 0 for p in running):
        wrong("a writer of metrics failed")
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    found = {(r["policy"], r["iteration"]) for r in records if r["stage"] == "distill"}
    if len(found) != 160 or len(records) != 501 + 160:
        wrong(f"of 160 records of 8 writers {len(found)} are there, {len(records)} in all")
    tally["writers", "records"] += len(found)


def readers():
    """They give the right content, or an error that blames the file system and not the file."""
    for kind in ("text", "hdf5", "virtual", "directory", "metrics"):
        for index, (number, call) in enumerate(dict.fromkeys(calls(kind, "o", ["read"], READING))):
            for fault in chosen(index, FAULTS[call]):
                directory = fresh(kind, "o")
                code, found, said = run(["read", kind, directory], directory, [f"calls={call},at={number},do={fault}"])
                where = f"reading {kind}: {call} {number}, {fault} -> {code} {found} {said}"
                if not (found == "o" if code == 0 else code == 4 and str(directory) in said):
                    wrong("neither the content nor an error of the file system", where)
                tally["read", "read" if code == 0 else "refused"] += 1


parts = {"order": lambda: [order(kind, old) for kind in ("text", "hdf5", "directory", "metrics") for old in (None, "o")], "writers": writers, "readers": readers}
for name, part in parts.items():
    if "--only" not in sys.argv or name == sys.argv[-1]:
        part()
if "--only" in sys.argv:
    shutil.rmtree(work)
    print(f"{sys.argv[-1]}: holds")
    sys.exit(0)

# With EINVAL for every exchange the slower way is taken, as on file systems that cannot exchange.
for kind in ("text", "hdf5", "directory", "metrics"):
    for old, more in ((None, []), ("o", []), ("o", ["calls=exchange,at=1+,do=EINVAL"])):
        if more and kind != "directory":
            continue
        listed = calls(kind, old, ["publish", "n"], WRITING)
        if more:  # the slower way's own calls
            listed += [(n, "rename") for n in (1, 2, 3, 4)]
        for index, (number, call) in enumerate(dict.fromkeys(listed)):
            for fault in chosen(index, FAULTS[call]):
                directory = fresh(kind, old)
                code, _, said = run(["publish", kind, directory, "n"], directory, [*more, f"calls={call},at={number},do={fault}"])
                where = f"{kind} over {old}{' without exchange' if more else ''}: {call} {number}, {fault} -> {code} {said}"
                if not more and not struck():
                    wrong("the fault did not strike", where)
                if code not in (0, -9) and not is_documented(code, said, directory):
                    wrong("no documented error that names the file", where)
                read, found, why = run(["read", kind, directory], directory)
                # Killed between two renames the directory is absent until the next writer comes.
                absent_for_now = more and code == -9 and found == "none"
                if read != 0 or (found not in ("n", old or "none") and not absent_for_now):
                    wrong("what stands there is neither old nor new", where, found, why)
                if code == 0 and found != "n":
                    wrong("it succeeded without publishing", where, found)
                if absent_for_now:
                    run(["publish", kind, directory, "x"], directory, ["calls=create,at=1,do=EIO"])
                    if run(["read", kind, directory], directory)[1] not in ("o", "n"):
                        wrong("a whole directory was lost", where)
                again, _, said = run(["publish", kind, directory, "n"], directory)
                if again != 0 or run(["read", kind, directory], directory)[1] != "n":
                    wrong("publishing again fails", where, said)
                left = [str(p) for p in directory.rglob(".tmp-*")]
                if left:
                    wrong("temporaries are left", where, *left)
                tally["publish", "published" if code == 0 else "killed" if code < 0 else "refused"] += 1

# A slow reader beside a writer that publishes again and again.
for kind, number in (("text", 3), ("hdf5", 3), ("directory", 3)):
    directory = fresh(kind, "o")
    env = dict(os.environ, LD_PRELOAD=library, ATELIER_FAULTS=f"calls=open+read+map,at=1+,do=wait:15,path={directory}")
    seen = collections.Counter()
    for _ in range(number):
        reader = subprocess.Popen([check, "read", kind, directory], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        writes = 0
        while reader.poll() is None and writes < 60:  # it pauses at last: a slower reader must come to an end too
            if run(["publish", kind, directory, "abcdefgh"[writes % 8]], directory)[0] != 0:
                wrong("the writer failed beside a reader", kind)
            writes += 1
        out, error = reader.communicate()
        # A directory that is replaced between two of its files is refused, never mixed; with a manifest it is read again.
        if reader.returncode != 0 and not (kind == "directory" and is_documented(reader.returncode, error, directory) and "mixture" not in error):
            wrong("a reader beside a writer", kind, error)
        seen[out.strip() or "refused"] += 1
        tally["race", "writes"] += writes
        tally["race", "reads"] += 1

shutil.rmtree(work)
print(", ".join(f"{what} {outcome}: {n}" for (what, outcome), n in sorted(tally.items())))
print("publishing under faults: all checks passed")
