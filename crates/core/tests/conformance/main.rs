//! What everything in a list has to satisfy. The suites walk the lists: what is new there is tested without a line here.

#[path = "../common/mod.rs"]
mod common;
mod reducers;
mod scores;
mod tokens;
