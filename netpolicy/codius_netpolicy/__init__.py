"""Pod links, routes and nftables: who may talk to whom. Start reading at `network.py`."""
