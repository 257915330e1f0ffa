"""Stage `prune`; `restorelcc.prune(...)` runs its method on models in memory (restorelcc/api.py)."""

from restorelcc.callable_package import make_callable

make_callable(__name__)
