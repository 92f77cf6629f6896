"""Many runs: on this machine (`local`), or on a Slurm cluster (`slurm`). Nothing imports torch.

In reading order: `plan` (configs → jobs), `state` (how far each run is, from its folder alone),
`attempt` (one process and what its end means), `local`, `slurm`, `board` (what a person sees).
"""

from vshift.sweep.dryrun import describe
from vshift.sweep.ending import paths_of, raise_if_failed
from vshift.sweep.local import Local, room, sweep
from vshift.sweep.plan import Job, config_files, expand_all, plan, shard
from vshift.sweep.state import State, see_all

__all__ = [
    "Job",
    "Local",
    "State",
    "config_files",
    "describe",
    "expand_all",
    "paths_of",
    "plan",
    "raise_if_failed",
    "room",
    "see_all",
    "shard",
    "sweep",
]
