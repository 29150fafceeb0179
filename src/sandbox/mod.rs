//! A real OAuth 2.0 and OpenID Connect provider of our own, for `dev`, tests and users.
