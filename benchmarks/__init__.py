"""Side-by-side measurements; each module is a command. They run in the environment that the stages have."""

from restorelcc.environment import set_defaults

set_defaults()
