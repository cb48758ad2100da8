"""Documents, versions, executions, and starting one."""
