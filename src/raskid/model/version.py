"""The version of raskid, as the handshake tells it."""

VERSION = "0.1.0"
