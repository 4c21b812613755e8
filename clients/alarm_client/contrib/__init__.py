"""Programs beside the client, which it never imports."""
