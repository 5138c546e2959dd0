"""From a URL to a running system and a session in it."""
