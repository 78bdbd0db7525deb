//! Figures of a benchmark: for every pass and form, what grows with length — time, share of the ceiling, memory, error,
//! distance from exact attention.

use super::Section;
use super::lines::{Line, Lines};
use crate::chart::{Axis, Chart, Figure, Kind, Point, Role, Series};
use crate::crossover::{Time, crossovers, shared};
use crate::schema::{Bench, Deviation, Machine, Measurement};
use crate::table::{Csv, number};
use crate::units::Unit;
use serde_json::{Map, Value};

/// The mechanism that others are held against.
const REFERENCE: &str = "exact";

/// Mechanisms with their options, as they are named in legends. The reference comes first, so that it looks the same in
/// every record.
struct Variants<'a> {
    variants: Vec<(&'a str, &'a Map<String, Value>)>,
}

impl<'a> Variants<'a> {
    fn of(bench: &'a Bench) -> Self {
        let mut variants: Vec<(&str, &Map<String, Value>)> = Vec::new();
        for each in &bench.results {
            let variant = (each.mechanism.as_str(), &each.options);
            if !variants.contains(&variant) {
                variants.push(variant);
            }
        }
        variants.sort_by_key(|(mechanism, _)| *mechanism != REFERENCE);
        Variants { variants }
    }

    /// The name, with those options in which variants of one mechanism differ.
    fn label(&self, slot: usize) -> String {
        let (mechanism, options) = self.variants[slot];
        let others: Vec<_> = self.variants.iter().filter(|(other, _)| *other == mechanism).map(|(_, options)| *options).collect();
        let differs = |key: &&String| others.iter().any(|other| other.get(*key) != options.get(*key));
        let said: Vec<String> = options.keys().filter(differs).map(|key| format!("{key}={}", plain(&options[key]))).collect();
        if said.is_empty() { mechanism.to_owned() } else { format!("{mechanism} {}", said.join(" ")) }
    }
}

/// An option's value as the command line writes it.
pub fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// What all points of a chart share.
#[derive(Clone, Copy, PartialEq)]
pub struct Setup<'a> {
    /// The pass.
    pub pass: &'a str,
    /// Whether queries see no later key.
    pub causal: bool,
    /// Storage type.
    pub dtype: &'a str,
    /// Batch, heads, kv heads, width of a head.
    pub sizes: [u64; 4],
}

impl<'a> Setup<'a> {
    /// That of a measurement.
    pub fn of(each: &'a Measurement) -> Self {
        let sizes = [each.batch, each.heads, each.kv_heads, each.head_dim];
        Setup { pass: &each.pass, causal: each.causal, dtype: &each.dtype, sizes }
    }

    fn title(&self) -> String {
        let pass = match self.pass {
            "forward" => "Forward",
            "backward" => "Forward and backward",
            "decode" => "Decoding, one query",
            other => other,
        };
        let [batch, heads, kv_heads, head_dim] = self.sizes;
        let heads = if heads == kv_heads { format!("{heads} heads") } else { format!("{heads} heads on {kv_heads}") };
        let form = if self.causal { "causal" } else { "bidirectional" };
        format!("{pass}, {form}: {}, batch {batch}, {heads}, width {head_dim}", self.dtype)
    }

    /// Bytes of a number in memory.
    fn number_bytes(&self) -> Option<f64> {
        match self.dtype {
            "f64" => Some(8.0),
            "f32" => Some(4.0),
            "bf16" | "f16" => Some(2.0),
            _ => None,
        }
    }
}

/// Measurements of one setup.
struct Measured<'a> {
    setup: Setup<'a>,
    machine: &'a Machine,
    variants: &'a Variants<'a>,
    results: Vec<&'a Measurement>,
}

/// A number of a measurement, and how it is drawn.
struct Metric {
    title: &'static str,
    about: &'static str,
    axis: Axis,
    value: fn(&Measurement) -> Option<f64>,
    /// Whether the number comes from a time, so that it is reckoned where the time is.
    is_timed: bool,
    columns: &'static [&'static str],
    fields: fn(&Measurement) -> Vec<Option<f64>>,
}

