"""Stories: panels of one hero, laid out on pages with captions and balloons."""
