"""A real daemon that dies in the middle of its work, again and again, and the account of what is left."""
