"""The host's daemon: API, pods, engine, store, payments, peers and the command."""
