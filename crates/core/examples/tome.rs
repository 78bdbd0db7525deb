//! Times token merging on keys from a file of f32: `tome FILE TOKENS WIDTH R THREADS REPEAT OUTPUT` prints mean seconds of a call and writes
//! where every token went, an u32 each. `bench/peers/matching_peer.py` runs it.

use regard_core::reduce::{Reducer, Tokens};
use regard_core::rows::Matrix;
use regard_core::{Error, Par};
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [file, tokens, width, r, threads, repeat, output] = &arguments[..] else {
        return Err("tome FILE TOKENS WIDTH R THREADS REPEAT OUTPUT".into());
    };
    let (tokens, width, repeat): (usize, usize, u32) = (tokens.parse()?, width.parse()?, repeat.parse()?);
    let keys: Vec<f32> = std::fs::read(file)?.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let mut tome = Reducer::by_name("tome").ok_or("no tome")?;
    tome.set("r", r)?;
    let offsets = [0, tokens];
    let par = Par::default().threads(threads.parse()?);
    let merge = || -> Result<_, Error> {
        let keys = Matrix::new(&keys, [tokens, width], "keys")?;
        tome.reduce(&Tokens { keys: Some(keys), ..Tokens::new(&offsets) }, 0, par)
    };
    let places = merge()?;
    let start = Instant::now();
    for _ in 0..repeat {
        merge()?;
    }
    println!("{}", start.elapsed().as_secs_f64() / f64::from(repeat));
    let places: Vec<u8> =
        places.map().iter().flat_map(|r| (places.kept()[r.expect("tome deletes nothing")] as u32).to_le_bytes()).collect();
    std::fs::write(output, places)?;
    Ok(())
}
