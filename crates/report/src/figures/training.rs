//! Figures of what was trained: quality with its interval, tokens that layers keep, speed, memory, what quality costs in
//! speed, and curves of the loss.

use super::Section;
use super::lines::{Line, Lines};
use crate::chart::{Axis, Chart, Figure, Kind, Point, Role, Series};
use crate::schema::{Configuration, Difference, Moment, Run, Speed, Task};
use crate::statistics::{Estimate, mean};
use crate::table::{Cell, Csv, Table, number};
use crate::units::Unit;
use std::collections::{BTreeMap, BTreeSet};

/// Rows of a curve's table.
const CURVE_ROWS: usize = 13;

/// Configurations that may stand in one chart: one task, one machine.
pub struct Group<'a> {
    /// What was learned.
    pub task: &'a Task,
    /// What learned it, under names that differ.
    pub configurations: Vec<(String, &'a Configuration)>,
}

/// A speed of training or of inference.
#[derive(Clone, Copy)]
struct Phase {
    name: &'static str,
    speeds: fn(&Run) -> &[Speed],
}

const PHASES: [Phase; 2] =
    [Phase { name: "Training", speeds: |run| &run.training }, Phase { name: "Inference", speeds: |run| &run.inference }];

/// A number of each phase at lengths.
struct Measure {
    title: &'static str,
    about: &'static str,
    axis: Axis,
    column: &'static str,
    value: fn(&Speed) -> Option<f64>,
}

/// Everything that a comparison has to show.
pub fn sections(group: &Group<'_>) -> Vec<Section> {
    let mut quality = vec![group.quality(), group.difference()];
    quality.extend(PHASES.map(|phase| group.pareto(phase)));
    quality.push(group.compression());
    let throughputs = PHASES.map(|phase| group.at_lengths(phase, throughput()));
    let memories = PHASES.map(|phase| group.at_lengths(phase, memory()));
    let losses = vec![
        group.loss("Training loss", "training_loss", |moment| moment.training_loss),
        group.loss("Validation loss", "validation_loss", |moment| moment.validation_loss),
    ];
    let section = |title: &str, figures: Vec<Figure>| Section {
        title: title.to_owned(),
        figures: figures.into_iter().filter(Figure::is_drawn).collect(),
    };
    let all = [
        section("Quality", quality),
        section("Speed and memory", throughputs.into_iter().chain(memories).collect()),
        section("Loss", losses),
    ];
    all.into_iter().filter(|section| !section.figures.is_empty()).collect()
}

fn throughput() -> Measure {
    Measure {
        title: "throughput against length",
        about: "Tokens per second, the mean over seeds; higher is better.",
        axis: Axis::logarithmic("tokens per second", Unit::Rate),
        column: "tokens_per_s",
        value: |speed| speed.tokens_per_s,
    }
}

fn memory() -> Measure {
    Measure {
        title: "memory against length",
        about: "Largest memory of the process, the mean over seeds; lower is better.",
        axis: Axis::logarithmic("peak memory", Unit::Bytes),
        column: "peak_bytes",
        value: |speed| speed.peak_bytes.map(|bytes| bytes as f64),
    }
}

