//! The loop that answers requests, and the trait a library implements to be measured.

use std::{
    io::{self, BufRead, Write},
    path::PathBuf,
    time::Instant,
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{Inputs, Result, Tensor, file};

/// A library that can be measured.
pub trait Engine {
    /// Its name and, where it has one, the SIMD level in use.
    fn hello(&self) -> (&'static str, Option<String>);
    /// Keeps the inputs in the library's own layout and allocates what the passes need.
    fn load(&mut self, inputs: Inputs) -> Result<()>;
    /// Runs a pass `call.repeat` times and returns the mean seconds of one.
    fn run(&mut self, pass: Pass, call: &Call) -> Result<f64>;
    /// The outputs of the last pass by name: `o`, after [`Pass::Backward`] also `dq`, `dk`, `dv`.
    fn outputs(&self) -> Result<Vec<(&'static str, &Tensor)>>;
    /// The machine's own limits at this moment.
    fn ceilings(&mut self, _threads: usize) -> Result<Ceilings> {
        Err("this library does not measure ceilings".into())
    }
}

/// What is timed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pass {
    Forward,
    /// Forward and backward.
    Backward,
    /// One query per sequence on many keys.
    Decode,
}

/// How it is run.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct Call {
    #[serde(default)]
    pub causal: bool,
    pub threads: usize,
    #[serde(default = "once")]
    pub repeat: usize,
    #[serde(default)]
    pub rule: Rule,
    /// Tensors are `[B, N, H, D]`, as projections leave them, not `[B, H, N, D]`.
    #[serde(default)]
    pub tokens_first: bool,
}

/// Which keys count, and how much, beside the causal rule. Its numbers come with the inputs.
#[derive(Deserialize, Clone, PartialEq, Eq, Default, Debug)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    #[default]
    Plain,
    /// `key_bias` is added to the scores of a key.
    KeyBias,
    /// So many keys up to the query's own.
    Window(usize),
    /// A key is hidden from positions `until` on.
    Lifetimes,
    /// Sequences that lie one behind the other, from `offsets` to `offsets`.
    Segments,
    /// Another mechanism, `name` or `name:option=value,option=value`.
    Mechanism(String),
}

impl Call {
    /// Refuses a rule or another layout, for libraries that know none.
    pub fn plain(&self) -> Result<()> {
        match &self.rule {
            _ if self.tokens_first => Err("tokens before heads are not measured here".into()),
            Rule::Plain => Ok(()),
            rule => Err(format!("{rule:?} is not measured here").into()),
        }
    }
}

fn once() -> usize {
    1
}

/// Rates that no kernel can exceed. `None`: not known.
#[derive(Serialize, Default, Debug)]
pub struct Ceilings {
    pub fma_gflops: Option<f64>,
    pub bf16_gflops: Option<f64>,
    pub read_gbps: Option<f64>,
}

#[derive(Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
enum Request {
    Hello,
    Load { file: PathBuf },
    Forward(Call),
    Backward(Call),
    Decode(Call),
    Write { file: PathBuf },
    Ceilings { threads: usize },
}

/// Calls `pass` `repeat` times and returns the mean seconds of a call.
pub fn seconds_per_call(repeat: usize, mut pass: impl FnMut() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    for _ in 0..repeat {
        pass()?;
    }
    Ok(start.elapsed().as_secs_f64() / repeat as f64)
}

/// Answers requests from stdin until it ends.
pub fn serve(mut engine: impl Engine) -> Result<()> {
    let mut stdout = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let reply = answer(&mut engine, &line?).unwrap_or_else(|error| json!({ "error": error.to_string() }));
        writeln!(stdout, "{reply}")?;
        stdout.flush()?;
    }
    Ok(())
}

fn answer(engine: &mut impl Engine, line: &str) -> Result<Value> {
    match serde_json::from_str(line)? {
        Request::Hello => {
            let (name, level) = engine.hello();
            Ok(json!({ "name": name, "level": level }))
        }
        Request::Load { file } => engine.load(Inputs::read(&file)?).map(|()| json!({})),
        Request::Forward(call) => timed(engine, Pass::Forward, &call),
        Request::Backward(call) => timed(engine, Pass::Backward, &call),
        Request::Decode(call) => timed(engine, Pass::Decode, &call),
        Request::Write { file } => file::write(&file, &engine.outputs()?).map(|()| json!({})),
        Request::Ceilings { threads } => Ok(serde_json::to_value(engine.ceilings(threads)?)?),
    }
}

fn timed(engine: &mut impl Engine, pass: Pass, call: &Call) -> Result<Value> {
    if call.repeat == 0 || call.threads == 0 {
        return Err(format!("threads {} and repeat {} must be at least 1", call.threads, call.repeat).into());
    }
    Ok(json!({ "seconds": engine.run(pass, call)? }))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nothing;

    impl Engine for Nothing {
        fn hello(&self) -> (&'static str, Option<String>) {
            ("nothing", None)
        }
        fn load(&mut self, _inputs: Inputs) -> Result<()> {
            Ok(())
        }
        fn run(&mut self, pass: Pass, call: &Call) -> Result<f64> {
            if pass == Pass::Backward { Err("no backward".into()) } else { Ok(call.repeat as f64) }
        }
        fn outputs(&self) -> Result<Vec<(&'static str, &Tensor)>> {
            Ok(Vec::new())
        }
    }

    #[test]
    fn requests_reach_the_engine() {
        let reply = answer(&mut Nothing, r#"{"op":"forward","causal":true,"threads":2,"repeat":3}"#).unwrap();
        assert_eq!(reply, json!({ "seconds": 3.0 }));
        let call: Call = serde_json::from_str(r#"{"threads":2,"rule":{"window":256}}"#).unwrap();
        assert_eq!(call.rule, Rule::Window(256));
        assert!(call.plain().unwrap_err().to_string().contains("Window(256) is not measured"));
        let reply = answer(&mut Nothing, r#"{"op":"hello"}"#).unwrap();
        assert_eq!(reply, json!({ "name": "nothing", "level": null }));
    }

    #[test]
    fn refusals_say_why() {
        for (line, why) in [
            (r#"{"op":"forward","threads":2,"windowed":3}"#, "unknown field `windowed`"),
            (r#"{"op":"forward","threads":0}"#, "threads 0"),
            (r#"{"op":"forward","threads":2,"rule":"key_bia"}"#, "unknown variant `key_bia`"),
            (r#"{"op":"backward","threads":2}"#, "no backward"),
            (r#"{"op":"dance"}"#, "unknown variant `dance`"),
            (r#"{"op":"load","file":"no/such/file"}"#, "No such file"),
            (r#"{"op":"ceilings","threads":2}"#, "does not measure ceilings"),
        ] {
            let error = answer(&mut Nothing, line).unwrap_err().to_string();
            assert!(error.contains(why), "{line} gave {error}");
        }
    }
}
