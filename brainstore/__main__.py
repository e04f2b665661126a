"""`python -m brainstore` is `brainstore`."""

from brainstore.cli import main

main()
