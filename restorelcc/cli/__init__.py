"""The command line: typer and printing, one file per command."""