/// Setups in the order of the record.
pub fn setups(bench: &Bench) -> Vec<Setup<'_>> {
    let mut setups = Vec::new();
    for setup in bench.results.iter().map(Setup::of) {
        if !setups.contains(&setup) {
            setups.push(setup);
        }
    }
    setups
}

/// Everything that a benchmark has to show.
pub fn sections(bench: &Bench) -> Vec<Section> {
    let variants = Variants::of(bench);
    let section = |setup: Setup<'_>| {
        let results = bench.results.iter().filter(|each| Setup::of(each) == setup).collect();
        let measured = Measured { setup, machine: &bench.origin.machine, variants: &variants, results };
        Section { title: setup.title(), figures: measured.figures() }
    };
    setups(bench).into_iter().map(section).collect()
}

impl Measured<'_> {
    fn figures(&self) -> Vec<Figure> {
        let others = [speed(), memory(), error(), random(), captured()];
        let mut figures = vec![self.time()];
        figures.extend(others.into_iter().map(|metric| self.figure(metric)).filter(Figure::is_drawn));
        figures
    }

    fn figure(&self, metric: Metric) -> Figure {
        let mut columns = vec!["mechanism", "pass", "dtype", "causal", "batch", "heads", "kv_heads", "head_dim", "length", "options"];
        columns.extend(metric.columns);
        columns.push("extrapolated_from");
        let mut csv = Csv::new(&columns);
        self.results.iter().for_each(|each| csv.push(&fields(each, &(metric.fields)(each))));
        let line = |slot| Line { label: self.variants.label(slot), slot, points: self.points(slot, &metric) };
        let lines = (0..self.variants.variants.len()).map(line).filter(|line| !line.points.is_empty()).collect();
        let across = if self.setup.pass == "decode" { "cached keys" } else { "tokens" };
        let x = Axis::logarithmic(across, Unit::Tokens);
        let lines = Lines { x, y: metric.axis, lines, always_lines: false };
        let mut table = lines.table(usize::MAX);
        table.csv = csv;
        Figure { title: metric.title.to_owned(), about: metric.about.to_owned(), findings: Vec::new(), chart: lines.chart(), table }
    }

    fn of(&self, slot: usize) -> impl Iterator<Item = &Measurement> {
        let variant = self.variants.variants[slot];
        self.results.iter().copied().filter(move |each| (each.mechanism.as_str(), &each.options) == variant)
    }

    fn points(&self, slot: usize, metric: &Metric) -> Vec<Point> {
        let point = |each: &Measurement| {
            let reckoned = metric.is_timed && each.extrapolated_from.is_some();
            Some(Point { reckoned, ..Point::new(each.length as f64, (metric.value)(each)?) })
        };
        let mut points: Vec<Point> = self.of(slot).filter_map(point).collect();
        points.sort_by(|a, b| a.x.total_cmp(&b.x));
        points
    }

    fn times(&self, slot: usize) -> Vec<Time> {
        let time =
            |each: &Measurement| Time { length: each.length as f64, seconds: each.median_s, reckoned: each.extrapolated_from.is_some() };
        self.of(slot).map(time).collect()
    }

    /// Time, with ceilings and crossings.
    fn time(&self) -> Figure {
        let mut figure = self.figure(time());
        self.draw_limits(&mut figure.chart);
        if self.variants.variants.first().is_some_and(|(mechanism, _)| *mechanism == REFERENCE) {
            self.draw_crossings(&mut figure);
        }
        figure
    }

    fn draw_limits(&self, chart: &mut Chart) {
        let limits = [self.reference_at_ceiling(), self.reading_once()];
        for (label, points) in limits.into_iter().flatten().filter(|(_, points)| !points.is_empty()) {
            let points = match chart.kind {
                Kind::Rows => [-0.5, chart.y.names.len() as f64 - 0.5].map(|row| Point::new(points[0].y, row)).to_vec(),
                _ => points,
            };
            chart.series.push(Series { label, role: Role::Limit, slot: 0, points });
        }
    }

    /// The time of the reference if it ran at the ceiling: its median times its share of the ceiling.
    fn reference_at_ceiling(&self) -> Option<(String, Vec<Point>)> {
        let slot = self.variants.variants.iter().position(|(mechanism, _)| *mechanism == REFERENCE)?;
        let at_ceiling = |each: &Measurement| Some(Point::new(each.length as f64, each.median_s * each.ceiling_fraction?));
        let mut points: Vec<Point> = self.of(slot).filter_map(at_ceiling).filter(|point| point.y > 0.0).collect();
        points.sort_by(|a, b| a.x.total_cmp(&b.x));
        let ceiling = match (self.setup.pass, self.setup.dtype) {
            ("decode", _) => "memory ceiling",
            (_, "bf16") if self.machine.bf16_gflops.is_some() => "bf16 ceiling",
            _ => "FMA ceiling",
        };
        Some((format!("{REFERENCE} at the {ceiling}"), points))
    }

    /// The time that it takes to read q, k and v once: no mechanism that looks at all of them is faster.
    fn reading_once(&self) -> Option<(String, Vec<Point>)> {
        let bytes = self.setup.number_bytes()?;
        let speed = self.machine.read_gbps.filter(|&speed| speed > 0.0 && self.setup.pass != "decode")?;
        let [batch, heads, kv_heads, head_dim] = self.setup.sizes.map(|size| size as f64);
        let per_token = batch * (heads + 2.0 * kv_heads) * head_dim * bytes;
        let mut lengths: Vec<u64> = self.results.iter().map(|each| each.length).collect();
        lengths.sort_unstable();
        lengths.dedup();
        let point = |length: u64| Point::new(length as f64, per_token * length as f64 / (speed * 1e9));
        Some(("q, k, v read once at memory speed".to_owned(), lengths.into_iter().map(point).collect()))
    }

    fn draw_crossings(&self, figure: &mut Figure) {
        let reference = self.times(0);
        let mut rings = Vec::new();
        for slot in 1..self.variants.variants.len() {
            let candidate = self.times(slot);
            let label = self.variants.label(slot);
            let found = crossovers(&reference, &candidate);
            for each in &found {
                let verb = if each.faster_beyond { "becomes faster" } else { "becomes slower" };
                let [from, to] = each.between.map(|length| Unit::Tokens.show(length));
                let doubt = if each.reckoned { ", one of whose times is reckoned" } else { "" };
                figure.findings.push(format!(
                    "{label} {verb} than {REFERENCE} at about {} tokens (between {from} and {to}{doubt})",
                    about(each.length)
                ));
                rings.push(Point::new(each.length, each.seconds));
            }
            if found.is_empty() {
                figure.findings.extend(throughout(&label, &shared(&reference, &candidate)));
            }
        }
        if !rings.is_empty() && figure.chart.kind == Kind::Lines {
            let label = format!("crossover with {REFERENCE}");
            figure.chart.series.push(Series { label, role: Role::Crossing, slot: 0, points: rings });
        }
    }
}

