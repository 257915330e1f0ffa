"""The stages of the pipeline, one folder each; they meet on disk and never import one another."""