impl Group<'_> {
    fn metric(&self) -> String {
        let split = self.task.split.as_ref().map_or_else(String::new, |split| format!(", {split}"));
        format!("{} ({}{split})", self.task.metric, self.task.name)
    }

    fn better(&self) -> &'static str {
        if self.task.higher_is_better { "higher is better" } else { "lower is better" }
    }

    /// Numbers of every configuration, which makes them into a line.
    fn lines(&self, points: impl Fn(&Configuration) -> Vec<Point>) -> Vec<Line> {
        let line = |(slot, (label, configuration)): (usize, &(String, &Configuration))| Line {
            label: label.clone(),
            slot: slot + 1,
            points: points(configuration),
        };
        self.configurations.iter().enumerate().map(line).filter(|line| !line.points.is_empty()).collect()
    }

    /// A row for every run, with what `fields` adds to name and seed; as many as it gives.
    fn csv(&self, columns: &[&str], rows: impl Fn(&Run) -> Vec<Vec<String>>) -> Csv {
        let mut csv = Csv::new(&[&["configuration", "seed"], columns].concat());
        for (label, configuration) in &self.configurations {
            for run in &configuration.runs {
                for row in rows(run) {
                    csv.push(&[vec![label.clone(), run.seed.to_string()], row].concat());
                }
            }
        }
        csv
    }

    fn quality(&self) -> Figure {
        let mut series = Vec::new();
        let mut rows = Vec::new();
        let mut names = Vec::new();
        for (slot, (label, configuration)) in self.configurations.iter().enumerate() {
            let qualities = qualities(configuration);
            let Some(estimate) = Estimate::of(&qualities) else { continue };
            let row = names.len() as f64;
            let mark = Point { x_half: estimate.half, ..Point::new(estimate.mean, row) };
            let singles = qualities.iter().map(|&x| Point::new(x, row)).collect();
            series.push(Series { label: format!("{label}, single seeds"), role: Role::Single, slot: slot + 1, points: singles });
            series.push(Series { label: label.clone(), role: Role::Measured, slot: slot + 1, points: vec![mark] });
            rows.push(vec![
                Cell::text(label.as_str()),
                Cell::number(Unit::Plain, estimate.mean),
                estimate.half.map_or_else(|| Cell::text("one seed"), |half| Cell::number(Unit::Plain, half)),
                Cell::text(estimate.count.to_string()),
                Cell::maybe(Unit::Whole, configuration.parameters.map(|count| count as f64)),
            ]);
            names.push(label.clone());
        }
        let csv = self.csv(&["quality"], |run| vec![vec![run.quality.map_or_else(String::new, number)]]);
        let head = ["configuration", &self.task.metric, "± 95 %", "seeds", "parameters"].map(str::to_owned).to_vec();
        Figure {
            title: "Quality by configuration".to_owned(),
            about: format!(
                "{}; {}. The mean over seeds with its 95 % interval (Student's t); pale: single seeds. One seed has no interval.",
                self.metric(),
                self.better()
            ),
            findings: Vec::new(),
            chart: Chart { kind: Kind::Rows, x: Axis::linear(&self.task.metric, Unit::Plain), y: Axis::rows(names), series },
            table: Table { head, rows, note: None, csv },
        }
    }

    /// How far each configuration is from exact attention.
    fn difference(&self) -> Figure {
        let (mut series, mut rows, mut names) = (Vec::new(), Vec::new(), Vec::new());
        let mut csv = Csv::new(&["configuration", "mean", "low", "high"]);
        for (slot, (label, configuration)) in self.configurations.iter().enumerate() {
            let Some(Difference { mean, low, high }) = configuration.difference else { continue };
            let mark = Point { x_half: Some((high - low) / 2.0), ..Point::new(mean, names.len() as f64) };
            series.push(Series { label: label.clone(), role: Role::Measured, slot: slot + 1, points: vec![mark] });
            let numbers = [mean, low, high].map(|x| Cell::number(Unit::Plain, x));
            rows.push([vec![Cell::text(label.as_str())], numbers.to_vec()].concat());
            csv.push(&[label.clone(), number(mean), number(low), number(high)]);
            names.push(label.clone());
        }
        let floor = self.task.floor.map_or_else(String::new, |floor| format!(" Without looking at the inputs: {}.", number(floor)));
        Figure {
            title: "Distance from exact attention".to_owned(),
            about: format!(
                "{} less that of exact attention; {}. With the 95 % interval of differences paired over examples and seeds.{floor}",
                self.metric(),
                self.better()
            ),
            findings: Vec::new(),
            chart: Chart { kind: Kind::Rows, x: Axis::linear("difference", Unit::Plain), y: Axis::rows(names), series },
            table: Table { head: ["configuration", "difference", "low", "high"].map(str::to_owned).to_vec(), rows, note: None, csv },
        }
    }

    fn compression(&self) -> Figure {
        let layers = |run: &Run| run.tokens_kept.len();
        let points = |configuration: &Configuration| {
            let most = configuration.runs.iter().map(layers).max().unwrap_or(0);
            let kept = |layer: usize| {
                let shares: Vec<f64> = configuration.runs.iter().filter_map(|run| run.tokens_kept.get(layer).copied()).collect();
                Some(Point::new((layer + 1) as f64, mean(&shares)?))
            };
            (0..most).filter_map(kept).collect()
        };
        let y = Axis::linear("tokens kept", Unit::Share).including(&[0.0, 1.0]);
        let lines = Lines { x: Axis::linear("layer", Unit::Whole), y, lines: self.lines(points), always_lines: true };
        let mut table = lines.table(usize::MAX);
        table.csv = self.csv(&["layer", "tokens_kept"], |run| {
            let row = |(layer, &share): (usize, &f64)| vec![(layer + 1).to_string(), number(share)];
            run.tokens_kept.iter().enumerate().map(row).collect()
        });
        Figure {
            title: "Compression by layer".to_owned(),
            about: "Share of the tokens that leave each layer, the mean over seeds.".to_owned(),
            findings: Vec::new(),
            chart: lines.chart(),
            table,
        }
    }

    fn at_lengths(&self, phase: Phase, measure: Measure) -> Figure {
        let points = |configuration: &Configuration| {
            let point = |(length, numbers): (u64, Vec<f64>)| Some(Point::new(length as f64, mean(&numbers)?));
            by_length(configuration, phase, measure.value).into_iter().filter_map(point).collect()
        };
        let x = Axis::logarithmic("tokens", Unit::Tokens);
        let lines = Lines { x, y: measure.axis, lines: self.lines(points), always_lines: false };
        let mut table = lines.table(usize::MAX);
        table.csv = self.csv(&["length", measure.column], |run| {
            let row = |speed: &Speed| vec![speed.length.to_string(), (measure.value)(speed).map_or_else(String::new, number)];
            (phase.speeds)(run).iter().map(row).collect()
        });
        Figure {
            title: format!("{}: {}", phase.name, measure.title),
            about: measure.about.to_owned(),
            findings: Vec::new(),
            chart: lines.chart(),
            table,
        }
    }

    /// The longest of the lengths at which most configurations have a throughput.
    fn common_length(&self, phase: Phase) -> Option<u64> {
        let mut counts = BTreeMap::<u64, usize>::new();
        for (_, configuration) in &self.configurations {
            for length in by_length(configuration, phase, |speed| speed.tokens_per_s).into_keys() {
                *counts.entry(length).or_default() += 1;
            }
        }
        counts.into_iter().max_by_key(|&(length, count)| (count, length)).map(|(length, _)| length)
    }

    /// Quality and throughput of each configuration that has both.
    fn candidates(&self, phase: Phase, length: u64) -> Vec<Candidate> {
        let candidate = |(slot, (label, configuration)): (usize, &(String, &Configuration))| {
            let speeds = by_length(configuration, phase, |speed| speed.tokens_per_s).remove(&length)?;
            let quality = Estimate::of(&qualities(configuration))?;
            Some(Candidate { slot: slot + 1, label: label.clone(), speed: mean(&speeds)?, quality })
        };
        self.configurations.iter().enumerate().filter_map(candidate).collect()
    }

    fn pareto(&self, phase: Phase) -> Figure {
        let length = self.common_length(phase).unwrap_or(0);
        let candidates = self.candidates(phase, length);
        let front = front(&candidates, self.task.higher_is_better);
        let mut csv = Csv::new(&["configuration", "length", "tokens_per_s", "quality", "half_of_interval", "on_front"]);
        let mut rows = Vec::new();
        let mut series = Vec::new();
        let line = front.iter().map(|&i| Point::new(candidates[i].speed, candidates[i].quality.mean)).collect();
        series.push(Series { label: "front".to_owned(), role: Role::Front, slot: 0, points: line });
        for (i, Candidate { slot, label, speed, quality }) in candidates.iter().enumerate() {
            let on_front = front.contains(&i);
            let y_range = quality.half.map(|half| [quality.mean - half, quality.mean + half]);
            let point = Point { y_range, ..Point::new(*speed, quality.mean) };
            series.push(Series { label: label.clone(), role: Role::Measured, slot: *slot, points: vec![point] });
            rows.push(vec![
                Cell::text(label.as_str()),
                Cell::number(Unit::Rate, *speed),
                Cell::number(Unit::Plain, quality.mean),
                Cell::maybe(Unit::Plain, quality.half),
                Cell::text(if on_front { "yes" } else { "no" }),
            ]);
            let half = quality.half.map_or_else(String::new, number);
            csv.push(&[label.clone(), length.to_string(), number(*speed), number(quality.mean), half, on_front.to_string()]);
        }
        let head = ["configuration", "tokens per second", &self.task.metric, "± 95 %", "on the front"].map(str::to_owned).to_vec();
        let names: Vec<&str> = front.iter().map(|&i| candidates[i].label.as_str()).collect();
        let x = Axis::logarithmic(
            &format!("tokens per second, {} at {} tokens", phase.name.to_lowercase(), Unit::Tokens.show(length as f64)),
            Unit::Rate,
        );
        Figure {
            title: format!("Quality against throughput: {}", phase.name.to_lowercase()),
            about: format!(
                "Right is faster, {}. The dashed line joins configurations that no other beats in both; bars: 95 % interval of quality.",
                if self.task.higher_is_better { "up is better" } else { "down is better" }
            ),
            findings: vec![format!("On the front: {}", names.join(", "))],
            chart: Chart { kind: Kind::Scatter, x, y: Axis::linear(&self.task.metric, Unit::Plain), series },
            table: Table { head, rows, note: None, csv },
        }
    }

    fn loss(&self, title: &str, column: &str, value: fn(&Moment) -> Option<f64>) -> Figure {
        let x = Axis::linear("step", Unit::Whole);
        let y = Axis::linear(&title.to_lowercase(), Unit::Plain);
        let lines = Lines { x, y, lines: self.lines(|configuration| curve(configuration, value)), always_lines: true };
        let mut table = lines.table(CURVE_ROWS);
        table.csv = self.csv(&["step", column], |run| {
            let row = |moment: &Moment| Some(vec![moment.step.to_string(), number(value(moment)?)]);
            run.curve.iter().filter_map(row).collect()
        });
        Figure {
            title: title.to_owned(),
            about: "The mean over seeds, at the steps that all of them have; shaded: from the lowest to the highest seed.".to_owned(),
            findings: Vec::new(),
            chart: lines.chart(),
            table,
        }
    }
}

