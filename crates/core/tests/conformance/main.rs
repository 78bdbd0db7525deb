//! What every mechanism and every reducer of the lists has to satisfy. The suites walk the lists: what is new there is tested
//! without a line here.

mod cases;
#[path = "../common/mod.rs"]
mod common;
mod mechanisms;
mod reducers;
mod scores;
mod tokens;
