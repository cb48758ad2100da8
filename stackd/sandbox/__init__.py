"""Code that people write, run where it can do no harm: limits, isolation layers, executors; `child` is their other end."""
