"""Conversations in a policy's chat template, as prompt and completion.

`templates`, `turns` and `splitting` are the server's own (`alarm_service.compat`), line by line, so
that a hook and a URL split the same text alike; a test compares them. Change both.
"""
