//! What is known of a task, and its first example:
//! `cargo run --release -p regard-lab --example task -- '{name: listops, preset: mini}'`; a second argument is the folder of its files.

use regard_lab::task::{ABOUT, Split, TaskConfig};
use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    match show(std::env::args().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn show(mut arguments: impl Iterator<Item = String>) -> Result<(), Box<dyn Error>> {
    let Some(written) = arguments.next() else {
        ABOUT.iter().for_each(|about| println!("{}: {}", about.name, about.about));
        return Ok(());
    };
    let config = TaskConfig::read(serde_saphyr::from_str(&written)?)?;
    let task = config.open(Path::new(&arguments.next().unwrap_or_default()))?;
    println!("{}", task.facts());
    task.notes().iter().for_each(|note| println!("{note}"));
    println!("{:?}", task.example(Split::Train, 0)?);
    Ok(())
}
