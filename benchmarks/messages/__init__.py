"""Messages between two processes: throughput, round trip, unheard publish, many subscriptions, an idle hub."""
