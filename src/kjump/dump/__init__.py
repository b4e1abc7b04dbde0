"""The dump engine: sources of physical memory, kernel layout, page classes, selection, writers."""
