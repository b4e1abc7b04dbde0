"""Loading and jumping: windows, Plans, the loader, the mailbox, and the Outcome of a jump."""
