"""What a user holds: sessions, futures, subscriptions, shared lists; blocking and asynchronous, on one engine."""
