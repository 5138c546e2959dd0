"""The wire: messages, their codec, frames, the handshake, and how a message's value is written."""
