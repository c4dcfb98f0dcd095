"""Reports of several runs: tables, intervals, gaps, costs and pictures, as text and as a page."""
