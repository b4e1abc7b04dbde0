"""From physical memory to what is worth keeping of it: layout, page classes, selection."""
