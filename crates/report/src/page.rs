//! The page: parts (a benchmark, or configurations that compete) with where they came from, sections, and figures with
//! chart, findings, table and CSV. Style, script, library and data are all inside the one file.

use crate::chart::{Chart, Figure};
use crate::escape::{html, json};
use crate::figures::training::Group;
use crate::figures::{Section, bench, compression, training};
use crate::schema::{Compare, Configuration, Contents, Record, Task, TrainingRun};
use crate::{commands, units::Unit};
use serde::Serialize;
use std::collections::BTreeSet;
use std::fmt::Write;

const LIBRARY: &str = include_str!("../assets/chart.umd.min.js");
const SCRIPT: &str = include_str!("../assets/page.js");
const STYLE: &str = include_str!("../assets/page.css");

/// Nothing is fetched, and no script runs but those of the page: not one that an attribute or an address holds.
const POLICY: &str =
    "default-src 'none'; script-src 'nonce-regard'; style-src 'nonce-regard'; img-src data:; base-uri 'none'; form-action 'none'";

/// What belongs together.
struct Part<'a> {
    title: String,
    records: Vec<&'a Record>,
    sections: Vec<Section>,
}

/// A chart with the element that it is drawn in.
#[derive(Serialize)]
struct Drawing {
    id: String,
    chart: Chart,
}

/// One file of HTML that shows these records. Training runs of one task on one machine share their charts; everything
/// else stands by itself, in the order given.
pub fn page(records: &[Record]) -> String {
    let parts = parts(records);
    let title = title(&parts);
    let mut body = contents(&parts);
    let mut drawings = Vec::new();
    for (i, part) in parts.into_iter().enumerate() {
        write_part(&mut body, &mut drawings, i, part);
    }
    let data = serde_json::to_string(&drawings).expect("charts are plain data");
    format!(
        r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="regard-report {version}">
<link rel="icon" href="data:,">
<title>{title}</title>
<style nonce="regard">
{STYLE}</style>
</head>
<body>
<header><h1>What was measured</h1><button id="theme" type="button" hidden>Dark</button></header>
<noscript><p class="note">Charts need scripts, which are off. The tables say the same.</p></noscript>
<main>
{body}</main>
<script type="application/json" id="charts">{data}</script>
<script nonce="regard">
{LIBRARY}</script>
<script nonce="regard">
{SCRIPT}</script>
</body>
</html>
"#,
        version = env!("CARGO_PKG_VERSION"),
        title = html(&title),
        data = json(&data),
    )
}

fn title(parts: &[Part<'_>]) -> String {
    match parts {
        [part] => format!("{} – what was measured", part.title),
        _ => "What was measured".to_owned(),
    }
}

fn parts(records: &[Record]) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    let mut taken = BTreeSet::new();
    for (i, record) in records.iter().enumerate() {
        if !taken.insert(i) {
            continue;
        }
        let title = |what: String| record.origin().title.clone().unwrap_or(what);
        parts.push(match &record.contents {
            Contents::Bench(found) => Part {
                title: title("Attention mechanisms side by side".to_owned()),
                records: vec![record],
                sections: bench::sections(found),
            },
            Contents::Compression(found) => {
                Part { title: title("Compressed texts".to_owned()), records: vec![record], sections: compression::sections(found) }
            }
            Contents::Compare(Compare { task, configurations, .. }) => {
                let configurations = configurations.iter().map(|each| (each.name.clone(), each)).collect();
                let sections = training::sections(&Group { task, configurations });
                Part { title: title(format!("Configurations compared: {}", task.name)), records: vec![record], sections }
            }
            Contents::TrainingRun(run) => {
                let same: Vec<usize> = (i..records.len()).filter(|&j| is_comparable(record, &records[j])).collect();
                taken.extend(&same);
                let records: Vec<&Record> = same.iter().map(|&j| &records[j]).collect();
                let sections = training::sections(&Group { task: &run.task, configurations: named(&records) });
                Part { title: title(format!("Training: {}", run.task.name)), records, sections }
            }
        });
    }
    parts
}

