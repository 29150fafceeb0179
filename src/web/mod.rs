//! The HTTP doors: the callback and pages for people, the ops endpoints for operators.
