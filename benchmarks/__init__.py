"""Side-by-side timings: this package against the way the usual tutorial does the same work, one file per subject."""
