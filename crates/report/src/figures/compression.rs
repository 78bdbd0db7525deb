//! Figures of compressed texts: each measure over the share of the tokens that stayed, a line for every method.

use super::Section;
use super::lines::{Line, Lines};
use crate::chart::{Axis, Figure, Point};
use crate::schema::{Compression, Left, Retention};
use crate::table::{Csv, number};
use crate::units::Unit;

/// Everything that an evaluation has to show.
pub fn sections(found: &Compression) -> Vec<Section> {
    let figures: Vec<Figure> = found.measures.iter().map(figure).filter(Figure::is_drawn).collect();
    vec![Section { title: "What is left of texts".to_owned(), figures }]
}

fn figure(measure: &Retention) -> Figure {
    let mut methods: Vec<&str> = Vec::new();
    for left in &measure.results {
        if !methods.contains(&left.method.as_str()) {
            methods.push(&left.method);
        }
    }
    let points = |method: &str| measure.results.iter().filter(|left| left.method == method).map(point).collect();
    let lines = methods.iter().enumerate().map(|(at, method)| Line { label: (*method).to_owned(), slot: at + 1, points: points(method) });
    let x = Axis::linear("tokens that were to stay", Unit::Share);
    let lines = Lines { x, y: Axis::linear(&measure.name, Unit::Plain), lines: lines.collect(), always_lines: true };
    let mut table = lines.table(usize::MAX);
    table.csv = csv(&measure.results);
    let whole = measure.whole.map(|whole| format!("On whole texts: {}.", Unit::Plain.show(whole)));
    Figure {
        title: measure.name.clone(),
        about: format!("{} {} of them; higher is better.", measure.about, measure.count),
        findings: whole.into_iter().collect(),
        chart: lines.chart(),
        table,
    }
}

fn point(left: &Left) -> Point {
    Point { y_range: left.error.map(|error| [left.value - 1.96 * error, left.value + 1.96 * error]), ..Point::new(left.keep, left.value) }
}

fn csv(results: &[Left]) -> Csv {
    let mut csv = Csv::new(&["method", "keep", "ratio", "value", "error"]);
    for left in results {
        let error = left.error.map_or_else(String::new, number);
        csv.push(&[left.method.clone(), number(left.keep), number(left.ratio), number(left.value), error]);
    }
    csv
}
