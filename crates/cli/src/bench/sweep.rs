//! Every mechanism over many lengths, as a file in YAML says: its own keys, and those of an earlier benchmark of quantised
//! attention, which mean the nearest thing here.

use super::case::Phase;
use super::heads::{Captured, Sizes, Source};
use super::plan::Plan;
use crate::arguments::count;
use crate::chosen::{Chosen, Setting};
use crate::failure::{Failure, warn};
use crate::files::Archive;
use crate::tensor::Float;
use clap::ValueEnum;
use regard_core::mechanism::Mechanism;
use regard_lab::names::meant;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What is swept where no file says otherwise.
const DEFAULT: &str = include_str!("../../../../configs/sweep.yaml");

/// Keys of its own.
const OWN: [&str; 15] = [
    "mechanisms",
    "lengths",
    "passes",
    "forms",
    "batch",
    "heads",
    "kv_heads",
    "head_dim",
    "value_dim",
    "dtype",
    "runs",
    "seed",
    "tensors",
    "captured",
    "extrapolate",
];

/// What became of a key of the earlier benchmark.
enum Became {
    /// A key of its own.
    Key(&'static str),
    /// Options of mechanisms, where these are swept.
    Options(&'static [(&'static str, &'static str)]),
    /// Nothing here: why.
    Nothing(&'static str),
}

const EARLIER: [(&str, Became); 17] = [
    ("d_model", Became::Nothing("only attention is measured; widths of heads are d_k and d_v")),
    ("d_k", Became::Key("head_dim")),
    ("d_v", Became::Key("value_dim")),
    ("n_head", Became::Key("heads")),
    ("n_layer", Became::Nothing("one attention is measured; layers take as many times as long")),
    ("n_code", Became::Options(&[("vq", "codebook_size")])),
    ("n_code_q", Became::Options(&[("vq_qk", "codebook_size_q")])),
    ("n_code_k", Became::Options(&[("vq_qk", "codebook_size_k")])),
    ("sequence_len", Became::Key("lengths")),
    ("block_len", Became::Options(&[("vq", "block"), ("vq_qk", "block")])),
    ("mem_len", Became::Options(&[("vq", "recent")])),
    ("update_len", Became::Nothing("it is a matter of training")),
    ("global_batch_size", Became::Key("batch")),
    ("c_beta", Became::Nothing("the weight of a loss does not change the time")),
    ("c_gamma", Became::Nothing("codebooks are not updated here")),
    ("dropout", Became::Options(&[("exact", "dropout")])),
    ("device", Became::Nothing("--device says where to compute")),
];

/// A file's keys and values, in the program's own words.
struct Keys {
    /// For messages.
    path: String,
    values: Map<String, Value>,
    settings: Vec<Setting>,
}

/// The plan of a file, or the default one.
pub fn plan(path: Option<&Path>) -> Result<Plan, Failure> {
    Keys::read(path)?.plan()
}

impl Keys {
    fn read(path: Option<&Path>) -> Result<Self, Failure> {
        let name = path.map_or_else(|| "configs/sweep.yaml".into(), |path| path.display().to_string());
        let text = match path {
            None => DEFAULT.to_owned(),
            Some(path) => std::fs::read_to_string(path).map_err(|error| Failure::Data(format!("cannot read {name}: {error}")))?,
        };
        let read: Value = serde_saphyr::from_str(&text).map_err(|error| Failure::Data(format!("{name}: {error}")))?;
        let Value::Object(written) = read else {
            return Err(Failure::Data(format!("{name}: expected keys and values, such as heads: 8")));
        };
        let mut keys = Keys { path: name, values: Map::new(), settings: Vec::new() };
        written.into_iter().try_for_each(|(key, value)| keys.take(&key, value))?;
        Ok(keys)
    }

    /// Takes in one key.
    fn take(&mut self, key: &str, value: Value) -> Result<(), Failure> {
        let earlier = EARLIER.iter().find(|(earlier, _)| *earlier == key);
        let own = match earlier {
            Some((_, Became::Key(own))) => own,
            Some((_, Became::Nothing(why))) => {
                warn(&format!("{}: {key} has no effect: {why}", self.path));
                return Ok(());
            }
            Some((_, Became::Options(options))) => {
                for (mechanism, option) in *options {
                    let written = format!("{mechanism}.{option}={}", plain(&value));
                    self.settings.push(written.parse().map_err(|error: String| self.refuse(key, &error))?);
                }
                return Ok(());
            }
            None if OWN.contains(&key) => key,
            None => {
                let known: Vec<&str> = OWN.into_iter().chain(EARLIER.iter().map(|(key, _)| *key)).collect();
                return Err(Failure::Data(format!(
                    "{}: unknown key \"{key}\"{}; there are {}",
                    self.path,
                    meant(key, known.iter().copied()),
                    known.join(", ")
                )));
            }
        };
        match self.values.insert(own.to_owned(), value) {
            None => Ok(()),
            Some(_) => Err(self.refuse(key, "says what another key has said already")),
        }
    }

    fn refuse(&self, key: &str, reason: &str) -> Failure {
        Failure::Data(format!("{}: {key} {reason}", self.path))
    }

    /// The values of a list, or of one value that stands for a list; as written.
    fn list(&self, key: &str) -> Vec<String> {
        match self.values.get(key) {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(values)) => values.iter().map(plain).collect(),
            Some(value) => vec![plain(value)],
        }
    }

    fn count(&self, key: &str) -> Result<Option<usize>, Failure> {
        let Some(value) = self.values.get(key).filter(|value| !value.is_null()) else { return Ok(None) };
        count(&plain(value)).map(Some).map_err(|error| self.refuse(key, &format!("is wrong: {error}")))
    }

    fn words<T: ValueEnum>(&self, key: &str) -> Result<Vec<T>, Failure> {
        let word = |word: &String| T::from_str(word, true).map_err(|_| self.refuse(key, &format!("has no value \"{word}\"")));
        self.list(key).iter().map(word).collect()
    }

    fn plan(mut self) -> Result<Plan, Failure> {
        let (chosen, source) = (self.mechanisms()?, self.source()?);
        let mut lengths = self
            .list("lengths")
            .iter()
            .map(|text| count(text))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| self.refuse("lengths", &format!("is wrong: {error}")))?;
        lengths.sort_unstable();
        lengths.dedup();
        if let (Some(captured), true) = (&source.captured, lengths.is_empty()) {
            lengths.push(captured.length());
        }
        if lengths.is_empty() {
            return Err(self.refuse("lengths", "is missing; write lengths: [1k, 2k]"));
        }
        source.warn_of_repeats(&lengths);
        let phases = self.words::<Phase>("passes")?;
        let mut plan = Plan {
            chosen,
            phases: if phases.is_empty() { vec![Phase::Forward, Phase::Backward] } else { phases },
            lengths,
            forms: self.forms()?,
            source,
            captured: self.captured()?,
            runs: self.count("runs")?,
            extrapolate: self.extrapolate()?,
        };
        plan.want();
        Ok(plan)
    }

    /// Names, or names with their options: `{vq: {block: 128}}`.
    fn mechanisms(&mut self) -> Result<Vec<Chosen>, Failure> {
        let mut names = Vec::new();
        let mut settings = Vec::new();
        let written = match self.values.get("mechanisms") {
            None | Some(Value::Null) => Mechanism::ALL.iter().map(|about| Value::from(about.name)).collect(),
            Some(Value::Array(written)) => written.clone(),
            Some(one) => vec![one.clone()],
        };
        for entry in written {
            let Value::Object(entry) = entry else {
                names.push(plain(&entry));
                continue;
            };
            for (name, options) in entry {
                let Value::Object(options) = options else {
                    return Err(self.refuse("mechanisms", &format!("{name} needs options: {{key: value}}")));
                };
                for (option, value) in options {
                    settings.push(
                        format!("{name}.{option}={}", plain(&value)).parse().map_err(|error: String| self.refuse("mechanisms", &error))?,
                    );
                }
                names.push(name);
            }
        }
        settings.extend(self.settings.drain(..).filter(|setting| names.iter().any(|name| setting.is_of(name))));
        Chosen::all(&names, &settings).map_err(|failure| match failure {
            Failure::Usage(message) => Failure::Data(format!("{}: {message}", self.path)),
            other => other,
        })
    }

    fn forms(&self) -> Result<Vec<bool>, Failure> {
        let form = |word: &String| match word.as_str() {
            "causal" => Ok(true),
            "bidirectional" => Ok(false),
            other => Err(self.refuse("forms", &format!("has no value \"{other}\"; there are causal and bidirectional"))),
        };
        let forms = self.list("forms").iter().map(form).collect::<Result<Vec<_>, _>>()?;
        Ok(if forms.is_empty() { vec![true, false] } else { forms })
    }

    fn source(&self) -> Result<Source, Failure> {
        let dtype = self.words::<super::Dtype>("dtype")?.first().map(|dtype| dtype.float());
        let seed =
            self.values.get("seed").map_or(Some(0), Value::as_u64).ok_or_else(|| self.refuse("seed", "is no integer of at least 0"))?;
        if let Some(captured) = self.file("tensors")? {
            let said = ["batch", "heads", "kv_heads", "head_dim", "value_dim", "captured"];
            if let Some(key) = said.into_iter().find(|key| !self.list(key).is_empty()) {
                return Err(self.refuse(key, "says what the file of tensors says already"));
            }
            return Ok(Source::captured(captured, dtype, seed));
        }
        let heads = self.count("heads")?.unwrap_or(8);
        let kv_heads = self.count("kv_heads")?.unwrap_or(heads);
        if heads % kv_heads != 0 {
            return Err(self.refuse("heads", &format!("is {heads}, which does not divide over {kv_heads} kv_heads")));
        }
        let dk = self.count("head_dim")?.unwrap_or(64);
        let sizes = Sizes { batch: self.count("batch")?.unwrap_or(1), heads, kv_heads, dk, dv: self.count("value_dim")?.unwrap_or(dk) };
        Ok(Source::random(sizes, dtype.unwrap_or(Float::F32), seed))
    }

    fn captured(&self) -> Result<Option<Source>, Failure> {
        Ok(self.file("captured")?.map(|captured| Source::captured(captured, None, 0)))
    }

    /// q, k and v of a file beside the configuration.
    fn file(&self, key: &str) -> Result<Option<Captured>, Failure> {
        let Some(name) = self.list(key).into_iter().next() else { return Ok(None) };
        let beside = Path::new(&self.path).parent().map_or_else(|| PathBuf::from(&name), |folder| folder.join(&name));
        Captured::read(&Archive::open(&beside)?).map(Some)
    }

    fn extrapolate(&self) -> Result<BTreeMap<String, usize>, Failure> {
        let Some(value) = self.values.get("extrapolate").filter(|value| !value.is_null()) else { return Ok(BTreeMap::new()) };
        let Value::Object(lengths) = value else { return Err(self.refuse("extrapolate", "needs mechanisms and lengths: {exact: 64k}")) };
        let entry = |(name, length): (&String, &Value)| {
            let length = count(&plain(length)).map_err(|error| self.refuse("extrapolate", &format!("is wrong: {error}")))?;
            Ok((name.clone(), length))
        };
        lengths.iter().map(entry).collect()
    }
}

/// A value as it is written on the command line.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
