"""One supervised loop each: api, worker, scheduler, timers, rotation."""
