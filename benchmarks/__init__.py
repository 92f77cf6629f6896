"""Loops to race vshift against, and the results; part of the repository, not of the wheel."""
