"""`python -m vshift` is `vshift`."""

from vshift.cli import main

main()
