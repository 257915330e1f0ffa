"""What every stage needs and torch does not: names, settings, paths, artifacts, digests, messages."""
