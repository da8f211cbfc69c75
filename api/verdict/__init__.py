"""The verdict in the forms that a CI run shows: JSON, Markdown and JUnit."""
