"""The authoritative responder for the host's zone."""
