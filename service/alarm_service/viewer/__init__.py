"""Rewards in files, shown by the page: `alarm view` and the HTML report of `alarm replay`."""