fn qualities(configuration: &Configuration) -> Vec<f64> {
    configuration.runs.iter().filter_map(|run| run.quality).collect()
}

/// Numbers of all seeds at each length.
fn by_length(configuration: &Configuration, phase: Phase, value: fn(&Speed) -> Option<f64>) -> BTreeMap<u64, Vec<f64>> {
    let mut numbers = BTreeMap::<u64, Vec<f64>>::new();
    for speed in configuration.runs.iter().flat_map(phase.speeds) {
        if let Some(number) = value(speed) {
            numbers.entry(speed.length).or_default().push(number);
        }
    }
    numbers
}

/// The mean over seeds at the steps that every seed with a curve has. A seed that ended early ends the line: what the
/// others do later is not a mean of the same runs.
fn curve(configuration: &Configuration, value: fn(&Moment) -> Option<f64>) -> Vec<Point> {
    let of_run = |run: &Run| run.curve.iter().filter_map(|moment| Some((moment.step, value(moment)?))).collect::<BTreeMap<u64, f64>>();
    let curves: Vec<BTreeMap<u64, f64>> = configuration.runs.iter().map(of_run).filter(|curve| !curve.is_empty()).collect();
    let steps: BTreeSet<u64> = curves.first().map(|curve| curve.keys().copied().collect()).unwrap_or_default();
    let point = |step: u64| {
        let losses = curves.iter().map(|curve| curve.get(&step).copied()).collect::<Option<Vec<f64>>>()?;
        let range = losses.iter().fold([f64::INFINITY, f64::NEG_INFINITY], |[low, high], &x| [low.min(x), high.max(x)]);
        Some(Point { y_range: (losses.len() > 1).then_some(range), ..Point::new(step as f64, mean(&losses)?) })
    };
    steps.into_iter().filter_map(point).collect()
}

