"""`python -m benchmarks [SUBJECT…]`: what `make bench` runs."""

from benchmarks.run import main

main()
