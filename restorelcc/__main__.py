"""`python -m restorelcc`."""

from restorelcc.cli import main

main()
