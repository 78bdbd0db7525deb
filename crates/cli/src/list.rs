//! `regard list`: the mechanisms there are.

use crate::arguments::Json;
use crate::chosen;
use crate::failure::Failure;
use crate::output::{self, JsonTarget};
use clap::Args;
use regard_core::mechanism::{About, Causality, Mechanism};
use serde_json::{Value, json};

/// List the mechanisms with their options and tensors
#[derive(Args)]
#[command(after_help = "Example:\n  regard list --json")]
pub struct List {
    #[command(flatten)]
    json: Json,
}

/// Lists them.
pub fn run(list: &List) -> Result<(), Failure> {
    let target = JsonTarget::new(list.json.path())?;
    if target.leaves_stdout() {
        output::print(&Mechanism::ALL.iter().map(paragraph).collect::<Vec<_>>().join("\n"))?;
    }
    let mechanisms: Vec<Value> = Mechanism::ALL.iter().map(entry).collect();
    target.write(&json!({ "schema": "regard/list/1", "mechanisms": mechanisms, "reducers": [], "caches": [] }))
}

fn entry(about: &About) -> Value {
    let options: Vec<Value> = about
        .options
        .iter()
        .map(|option| json!({ "name": option.name, "type": option.kind, "default": chosen::typed(option, option.default) }))
        .collect();
    json!({
        "name": about.name,
        "about": about.about,
        "causal": causal(about.causality),
        "options": options,
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
    for option in about.options {
        let default = if option.default.is_empty() { "unset" } else { option.default };
        lines.push(format!("  --set {:<24} {} (default {default})", format!("{}=…", option.name), option.kind));
    }
    lines.push(format!("  reads    q k v {}", about.tensors.join(" ")));
    lines.push(format!("  writes   o {}", about.traces.join(" ")));
    lines.join("\n") + "\n"
}
