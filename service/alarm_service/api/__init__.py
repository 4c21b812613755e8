"""The HTTP API: app, routes, middleware, authentication, rate limits and error handlers."""
