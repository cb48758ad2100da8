-- What has ended goes in the order of its end. What another execution waits for, or has waited for, goes with that one.
CREATE INDEX executions_ended ON executions (finished_at) WHERE finished_at IS NOT NULL AND parent_key IS NULL;

-- How many executions have ended and are kept; the triggers count.
CREATE TABLE history (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    executions INTEGER NOT NULL
);
INSERT INTO history SELECT 1, count(*) FROM executions WHERE finished_at IS NOT NULL;

CREATE TRIGGER history_of_inserted AFTER INSERT ON executions WHEN new.finished_at IS NOT NULL BEGIN
    UPDATE history SET executions = executions + 1 WHERE one = 1;
END;
CREATE TRIGGER history_of_moved AFTER UPDATE OF finished_at ON executions
WHEN (old.finished_at IS NULL) <> (new.finished_at IS NULL) BEGIN
    UPDATE history SET executions = executions + iif(new.finished_at IS NULL, -1, 1) WHERE one = 1;
END;
CREATE TRIGGER history_of_removed AFTER DELETE ON executions WHEN old.finished_at IS NOT NULL BEGIN
    UPDATE history SET executions = executions - 1 WHERE one = 1;
END;

-- Executions that are too large to go in one transaction, and of which a part is gone: they do not go on any more.
CREATE TABLE going (
    execution INTEGER PRIMARY KEY REFERENCES executions (seq) ON DELETE CASCADE
);