/// Who is faster where nothing crosses.
fn throughout(label: &str, shared: &[[Time; 2]]) -> Option<String> {
    let speedup = |[reference, candidate]: &[Time; 2]| reference.seconds / candidate.seconds;
    let (first, last) = (shared.first()?, shared.last()?);
    let than = if speedup(last) > 1.0 { "faster" } else { "not faster" };
    let times = |pair: &[Time; 2]| format!("{} times as fast at {}", Unit::Plain.show(speedup(pair)), Unit::Tokens.show(pair[0].length));
    if shared.len() == 1 {
        return Some(format!("{label} is {} as {REFERENCE}", times(first)));
    }
    Some(format!("{label} is {than} than {REFERENCE} at every length: {}, {}", times(first), times(last)))
}

/// A length that lies between measured ones.
fn about(length: f64) -> String {
    if length < 1024.0 { format!("{length:.0}") } else { format!("{}k", Unit::Plain.show(length / 1024.0)) }
}

/// A row of a CSV.
fn fields(each: &Measurement, numbers: &[Option<f64>]) -> Vec<String> {
    let mut row = vec![each.mechanism.clone(), each.pass.clone(), each.dtype.clone(), each.causal.to_string()];
    row.extend([each.batch, each.heads, each.kv_heads, each.head_dim, each.length].map(|count| count.to_string()));
    row.push(Value::Object(each.options.clone()).to_string());
    row.extend(numbers.iter().map(|x| x.map_or_else(String::new, number)));
    row.push(each.extrapolated_from.map_or_else(String::new, |length| length.to_string()));
    row
}