/// Whether two training runs may share their charts.
fn is_comparable(a: &Record, b: &Record) -> bool {
    let of = |record: &Record| match &record.contents {
        Contents::TrainingRun(TrainingRun { task, origin, .. }) => {
            let machine = &origin.machine;
            Some((task.clone(), machine.cpu.clone(), machine.device.clone(), machine.threads, machine.level.clone()))
        }
        _ => None,
    };
    of(a).is_some_and(|a: (Task, _, _, _, _)| of(b).is_some_and(|b| a == b))
}

/// Configurations of training runs. Where a name comes twice, the file says which is meant.
fn named<'a>(records: &[&'a Record]) -> Vec<(String, &'a Configuration)> {
    let runs: Vec<(&str, &Configuration)> = records
        .iter()
        .filter_map(|record| match &record.contents {
            Contents::TrainingRun(run) => Some((record.file.as_str(), &run.configuration)),
            _ => None,
        })
        .collect();
    let twice = |name: &str| runs.iter().filter(|(_, configuration)| configuration.name == name).count() > 1;
    let label = |(file, configuration): &(&str, &'a Configuration)| {
        if twice(&configuration.name) { format!("{} ({file})", configuration.name) } else { configuration.name.clone() }
    };
    runs.iter().map(|run| (label(run), run.1)).collect()
}

