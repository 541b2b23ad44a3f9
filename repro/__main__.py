"""`python -m repro` is the `repro` command, for example under torchrun."""

from repro.cli import main

main()
