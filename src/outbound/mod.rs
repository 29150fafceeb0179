//! The one HTTP client for providers: guarded addresses, capped bodies, no redirects.
