//! Builds the whole service from its configuration, runs it, and shuts it down in order.
