"""One way to run an experiment, and what differs for each kind of recipe."""
