"""Several judges on one sample of a run: how far they agree, and where they do not."""
