-- What becomes of a credential in use: who renews its tokens, why nobody can any more, and what its last test said.
ALTER TABLE credentials ADD COLUMN renewing_until REAL;  -- of who renews them now; it is told by that moment
ALTER TABLE credentials ADD COLUMN reconnect TEXT;       -- why the far side takes it no more; until it is changed
ALTER TABLE credentials ADD COLUMN tested_at REAL;
ALTER TABLE credentials ADD COLUMN test BLOB;            -- JSON: what the last test said
