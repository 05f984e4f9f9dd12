"""One file per experiment: network, loss, metrics and export put together as a `Task`.

A config names a task; the file of that name in this folder has `make_task(config) -> Task`.
Adding an experiment means adding such a file and a config; there is nothing to register.
"""
