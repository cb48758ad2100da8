"""Makes a connector's definition out of an OpenAPI or Swagger document: what cannot be taken is told, and no call is made."""
