"""`vshift bench`: how fast training is here, against bounds and against other loops.

In reading order: `cases` (what is raced), `training` (vshift's own contender), `peers` (the other
loops, from benchmarks/), `race` (who runs when, and the clock), `bounds` and `peaks` (how fast it
could be), `results` (what is kept), `table`, and `bench`, which calls them all.
"""
