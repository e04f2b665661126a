"""Things to try brainstore with: tasks and their training, and an S3 server of one's own."""
