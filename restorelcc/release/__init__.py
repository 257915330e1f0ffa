"""What becomes of a result: exported, verified, inspected, cut smaller, explained to engines."""
