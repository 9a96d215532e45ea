"""Pod links, routes and nftables: who may talk to whom."""

from codius_netpolicy.network import PodNetwork
from codius_netpolicy.policy import Policy, PolicyError

__all__ = ["PodNetwork", "Policy", "PolicyError"]
