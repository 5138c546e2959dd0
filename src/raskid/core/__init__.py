"""State machines without IO. Each has one entry point, ``handle(event, now) -> list[Effect]``."""
