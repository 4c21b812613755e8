"""Programs that use the client; the client does not import them."""
