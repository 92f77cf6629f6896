"""Real training processes without the seconds that importing torch takes.

This process imports torch once and then, for every line of JSON on stdin, forks a child that runs
`vshift.cli.main()` with the given words: a process of its own, with its own files, signals and
memory, that can be killed as any other. It answers with the child's pid, and once the child has
ended with how: minus the signal's number, or its exit code.

It runs no operation of torch itself: threads do not survive a fork.
"""

from __future__ import annotations

import json
import os
import resource
import sys

import torch
import torch.fx

import vshift.train.run  # noqa: F401 - so that children find everything imported
from vshift import cli


def serve() -> None:
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            restrict(request.get("uid"), request.get("largest_file"))
            os.chdir(request.get("folder", "."))
            messages = request["messages"]
            run(request["words"], request.get("out", messages), messages)
        print(json.dumps({"pid": child}), file=answers)
        _, status = os.waitpid(child, 0)
        print(json.dumps({"code": os.waitstatus_to_exitcode(status)}), file=answers)


def restrict(uid: int | None, largest_file: int | None) -> None:
    """Another user, and a limit of the system on the size of files in bytes."""
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    if uid is not None:
        os.setuid(uid)


def run(words: list[str], out: str, messages: str) -> None:
    """The command line in this process, with its outputs appended to files; does not return."""
    for number, path in ((1, out), (2, messages)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv = ["vshift", *words]
    code: object = 70
    try:
        cli.main()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    serve()
