"""The outbound HTTP seam: every call that leaves the process goes through here."""
