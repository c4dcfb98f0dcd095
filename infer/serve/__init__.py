"""`dsd serve`: images over HTTP, in the form of OpenAI's Images interface.

From the wire inwards: `app` (routes), `wire` (requests, answers and errors), `runner` (the device's
thread), `scheduler` (which image takes the next step), `engine` (the pipeline, step by step).
"""
