-- Jobs on probation (queue/job.py) are claimed apart from the others, those first that were rescued least.

DROP INDEX jobs_available;
CREATE INDEX jobs_available ON jobs (priority DESC, due_at, id)
    WHERE state = 'available' AND blocked = 0 AND rescues < 2;
CREATE INDEX jobs_on_probation ON jobs (rescues, due_at, id)
    WHERE state = 'available' AND blocked = 0 AND rescues >= 2;
