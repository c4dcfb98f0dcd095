"""Table formats: each module reads the rows of one kind of file as a stream."""
