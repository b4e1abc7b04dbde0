"""The roles of PID 1, told apart by `kjump.role=`: boot, second, peer (`resident`), restorer."""
