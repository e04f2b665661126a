"""Things to try brainstore with: an S3 server of one's own."""
