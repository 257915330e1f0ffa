"""Side-by-side measurements; each module is a command. They run in the environment that the stages have."""

from restorelcc.__main__ import set_defaults

set_defaults()
