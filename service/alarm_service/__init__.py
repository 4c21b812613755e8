"""The reward server: HTTP API, scoring engine, observability and command line."""
