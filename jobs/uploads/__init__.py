"""Files that callers bring: declared, sent in parts, checked as a whole, and only then named in a job."""
