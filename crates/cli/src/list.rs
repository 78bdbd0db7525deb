//! `regard list`: the mechanisms and reducers there are.

use crate::arguments::Json;
use crate::chosen;
use crate::failure::Failure;
use crate::output::{self, JsonTarget};
use clap::Args;
use regard_core::mechanism::{About, Causality, Mechanism, OptionAbout};
use regard_core::reduce::{self, Reducer};
use serde_json::{Value, json};

/// List the mechanisms and reducers with their options and tensors
#[derive(Args)]
#[command(
    after_help = "Two mechanisms go together as local+vq (merged by log-sum-exp), local/linear (heads split) or\nlocal~linear (a learned share each); their options are local.window and so on.\n\nExample:\n  regard list --json"
)]
pub struct List {
    #[command(flatten)]
    json: Json,
}

/// Lists them.
pub fn run(list: &List) -> Result<(), Failure> {
    let target = JsonTarget::new(list.json.path())?;
    if target.leaves_stdout() {
        let mechanisms = Mechanism::ALL.iter().map(paragraph);
        let reducers = Reducer::ALL.iter().map(reducer_paragraph);
        output::print(&mechanisms.chain(reducers).collect::<Vec<_>>().join("\n"))?;
    }
    let mechanisms: Vec<Value> = Mechanism::ALL.iter().map(entry).collect();
    let reducers: Vec<Value> = Reducer::ALL.iter().map(reducer).collect();
    target.write(&json!({ "schema": "regard/list/1", "mechanisms": mechanisms, "reducers": reducers, "caches": [] }))
}

fn options(options: &[OptionAbout]) -> Vec<Value> {
    let option =
        |option: &OptionAbout| json!({ "name": option.name, "type": option.kind, "default": chosen::typed(option, option.default) });
    options.iter().map(option).collect()
}

/// A reducer stands behind exact attention, and may be shown all that it reads.
fn reducer(about: &reduce::About) -> Value {
    json!({
        "name": about.name,
        "about": about.about,
        "causal": causal(Causality::Optional),
        "options": options(about.options),
        "tensors": files_tensors(about),
        "traces": REDUCED,
    })
}

/// What a reducer reads of a file beside q, k, v: scores and keys are made of those.
fn files_tensors(about: &reduce::About) -> Vec<&'static str> {
    let own = about.tensors.iter().copied().filter(|tensor| !["score", "keys", "x"].contains(tensor));
    std::iter::once("x").chain(own).collect()
}

/// What every reducer writes beside o and lse.
const REDUCED: [&str; 5] = ["score", "reduced", "kept", "map", "sizes"];

fn entry(about: &About) -> Value {
    json!({
        "name": about.name,
        "about": about.about,
        "causal": causal(about.causality),
        "options": options(about.options),
        "tensors": about.tensors,
        "traces": about.traces,
    })
}

fn causal(causality: Causality) -> &'static str {
    match causality {
        Causality::Optional => "optional",
        Causality::Required => "required",
        Causality::Never => "never",
    }
}

fn paragraph(about: &About) -> String {
    let mut lines = vec![format!("{}  {}", about.name, about.about), format!("  causal   {}", causal(about.causality))];
    lines.extend(about.options.iter().map(option_line));
    lines.push(format!("  reads    q k v {}", about.tensors.join(" ")));
    lines.push(format!("  writes   o {}", about.traces.join(" ")));
    lines.join("\n") + "\n"
}

fn reducer_paragraph(about: &reduce::About) -> String {
    let mut lines = vec![format!("{}  {}", about.name, about.about)];
    lines.extend(about.options.iter().map(option_line));
    lines.push(format!("  reads    q k v {}", files_tensors(about).join(" ")));
    lines.push(format!("  writes   o lse {}", REDUCED.join(" ")));
    lines.join("\n") + "\n"
}

fn option_line(option: &OptionAbout) -> String {
    let default = if option.default.is_empty() { "unset" } else { option.default };
    format!("  --set {:<24} {} (default {default})", format!("{}=…", option.name), option.kind)
}
