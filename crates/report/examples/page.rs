//! The page of some records, on standard output:
//!
//! ```sh
//! cargo run --release -p regard-report --example page -- bench/records/2026-11-23-bench.json > page.html
//! ```

use regard_report::{Record, page};
use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let read = |path: String| -> Result<Record, Box<dyn Error>> { Ok(Record::read(&path, &std::fs::read_to_string(&path)?)?) };
    let records = std::env::args().skip(1).map(read).collect::<Result<Vec<_>, _>>()?;
    print!("{}", page(&records));
    Ok(())
}
