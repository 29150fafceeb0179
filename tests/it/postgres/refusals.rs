//! PostgreSQL answers, and takes nothing: it is read-only, or its disk is full.
