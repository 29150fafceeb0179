//! The store: SQL on SQLite and PostgreSQL. The only room that knows sqlx.
