-- Content that is no text. Its bytes are a file; it stays for as long as an execution refers to it.
CREATE TABLE blobs (
    id TEXT PRIMARY KEY,          -- SHA-256, in hex
    bytes INTEGER NOT NULL,
    refs INTEGER NOT NULL DEFAULT 0,      -- executions that refer to it; kept by the triggers below
    puts INTEGER NOT NULL DEFAULT 1,      -- how often it was put
    created_at REAL NOT NULL              -- when it was last put
) WITHOUT ROWID;
CREATE INDEX blobs_unused ON blobs (created_at) WHERE refs = 0;

CREATE TABLE blob_refs (
    blob TEXT NOT NULL REFERENCES blobs (id),
    execution INTEGER NOT NULL REFERENCES executions (seq) ON DELETE CASCADE,
    PRIMARY KEY (blob, execution)
) WITHOUT ROWID;
CREATE INDEX blob_refs_execution ON blob_refs (execution);

CREATE TABLE blob_totals (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    count INTEGER NOT NULL,
    bytes INTEGER NOT NULL
);
INSERT INTO blob_totals VALUES (1, 0, 0);

CREATE TRIGGER blobs_added AFTER INSERT ON blobs BEGIN
    UPDATE blob_totals SET count = count + 1, bytes = bytes + new.bytes WHERE one = 1;
END;
CREATE TRIGGER blobs_removed AFTER DELETE ON blobs BEGIN
    UPDATE blob_totals SET count = count - 1, bytes = bytes - old.bytes WHERE one = 1;
END;
CREATE TRIGGER blob_refs_added AFTER INSERT ON blob_refs BEGIN
    UPDATE blobs SET refs = refs + 1 WHERE id = new.blob;
END;
CREATE TRIGGER blob_refs_removed AFTER DELETE ON blob_refs BEGIN
    UPDATE blobs SET refs = refs - 1 WHERE id = old.blob;
END;

-- What executions of earlier versions refer to is there, and counts.
CREATE TEMP TABLE found_blobs AS
SELECT s.execution, s.at, t.value AS id, json_extract(s.text, t.path || '.bytes') AS bytes
FROM (
    SELECT seq AS execution, created_at AS at, CAST(input AS TEXT) AS text FROM executions
    WHERE instr(input, CAST('"$blob"' AS BLOB))
    UNION ALL
    SELECT n.execution, e.created_at, CAST(n.output AS TEXT)
    FROM node_runs n JOIN executions e ON e.seq = n.execution
    WHERE instr(n.output, CAST('"$blob"' AS BLOB))
) s, json_tree(s.text) t
WHERE t.key = '$blob' AND t.type = 'text' AND length(t.value) = 64 AND t.value NOT GLOB '*[^0-9a-f]*';
INSERT OR IGNORE INTO blobs (id, bytes, created_at)
SELECT id, iif(typeof(bytes) = 'integer', min(max(bytes, 0), 1073741824), 0), at FROM found_blobs;
INSERT OR IGNORE INTO blob_refs SELECT id, execution FROM found_blobs;
DROP TABLE found_blobs;
