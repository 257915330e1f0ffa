"""The whole grid as a page, Markdown, JSON, figures and a table on the terminal."""
