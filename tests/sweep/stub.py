"""Stands in for `vshift train` where a test is about scheduling: starts at once, trains nothing.

`python stub.py JOURNAL PLAN HASH NAME SEED RUNS_DIR`. PLAN is JSON, {label: [behaviour, …]} with
one behaviour for each attempt, the last one for all further ones; without any it is `done`. Every
attempt is two lines in JOURNAL, at its beginning and at its end.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

journal, plan, config_hash, name, seed, runs_dir = sys.argv[1:]
label, folder = f"{name} seed {seed}", Path(runs_dir, name, f"seed-{seed}")
KEPT = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")


def note(what):
    line = {"label": label, "what": what, "pid": os.getpid(), "time": time.monotonic()}
    line |= {key: os.environ.get(key) for key in KEPT}
    with open(journal, "a") as file:
        file.write(json.dumps(line) + "\n")


def leave(status, **more):
    folder.mkdir(parents=True, exist_ok=True)
    seconds = more.pop("seconds", 1.0)
    run = {"status": status, "name": name, "seed": int(seed), "config_hash": config_hash,
           "seconds": seconds, "data": "shapes", "device": "cpu"}  # fmt: skip
    (folder / "run.json").write_text(json.dumps(run))
    if status == "done":
        summary = {"test_accuracy": 50.0, "test_error": 50.0, "shift_ratio_mean": 1.0}
        (folder / "summary.json").write_text(json.dumps(summary))
        row = {"epoch": 1, "test_accuracy": 50.0}
        (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")


def stopped(number, frame):
    note("stopped")
    leave("interrupted")
    sys.exit(143)


signal.signal(signal.SIGTERM, stopped)
signal.signal(signal.SIGUSR1, stopped)
with open(journal, "a+") as file:
    file.seek(0)
    earlier = [json.loads(line) for line in file]
tried = sum(line["label"] == label and line["what"] == "begin" for line in earlier)
note("begin")
behaviours = json.loads(plan).get(label, ["done"])
behaviour, _, argument = behaviours[min(tried, len(behaviours) - 1)].partition(":")
if behaviour == "sleep":
    time.sleep(float(argument))
if behaviour == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if behaviour == "chatter":
    print("x" * int(argument))
if behaviour == "fail":
    print("error: it did not work", file=sys.stderr)
    leave("failed")
elif behaviour == "refuse":
    print("error: there is no such thing", file=sys.stderr)
elif behaviour == "diverge":
    leave("diverged")
else:
    leave("done")
note("end")
sys.exit({"fail": 1, "refuse": 2, "diverge": 1}.get(behaviour, 0))
