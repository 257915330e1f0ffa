"""The command line: typer and printing, a file for each verb."""
