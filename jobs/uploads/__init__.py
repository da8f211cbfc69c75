"""Files that callers bring: declared, sent in parts, checked as a whole, and only then to be named in a job."""
