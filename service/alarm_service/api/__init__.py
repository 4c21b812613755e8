"""The HTTP API: app, routes, schemas' use, middleware and error handlers."""
