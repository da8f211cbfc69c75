"""Keyless callers: a CI system's OpenID Connect token for a short-lived key."""
