//! What every mechanism and every reducer of the lists has to hold. A new one adds no line here.

mod cases;
#[path = "../common/mod.rs"]
mod common;
mod mechanisms;