/// What competes for a place on the front.
struct Candidate {
    slot: usize,
    label: String,
    speed: f64,
    quality: Estimate,
}

/// Those that no other beats: as good in both, and better in one. Fastest last.
fn front(candidates: &[Candidate], higher_is_better: bool) -> Vec<usize> {
    let worth = |candidate: &Candidate| if higher_is_better { candidate.quality.mean } else { -candidate.quality.mean };
    let beats = |a: &Candidate, b: &Candidate| a.speed >= b.speed && worth(a) >= worth(b) && (a.speed > b.speed || worth(a) > worth(b));
    let mut front: Vec<usize> = (0..candidates.len()).filter(|&i| !candidates.iter().any(|other| beats(other, &candidates[i]))).collect();
    front.sort_by(|&a, &b| candidates[a].speed.total_cmp(&candidates[b].speed));
    front
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(speed: f64, quality: f64) -> Candidate {
        Candidate { slot: 0, label: String::new(), speed, quality: Estimate { mean: quality, half: None, count: 1 } }
    }

    #[test]
    fn the_front_is_what_no_other_beats() {
        let candidates = [candidate(1.0, 0.9), candidate(3.0, 0.7), candidate(2.0, 0.6), candidate(2.0, 0.8), candidate(2.0, 0.8)];
        assert_eq!(front(&candidates, true), [0, 3, 4, 1]);
        assert_eq!(front(&candidates, false), [2, 1]);
    }

    #[test]
    fn a_seed_that_ended_early_ends_the_mean() {
        let run = |losses: &[f64]| {
            let moment = |(i, &loss): (usize, &f64)| Moment { step: i as u64, training_loss: Some(loss), validation_loss: None };
            let curve = losses.iter().enumerate().map(moment).collect();
            Run { curve, ..Run::default() }
        };
        let runs = vec![run(&[3.0, 2.0, 1.0]), run(&[5.0, 4.0])];
        let configuration = Configuration { runs, ..Configuration::default() };
        let points = curve(&configuration, |moment| moment.training_loss);
        assert_eq!(
            points.iter().map(|point| (point.y, point.y_range)).collect::<Vec<_>>(),
            [(4.0, Some([3.0, 5.0])), (3.0, Some([2.0, 4.0]))]
        );
    }
}
