-- Which process renews the tokens of a credential: once it is proven to have ended, nobody waits for it.
ALTER TABLE credentials ADD COLUMN renewing_by TEXT;  -- ProcessIdentity.id
