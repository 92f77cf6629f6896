"""Many runs, on this machine (`local`) or on a Slurm cluster (`slurm`), without importing torch.

In reading order: `plan` (configs → jobs), `status` (how far each run is, from its folder alone),
`process_group` and `logs` (processes and what they print), `estimates` (how long runs take),
`progress` (the live table), `slots` (cores and GPUs), `local`, and `slurm` with `slurm_job` (what
runs on the node).
"""
