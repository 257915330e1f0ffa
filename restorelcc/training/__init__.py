"""How the few parameters beside a frozen model are trained: the loop, its losses, data and state."""
