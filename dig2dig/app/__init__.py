"""A page to try fusion in the browser, on one's own machine."""
