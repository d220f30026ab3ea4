"""Programs that receive deliveries, each in a process of its own. All of them check the signature over the raw body."""
