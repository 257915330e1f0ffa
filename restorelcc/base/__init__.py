"""What every stage needs, without torch: names, settings, paths, artifacts, digests, messages."""
