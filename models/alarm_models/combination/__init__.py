"""Combines scores into rewards: rules, aspect shaping, token alignment. Pure arithmetic."""