fn time() -> Metric {
    Metric {
        title: "Time against length",
        about: "Median of the runs; lower is better. Hollow points and dashed lines are reckoned, not measured. Dotted: what the machine allows (v taken to be as wide as k).",
        axis: Axis::logarithmic("time", Unit::Seconds),
        value: |each| Some(each.median_s),
        is_timed: true,
        columns: &["median_s", "min_s", "runs"],
        fields: |each| vec![Some(each.median_s), each.min_s, Some(each.runs as f64)],
    }
}

fn speed() -> Metric {
    Metric {
        title: "Share of the machine's ceiling",
        about: "Work that the mechanism does per second, over what the machine can do; higher is better. A mechanism may do little work slowly and still be the faster one.",
        axis: Axis::linear("share of ceiling", Unit::Share).including(&[0.0, 1.0]),
        value: |each| each.ceiling_fraction,
        is_timed: true,
        columns: &["ceiling_fraction", "gflops", "gbps"],
        fields: |each| vec![each.ceiling_fraction, each.gflops, each.gbps],
    }
}

fn memory() -> Metric {
    Metric {
        title: "Memory against length",
        about: "Allocated at the same time at most, beside inputs and outputs; lower is better.",
        axis: Axis::logarithmic("extra memory", Unit::Bytes),
        value: |each| each.extra_bytes.map(|bytes| bytes as f64),
        is_timed: false,
        columns: &["extra_bytes"],
        fields: |each| vec![each.extra_bytes.map(|bytes| bytes as f64)],
    }
}

fn relative(deviation: Option<Deviation>) -> Option<f64> {
    deviation.and_then(|deviation| deviation.rel_l2)
}

fn both(deviation: Option<Deviation>) -> Vec<Option<f64>> {
    vec![deviation.and_then(|deviation| deviation.max_abs), relative(deviation)]
}

fn error() -> Metric {
    Metric {
        title: "Rounding error",
        about: "Distance from the mechanism's own definition in f64, relative, on sampled rows; lower is better.",
        axis: Axis::logarithmic("relative error", Unit::Plain),
        value: |each| relative(each.error),
        is_timed: false,
        columns: &["error_max_abs", "error_rel_l2"],
        fields: |each| both(each.error),
    }
}

fn random() -> Metric {
    Metric {
        title: "Distance from exact attention, random inputs",
        about: "Relative distance of the output from that of exact attention; lower is closer. Random inputs are the worst case of most approximations.",
        axis: Axis::logarithmic("relative distance", Unit::Plain),
        value: |each| relative(each.approximation.and_then(|approximation| approximation.random)),
        is_timed: false,
        columns: &["random_max_abs", "random_rel_l2"],
        fields: |each| both(each.approximation.and_then(|approximation| approximation.random)),
    }
}

fn captured() -> Metric {
    Metric {
        title: "Distance from exact attention, captured inputs",
        about: "Relative distance of the output from that of exact attention, on q, k, v of a model; lower is closer.",
        axis: Axis::logarithmic("relative distance", Unit::Plain),
        value: |each| relative(each.approximation.and_then(|approximation| approximation.captured)),
        is_timed: false,
        columns: &["captured_max_abs", "captured_rel_l2"],
        fields: |each| both(each.approximation.and_then(|approximation| approximation.captured)),
    }
}
