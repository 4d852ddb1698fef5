"""What every page, picture and table of this package shares: colours, table writers, numbers as people read them."""