fn contents(parts: &[Part<'_>]) -> String {
    let mut out = String::from("<nav aria-label=\"Contents\"><ul>");
    for (i, part) in parts.iter().enumerate() {
        _ = write!(out, "<li><a href=\"#part-{i}\">{}</a><ul>", html(&part.title));
        for (j, section) in part.sections.iter().enumerate() {
            _ = write!(out, "<li><a href=\"#part-{i}-{j}\">{}</a></li>", html(&section.title));
        }
        out.push_str("</ul></li>");
    }
    out + "</ul></nav>\n"
}

fn write_part(out: &mut String, drawings: &mut Vec<Drawing>, i: usize, part: Part<'_>) {
    _ = writeln!(out, "<section class=\"part\" id=\"part-{i}\"><h2>{}</h2>", html(&part.title));
    part.records.iter().for_each(|record| write_origin(out, record));
    if part.sections.iter().all(|section| section.figures.is_empty()) {
        out.push_str("<p class=\"note\">Nothing was measured.</p>");
    }
    for (j, section) in part.sections.into_iter().enumerate() {
        _ = writeln!(out, "<section id=\"part-{i}-{j}\"><h3>{}</h3><div class=\"figures\">", html(&section.title));
        for figure in section.figures {
            let id = format!("chart-{}", drawings.len());
            write_figure(out, &id, &section.title, &figure);
            drawings.push(Drawing { id, chart: figure.chart });
        }
        out.push_str("</div></section>\n");
    }
    out.push_str("</section>\n");
}

fn write_figure(out: &mut String, id: &str, section: &str, figure: &Figure) {
    let title = html(&figure.title);
    // Rows need as much room as there are of them.
    let rows = figure.chart.y.names.len().div_ceil(6).min(4);
    _ = write!(
        out,
        "<figure><figcaption><h4 id=\"{id}-title\">{title}</h4><p id=\"{id}-about\">{}</p></figcaption><div class=\"chart rows-{rows}\"><canvas id=\"{id}\" role=\"img\" aria-labelledby=\"{id}-title\" aria-describedby=\"{id}-about\"></canvas></div>",
        html(&figure.about),
    );
    if !figure.findings.is_empty() {
        out.push_str("<ul class=\"findings\">");
        figure.findings.iter().for_each(|finding| _ = write!(out, "<li>{}</li>", html(finding)));
        out.push_str("</ul>");
    }
    out.push_str(&figure.table.html(&format!("{} – {section}", figure.title), &file_name(id, &figure.title)));
    out.push_str("</figure>\n");
}

/// A name that every system takes.
fn file_name(id: &str, title: &str) -> String {
    let plain = title.to_lowercase().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect::<String>();
    let words: Vec<&str> = plain.split('-').filter(|word| !word.is_empty()).collect();
    format!("{}-{}", id.replace("chart", "regard"), words.join("-"))
}

/// What a record says of itself.
fn write_origin(out: &mut String, record: &Record) {
    let origin = record.origin();
    let machine = &origin.machine;
    out.push_str("<dl class=\"origin\">");
    let mut say = |term: &str, text: Option<String>| {
        let text = text.map_or_else(|| "<span class=\"unknown\">not recorded</span>".to_owned(), |text| html(&text));
        _ = write!(out, "<div><dt>{term}</dt><dd>{text}</dd></div>");
    };
    say("Record", Some(format!("{} ({})", record.file, record.schema())));
    let threads = machine.threads.map(|threads| format!("{threads} threads"));
    let level = machine.level.as_ref().map(|level| format!("level {level}"));
    let parts: Vec<String> = [machine.device.clone(), machine.cpu.clone(), threads, level].into_iter().flatten().collect();
    say("Machine", (!parts.is_empty()).then(|| parts.join(", ")));
    if let Some(ceilings) = ceilings(record) {
        say("Ceilings", Some(ceilings));
    }
    let commit = origin.commit().map(|commit| match origin.modified {
        Some(true) => format!("{commit}, and sources differed from it"),
        _ => commit.to_owned(),
    });
    say("Commit", commit);
    if machine.compiler.is_some() {
        say("Compiler", machine.compiler.clone());
    }
    if origin.date.is_some() {
        say("Date", origin.date.clone());
    }
    say("Seeds", seeds(record));
    if origin.command.is_some() || !matches!(record.contents, Contents::Bench(_)) {
        say("Command", origin.command.clone());
    }
    out.push_str("</dl>\n");
    write_commands(out, record);
    write_configurations(out, record);
}

fn ceilings(record: &Record) -> Option<String> {
    let machine = &record.origin().machine;
    let say = |name: &str, unit: &str, x: Option<f64>| x.map(|x| format!("{name} {} {unit}", Unit::Plain.show(x)));
    let said = [
        say("FMA", "GFLOP/s", machine.fma_gflops),
        say("bf16 dot", "GFLOP/s", machine.bf16_gflops),
        say("memory read", "GB/s", machine.read_gbps),
    ];
    let said: Vec<String> = said.into_iter().flatten().collect();
    (!said.is_empty()).then(|| said.join(", "))
}

fn configurations(record: &Record) -> &[Configuration] {
    match &record.contents {
        Contents::Bench(_) | Contents::Compression(_) => &[],
        Contents::TrainingRun(run) => std::slice::from_ref(&run.configuration),
        Contents::Compare(compare) => &compare.configurations,
    }
}

fn seeds(record: &Record) -> Option<String> {
    let of_runs: BTreeSet<u64> = configurations(record).iter().flat_map(|each| each.runs.iter().map(|run| run.seed)).collect();
    let seeds: BTreeSet<u64> = if of_runs.is_empty() { record.origin().seed.into_iter().collect() } else { of_runs };
    (!seeds.is_empty()).then(|| seeds.iter().map(u64::to_string).collect::<Vec<_>>().join(", "))
}

/// Commands that measure again what a benchmark measured, where it does not say how it was made.
fn write_commands(out: &mut String, record: &Record) {
    let (None, Contents::Bench(bench)) = (&record.origin().command, &record.contents) else { return };
    let commands = commands::of(bench);
    if commands.is_empty() {
        return;
    }
    let note = "The record does not say how it was made. These commands measure the same; times that are marked as reckoned they measure.";
    _ = writeln!(
        out,
        "<details class=\"commands\"><summary>Commands that measure this again</summary><p class=\"note\">{note}</p><pre tabindex=\"0\">{}</pre></details>",
        html(&commands.join("\n"))
    );
}

/// Everything that was chosen.
fn write_configurations(out: &mut String, record: &Record) {
    let all = configurations(record);
    if all.is_empty() {
        return;
    }
    out.push_str("<details class=\"commands\"><summary>Configurations</summary><dl class=\"origin\">");
    for each in all {
        let config = serde_json::to_string(&each.config).expect("a configuration is plain data");
        _ = write!(out, "<div><dt>{}</dt><dd><code>{}</code></dd></div>", html(&each.name), html(&config));
    }
    out.push_str("</dl></details>\n");
}
