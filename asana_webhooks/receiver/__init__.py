"""The half that is called: signatures, handshakes, deliveries, and the doors to put them on a port."""
