"""Where the work of the panels runs: on a thread, or in a process of its own; and how it is stopped."""
