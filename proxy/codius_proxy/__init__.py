"""The front door: hostname router, HTTP/1.1, WebSocket."""
